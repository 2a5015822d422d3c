"""What the metrics between a model and the hard labels share."""

from __future__ import annotations

from typing import Any

import keras

from keras_distill.losses.base import Tensor
from keras_distill.metrics.rows import (
    Rows,
    as_tensor,
    check_activation,
    class_labels,
    class_logits,
    place_weights,
    rows_of,
    summing_dtype,
)


class LabelMetric(keras.metrics.Metric):  # type: ignore[misc]
    """Base of the metrics between a classifier and the hard labels.

    They go where Keras' metrics go: `compile(metrics=[...])` of any model, or
    alone. Labels are class indices `(batch, ...)` or `(batch, ..., 1)`, or
    one-hot rows, of which the greatest entry counts. An index of -1, or a row
    with a -1 in it, stands for no label, and counts for nothing; nor do places
    that Keras masked. A label beyond the classes makes the metric NaN. (On JAX,
    `fit` of a model that is no `Distiller` loses the mask before any metric
    sees it, and a label of -1 says the same there.)

    Each sigmoid is a classifier of its own, with the classes 0 and 1.

    A subclass defines `add(rows)`, which adds a batch to its sums.

    Args:
        activation: `"softmax"` or `"sigmoid"`: what the output is, or would be
            if it weren't logits.
        from_logits: Whether the model gives logits, not probabilities.
        name: As in `keras.metrics.Metric`.
        dtype: Dtype of the sums, by default `keras.config.floatx()`, but at
            least float32.

    Example:
        >>> import keras, keras_distill as kd
        >>> class MeanLogit(kd.metrics.LabelMetric):
        ...     def __init__(self):
        ...         super().__init__(name="mean_logit")
        ...         self.mean = keras.metrics.Mean()
        ...     def add(self, rows):
        ...         (logits,) = rows.logits
        ...         self.mean.update_state(logits[:, 0], rows.weights)
        ...     def result(self):
        ...         return self.mean.result()
        >>> metric = MeanLogit()
        >>> metric.update_state([0, 1, -1], [[2.0, 0.0]] * 3)
        >>> float(metric.result())
        2.0
    """

    def __init__(
        self,
        activation: str = "softmax",
        from_logits: bool = True,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=summing_dtype(dtype))
        check_activation(activation)
        self.activation = activation
        self.from_logits = from_logits

    def update_state(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> None:
        """Add a batch.

        Args:
            y_true: Labels.
            y_pred: The model's output.
            sample_weight: A weight for each example, or for each place.
        """
        outputs = as_tensor(y_pred)
        self.check_shape(tuple(outputs.shape))
        logits = class_logits(
            outputs, self.activation, self.from_logits, self.dtype
        )
        labels = class_labels(y_true, outputs, self.activation)
        weights = place_weights(sample_weight, outputs, self.activation, self)
        self.add(rows_of([logits], labels, weights, self))

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Raise where outputs of this shape can't be measured."""

    def add(self, rows: Rows) -> None:
        """Add a batch's rows, of one model, to the sums."""
        raise NotImplementedError(
            f"{type(self).__name__} must define `add(rows)`."
        )

    def result(self) -> Tensor:
        """What `add` has added up to."""
        raise NotImplementedError(
            f"{type(self).__name__} must define `result()`."
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal metric."""
        return {
            **super().get_config(),
            "activation": self.activation,
            "from_logits": self.from_logits,
        }
