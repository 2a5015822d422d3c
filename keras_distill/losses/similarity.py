"""Similarity-preserving distillation: who is like whom in a batch."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill.losses.base import Tensor
from keras_distill.losses.feature_loss import FeatureLoss, flatten, unit


@keras.saving.register_keras_serializable("keras_distill")
class SimilarityPreserving(FeatureLoss):
    """Difference of the similarities within a batch (SP).

    Examples that make the teacher's layer act alike shall make the student's
    act alike. Only similarities are compared, so that the two layers may have
    any widths and sizes.

    Formula:
        With `g_ij = feature_i * feature_j`, summed over all but the batch, and
        its rows made unit vectors: `sum_j (g_teacher_ij - g_student_ij)**2 /
        batch` for example `i`. Summed over the pairs of layers.

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
        >>> loss = kd.losses.SimilarityPreserving()
        >>> value = loss([[1.0, 0.0], [0.0, 1.0]], [[1.0], [1.0]])
        >>> round(float(value), 4)
        0.2929

    Reference:
        Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV
        2019.
    """

    default_weight = 3000.0
    relates_examples = True
    same_channels = False
    same_size = False

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        difference = _similarities(teacher) - _similarities(student)
        return ops.mean(ops.square(difference), axis=-1)


def _similarities(x: Tensor) -> Tensor:
    x = flatten(x)
    return unit(x @ ops.transpose(x))
