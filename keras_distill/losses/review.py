"""Knowledge review: deep layers help shallow ones to imitate the teacher."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerNames, Tensor
from keras_distill.losses.feature_loss import FeatureLoss, average_pool


@keras.saving.register_keras_serializable("keras_distill")
class KnowledgeReview(FeatureLoss):
    """Fused maps of all stages against the teacher's (ReviewKD).

    Each stage of the teacher is imitated by the student's same stage together
    with all deeper ones: what is learned late reviews what was learned early.
    From deep to shallow, attention fuses a stage with what came from below.
    All that fuses is trained with the student and thrown away afterwards.

    Formula:
        Stages from the deepest `n` to 1, `reduce_i` a 1x1 convolution to
        `mid_channels` and `translate_i` a 3x3 one to the teacher's channels,
        both with batch normalisation; `resize` to the nearest:
        `r_n = reduce_n(student_n)`;
        `x = reduce_i(student_i)`, `y = resize(r_{i+1})`,
        `a, b = sigmoid(convolve([x, y]))`, `r_i = a * x + b * y`;
        `sum_i context(teacher_i, translate_i(resize(r_i)))`, where `context`
        is the weighted mean of the mean squared differences of the maps, with
        weight 1, and of the maps pooled to 4x4, 2x2 and 1x1, as far as they
        are larger than that, with weights 1/2, 1/4 and 1/8.

    Args:
        teacher_layer_name: Layers from shallow to deep, usually the last of
            each stage. A vector, as of the pooled features, counts as a map
            of one place.
        student_layer_name: The student's layer for each of these.
        mid_channels: Channels that the stages are fused in. By default those
            of the student's deepest layer, but at most 512.
        projector: As in `FeatureLoss`. Not needed.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Pairs of teacher `(batch, height, width, channels)`, or `(batch,
        channels)`, and student with as many axes, all else may differ; values
        `(batch,)`. The batch normalisation makes the values depend on the
        rest of the batch.

    Raises:
        ValueError: If `mid_channels` isn't a positive integer, or a layer
            gives neither a map nor a vector.

    Example:
        >>> import keras
        >>> import keras_distill as kd
        >>> def network(width):
        ...     conv = keras.layers.Conv2D
        ...     return keras.Sequential([
        ...         keras.Input((8, 8, 3)),
        ...         conv(width, 3, strides=2, activation="relu", name="one"),
        ...         conv(2 * width, 3, activation="relu", name="two"),
        ...         keras.layers.GlobalAveragePooling2D(),
        ...         keras.layers.Dense(10)])
        >>> stages = ["one", "two"]
        >>> loss = kd.losses.KnowledgeReview(stages, stages)
        >>> distiller = kd.Distiller(network(8), network(4), losses=loss)
        >>> len(loss.reducers), len(loss.attentions)
        (2, 1)

        The authors let its weight grow over 20 epochs:

        >>> def warm_up(epoch, logs=None):
        ...     distiller.loss_weights = [5.0 * min(epoch / 20, 1.0)]
        >>> callback = keras.callbacks.LambdaCallback(on_epoch_begin=warm_up)
        >>> callback.on_epoch_begin(5)
        >>> float(distiller.loss_weights[0].value)
        1.25

    Reference:
        Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021.
        The default weight, 5, is the one for CIFAR-100; on ImageNet it is 1
        from ResNet-34 to ResNet-18 and 8 from ResNet-50 to MobileNet.
    """

    default_weight = 5.0
    has_parts = True
    relates_examples = True
    same_channels = False
    same_size = False
    axes = (2, 4)

    def __init__(
        self,
        teacher_layer_name: LayerNames = None,
        student_layer_name: LayerNames = None,
        mid_channels: int | None = None,
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
        if mid_channels is not None and (
            not isinstance(mid_channels, int) or mid_channels < 1
        ):
            raise ValueError(
                "The stages are fused in a number of channels. Received: "
                f"mid_channels={mid_channels!r}. Pass an integer of at least "
                "1, or None."
            )
        self.mid_channels = mid_channels

    def make_parts(self, teacher_shape: Any, student_shape: Any) -> None:
        """Make the layers that fuse the stages."""
        several = isinstance(self.teacher_layer_name, list)
        teachers, students = (
            self._channels(shape if several else [shape])
            for shape in (teacher_shape, student_shape)
        )
        mid = self.mid_channels or min(512, students[-1])
        self.reducers = [self._convolution(c, mid, 1) for c in students]
        self.translators = [self._convolution(mid, c, 3) for c in teachers]
        self.attentions = [self._attention(2 * mid) for _ in students[:-1]]

    def _channels(self, shapes: Any) -> list[Any]:
        return [self.shape_last(shape)[-1] for shape in shapes]

    def _convolution(self, channels: int, filters: int, size: int) -> Any:
        return self._built(
            [
                keras.layers.Conv2D(
                    filters,
                    size,
                    padding="same",
                    use_bias=False,
                    data_format="channels_last",
                    dtype=self.dtype,
                ),
                keras.layers.BatchNormalization(
                    momentum=0.9, epsilon=1e-5, dtype=self.dtype
                ),
            ],
            channels,
        )

    def _attention(self, channels: int) -> Any:
        layer = keras.layers.Conv2D(
            2,
            1,
            activation="sigmoid",
            data_format="channels_last",
            dtype=self.dtype,
        )
        return self._built([layer], channels)

    def _built(self, layers: list[keras.Layer], channels: int) -> Any:
        model = keras.Sequential(layers)
        model.build((None, None, None, channels))
        return model

    def call(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        pairs = [
            (_as_map(t), _as_map(s)) for t, s in self.pairs(teacher, student)
        ]
        values = []
        deeper = None
        for i in reversed(range(len(pairs))):
            stage, fused = pairs[i][0], self._fuse(i, pairs[i][1], deeper)
            deeper = fused
            translated = self.translators[i](
                resize_nearest(fused, ops.shape(stage)[1:3]), training=True
            )
            values.append(hierarchical_context(stage, translated))
        return sum(values[1:], start=values[0])

    def _fuse(self, index: int, student: Tensor, deeper: Tensor) -> Tensor:
        reduced = self.reducers[index](student, training=True)
        if deeper is None:
            return reduced
        deeper = resize_nearest(deeper, ops.shape(reduced)[1:3])
        both = ops.concatenate([reduced, deeper], axis=-1)
        attention = self.attentions[index](both, training=True)
        return attention[..., :1] * reduced + attention[..., 1:] * deeper

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {**super().get_config(), "mid_channels": self.mid_channels}


def hierarchical_context(teacher: Tensor, student: Tensor) -> Tensor:
    """Weighted mean of squared differences of maps at several scales.

    Args:
        teacher: `(batch, height, width, channels)`.
        student: The same.

    Returns:
        Values `(batch,)`.
    """
    height, width = ops.shape(student)[1:3]
    value = _mean_square(teacher - student)
    share = total = 1.0
    for size in (4, 2, 1):
        # The sizes may be known only when it runs.
        larger = ops.cast(ops.minimum(height, width) > size, value.dtype)
        share = share / (1 + larger)
        pooled = teacher - student
        for axis in (1, 2):
            pooled = average_pool(pooled, axis, size)
        value = value + larger * share * _mean_square(pooled)
        total = total + larger * share
    return value / total


def resize_nearest(x: Tensor, size: Any) -> Tensor:
    """Maps of another height and width, each place from the nearest."""
    for axis, length in zip((1, 2), size, strict=True):
        before = ops.shape(x)[axis]
        if isinstance(length, int) and before == length:
            continue
        places = ops.arange(length, dtype="int32") * before // length
        x = ops.take(x, places, axis=axis)
    return x


def _as_map(x: Tensor) -> Tensor:
    return x if len(x.shape) == 4 else ops.expand_dims(x, axis=(1, 2))


def _mean_square(x: Tensor) -> Tensor:
    return ops.mean(ops.square(x), axis=(1, 2, 3))
