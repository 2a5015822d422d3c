"""Probabilistic transfer: the distribution of the examples' similarities."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill.losses.base import Tensor
from keras_distill.losses.feature_loss import FeatureLoss, flatten, unit


@keras.saving.register_keras_serializable("keras_distill")
class ProbabilisticTransfer(FeatureLoss):
    """Divergence of the similarities within a batch (PKT).

    An example's similarities to the batch are made a distribution, so that
    near examples count more than far ones. Only similarities are compared, so
    that the two layers may have any widths and sizes.

    Formula:
        With `p_ij = (cos(f_i, f_j) + 1) / 2`, and its rows divided by their
        sums: `sum_j p_teacher_ij * log((p_teacher_ij + e) / (p_student_ij +
        e)) / batch` for example `i`, with `e = 1e-7`. Summed over the pairs of
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
        Teacher and student `(batch, ...)` with any widths and sizes, values
        `(batch,)`. Memory is of the order of `batch**2`.

    Raises:
        ValueError: If the two have not the same number of axes.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.ProbabilisticTransfer()
        >>> value = loss([[1.0, 0.0], [0.0, 1.0]], [[1.0], [1.0]])
        >>> round(float(value), 4)
        0.0283

    Reference:
        Passalis and Tefas, "Learning Deep Representations with Probabilistic
        Knowledge Transfer", ECCV 2018. The default weight, 30000, is that of
        Tian et al., "Contrastive Representation Distillation", ICLR 2020.
    """

    default_weight = 30000.0
    relates_examples = True
    same_channels = False
    same_size = False

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        p, q = _probabilities(teacher), _probabilities(student)
        # Opposite vectors have a probability of 0, whose logarithm would end
        # the training.
        ratio = ops.log(p + 1e-7) - ops.log(q + 1e-7)
        batch = ops.cast(ops.shape(p)[0], p.dtype)
        # Not `mean`, which computes in float32 where terms cancel each other.
        return ops.sum(p * ratio, axis=-1) / batch


def _probabilities(x: Tensor) -> Tensor:
    x = unit(flatten(x))
    # Rounding makes some cosines less than -1.
    near = ops.relu(x @ ops.transpose(x) + 1.0)
    return near / ops.sum(near, axis=-1, keepdims=True)
