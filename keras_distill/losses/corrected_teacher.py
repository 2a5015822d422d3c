"""Corrected teacher: soft targets that always favour the label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import (
    LayerName,
    TemperedLogitLoss,
    Tensor,
    divergence,
    of_label,
)


@keras.saving.register_keras_serializable("keras_distill")
class CorrectedTeacher(TemperedLogitLoss):
    """Soft targets of a teacher corrected by the label (MFT).

    Where the teacher is wrong, the label is mixed in until it leads by a
    threshold; where it is right, until it is that much surer. A teacher that
    hasn't seen the student's data can so be used on it. Not 0 where the
    student equals the teacher.

    Formula:
        `T**2 * KL(c || q)`, `c = (1 - m) * p + m * [c = y]`, with `p` the
        softmax of the teacher's logits over `T` and `q` that of the student's.
        `m = (p_max - p_y + threshold) / (1 + p_max - p_y)` where the teacher's
        first class isn't the label `y`, else `m = (min(1, p_y + threshold) -
        p_y) / (1 - p_y)`. As in the official code, 1e-7 is added to both
        denominators.

    Args:
        threshold: By how much the label leads, between 0 and 1.
        temperature: `T`, above 0. `self.temperature` is a variable: a callback
            may set it between epochs.
        teacher_layer_name: As in `DistillationLoss`.
        student_layer_name: As in `DistillationLoss`.
        projector: As in `DistillationLoss`.
        from_logits: As in `LogitLoss`.
        class_map: As in `LogitLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ..., classes)`, labels without the last
        axis, or one-hot; values `(batch, ...)`.

    Raises:
        ValueError: If the threshold isn't between 0 and 1, the temperature
            isn't positive, or the two have not the same classes, or only one.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.CorrectedTeacher()
        >>> value = loss(
        ...     {"teacher": [[2.0, 0.0, -2.0]], "labels": [1]},
        ...     [[2.0, 1.0, -1.0]])
        >>> round(float(value), 4)
        0.2563

    Reference:
        Belcak et al., "Minifinetuning: Low-Data Generation Domain Adaptation
        through Corrective Self-Distillation", 2025.
    """

    uses_labels = True

    def __init__(
        self,
        threshold: float = 0.2,
        temperature: float = 1.0,
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        projector: Any = None,
        from_logits: bool | None = None,
        class_map: Sequence[int] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            temperature,
            teacher_layer_name,
            student_layer_name,
            projector,
            from_logits,
            class_map,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        if not 0 < threshold < 1:
            raise ValueError(
                "The threshold is a difference of probabilities, between 0 "
                f"and 1. Received: threshold={threshold!r}. Pass 0.2, the "
                "paper's."
            )
        self.threshold = threshold

    def compare(
        self, teacher: Tensor, student: Tensor, labels: Tensor
    ) -> Tensor:
        """Values of shape `(batch, ...)`."""
        log_p = ops.log_softmax(teacher / self.temperature, axis=-1)
        log_q = ops.log_softmax(student / self.temperature, axis=-1)
        p = ops.exp(of_label(log_p, labels))
        lead = ops.exp(ops.max(log_p, axis=-1)) - p
        right = ops.argmax(teacher, axis=-1) == labels
        mix = ops.where(
            right,
            ops.minimum(1 - p, self.threshold) / (1 - p + 1e-7),
            (lead + self.threshold) / (1 + lead + 1e-7),
        )
        mix = ops.expand_dims(mix, axis=-1)
        corrected = ops.where(
            ops.one_hot(labels, student.shape[-1], dtype="bool"),
            ops.log((1 - mix) * ops.expand_dims(p, axis=-1) + mix),
            ops.log1p(-mix) + log_p,
        )
        return self.temperature**2 * divergence(corrected, log_q)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {**super().get_config(), "threshold": self.threshold}
