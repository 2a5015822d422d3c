"""Hints: a hidden layer of the student learns one of the teacher."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import (
    DistillationLoss,
    LayerName,
    Shape,
    Tensor,
    fits,
)


@keras.saving.register_keras_serializable("keras_distill")
class Hint(DistillationLoss):
    """Mean squared difference of two layers' outputs (FitNets).

    The teacher's hint layer tells the student what to compute half-way. Where
    the student is narrower or coarser, a projector translates; it is trained
    with the student and thrown away afterwards.

    Formula:
        `mean (teacher - projector(student))**2` over all but the batch.

    Args:
        teacher_layer_name: The hint layer.
        student_layer_name: The guided layer.
        projector: `"auto"` for a 1x1 convolution (feature maps) or a dense
            layer (anything else) where channels differ, and bilinear resizing
            where heights and widths do; no layer where nothing differs. Or any
            `keras.Layer`, or `None`. Feature maps are read in
            `keras.config.image_data_format()`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher `(batch, ...)`, student the same behind the projector, values
        `(batch,)`.

    Raises:
        ValueError: If the shapes differ and no projector mends it.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.Hint("conv4", "conv3", projector="auto")
        >>> float(loss([[1.0, 3.0]], [[1.0, 1.0]]))
        2.0

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015. The
        default weight, 100, is the one used with this form on CIFAR-100.
    """

    default_weight = 100.0

    def __init__(
        self,
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        projector: Any = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            teacher_layer_name,
            student_layer_name,
            projector,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> Tensor:
        """Weighted mean of `call`; places that Keras masked don't count."""
        mask = getattr(y_pred, "_keras_mask", None)
        if mask is not None:
            # Keras would apply the mask of a sequence to its one value.
            y_true, y_pred = _without_padding(
                ops.cast(y_true, self.dtype), ops.cast(y_pred, self.dtype), mask
            )
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        # NumPy-style broadcasting would hide what doesn't fit.
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        squares = ops.square(teacher - student)
        return ops.mean(squares, axis=tuple(range(1, len(squares.shape))))

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise where the shapes differ."""
        if not fits(teacher_shape, student_shape):
            raise ValueError(
                f"{self.describe(teacher_shape, student_shape)} "
                f"Received: projector={self.projector!r}. Pass "
                "projector='auto', or a layer that gives the teacher's shape."
            )

    def make_projector(
        self, teacher_shape: Shape, student_shape: Shape
    ) -> keras.Layer | None:
        """A 1x1 convolution or dense layer, and resizing where needed."""
        if len(teacher_shape) != len(student_shape):
            raise ValueError(
                f"{self.describe(teacher_shape, student_shape)} No automatic "
                "projector changes the number of axes. Received: "
                "projector='auto'. Pass a layer that gives the teacher's "
                "shape, such as GlobalAveragePooling2D with a Dense."
            )
        maps = len(teacher_shape) == 4
        first = maps and keras.config.image_data_format() == "channels_first"
        channel, places = (1, (2, 3)) if first else (-1, (1, 2))
        layers: list[keras.Layer] = []
        if teacher_shape[channel] != student_shape[channel]:
            layers.append(_linear(teacher_shape[channel], maps))
        size = [teacher_shape[i] for i in places] if maps else []
        if maps and size != [student_shape[i] for i in places]:
            layers.append(self._resizing(size, teacher_shape, student_shape))
        if len(layers) < 2:
            return layers[0] if layers else None
        return keras.Sequential(layers, name="projector")

    def _resizing(
        self, size: Any, teacher_shape: Shape, student_shape: Shape
    ) -> keras.Layer:
        if None in size:
            raise ValueError(
                f"{self.describe(teacher_shape, student_shape)} Resizing needs "
                "the teacher's height and width. Received: projector='auto'. "
                "Give the models inputs of a fixed size, or pass a layer."
            )
        return keras.layers.Resizing(*size, name="resize")


def _linear(width: int | None, maps: bool) -> keras.Layer:
    if maps:
        return keras.layers.Conv2D(width, 1, name="projector")
    return keras.layers.Dense(width, name="projector")


def _without_padding(
    teacher: Tensor, student: Tensor, mask: Tensor
) -> list[Tensor]:
    """Both with zeros for padding, and a mean square over the rest alone."""
    mask = ops.cast(mask, student.dtype)
    while len(mask.shape) < len(student.shape):
        mask = ops.expand_dims(mask, axis=-1)
    share = ops.mean(mask, axis=tuple(range(1, len(mask.shape))), keepdims=True)
    scale = mask / ops.sqrt(ops.maximum(share, 1e-12))
    return [ops.where(mask > 0, x * scale, 0.0) for x in (teacher, student)]
