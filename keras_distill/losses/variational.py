"""Variational information: how well the student tells the teacher's layer."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerNames, Tensor
from keras_distill.losses.feature_loss import FeatureLoss, pool_to_smaller


@keras.saving.register_keras_serializable("keras_distill")
class VariationalInformation(FeatureLoss):
    """Likelihood of the teacher's layer, told from the student's (VID).

    A regressor predicts each channel of the teacher from the student, with a
    variance for each channel. The better it can, the more information the two
    share; channels that it can't predict get a large variance and count less.
    Both are trained with the student. The larger map is averaged to the size
    of the smaller.

    Some code makes the variance but gives it to no optimizer. It is trained
    here, as the paper says.

    Formula:
        `mean ((regressor(student) - teacher)**2 / v + log v) / 2` over all but
        the batch, with `v = minimum_variance + softplus(a)` for each channel.
        Summed over the pairs of layers. It may be negative.

    Args:
        teacher_layer_name: As in `FeatureLoss`.
        student_layer_name: As in `FeatureLoss`.
        depth: Number of 1x1 convolutions of the regressor, as wide as the
            teacher, with ReLUs between. 0 for none: the student's layer, or
            its projector, is the prediction.
        initial_variance: What the variances start from.
        minimum_variance: What they can't fall below, above 0 and less than
            `initial_variance`.
        projector: As in `FeatureLoss`.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ..., channels)`, feature maps, tokens or
        vectors, values `(batch,)`. The channels may differ unless `depth` is
        0.

    Raises:
        ValueError: If `depth` isn't an integer from 0, the variances aren't
            finite with `0 < minimum_variance < initial_variance`, the two have
            not the same number of axes, or `depth` is 0 and the channels
            differ.

    Example:
        >>> import keras
        >>> import keras_distill as kd
        >>> loss = kd.losses.VariationalInformation(depth=0)
        >>> loss.build((None, 2), (None, 2))
        >>> value = keras.ops.stop_gradient(loss([[1.0, 3.0]], [[1.0, 1.0]]))
        >>> round(float(value), 4)
        1.0047

    Reference:
        Ahn et al., "Variational Information Distillation for Knowledge
        Transfer", CVPR 2019.
    """

    default_weight = 1.0
    same_channels = False
    same_size = False
    has_parts = True

    def __init__(
        self,
        teacher_layer_name: LayerNames = None,
        student_layer_name: LayerNames = None,
        depth: int = 3,
        initial_variance: float = 5.0,
        minimum_variance: float = 1e-5,
        projector: Any = None,
        data_format: str | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        if not isinstance(depth, int) or depth < 0:
            raise ValueError(
                "The regressor's depth is a number of layers. Received: "
                f"depth={depth!r}. Pass 3, as the authors, or 0 for none."
            )
        if not 0 < minimum_variance < initial_variance < math.inf:
            raise ValueError(
                "Variances start above a positive minimum. Received: "
                f"initial_variance={initial_variance!r}, "
                f"minimum_variance={minimum_variance!r}. Pass 5 and 1e-5, as "
                "the authors."
            )
        self.same_channels = depth == 0
        super().__init__(
            teacher_layer_name,
            student_layer_name,
            projector,
            data_format,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.depth = depth
        self.initial_variance = initial_variance
        self.minimum_variance = minimum_variance

    def make_parts(self, teacher_shape: Any, student_shape: Any) -> None:
        """Make a regressor and the variances for each pair of layers."""
        several = isinstance(teacher_shape[-1], (list, tuple))
        shapes = zip(
            teacher_shape if several else [teacher_shape],
            student_shape if several else [student_shape],
            strict=True,
        )
        channels = [
            (self.shape_last(t)[-1], self.shape_last(s)[-1]) for t, s in shapes
        ]
        # All layers of all pairs: a loss finds its parts in lists, not in
        # lists of lists.
        self.regressors = [
            layer for t, s in channels for layer in self._regressor(t, s)
        ]
        # The inverse of softplus.
        start = math.log(
            math.expm1(self.initial_variance - self.minimum_variance)
        )
        self.raw_variances = [
            keras.Variable(
                keras.initializers.Constant(start),
                shape=(t,),
                dtype=self.dtype,
                autocast=False,
                name="raw_variance",
            )
            for t, _ in channels
        ]

    def _regressor(
        self, channels: int | None, width: int | None
    ) -> list[keras.Layer]:
        layers = []
        for i in range(self.depth):
            # Where channels are last, a dense layer is a 1x1 convolution.
            layer = keras.layers.Dense(
                channels,
                activation="relu" if i + 1 < self.depth else None,
                use_bias=False,
                dtype=self.dtype,
                name=f"regressor_{i}",
            )
            layer.build((None, width if i == 0 else channels))
            layers.append(layer)
        return layers

    def call(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The sum over the pairs, `(batch,)` values."""
        values = [
            self._value(i, *pool_to_smaller(t, s))
            for i, (t, s) in enumerate(self.pairs(teacher, student))
        ]
        return sum(values[1:], start=values[0])

    def _value(self, pair: int, teacher: Tensor, student: Tensor) -> Tensor:
        first = pair * self.depth
        for layer in self.regressors[first : first + self.depth]:
            student = layer(student, training=True)
        raw = ops.convert_to_tensor(self.raw_variances[pair])
        variance = self.minimum_variance + ops.softplus(raw)
        values = ops.square(student - teacher) / variance + ops.log(variance)
        return ops.mean(values, axis=tuple(range(1, len(values.shape)))) / 2

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "depth": self.depth,
            "initial_variance": self.initial_variance,
            "minimum_variance": self.minimum_variance,
        }
