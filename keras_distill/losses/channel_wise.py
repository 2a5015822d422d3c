"""Channel-wise distillation: each channel's distribution over the places."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerNames, Tensor, divergence
from keras_distill.losses.feature_loss import FeatureLoss


@keras.saving.register_keras_serializable("keras_distill")
class ChannelWise(FeatureLoss):
    """Relative entropy of the channels' softmax over the places (CWD).

    Made for dense prediction: a channel says where something is, and the
    places where the teacher says it most count most. For segmentation, compare
    the logits; for detection, the levels of the feature pyramid.

    Formula:
        With `p = softmax(feature / temperature)` over the places of each
        channel: `temperature**2 * mean_c sum_i p_teacher_ci * (log
        p_teacher_ci - log p_student_ci)`. Summed over the pairs of layers.

    Args:
        teacher_layer_name: As in `FeatureLoss`.
        student_layer_name: As in `FeatureLoss`.
        temperature: What divides the features, above 0.
        projector: As in `FeatureLoss`.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher `(batch, ..., channels)`, feature maps or tokens, student the
        same behind the projector, values `(batch,)` in nats times
        `temperature**2`.

    Raises:
        ValueError: If `temperature` isn't positive, or the shapes differ and
            no projector mends it.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.ChannelWise()
        >>> teacher = [[[2.0], [0.0]]]
        >>> student = [[[1.0], [1.0]]]
        >>> round(float(loss(teacher, student)), 4)
        0.3278

    Reference:
        Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction",
        ICCV 2021. The default weight, 5, is that of segmentation logits in
        MMRazor, which has 10 for detectors.
    """

    default_weight = 5.0
    axes = (3, 4, 5)

    def __init__(
        self,
        teacher_layer_name: LayerNames = None,
        student_layer_name: LayerNames = None,
        temperature: float = 1.0,
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
        if not 0 < temperature < math.inf:
            raise ValueError(
                "A temperature divides the features, so it must be a positive "
                f"number. Received: temperature={temperature!r}. Pass 1 for "
                "none, or more to count more places."
            )
        self.temperature = temperature

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        entropy = divergence(
            self._log_softmax(teacher), self._log_softmax(student), axis=1
        )
        return self.temperature**2 * ops.mean(entropy, axis=-1)

    def _log_softmax(self, x: Tensor) -> Tensor:
        x = ops.reshape(x, (ops.shape(x)[0], -1, x.shape[-1]))
        return ops.log_softmax(x / self.temperature, axis=1)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {**super().get_config(), "temperature": self.temperature}
