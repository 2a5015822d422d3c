"""Pearson correlation of feature maps, channel by channel."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill.losses.base import Tensor
from keras_distill.losses.feature_loss import FeatureLoss


@keras.saving.register_keras_serializable("keras_distill")
class PearsonCorrelation(FeatureLoss):
    """Mean squared difference of standardized channels (PKD).

    How large activations are, and from where they are counted, differs between
    detectors of two kinds. Standardized, only their pattern is left, and half
    the squared difference is 1 less Pearson's correlation.

    Formula:
        With `z = (feature - mean) / (deviation + 1e-6)` over all examples and
        places of a channel, and the deviation of a sample (a sum divided by
        `n - 1`): `mean (z_teacher - z_student)**2 / 2` over all but the batch.
        Summed over the pairs of layers.

    Args:
        teacher_layer_name: As in `FeatureLoss`.
        student_layer_name: As in `FeatureLoss`.
        projector: As in `FeatureLoss`. The authors resize the student's map
            to the teacher's size bilinearly, as `"auto"` does.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher `(batch, ..., channels)`, feature maps, tokens or vectors,
        student the same behind the projector, values `(batch,)`.

    Raises:
        ValueError: If the shapes differ and no projector mends it.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.PearsonCorrelation()
        >>> value = loss([[0.0], [2.0], [4.0]], [[2.0], [3.0], [2.0]])
        >>> round(float(value), 4)
        0.6667

    Reference:
        Cao et al., "PKD: General Distillation Framework for Object Detectors
        via Pearson Correlation Coefficient", NeurIPS 2022. The default weight
        is the 6 of most of their detectors.
    """

    default_weight = 6.0
    relates_examples = True

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        squares = ops.square(_standardized(teacher) - _standardized(student))
        return ops.mean(squares, axis=tuple(range(1, len(squares.shape)))) / 2


def _standardized(x: Tensor) -> Tensor:
    axes = tuple(range(len(x.shape) - 1))
    x = x - ops.mean(x, axis=axes, keepdims=True)
    squares = ops.sum(ops.square(x), axis=axes, keepdims=True)
    count = ops.cast(ops.size(x[..., 0]), x.dtype)
    # A root's gradient at 0 is infinite, also where `where` drops it. Not
    # `squares > 0`, which would hide NaN.
    none = squares == 0
    safe = ops.where(none, 1.0, squares)
    deviation = ops.sqrt(safe / ops.maximum(count - 1, 1.0))
    return ops.where(none, 0.0, x / (deviation + 1e-6))
