"""Shares of hits, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import Shape, Tensor
from keras_distill.metrics.rows import sums_of


class ClassShares(keras.metrics.Metric):  # type: ignore[misc]
    """Of the examples of each class, the share that is a hit.

    Args:
        classes: Their number.
        dtype: Dtype of the sums.
    """

    def __init__(self, classes: int, dtype: Any) -> None:
        super().__init__(name="class_shares", dtype=dtype)
        self._hits, self._weights = (
            self.add_variable((classes,), "zeros", self.dtype, name=name)
            for name in ("hits", "weights")
        )

    def update_state(self, classes: Tensor, hits: Tensor, weights: Any) -> None:
        """Add examples.

        Args:
            classes: The class of each, an index.
            hits: Whether it is one.
            weights: What it counts.
        """
        of_class = ops.one_hot(classes, self._hits.shape[0], dtype=self.dtype)
        hits = ops.expand_dims(ops.cast(hits, self.dtype), axis=-1)
        self._hits.assign_add(sums_of(of_class * hits, weights))
        self._weights.assign_add(sums_of(of_class, weights))

    def result(self) -> Tensor:
        """The shares `(classes,)`, NaN for a class without an example."""
        return self._hits / self._weights


def class_names(classes: int | Sequence[str]) -> list[str]:
    """Names of classes, from how they were given.

    Raises:
        ValueError: If it is no number of classes, nor their names.
    """
    if isinstance(classes, int):
        names = [str(i) for i in range(classes)]
    else:
        names = [] if isinstance(classes, str) else list(classes)
    texts = all(isinstance(name, str) for name in names)
    if len(names) < 2 or not texts or len(set(names)) < len(names):
        raise ValueError(
            "There are two classes at least, each with a name of its own. "
            f"Received: classes={classes!r}. Pass their number, or a list of "
            "their names in the order of the model's outputs."
        )
    return names


def check_classes(
    metric: keras.metrics.Metric,
    names: list[str],
    shape: Shape,
    activation: str,
) -> None:
    """Raise where a model's output doesn't have these classes."""
    if activation == "sigmoid" and shape[-1] != 1:
        raise ValueError(
            f"{type(metric).__name__} tells the classes 0 and 1 of one sigmoid "
            f"apart. Received: outputs of shape {shape}. Use a model with "
            "one, or activation='softmax'."
        )
    classes = 2 if activation == "sigmoid" else shape[-1]
    if classes not in (None, len(names)):
        raise ValueError(
            f"{type(metric).__name__} was made for {len(names)} classes. "
            f"Received: outputs of shape {shape}. Pass classes={classes}, or "
            "as many names."
        )
