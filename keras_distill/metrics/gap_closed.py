"""How much of the teacher's lead the student has made up."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerName, Tensor
from keras_distill.metrics.fidelity_metric import LogitFidelityMetric
from keras_distill.metrics.rows import Rows


@keras.saving.register_keras_serializable("keras_distill")
class GapClosed(LogitFidelityMetric):
    """Share of the gap in accuracy that distillation has closed.

    The gap is between the teacher and the same student trained without it. 0
    for a student that gained nothing, 1 for one that equals the teacher; below
    and above are possible.

    Formula:
        `(student - baseline) / (teacher - baseline)`, of accuracies. NaN where
        the teacher isn't better than the baseline: there is no gap.

    Args:
        baseline_accuracy: The accuracy of the student trained alone, on the
            same data as this metric sees: a number from 0 to 1.
        teacher_layer_name: As in `FidelityMetric`.
        student_layer_name: As in `FidelityMetric`.
        activation: As in `LogitFidelityMetric`.
        teacher_from_logits: As in `LogitFidelityMetric`.
        student_from_logits: As in `LogitFidelityMetric`.
        class_map: As in `LogitFidelityMetric`.
        name: As in `keras.metrics.Metric`.
        dtype: As in `FidelityMetric`.

    Raises:
        ValueError: If the baseline's accuracy is no share.

    Example:
        >>> import keras_distill as kd
        >>> metric = kd.metrics.GapClosed(baseline_accuracy=0.5)
        >>> teacher = [[1.0, 0.0]] * 4
        >>> student = [[1.0, 0.0]] * 3 + [[0.0, 1.0]]
        >>> metric.update_state(teacher, student, labels=[0, 0, 0, 0])
        >>> float(metric.result())
        0.5
    """

    uses_labels = True

    def __init__(
        self,
        baseline_accuracy: float,
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        activation: str = "softmax",
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        class_map: Sequence[int] | None = None,
        name: str = "gap_closed",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            teacher_layer_name,
            student_layer_name,
            activation,
            teacher_from_logits,
            student_from_logits,
            class_map,
            name,
            dtype,
        )
        _check_share(baseline_accuracy)
        self.baseline_accuracy = float(baseline_accuracy)
        self._teacher, self._student, self._weight = (
            self.add_variable((), "zeros", self.dtype, name=name)
            for name in ("teacher_right", "student_right", "weight")
        )

    def add(self, rows: Rows) -> None:
        """Add a batch's rows to the sums."""
        totals = (self._teacher, self._student)
        for total, logits in zip(totals, rows.logits, strict=True):
            choice = ops.cast(ops.argmax(logits, axis=-1), "int32")
            right = ops.cast(choice == rows.labels, self.dtype)
            total.assign_add(ops.sum(right * rows.weights))
        self._weight.assign_add(ops.sum(rows.weights))

    def result(self) -> Tensor:
        """The share; NaN where there is no gap."""
        baseline = self.baseline_accuracy * self._weight
        gap, closed = self._teacher - baseline, self._student - baseline
        # A gap is as much as an example; less is the baseline's rounding.
        least = 1e-6 * self._weight
        return ops.where(gap > least, closed / gap, math.nan)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal metric."""
        return {
            **super().get_config(),
            "baseline_accuracy": self.baseline_accuracy,
        }


def _check_share(accuracy: Any) -> None:
    number = isinstance(accuracy, numbers.Real)
    if not number or not 0 <= accuracy <= 1:
        raise ValueError(
            "An accuracy is a share. Received: baseline_accuracy="
            f"{accuracy!r}. Pass a number from 0 to 1, the accuracy of the "
            "student trained without the teacher."
        )
