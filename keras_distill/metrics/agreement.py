"""How often the student chooses what the teacher chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerName, Shape, Tensor
from keras_distill.metrics.fidelity_metric import LogitFidelityMetric
from keras_distill.metrics.rows import Rows


@keras.saving.register_keras_serializable("keras_distill")
class Agreement(LogitFidelityMetric):
    """Share of the examples for which both choose the same class.

    A student may be as accurate as its teacher and yet be right elsewhere: how
    far it imitates shows in the agreement. It needs no labels.

    Formula:
        `sum_i w_i * |T_i and S_i| / k / sum_i w_i`, with `T_i` and `S_i` the
        `k` classes that teacher and student find most likely. For `k = 1`, the
        share of the examples for which they are the same.

    Args:
        top_k: `k`, how many of the most likely classes to compare, in any
            order.
        teacher_layer_name: As in `FidelityMetric`.
        student_layer_name: As in `FidelityMetric`.
        activation: As in `LogitFidelityMetric`.
        teacher_from_logits: As in `LogitFidelityMetric`.
        student_from_logits: As in `LogitFidelityMetric`.
        class_map: As in `LogitFidelityMetric`.
        name: As in `keras.metrics.Metric`; by default `"agreement"`, or
            `"top_5_agreement"` for `top_k=5`.
        dtype: As in `FidelityMetric`.

    Raises:
        ValueError: If `top_k` isn't a whole number above 0, or there are fewer
            classes.

    Example:
        >>> import keras_distill as kd
        >>> metric = kd.metrics.Agreement()
        >>> metric.update_state([[3.0, 1.0, 0.0], [0.0, 1.0, 2.0]],
        ...                     [[1.0, 0.0, 0.0], [0.0, 2.0, 1.0]])
        >>> float(metric.result())
        0.5

    Reference:
        Stanton, Izmailov, Kirichenko, Alemi and Wilson, "Does Knowledge
        Distillation Really Work?", 2021 (top-1).
    """

    def __init__(
        self,
        top_k: int = 1,
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        activation: str = "softmax",
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        class_map: Sequence[int] | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        if not isinstance(top_k, int) or top_k < 1:
            raise ValueError(
                "Agreement compares a number of classes. Received: "
                f"top_k={top_k!r}. Pass a whole number above 0."
            )
        super().__init__(
            teacher_layer_name,
            student_layer_name,
            activation,
            teacher_from_logits,
            student_from_logits,
            class_map,
            name or ("agreement" if top_k == 1 else f"top_{top_k}_agreement"),
            dtype,
        )
        self.top_k = top_k
        self._mean = keras.metrics.Mean(dtype=self.dtype)

    def build(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise where the two don't have the same classes, or too few."""
        super().build(teacher_shape, student_shape)
        classes = 2 if self.activation == "sigmoid" else student_shape[-1]
        if classes is not None and classes < self.top_k:
            raise ValueError(
                f"Agreement compares the {self.top_k} most likely classes. "
                f"Received: outputs of shape {student_shape}. Pass "
                f"top_k={classes} or less."
            )

    def add(self, rows: Rows) -> None:
        """Add a batch's rows to the sums."""
        teacher, student = rows.logits
        if self.top_k == 1:
            same = ops.argmax(teacher, axis=-1) == ops.argmax(student, axis=-1)
            values = ops.cast(same, self.dtype)
        else:
            values = self._shared(teacher, student)
        self._mean.update_state(values, rows.weights)

    def _shared(self, teacher: Tensor, student: Tensor) -> Tensor:
        of_teacher, of_student = (
            ops.top_k(x, self.top_k)[1] for x in (teacher, student)
        )
        same = ops.expand_dims(of_teacher, 2) == ops.expand_dims(of_student, 1)
        shared = ops.cast(ops.any(same, axis=-1), self.dtype)
        return ops.mean(shared, axis=-1)

    def result(self) -> Tensor:
        """The share; 0 before the first example."""
        return self._mean.result()

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal metric."""
        return {**super().get_config(), "top_k": self.top_k}
