"""Relational distillation: distances and angles within a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import keras
from keras import ops

from keras_distill.losses.base import Tensor
from keras_distill.losses.feature_loss import FeatureLoss, flatten, unit


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

    The angles of 16 examples are computed at a time, and again for the
    gradient: all at once would take `batch**3` numbers.

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
        `(batch,)`. Memory is of the order of `16 * batch * (batch +
        width)`, time of `batch**3` times the width.

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
        teacher, student = flatten(teacher), flatten(student)
        values = ops.map(
            lambda anchors: _of_anchors(*anchors, teacher, student),
            (_groups(teacher), _groups(student)),
        )
        return ops.reshape(values, (-1,))[: ops.shape(teacher)[0]]


def _groups(x: Tensor) -> Tensor:
    """Rows in groups of 16 or fewer, the last filled up with zeros."""
    rows, width = ops.shape(x)
    size = min(rows, 16) if isinstance(rows, int) else 16
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
    teacher_anchors: Tensor,
    student_anchors: Tensor,
    teacher: Tensor,
    student: Tensor,
) -> Tensor:
    """The values of some examples, among all."""
    difference = _cosines(teacher - teacher_anchors[:, None]) - _cosines(
        student - student_anchors[:, None]
    )
    return ops.mean(_huber(difference), axis=(1, 2))


def _cosines(x: Tensor) -> Tensor:
    x = unit(x)
    return ops.matmul(x, ops.swapaxes(x, 1, 2))


def _distances(x: Tensor) -> Tensor:
    x = flatten(x)
    # Differences of large products would lose small distances.
    x = x - ops.mean(x, axis=0)
    products = ops.matmul(x, ops.transpose(x))
    squares = ops.sum(ops.square(x), axis=-1)
    squares = squares[:, None] + squares[None] - 2 * products
    batch = ops.shape(x)[0]
    others = 1 - ops.eye(batch, dtype=x.dtype)
    # A root's gradient at 0 is infinite, also where `where` drops it.
    apart = squares * others > 0
    distances = ops.where(apart, ops.sqrt(ops.where(apart, squares, 1.0)), 0.0)
    count = ops.sum(ops.cast(apart, x.dtype))
    return distances * count / ops.maximum(ops.sum(distances), 1e-12)


def _huber(x: Tensor) -> Tensor:
    size = ops.abs(x)
    return ops.where(size < 1, ops.square(size) / 2, size - 0.5)
