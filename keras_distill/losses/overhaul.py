"""Overhauled feature distillation: features before their ReLU, with margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerNames, Shape, Tensor
from keras_distill.losses.feature_loss import FeatureLoss, flatten


@keras.saving.register_keras_serializable("keras_distill")
class FeatureOverhaul(FeatureLoss):
    """Squared distance of features before their ReLU, with a margin (OFD).

    What the ReLU lets through shall be equal; where the teacher is silent,
    that the student is silent too is enough. How far below zero silence lies
    is the margin of a channel, the mean of its negative values, as
    `relu_margin` computes it from a batch normalization.

    Name layers before their ReLU, of the teacher the batch normalizations.

    Formula:
        `sum_i 2**(i - n) * sum_j a_ij * (s_ij - max(t_ij, margin_ic))**2` over
        layers `i` from 1 to `n` and their elements `j`, of channel `c`. `a` is
        0 where the target is not above zero and the student not above the
        target, and 1 elsewhere.

    Args:
        margin: What the teacher's values below it are raised to: a number for
            each channel of the teacher, not above 0; a list of these where
            several layers are compared; or one number for all.
        teacher_layer_name: As in `FeatureLoss`.
        student_layer_name: As in `FeatureLoss`.
        projector: As in `FeatureLoss`; `"auto"` makes a 1x1 convolution with
            batch normalization, as the paper has it, whatever the channels.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ..., channels)`, feature maps, tokens or
        vectors, the same for both; values `(batch,)`. A sum over elements:
        the default weight is the official code's 1/1000 for CIFAR; for
        ImageNet it has 1/10000.

    Raises:
        ValueError: If a margin is above 0, there is not one for each layer or
            channel, or the shapes differ.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.FeatureOverhaul(margin=[-1.0, -1.0])
        >>> float(loss([[2.0, -3.0]], [[1.5, -0.5]]))  # 0.5**2 + 0.5**2
        0.5

        With margins from a teacher:

        >>> import keras
        >>> import numpy as np
        >>> def network(width):
        ...     return keras.Sequential([
        ...         keras.Input((8, 8, 1)),
        ...         keras.layers.Conv2D(width, 3, use_bias=False),
        ...         keras.layers.BatchNormalization(name="norm"),
        ...         keras.layers.ReLU(),
        ...         keras.layers.GlobalAveragePooling2D(),
        ...         keras.layers.Dense(3)])
        >>> x, y = np.ones((6, 8, 8, 1), "float32"), np.arange(6) % 3
        >>> teacher, student = network(8), network(4)
        >>> margin = kd.losses.relu_margin(teacher.get_layer("norm"))
        >>> round(margin[0], 4)  # of a new layer: a standard normal's
        -0.7979
        >>> distiller = kd.Distiller(
        ...     teacher, student,
        ...     kd.losses.FeatureOverhaul(
        ...         margin, "norm", "norm", projector="auto"))
        >>> history = distiller.fit(x, y, epochs=1, verbose=0)

    Reference:
        Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV
        2019.
    """

    default_weight = 0.001
    normalizes_projection = True

    def __init__(
        self,
        margin: float | Sequence[float] | Sequence[Sequence[float]],
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
            data_format,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.margin = _plain(margin)
        numbers = keras.tree.flatten(self.margin)
        if not numbers or not all(-math.inf < m <= 0 for m in numbers):
            raise ValueError(
                "A margin is a mean of values below zero, so it can't be "
                f"above. Received: margin={margin!r}. Pass what relu_margin "
                "gives for the teacher's batch normalization."
            )
        layers = self.teacher_layer_name
        count = len(layers) if isinstance(layers, list) else 1
        if isinstance(self.margin, list) and len(self._margins()) != count:
            raise ValueError(
                f"FeatureOverhaul compares {count} layers. Received: margins "
                f"for {len(self._margins())}. Pass a list of numbers for each "
                "layer of the teacher."
            )

    def call(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Later layers weigh more, `(batch,)` values."""
        pairs = self.pairs(teacher, student)
        last = len(pairs) - 1
        margins = self._margins() * (1 if self._per_layer() else len(pairs))
        values = [
            2.0 ** (i - last) * self._compare(t, s, margin)
            for i, ((t, s), margin) in enumerate(
                zip(pairs, margins, strict=True)
            )
        ]
        return sum(values[1:], start=values[0])

    def _compare(self, teacher: Tensor, student: Tensor, margin: Any) -> Tensor:
        target = ops.maximum(teacher, ops.convert_to_tensor(margin, self.dtype))
        counts = (student > target) | (target > 0)
        difference = ops.where(counts, student - target, 0.0)
        return ops.sum(ops.square(flatten(difference)), axis=-1)

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise where shapes differ, or channels have no margin."""
        super().check_shapes(teacher_shape, student_shape)
        channels = self.shape_last(teacher_shape)[-1]
        counts = [len(m) for m in self._margins() if isinstance(m, list)]
        if counts and channels is not None and channels not in counts:
            raise ValueError(
                f"{self.describe(teacher_shape, student_shape)} The teacher's "
                f"layer has {channels} channels. Received: {counts} margins. "
                "Pass those of the layer that is compared."
            )

    def _margins(self) -> list[Any]:
        """One entry for each layer, or one for all."""
        return self.margin if self._per_layer() else [self.margin]

    def _per_layer(self) -> bool:
        return isinstance(self.margin, list) and isinstance(
            self.margin[0], list
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {**super().get_config(), "margin": self.margin}


def relu_margin(batch_norm: keras.layers.BatchNormalization) -> list[float]:
    """Mean of the values below zero, for each channel.

    For `FeatureOverhaul`. What a batch normalization gives is taken for
    normally distributed, with its `beta` as mean and the size of its `gamma`
    as standard deviation; the formula is the mean of what a ReLU cuts off.

    Args:
        batch_norm: A built layer of the teacher, the last before a ReLU.

    Returns:
        A number for each channel. Where less than a thousandth is below zero,
        it is three standard deviations below zero, as in the official code.

    Raises:
        ValueError: If the layer isn't a built batch normalization.
    """
    is_one = isinstance(batch_norm, keras.layers.BatchNormalization)
    if not is_one or not batch_norm.built:
        raise ValueError(
            "Margins come from a built batch normalization, whose beta and "
            f"gamma tell how its output is distributed. Received: "
            f"{batch_norm!r}. Pass teacher.get_layer(...) of one, or give "
            "FeatureOverhaul its margins as numbers."
        )
    channels = batch_norm.moving_mean.shape[0]
    means = _numbers(batch_norm.beta if batch_norm.center else None, channels)
    scales = _numbers(batch_norm.gamma if batch_norm.scale else None, channels)
    return [
        _mean_below_zero(mean or 0.0, abs(1.0 if scale is None else scale))
        for mean, scale in zip(means, scales, strict=True)
    ]


def _numbers(variable: Any, count: int) -> list[float | None]:
    if variable is None:
        return [None] * count
    values: list[float | None] = ops.convert_to_numpy(variable.value).tolist()
    return values


def _mean_below_zero(mean: float, deviation: float) -> float:
    if deviation == 0:
        return min(mean, 0.0)
    place = mean / deviation
    share = math.erfc(place / math.sqrt(2.0)) / 2.0
    if share <= 0.001:
        return -3.0 * deviation
    density = math.exp(-(place**2) / 2.0) / math.sqrt(2.0 * math.pi)
    # Rounding must not take a margin above zero.
    return min(mean - deviation * density / share, 0.0)


def _plain(margin: Any) -> Any:
    if isinstance(margin, (int, float)):
        return float(margin)
    return [_plain(m) for m in margin]
