"""Logit matching: the student regresses the teacher's logits."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill.losses.base import LogitLoss, Tensor


@keras.saving.register_keras_serializable("keras_distill")
class LogitMatching(LogitLoss):
    """Half the squared distance of the logits.

    What came before soft targets, and their limit: at a high temperature, and
    with logits that sum to zero, `SoftTargets` approaches this loss divided by
    the number of classes.

    Formula:
        `1/2 * sum_c (teacher_c - student_c)**2`

    Args:
        teacher_layer_name: As in `DistillationLoss`.
        student_layer_name: As in `DistillationLoss`.
        projector: As in `DistillationLoss`.
        from_logits: As in `LogitLoss`. Probabilities determine logits up to a
            constant: their logarithms are matched.
        class_map: As in `LogitLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ..., classes)`, values `(batch, ...)`.

    Raises:
        ValueError: If the two have not the same classes.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.LogitMatching()
        >>> float(loss([[1.0, 0.0, 3.0]], [[1.0, 2.0, 3.0]]))
        2.0

    Reference:
        Ba and Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014.
    """

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`."""
        return ops.sum(ops.square(student - teacher), axis=-1) / 2
