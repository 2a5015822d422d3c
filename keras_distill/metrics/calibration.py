"""Whether a model is as often right as it says."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import Tensor
from keras_distill.metrics.label_metric import LabelMetric
from keras_distill.metrics.rows import Rows, sums_of


@keras.saving.register_keras_serializable("keras_distill")
class CalibrationError(LabelMetric):
    """Expected calibration error (ECE): confidence against accuracy.

    The confidence is the probability of the class that is chosen. It is sorted
    into intervals of the same width, in each of which its mean is compared
    with the share that was right. 0 for a model that is right in 80 % of the
    cases where it is 80 % sure.

    Formula:
        `sum_b n_b / n * |accuracy_b - confidence_b|` over the intervals `b`,
        with `n_b` the sum of the weights in one.

    Args:
        bins: Number of intervals. The value depends on it: compare only values
            of the same number.
        activation: As in `LabelMetric`.
        from_logits: As in `LabelMetric`.
        name: As in `keras.metrics.Metric`.
        dtype: As in `LabelMetric`.

    Raises:
        ValueError: If `bins` isn't a whole number above 0.

    Example:
        >>> import numpy as np, keras_distill as kd
        >>> metric = kd.metrics.CalibrationError()
        >>> sure = np.log([[0.75, 0.25]] * 4)
        >>> metric.update_state([0, 0, 0, 1], sure)
        >>> round(float(metric.result()), 4)
        0.0
        >>> metric.reset_state()
        >>> metric.update_state([1, 0, 0, 1], sure)
        >>> round(float(metric.result()), 4)
        0.25

    Reference:
        Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural
        Networks", 2017.
    """

    def __init__(
        self,
        bins: int = 15,
        activation: str = "softmax",
        from_logits: bool = True,
        name: str = "calibration_error",
        dtype: Any = None,
    ) -> None:
        super().__init__(activation, from_logits, name, dtype)
        if not isinstance(bins, int) or bins < 1:
            raise ValueError(
                "Confidences are sorted into a number of intervals. Received: "
                f"bins={bins!r}. Pass a whole number above 0, such as 15."
            )
        self.bins = bins
        self._weights, self._confidence, self._right = (
            self.add_variable((bins,), "zeros", self.dtype, name=name)
            for name in ("weights", "confidence", "right")
        )

    def add(self, rows: Rows) -> None:
        """Add a batch's rows to the sums of the intervals."""
        (logits,) = rows.logits
        confidence = ops.max(ops.softmax(logits, axis=-1), axis=-1)
        right = ops.argmax(logits, axis=-1) == ops.cast(rows.labels, "int32")
        places = ops.cast(confidence * self.bins, "int32")
        # 1 belongs to the last interval.
        places = ops.minimum(places, self.bins - 1)
        inside = ops.one_hot(places, self.bins, dtype=self.dtype)
        for total, values in (
            (self._weights, ops.ones_like(confidence)),
            (self._confidence, confidence),
            (self._right, ops.cast(right, self.dtype)),
        ):
            columns = inside * ops.expand_dims(values, axis=-1)
            total.assign_add(sums_of(columns, rows.weights))

    def result(self) -> Tensor:
        """The error; 0 before the first example."""
        gaps = ops.sum(ops.abs(self._right - self._confidence))
        weight = ops.sum(self._weights)
        return gaps / ops.where(weight == 0, 1.0, weight)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal metric."""
        return {**super().get_config(), "bins": self.bins}
