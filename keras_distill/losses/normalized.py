"""Normalised soft targets: the label apart, the others summing to 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import (
    LayerName,
    TemperedLogitLoss,
    Tensor,
    of_label,
    of_others,
)


@keras.saving.register_keras_serializable("keras_distill")
class NormalizedSoftTargets(TemperedLogitLoss):
    """Cross-entropies of the label and of the normalised rest (NKD).

    Among the classes that aren't the label, teacher and student leave
    different amounts, and a cross-entropy can't become small. Normalised to
    sum to 1 they can be compared. The label's probability is weighted by the
    teacher's. Not 0 where the student equals the teacher.

    Formula:
        `-p_y * log q_y - non_target_weight * T**2 * sum_{c != y} r_c * log
        s_c`, with `p` and `q` of teacher and student at temperature 1, `r` and
        `s` the softmax over `T` of their logits without the label's.

    Args:
        non_target_weight: The paper's gamma, weight of the other classes'
            part, not negative.
        temperature: `T` of the other classes, above 0. `self.temperature` is a
            variable: a callback may set it between epochs.
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
        ValueError: If the weight is negative, the temperature isn't positive,
            or the two have not the same classes, or only one.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.NormalizedSoftTargets()
        >>> value = loss(
        ...     {"teacher": [[2.0, 0.0, -2.0]], "labels": [0]},
        ...     [[2.0, 1.0, -1.0]])
        >>> round(float(value), 4)
        0.8505

    Reference:
        Yang et al., "From Knowledge Distillation to Self-Knowledge
        Distillation: A Unified Approach with Normalized Loss and Customized
        Soft Labels", ICCV 2023.
    """

    uses_labels = True
    default_hard_label_weight = 1.0

    def __init__(
        self,
        non_target_weight: float = 1.5,
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
        if not 0 <= non_target_weight < math.inf:
            raise ValueError(
                "The weight of a part must be a finite number, not negative. "
                f"Received: non_target_weight={non_target_weight!r}. Pass 0 to "
                "leave the part out."
            )
        self.non_target_weight = non_target_weight

    def compare(
        self, teacher: Tensor, student: Tensor, labels: Tensor
    ) -> Tensor:
        """Values of shape `(batch, ...)`."""
        target = ops.exp(
            of_label(ops.log_softmax(teacher, axis=-1), labels)
        ) * of_label(ops.log_softmax(student, axis=-1), labels)
        rest = ops.softmax(of_others(teacher, labels) / self.temperature)
        log_rest = ops.log_softmax(
            of_others(student, labels) / self.temperature, axis=-1
        )
        # A class that is masked with -inf has a share of zero.
        shares = ops.where(rest == 0, 0.0, rest * log_rest)
        scale = self.non_target_weight * self.temperature**2
        return -target - scale * ops.sum(shares, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "non_target_weight": self.non_target_weight,
        }
