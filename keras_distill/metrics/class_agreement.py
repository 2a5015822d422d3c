"""How often the student agrees with the teacher, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerName, Shape, Tensor
from keras_distill.metrics.class_shares import (
    ClassShares,
    check_classes,
    class_names,
)
from keras_distill.metrics.fidelity_metric import LogitFidelityMetric
from keras_distill.metrics.rows import Rows


@keras.saving.register_keras_serializable("keras_distill")
class ClassAgreement(LogitFidelityMetric):
    """Of what the teacher puts into each class, the share that the student too.

    It needs no labels: a class is what the teacher says. `ClassAccuracy` is
    the same of a model and the labels.

    Formula:
        `sum_i w_i * [t_i is c] * [s_i is c] / sum_i w_i * [t_i is c]` for each
        class `c`, with `t_i` and `s_i` what the two choose.

    Args:
        classes: How many there are, or a list of their names.
        teacher_layer_name: As in `FidelityMetric`.
        student_layer_name: As in `FidelityMetric`.
        activation: As in `LogitFidelityMetric`; `"sigmoid"` with one output,
            which tells the classes 0 and 1 apart.
        teacher_from_logits: As in `LogitFidelityMetric`.
        student_from_logits: As in `LogitFidelityMetric`.
        class_map: As in `LogitFidelityMetric`.
        name: As in `keras.metrics.Metric`.
        dtype: As in `FidelityMetric`.

    Shapes:
        The result is a dict of a number for each class, `"class_agreement_0"`
        and so on, as Keras logs it. NaN for a class without an example.

    Raises:
        ValueError: If there are fewer than two classes, or the models have
            others.

    Example:
        >>> import keras_distill as kd
        >>> metric = kd.metrics.ClassAgreement(2)
        >>> metric.update_state([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]],
        ...                     [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> {name: float(value) for name, value in metric.result().items()}
        {'class_agreement_0': 0.5, 'class_agreement_1': 1.0}
    """

    def __init__(
        self,
        classes: int | Sequence[str],
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        activation: str = "softmax",
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        class_map: Sequence[int] | None = None,
        name: str = "class_agreement",
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
        self.classes = class_names(classes)
        self._shares = ClassShares(len(self.classes), self.dtype)

    def build(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise where the two don't have these classes."""
        super().build(teacher_shape, student_shape)
        check_classes(self, self.classes, student_shape, self.activation)

    def add(self, rows: Rows) -> None:
        """Add a batch's rows to the sums of the classes."""
        teacher, student = (ops.argmax(x, axis=-1) for x in rows.logits)
        self._shares.update_state(teacher, teacher == student, rows.weights)

    def result(self) -> dict[str, Tensor]:
        """The share of each class, by name."""
        shares = self._shares.result()
        return {name: shares[i] for i, name in enumerate(self.log_names)}

    @property
    def log_names(self) -> list[str]:
        """A name for each class."""
        return [f"{self.name}_{c}" for c in self.classes]

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal metric."""
        return {**super().get_config(), "classes": self.classes}
