"""What the losses between hidden layers share."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import (
    DistillationLoss,
    LayerNames,
    Shape,
    Tensor,
)


class FeatureLoss(DistillationLoss):
    """Base of the losses between hidden layers.

    A subclass defines `compare(teacher, student)` for one pair of tensors.
    It gets feature maps channels last, whatever the models' data format, and
    sequences of tokens as `(batch, tokens, features)`. Over several pairs of
    layers, the loss is the sum.

    Padding that Keras masked counts as any other place does, but in `Hint`.

    Args:
        teacher_layer_name: Layer of the teacher, or a list of layers.
        student_layer_name: The student's layer for each of the teacher's.
        projector: As in `DistillationLoss`. `"auto"` mends what the loss can't
            compare: other channels by a 1x1 convolution (feature maps) or a
            dense layer (anything else), another height and width by bilinear
            resizing.
        data_format: Where the models' feature maps have their channels,
            `"channels_last"` or `"channels_first"`; by default
            `keras.config.image_data_format()`. Tensors of three axes or fewer
            have them last.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Example:
        >>> from keras import ops
        >>> import keras_distill as kd
        >>> class Largest(kd.losses.FeatureLoss):
        ...     def compare(self, teacher, student):
        ...         return ops.max(ops.abs(teacher - student), axis=(1, 2, 3))
        >>> loss = Largest("conv4", "conv3")
        >>> float(loss(ops.ones((1, 2, 2, 3)), ops.zeros((1, 2, 2, 3))))
        1.0
    """

    #: Whether the two must have the same number of channels.
    same_channels: bool = True
    #: Whether the two must have the same height and width, or tokens.
    same_size: bool = True
    #: Whether `projector="auto"` makes a connector, whatever the channels: a
    #: 1x1 convolution or dense layer without bias, and batch normalization.
    normalizes_projection: bool = False
    #: The numbers of axes, with the batch, that the loss can compare.
    axes: tuple[int, ...] | None = None

    def __init__(
        self,
        teacher_layer_name: LayerNames = None,
        student_layer_name: LayerNames = None,
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
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.data_format = data_format or keras.config.image_data_format()
        if self.data_format not in ("channels_last", "channels_first"):
            raise ValueError(
                "Feature maps have their channels last or first. Received: "
                f"data_format={data_format!r}. Pass 'channels_last' or "
                "'channels_first'."
            )

    def refuse_lists(self) -> None:
        """Raise where several layers are named, in losses that take one."""
        if isinstance(self.teacher_layer_name, list):
            raise ValueError(
                f"{type(self).__name__} compares one layer with one. Received: "
                f"teacher_layer_name={self.teacher_layer_name!r}. Pass a loss "
                "for each pair of layers."
            )

    def call(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The sum of `compare` over the pairs, `(batch,)` values."""
        pairs = self.pairs(teacher, student)
        values = [self.compare(t, s) for t, s in pairs]
        return sum(values[1:], start=values[0])

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """How far one layer is from the other, `(batch,)` values."""
        raise NotImplementedError(
            f"{type(self).__name__} must define `compare(teacher, student)`."
        )

    def pairs(
        self, teacher: Tensor, student: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """The pairs of tensors that are compared, channels last."""
        teachers = teacher if isinstance(teacher, (list, tuple)) else [teacher]
        students = student if isinstance(student, (list, tuple)) else [student]
        pairs = list(zip(teachers, students, strict=True))
        for t, s in pairs:
            # NumPy-style broadcasting would hide what doesn't fit.
            self.check_shapes(tuple(t.shape), tuple(s.shape))
        return [
            (self.channels_last(t), self.channels_last(s)) for t, s in pairs
        ]

    def channels_last(self, tensor: Tensor) -> Tensor:
        """Feature maps with their channels in the last axis."""
        if self._channel_axis(tensor.shape) == -1:
            return tensor
        return ops.moveaxis(tensor, 1, -1)

    def shape_last(self, shape: Shape) -> Shape:
        """The shape that `channels_last` gives a tensor of this shape."""
        if self._channel_axis(shape) == -1:
            return tuple(shape)
        return (shape[0], *shape[2:], shape[1])

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise where the loss can't compare tensors of these shapes."""
        teacher, student = map(self.shape_last, (teacher_shape, student_shape))
        wrong = self._difference(teacher, student)
        if wrong is None:
            return
        raise ValueError(
            f"{self.describe(teacher_shape, student_shape)} Their {wrong} "
            f"don't fit. Received: projector={self.projector!r}. "
            f"{self._advice(wrong, len(teacher))}"
        )

    def _advice(self, wrong: str, axes: int) -> str:
        if wrong == "batches":
            return "Compare the same examples."
        if wrong == "numbers of axes":
            return "Pass a layer as projector that gives the teacher's."
        mended = wrong == "channels" or axes == 4
        auto = "projector='auto', or " if mended else ""
        return f"Pass {auto}a layer that gives {self._wanted()}."

    def _difference(self, teacher: Shape, student: Shape) -> str | None:
        for shape in (teacher, student):
            if self.axes is not None and len(shape) not in self.axes:
                raise ValueError(
                    f"{self.describe(teacher, student)} It compares tensors "
                    f"of {' or '.join(map(str, self.axes))} axes, with the "
                    f"batch. Received: {len(shape)}. Name other layers."
                )
        if len(teacher) != len(student):
            return "numbers of axes"
        if _differ(teacher[:1], student[:1]):
            return "batches"
        if self.same_channels and _differ(teacher[-1:], student[-1:]):
            return "channels"
        if self.same_size and _differ(teacher[1:-1], student[1:-1]):
            return "sizes"
        return None

    def _wanted(self) -> str:
        wanted = [
            *(["channels"] if self.same_channels else []),
            *(["height and width"] if self.same_size else []),
        ]
        return f"the teacher's {' and '.join(wanted)}"

    def make_projector(
        self, teacher_shape: Shape, student_shape: Shape
    ) -> keras.Layer | None:
        """A 1x1 convolution or dense layer, and resizing, where needed."""
        if len(teacher_shape) != len(student_shape):
            raise ValueError(
                f"{self.describe(teacher_shape, student_shape)} No automatic "
                "projector changes the number of axes. Received: "
                "projector='auto'. Pass a layer that gives the teacher's "
                "shape, such as GlobalAveragePooling2D with a Dense."
            )
        teacher, student = map(self.shape_last, (teacher_shape, student_shape))
        layers: list[keras.Layer] = []
        if self.normalizes_projection:
            layers += [
                self._widening(teacher, use_bias=False),
                keras.layers.BatchNormalization(
                    axis=self._channel_axis(teacher), name="normalization"
                ),
            ]
        elif self.same_channels and teacher[-1] != student[-1]:
            layers.append(self._widening(teacher))
        resizable = self.same_size and len(teacher) == 4
        if resizable and teacher[1:3] != student[1:3]:
            layers.append(self._resizing(teacher_shape, student_shape))
        if len(layers) < 2:
            return layers[0] if layers else None
        return keras.Sequential(layers, name="projector")

    def _widening(self, teacher: Shape, use_bias: bool = True) -> keras.Layer:
        if len(teacher) == 4:
            return keras.layers.Conv2D(
                teacher[-1],
                1,
                data_format=self.data_format,
                use_bias=use_bias,
                name="projector",
            )
        return keras.layers.Dense(
            teacher[-1], use_bias=use_bias, name="projector"
        )

    def _resizing(
        self, teacher_shape: Shape, student_shape: Shape
    ) -> keras.Layer:
        size = self.shape_last(teacher_shape)[1:3]
        if None in size:
            raise ValueError(
                f"{self.describe(teacher_shape, student_shape)} Resizing needs "
                "the teacher's height and width. Received: projector='auto'. "
                "Give the models inputs of a fixed size, or pass a layer."
            )
        return keras.layers.Resizing(
            *size, data_format=self.data_format, name="resize"
        )

    def _channel_axis(self, shape: Shape) -> int:
        first = self.data_format == "channels_first" and len(shape) > 3
        return 1 if first else -1

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {**super().get_config(), "data_format": self.data_format}


def pool_to_smaller(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller of their sizes, by averaging.

    Args:
        teacher: `(batch, ..., channels)`.
        student: The same number of axes.

    Returns:
        Both, each axis between the first and the last as short as the shorter.
    """
    for axis in range(1, len(teacher.shape) - 1):
        lengths = ops.shape(teacher)[axis], ops.shape(student)[axis]
        known = all(isinstance(length, int) for length in lengths)
        size = min(lengths) if known else ops.minimum(*lengths)
        teacher = average_pool(teacher, axis, size)
        student = average_pool(student, axis, size)
    return teacher, student


def average_pool(x: Tensor, axis: int, size: Any) -> Tensor:
    """Averages over `size` windows of an axis, nearly equal, as PyTorch has it.

    Window `i` reaches from `floor(i * length / size)` to
    `ceil((i + 1) * length / size)`.
    """
    length = ops.shape(x)[axis]
    if isinstance(size, int) and isinstance(length, int) and length == size:
        return x
    place = ops.arange(length, dtype="int32")
    window = ops.expand_dims(ops.arange(size, dtype="int32"), axis=-1)
    begin = window * length // size
    end = -((window + 1) * length // -size)
    inside = ops.cast((place >= begin) & (place < end), x.dtype)
    mean = inside / ops.sum(inside, axis=-1, keepdims=True)
    moved = ops.moveaxis(x, axis, -1)
    # Rows of one matrix: TensorFlow 2.21 writes beyond the product of many with
    # one, on processors with AMX. And on PyTorch, Keras' tensordot and matmul
    # round float64 to float32.
    pooled = ops.reshape(moved, (-1, length)) @ ops.transpose(mean)
    pooled = ops.reshape(pooled, (*ops.shape(moved)[:-1], size))
    return ops.moveaxis(pooled, -1, axis)


def flatten(x: Tensor) -> Tensor:
    """One vector for each example."""
    return ops.reshape(x, (ops.shape(x)[0], -1))


def unit(x: Tensor, axis: Any = -1) -> Tensor:
    """Vectors of length 1; those of length 0, with a gradient of 0, stay."""
    squares = ops.sum(ops.square(x), axis=axis, keepdims=True)
    # A root's gradient at 0 is infinite, also where `where` drops it. Not
    # `squares > 0`, which would hide NaN.
    none = squares == 0
    safe = ops.where(none, 1.0, squares)
    return ops.where(none, 0.0, x / ops.sqrt(safe))


def length(x: Tensor, axis: Any = -1) -> Tensor:
    """Euclidean lengths, with a gradient of 0 at a length of 0."""
    squares = ops.sum(ops.square(x), axis=axis)
    none = squares == 0  # as in `unit`
    return ops.where(none, 0.0, ops.sqrt(ops.where(none, 1.0, squares)))


def frozen_copy(layer: keras.Layer) -> keras.Layer:
    """A layer's copy that isn't trained, for a loss to run.

    The caller's layer stays as it is, and what is done to it later doesn't
    reach the loss.

    Args:
        layer: A built layer or model.

    Raises:
        TypeError: If it is no layer.
        ValueError: If it isn't built, so that there are no weights to copy.
    """
    if not isinstance(layer, keras.Layer):
        raise TypeError(
            "A loss copies the weights of a layer or model. Received: "
            f"{layer!r} of type {type(layer).__name__}. Pass one keras.Layer."
        )
    if not layer.built:
        raise ValueError(
            "A loss copies the weights of the layer that it is given. "
            f"Received: '{layer.name}', which isn't built. Build or call it "
            "first."
        )
    config = keras.saving.serialize_keras_object(layer)
    copy = keras.saving.deserialize_keras_object(config)
    copy.set_weights(layer.get_weights())
    copy.trainable = False
    return copy


def _differ(teacher: Shape, student: Shape) -> bool:
    return any(
        t != s and None not in (t, s)
        for t, s in zip(teacher, student, strict=True)
    )
