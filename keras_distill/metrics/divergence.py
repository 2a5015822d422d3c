"""How far the student's probabilities are from the teacher's."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerName, Tensor, divergence
from keras_distill.metrics.fidelity_metric import LogitFidelityMetric
from keras_distill.metrics.rows import Rows


@keras.saving.register_keras_serializable("keras_distill")
class TeacherDivergence(LogitFidelityMetric):
    """Kullback-Leibler divergence of the student from the teacher, in nats.

    With a temperature, between the tempered probabilities, which also tell the
    unlikely classes apart. The result isn't multiplied by `T**2`, as the loss
    `SoftTargets` is for the sake of its gradient: so it says what it is at any
    temperature.

    Formula:
        `sum_i w_i * sum_c p_i[c] * (log p_i[c] - log q_i[c]) / sum_i w_i`, with
        `p` the softmax of the teacher's logits over `T`, `q` the student's.

    Args:
        temperature: `T`, above 0; 1 for the models' own probabilities.
        teacher_layer_name: As in `FidelityMetric`.
        student_layer_name: As in `FidelityMetric`.
        activation: As in `LogitFidelityMetric`.
        teacher_from_logits: As in `LogitFidelityMetric`.
        student_from_logits: As in `LogitFidelityMetric`.
        class_map: As in `LogitFidelityMetric`.
        name: As in `keras.metrics.Metric`; by default
            `"teacher_divergence"`, or `"tempered_teacher_divergence"` for
            another temperature than 1.
        dtype: As in `FidelityMetric`.

    Raises:
        ValueError: If the temperature isn't positive.

    Example:
        >>> import keras_distill as kd
        >>> metric = kd.metrics.TeacherDivergence()
        >>> metric.update_state([[2.0, 0.0]], [[1.0, 0.0]])
        >>> round(float(metric.result()), 4)
        0.0671

    Reference:
        Stanton, Izmailov, Kirichenko, Alemi and Wilson, "Does Knowledge
        Distillation Really Work?", 2021.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        activation: str = "softmax",
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        class_map: Sequence[int] | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        _check_temperature(temperature)
        tempered = "" if temperature == 1 else "tempered_"
        super().__init__(
            teacher_layer_name,
            student_layer_name,
            activation,
            teacher_from_logits,
            student_from_logits,
            class_map,
            name or f"{tempered}teacher_divergence",
            dtype,
        )
        self.temperature = float(temperature)
        self._mean = keras.metrics.Mean(dtype=self.dtype)

    def add(self, rows: Rows) -> None:
        """Add a batch's rows to the sums."""
        log_p, log_q = (
            ops.log_softmax(x / self.temperature, axis=-1) for x in rows.logits
        )
        self._mean.update_state(divergence(log_p, log_q), rows.weights)

    def result(self) -> Tensor:
        """The mean; 0 before the first example."""
        return self._mean.result()

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal metric."""
        return {**super().get_config(), "temperature": self.temperature}


def _check_temperature(temperature: Any) -> None:
    number = isinstance(temperature, numbers.Real)
    if not number or not 0 < temperature < math.inf:
        raise ValueError(
            "A temperature divides the logits, so it must be a positive "
            f"number. Received: temperature={temperature!r}. Pass 1 for the "
            "models' own probabilities."
        )
