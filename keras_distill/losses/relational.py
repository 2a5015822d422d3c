"""Relational distillation: distances and angles within a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import keras
from keras import ops

from keras_distill.losses.base import Tensor
from keras_distill.losses.feature_loss import FeatureLoss, flatten


@keras.saving.register_keras_serializable("keras_distill")
class RelationalDistance(FeatureLoss):
    """Difference of the distances within a batch (RKD-D).

    What counts is how far examples are from each other, in units of their mean
    distance, not where they are. So the two layers may have any widths and
    sizes.

    Formula:
        With `d_ij = |f_i - f_j|`, divided by the mean of those above 0:
        `mean_j huber(d_teacher_ij - d_student_ij)` for example `i`, where
        `huber(x)` is `x**2 / 2` up to 1 and `|x| - 1/2` above. Summed over the
        pairs of layers.

    Args:
        teacher_layer_name: As in `FeatureLoss`.
        student_layer_name: As in `FeatureLoss`.
        projector: As in `FeatureLoss`.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ...)` with any widths and sizes, values
        `(batch,)`. Memory is of the order of `batch**2`.

    Raises:
        ValueError: If the two have not the same number of axes.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.RelationalDistance()
        >>> value = loss([[0.0], [1.0], [3.0]], [[0.0], [1.0], [2.0]])
        >>> round(float(value), 4)
        0.0139

    Reference:
        Park et al., "Relational Knowledge Distillation", CVPR 2019.
    """

    default_weight = 25.0
    relates_examples = True
    same_channels = False
    same_size = False

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        difference = _distances(teacher) - _distances(student)
        return ops.mean(_huber(difference), axis=-1)


@keras.saving.register_keras_serializable("keras_distill")
class RelationalAngle(FeatureLoss):
    """Difference of the angles within a batch (RKD-A).

    What counts is the angle at which an example sees two others, for all
    triples of a batch. So the two layers may have any widths and sizes.

    The angles of some examples are computed at a time, and again for the
    gradient: all at once would take `batch**3` numbers. Two examples that are
    closer than 1/300 of their distances from the mean count as the same.

    Formula:
        With `c_ijk` the cosine of `f_j - f_i` and `f_k - f_i`, which is 0 where
        two of the three are the same: `mean_jk huber(c_teacher_ijk -
        c_student_ijk)` for example `i`, where `huber(x)` is `x**2 / 2` up to 1
        and `|x| - 1/2` above. Summed over the pairs of layers.

    Args:
        teacher_layer_name: As in `FeatureLoss`.
        student_layer_name: As in `FeatureLoss`.
        projector: As in `FeatureLoss`.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ...)` with any widths and sizes, values
        `(batch,)`. Memory is of the order of `batch**2`, and about 200 MB at
        least for large batches; time of `batch**3`.

    Raises:
        ValueError: If the two have not the same number of axes.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.RelationalAngle()
        >>> value = loss([[0.0], [1.0], [3.0]], [[0.0], [1.0], [-1.0]])
        >>> round(float(value), 4)
        0.2222

    Reference:
        Park et al., "Relational Knowledge Distillation", CVPR 2019.
    """

    default_weight = 50.0
    relates_examples = True
    same_channels = False
    same_size = False

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        teacher_products, *teacher_rows = _relations(teacher)
        student_products, *student_rows = _relations(student)
        values = ops.map(
            lambda rows: _of_anchors(*rows, teacher_products, student_products),
            tuple(_groups(x) for x in (*teacher_rows, *student_rows)),
        )
        return ops.reshape(values, (-1,))[: ops.shape(teacher)[0]]


def _relations(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What angles are made of.

    Returns:
        Scalar products `p_jk`; `p_ij - p_ii / 2`, of which
        `(f_j - f_i) (f_k - f_i) = p_jk - r_ij - r_ik`; and inverse distances,
        0 for none. Each of `(batch, batch)`.
    """
    products, squares, scale = _squares(x)
    # Up to there, what is left of the difference of large numbers is noise.
    # NaN isn't: it shall be seen.
    near = squares <= 1e-5 * scale
    inverse = 1 / ops.sqrt(ops.where(near, 1.0, squares))
    from_anchor = products - ops.diagonal(products)[:, None] / 2
    return products, from_anchor, ops.where(near, 0.0, inverse)


def _groups(x: Tensor) -> Tensor:
    """Rows in groups, the last filled up with zeros."""
    rows, width = ops.shape(x)
    known = isinstance(rows, int)
    # Of eight million angles each: blocks of memory that the C library returns
    # when they are freed, where smaller ones would leave gaps.
    size = min(rows, -(-(2**23) // rows**2)) if known else 8
    missing = -rows % size
    filled = ops.concatenate([x, ops.zeros((missing, width), x.dtype)])
    return ops.reshape(filled, ((rows + missing) // size, size, width))


def _recomputing(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that keeps nothing for its gradient but its arguments."""
    with warnings.catch_warnings():
        # A backend without gradients warns that there is nothing to save.
        warnings.simplefilter("ignore")
        return keras.remat(function)  # type: ignore[no-any-return]


@_recomputing
def _of_anchors(
    teacher_rows: Tensor,
    teacher_inverse: Tensor,
    student_rows: Tensor,
    student_inverse: Tensor,
    teacher_products: Tensor,
    student_products: Tensor,
) -> Tensor:
    """The values of some examples, among all."""
    teacher = _cosines(teacher_rows, teacher_inverse, teacher_products)
    student = _cosines(student_rows, student_inverse, student_products)
    return ops.mean(_huber(teacher - student), axis=(1, 2))


def _cosines(rows: Tensor, inverse: Tensor, products: Tensor) -> Tensor:
    """Of some examples, each with two others: `(anchors, batch, batch)`."""
    scalar = products - rows[:, :, None] - rows[:, None]
    return scalar * inverse[:, :, None] * inverse[:, None]


def _squares(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Products, squared distances, and the sum of the two squared lengths."""
    x = flatten(x)
    # Differences of large products would lose small distances.
    x = x - ops.mean(x, axis=0)
    products = x @ ops.transpose(x)
    lengths = ops.sum(ops.square(x), axis=-1)
    scale = lengths[:, None] + lengths[None]
    return products, scale - 2 * products, scale


def _distances(x: Tensor) -> Tensor:
    _, squares, _ = _squares(x)
    batch = ops.shape(x)[0]
    others = 1 - ops.eye(batch, dtype=squares.dtype)
    # A root's gradient at 0 is infinite, also where `where` drops it.
    # Not "above 0", which would hide NaN.
    near = squares * others <= 0
    distances = ops.where(near, 0.0, ops.sqrt(ops.where(near, 1.0, squares)))
    count = ops.sum(1 - ops.cast(near, squares.dtype))
    return distances * count / ops.maximum(ops.sum(distances), 1e-12)


def _huber(x: Tensor) -> Tensor:
    size = ops.abs(x)
    inner = ops.minimum(size, 1.0)
    return inner * (size - inner / 2)
