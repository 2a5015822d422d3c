"""Correlation congruence: how examples go together, in two forms."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerNames, Shape, Tensor
from keras_distill.losses.feature_loss import (
    FeatureLoss,
    flatten,
    length,
    unit,
)


@keras.saving.register_keras_serializable("keras_distill")
class CorrelationCongruence(FeatureLoss):
    """Differences of consecutive examples, multiplied (CC).

    The form that is common in comparisons of methods: it asks that what the
    student gets wrong is not the same for one example and the next. It differs
    much from the paper's, which is `KernelCongruence`.

    Formula:
        With `d_i = |embed(teacher_i) - embed(student_i)|`, the mean of `sum_k
        d_ik * d_(i+1)k` over the consecutive examples `i`, `i + 1` of the
        batch. Each of the two has one half of it. Summed over the pairs of
        layers.

    Args:
        teacher_layer_name: As in `FeatureLoss`.
        student_layer_name: As in `FeatureLoss`.
        embedding: Width of the vectors that are compared. Teacher and student
            have a dense layer each for it, which are trained with the student.
            `None` to compare layers of equal sizes without.
        projector: As in `FeatureLoss`.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ...)`, values `(batch,)`, which depend on
        the order of the examples. A batch of one example has the value 0.

    Raises:
        ValueError: If `embedding` isn't a positive integer or `None`, or if it
            is `None` and the sizes differ.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.CorrelationCongruence(embedding=None)
        >>> float(loss([[1.0, 3.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]))
        3.0

    Reference:
        Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV
        2019, in the form and with the weight of Tian et al., "Contrastive
        Representation Distillation", ICLR 2020.
    """

    default_weight = 0.02
    relates_examples = True
    same_channels = False
    same_size = False
    has_parts = True

    def __init__(
        self,
        teacher_layer_name: LayerNames = None,
        student_layer_name: LayerNames = None,
        embedding: int | None = 128,
        projector: Any = None,
        data_format: str | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        if embedding is not None and (
            not isinstance(embedding, int) or embedding < 1
        ):
            raise ValueError(
                "The embedding is a vector's width. Received: "
                f"embedding={embedding!r}. Pass a positive integer, or None "
                "for layers of equal sizes."
            )
        # The base asks for them while it is made.
        self.has_parts = embedding is not None
        self.same_channels = self.same_size = embedding is None
        super().__init__(
            teacher_layer_name,
            student_layer_name,
            projector,
            data_format,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.embedding = embedding

    def make_parts(self, teacher_shape: Any, student_shape: Any) -> None:
        """Make a dense layer for each layer that is compared."""
        if self.embedding is None:
            return
        self.teacher_embeddings = self._embeddings(teacher_shape, "teacher")
        self.student_embeddings = self._embeddings(student_shape, "student")

    def _embeddings(self, shape: Any, who: str) -> list[keras.Layer]:
        several = isinstance(shape[-1], (list, tuple))
        return [
            self._embedding(tuple(each), who)
            for each in (shape if several else [shape])
        ]

    def _embedding(self, shape: Shape, who: str) -> keras.Layer:
        if None in shape[1:]:
            raise ValueError(
                "A dense layer needs to know how many numbers it gets. "
                f"Received: {who}_shape={shape}. Name layers of a known size, "
                "such as the one behind GlobalAveragePooling2D."
            )
        layer = keras.layers.Dense(
            self.embedding, dtype=self.dtype, name=f"{who}_embedding"
        )
        layer.build((None, math.prod(shape[1:])))  # type: ignore[arg-type]
        return layer

    def call(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The sum of `compare` over the pairs, `(batch,)` values."""
        pairs = [
            (flatten(t), flatten(s)) for t, s in self.pairs(teacher, student)
        ]
        if self.embedding is not None:
            pairs = [
                (_embedded(t, t_layer), _embedded(s, s_layer))
                for (t, s), t_layer, s_layer in zip(
                    pairs,
                    self.teacher_embeddings,
                    self.student_embeddings,
                    strict=True,
                )
            ]
        values = [self.compare(t, s) for t, s in pairs]
        return sum(values[1:], start=values[0])

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`, of vectors of the same width."""
        difference = ops.abs(teacher - student)
        products = ops.sum(difference[:-1] * difference[1:], axis=-1)
        halves = ops.pad(products, (1, 0)) + ops.pad(products, (0, 1))
        batch = ops.shape(difference)[0]
        scale = ops.cast(batch, self.dtype) / ops.cast(
            ops.maximum(batch - 1, 1), self.dtype
        )
        return halves / 2 * scale

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {**super().get_config(), "embedding": self.embedding}


def _embedded(x: Tensor, layer: keras.layers.Dense) -> Tensor:
    # To call a layer takes longer than this product.
    return x @ layer.kernel.value + layer.bias.value


@keras.saving.register_keras_serializable("keras_distill")
class KernelCongruence(FeatureLoss):
    """Difference of the examples' correlations by a Gaussian kernel (CC).

    How near each two examples of a batch are to each other, in the teacher's
    layer and in the student's.

    torchdistill leaves the vectors as they are and doesn't square the distance
    of the two matrices. The kernel's series holds for unit vectors, and the
    paper squares: both is done here, unless `form` asks for the other.

    Formula:
        `k_ij = exp(-2 * gamma) * sum_p (2 * gamma)**p / p! * (f_i * f_j)**p`
        for `p` from 0 to `order`, a Taylor series of `exp(-gamma * |f_i -
        f_j|**2)` where the `f` are unit vectors. With `d` the difference of
        teacher's and student's `k`:

        - `form="squares"`: `sum_j d_ij**2 / batch` for example `i`, of unit
          vectors;
        - `form="distance"`: `sqrt(sum_ij d_ij**2) / batch**2`, the same for
          each example, of the vectors as they are.

        Summed over the pairs of layers.

    Args:
        teacher_layer_name: As in `FeatureLoss`.
        student_layer_name: As in `FeatureLoss`.
        gamma: The kernel's inverse width, above 0.
        order: The series' highest power, at least 1.
        form: `"squares"` as in the paper, or `"distance"` as in torchdistill.
        projector: As in `FeatureLoss`.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ...)` with any widths and sizes, values
        `(batch,)`. Memory is of the order of `batch**2`.

    Raises:
        ValueError: If `gamma` isn't positive, `order` isn't a positive
            integer, `form` is another, or the two have not the same number of
            axes.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.KernelCongruence()
        >>> value = loss([[1.0, 0.0], [0.0, 1.0]], [[1.0], [1.0]])
        >>> round(float(value), 4)
        0.1266

    Reference:
        Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV
        2019.
    """

    default_weight = 0.02
    relates_examples = True
    same_channels = False
    same_size = False

    def __init__(
        self,
        teacher_layer_name: LayerNames = None,
        student_layer_name: LayerNames = None,
        gamma: float = 0.4,
        order: int = 2,
        form: str = "squares",
        projector: Any = None,
        data_format: str | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            teacher_layer_name,
            student_layer_name,
            projector,
            data_format,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        if not 0 < gamma < math.inf:
            raise ValueError(
                "gamma is the kernel's inverse width, a positive number. "
                f"Received: gamma={gamma!r}. Pass 0.4, as the paper."
            )
        if not isinstance(order, int) or order < 1:
            raise ValueError(
                "A series of order 0 is a constant. Received: "
                f"order={order!r}. Pass 2, as the paper, or another positive "
                "integer."
            )
        if form not in ("squares", "distance"):
            raise ValueError(
                "Correlations are compared in two ways. Received: "
                f"form={form!r}. Pass 'squares' or 'distance'."
            )
        self.gamma = gamma
        self.order = order
        self.form = form

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        difference = self._kernel(teacher) - self._kernel(student)
        if self.form == "squares":
            return ops.mean(ops.square(difference), axis=-1)
        distance = length(flatten(difference[None]))
        batch = ops.cast(ops.shape(difference)[0], self.dtype)
        return distance / batch**2 * ops.ones_like(difference[0])

    def _kernel(self, x: Tensor) -> Tensor:
        x = flatten(x)
        if self.form == "squares":
            x = unit(x)
        products = x @ ops.transpose(x)
        # Horner's scheme.
        series = ops.ones_like(products)
        for power in range(self.order, 0, -1):
            series = 1.0 + 2 * self.gamma / power * products * series
        return math.exp(-2 * self.gamma) * series

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "gamma": self.gamma,
            "order": self.order,
            "form": self.form,
        }
