"""How often a model is right, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import Shape, Tensor
from keras_distill.metrics.class_shares import (
    ClassShares,
    check_classes,
    class_names,
)
from keras_distill.metrics.label_metric import LabelMetric
from keras_distill.metrics.rows import Rows


@keras.saving.register_keras_serializable("keras_distill")
class ClassAccuracy(LabelMetric):
    """Of the examples of each class, the share that the model gets right.

    Also known as the recall of each class. Its mean hides the classes that a
    student gave up for the sake of the others.

    Formula:
        `sum_i w_i * [label_i is c] * [choice_i is c] / sum_i w_i * [label_i is
        c]` for each class `c`.

    Args:
        classes: How many there are, or a list of their names.
        activation: As in `LabelMetric`; `"sigmoid"` with one output, which
            tells the classes 0 and 1 apart.
        from_logits: As in `LabelMetric`.
        name: As in `keras.metrics.Metric`.
        dtype: As in `LabelMetric`.

    Shapes:
        The result is a dict of a number for each class, `"class_accuracy_0"`
        and so on, as Keras logs it. NaN for a class without an example.

    Raises:
        ValueError: If there are fewer than two classes, or the model has
            others.

    Example:
        >>> import keras_distill as kd
        >>> metric = kd.metrics.ClassAccuracy(["cat", "dog"])
        >>> metric.update_state([0, 0, 1], [[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> {name: float(value) for name, value in metric.result().items()}
        {'class_accuracy_cat': 0.5, 'class_accuracy_dog': 1.0}
    """

    def __init__(
        self,
        classes: int | Sequence[str],
        activation: str = "softmax",
        from_logits: bool = True,
        name: str = "class_accuracy",
        dtype: Any = None,
    ) -> None:
        super().__init__(activation, from_logits, name, dtype)
        self.classes = class_names(classes)
        self._shares = ClassShares(len(self.classes), self.dtype)

    def check_shape(self, shape: Shape) -> None:
        """Raise where there are other classes."""
        check_classes(self, self.classes, shape, self.activation)

    def add(self, rows: Rows) -> None:
        """Add a batch's rows to the sums of the classes."""
        choice = ops.cast(ops.argmax(rows.logits[0], axis=-1), "int32")
        self._shares.update_state(
            rows.labels, choice == rows.labels, rows.weights
        )

    def result(self) -> dict[str, Tensor]:
        """The share of each class, by name."""
        shares = self._shares.result()
        return {
            f"{self.name}_{c}": shares[i] for i, c in enumerate(self.classes)
        }

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal metric."""
        return {**super().get_config(), "classes": self.classes}
