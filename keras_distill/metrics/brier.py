"""How far a model's probabilities are from what is right."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import Tensor
from keras_distill.metrics.label_metric import LabelMetric
from keras_distill.metrics.rows import Rows


@keras.saving.register_keras_serializable("keras_distill")
class BrierScore(LabelMetric):
    """Mean squared distance of the probabilities from the one-hot label.

    It rewards both accuracy and calibration, and is never more than 2. For a
    sigmoid, it is the sum over the classes 0 and 1: twice `(p - label)**2`.

    Formula:
        `sum_i w_i * sum_c (p_i[c] - [c is label_i])**2 / sum_i w_i`.

    Args:
        activation: As in `LabelMetric`.
        from_logits: As in `LabelMetric`.
        name: As in `keras.metrics.Metric`.
        dtype: As in `LabelMetric`.

    Example:
        >>> import keras_distill as kd
        >>> metric = kd.metrics.BrierScore()
        >>> metric.update_state([0, 1], [[0.0, 0.0], [0.0, 0.0]])
        >>> float(metric.result())
        0.5

    Reference:
        Brier, "Verification of Forecasts Expressed in Terms of Probability",
        1950.
    """

    def __init__(
        self,
        activation: str = "softmax",
        from_logits: bool = True,
        name: str = "brier_score",
        dtype: Any = None,
    ) -> None:
        super().__init__(activation, from_logits, name, dtype)
        self._mean = keras.metrics.Mean(dtype=self.dtype)

    def add(self, rows: Rows) -> None:
        """Add a batch's rows to the sums."""
        p = ops.softmax(rows.logits[0], axis=-1)
        right = ops.one_hot(rows.labels, p.shape[-1], dtype=p.dtype)
        values = ops.sum(ops.square(p - right), axis=-1)
        self._mean.update_state(values, rows.weights)

    def result(self) -> Tensor:
        """The mean; 0 before the first example."""
        return self._mean.result()
