"""Total variation: how much probability the student puts elsewhere."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill.losses.base import LogitLoss, Tensor


@keras.saving.register_keras_serializable("keras_distill")
class TotalVariation(LogitLoss):
    """Total variation distance of the class probabilities (TVD).

    Symmetric, and at most 1 however sure the two are: a single token that
    both see differently can't rule a batch, as it can with a divergence. Where
    they share no class at all it has no gradient.

    Formula:
        `1/2 * sum_c |p_c - q_c|`, with `p` the softmax of the teacher's logits
        and `q` that of the student's.

    Args:
        teacher_layer_name: As in `DistillationLoss`.
        student_layer_name: As in `DistillationLoss`.
        projector: As in `DistillationLoss`.
        from_logits: As in `LogitLoss`.
        class_map: As in `LogitLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ..., classes)`, values `(batch, ...)`,
        from 0 to 1.

    Raises:
        ValueError: If the two have not the same classes.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.TotalVariation()
        >>> value = loss([[2.0, 0.0, -2.0]], [[2.0, 1.0, -1.0]])
        >>> round(float(value), 4)
        0.1614

    Reference:
        Wen et al., "f-Divergence Minimization for Sequence-Level Knowledge
        Distillation", ACL 2023.
    """

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`."""
        p = ops.softmax(teacher, axis=-1)
        q = ops.softmax(student, axis=-1)
        return ops.sum(ops.abs(p - q), axis=-1) / 2
