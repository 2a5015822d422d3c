"""How probable a model finds what is right."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import Tensor, of_label
from keras_distill.metrics.label_metric import LabelMetric
from keras_distill.metrics.rows import Rows


@keras.saving.register_keras_serializable("keras_distill")
class NegativeLogLikelihood(LabelMetric):
    """Mean of the negative log-probability of the label, in nats.

    A model that is sure and wrong pays most. Unlike a cross-entropy among
    Keras' metrics, it leaves out examples without a label.

    Formula:
        `sum_i w_i * -log p_i[label_i] / sum_i w_i`. A probability that
        underflowed to 0 counts as `2**-110`, where a model gives
        probabilities.

    Args:
        activation: As in `LabelMetric`.
        from_logits: As in `LabelMetric`.
        name: As in `keras.metrics.Metric`.
        dtype: As in `LabelMetric`.

    Example:
        >>> import keras_distill as kd
        >>> metric = kd.metrics.NegativeLogLikelihood()
        >>> metric.update_state([0, -1], [[0.0, 0.0], [5.0, 0.0]])
        >>> round(float(metric.result()), 4)
        0.6931

    Reference:
        Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural
        Networks", 2017.
    """

    def __init__(
        self,
        activation: str = "softmax",
        from_logits: bool = True,
        name: str = "negative_log_likelihood",
        dtype: Any = None,
    ) -> None:
        super().__init__(activation, from_logits, name, dtype)
        self._mean = keras.metrics.Mean(dtype=self.dtype)

    def add(self, rows: Rows) -> None:
        """Add a batch's rows to the sums."""
        log_p = ops.log_softmax(rows.logits[0], axis=-1)
        self._mean.update_state(-of_label(log_p, rows.labels), rows.weights)

    def result(self) -> Tensor:
        """The mean; 0 before the first example."""
        return self._mean.result()
