"""Where teacher and student disagree, and who is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerName, Tensor
from keras_distill.metrics.fidelity_metric import LogitFidelityMetric
from keras_distill.metrics.rows import Rows, sums_of

_OUTCOMES = (
    "both_right",
    "teacher_only",
    "student_only",
    "same_mistake",
    "other_mistake",
)


@keras.saving.register_keras_serializable("keras_distill")
class Outcomes(LogitFidelityMetric):
    """How often both are right, one alone is, or neither.

    A student that shares its teacher's mistakes imitates; one that is right
    where its teacher is wrong has learned from the labels.

    Formula:
        Sums of the weights of the examples with each outcome: `both_right`,
        `teacher_only` and `student_only` are right; in `same_mistake` both
        choose the same wrong class, in `other_mistake` two different ones.

    Args:
        normalize: Whether to give shares that sum to 1, instead of counts.
        teacher_layer_name: As in `FidelityMetric`.
        student_layer_name: As in `FidelityMetric`.
        activation: As in `LogitFidelityMetric`.
        teacher_from_logits: As in `LogitFidelityMetric`.
        student_from_logits: As in `LogitFidelityMetric`.
        class_map: As in `LogitFidelityMetric`.
        name: As in `keras.metrics.Metric`.
        dtype: As in `FidelityMetric`.

    Shapes:
        The result is a dict of five numbers, `"outcome_both_right"` and so on,
        as Keras logs it.

    Example:
        >>> import keras_distill as kd
        >>> metric = kd.metrics.Outcomes()
        >>> metric.update_state([[1.0, 0.0], [1.0, 0.0]],
        ...                     [[2.0, 0.0], [0.0, 1.0]], labels=[0, 0])
        >>> {name: int(value) for name, value in metric.result().items()
        ...  if value}
        {'outcome_both_right': 1, 'outcome_teacher_only': 1}
    """

    uses_labels = True

    def __init__(
        self,
        normalize: bool = False,
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        activation: str = "softmax",
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        class_map: Sequence[int] | None = None,
        name: str = "outcome",
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
        self.normalize = normalize
        self._counts = self.add_variable(
            (len(_OUTCOMES),), "zeros", self.dtype, name="counts"
        )

    def add(self, rows: Rows) -> None:
        """Add a batch's rows to the counts."""
        teacher, student = (
            ops.cast(ops.argmax(x, axis=-1), "int32") for x in rows.logits
        )
        knows, learned = teacher == rows.labels, student == rows.labels
        same, neither = teacher == student, ~knows & ~learned
        found = (
            knows & learned,
            knows & ~learned,
            ~knows & learned,
            neither & same,
            neither & ~same,
        )
        columns = ops.stack(found, axis=-1)
        self._counts.assign_add(sums_of(columns, rows.weights))

    def result(self) -> dict[str, Tensor]:
        """The count, or share, of each outcome, by name."""
        # On PyTorch, a reset would change what a log holds.
        counts = ops.copy(self._counts)
        if self.normalize:
            total = ops.sum(counts)
            counts = counts / ops.where(total == 0, 1.0, total)
        return {name: counts[i] for i, name in enumerate(self.log_names)}

    @property
    def log_names(self) -> list[str]:
        """A name for each outcome."""
        return [f"{self.name}_{outcome}" for outcome in _OUTCOMES]

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal metric."""
        return {**super().get_config(), "normalize": self.normalize}
