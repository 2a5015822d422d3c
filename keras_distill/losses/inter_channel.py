"""Inter-channel correlation: which channels of a layer go together."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill.losses.base import Tensor
from keras_distill.losses.feature_loss import FeatureLoss, unit


@keras.saving.register_keras_serializable("keras_distill")
class InterChannelCorrelation(FeatureLoss):
    """Difference of the correlations between channels (ICKD).

    Which channels are active together says how diverse they are, and the
    student's shall be so too. Places may be any, and as many as they are.

    The authors' code divides by the batch's size once more, so that the loss
    would depend on it. Here the value is the mean over the examples; the
    default weight has the factor instead.

    Formula:
        With `g_ab = feature_a * feature_b`, summed over the places, for
        channels `a` and `b`, and its rows made unit vectors: `sum_ab
        (g_teacher_ab - g_student_ab)**2 / channels`. Summed over the pairs of
        layers.

    Args:
        teacher_layer_name: As in `FeatureLoss`.
        student_layer_name: As in `FeatureLoss`.
        projector: As in `FeatureLoss`.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ..., channels)`, feature maps or tokens
        with any number of places, values `(batch,)`. Memory is of the order of
        `batch * channels**2`.

    Raises:
        ValueError: If the channels differ and no projector mends it, or the
            two have not the same number of axes.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.InterChannelCorrelation()
        >>> teacher = [[[1.0, 0.0], [0.0, 1.0]]]
        >>> student = [[[1.0, 1.0], [1.0, 1.0]]]
        >>> round(float(loss(teacher, student)), 4)
        0.5858

    Reference:
        Liu et al., "Exploring Inter-Channel Correlation for Diversity-
        preserved Knowledge Distillation", ICCV 2021. The default weight is
        their 2.5 on CIFAR-100, divided by their batches of 64.
    """

    default_weight = 2.5 / 64
    same_size = False
    axes = (3, 4, 5)

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        difference = _correlations(teacher) - _correlations(student)
        return ops.mean(ops.sum(ops.square(difference), axis=-1), axis=-1)


def _correlations(x: Tensor) -> Tensor:
    x = ops.reshape(x, (ops.shape(x)[0], -1, x.shape[-1]))
    return unit(ops.swapaxes(x, 1, 2) @ x)
