"""A classifier of scikit-learn as a teacher."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from keras_distill.teachers.base import Array, Teacher
from keras_distill.teachers.log_space import floored_log


class SklearnTeacher(Teacher):
    """A fitted classifier of scikit-learn.

    Its output is logarithms of probabilities, so logits: from
    `predict_log_proba` or `predict_proba`, where a probability of 0 counts as
    the smallest float32. A classifier with neither gives its
    `decision_function`, which isn't calibrated: soft targets of a support
    vector machine may want another temperature. With two classes that is one
    number `d`, and the logits are `[0, d]`.

    Examples of more than one axis, such as images, are made flat.

    Args:
        classifier: The classifier, whose classes are 0 to C - 1.

    Raises:
        ValueError: If its classes are others, or it isn't fitted.
        TypeError: If it has several outputs, or gives labels only.

    Formula:
        `output[i, c] = log(max(p(c | x[i]), tiny))`

    Shapes:
        inputs: `(batch, ...)`, output: `(batch, classes)`.

    Reference:
        Pedregosa et al., "Scikit-learn: Machine Learning in Python", 2011.
    """

    runtime = "sklearn"
    probabilities = False

    def __init__(self, classifier: Any) -> None:
        import joblib

        self.classifier = classifier
        self._method = _method(classifier)
        _require_classes(classifier)
        # It sees through what pickle does differently from time to time.
        digest = joblib.hash(classifier, hash_name="sha1")
        self._fingerprint = {
            "kind": "sklearn",
            "name": type(classifier).__qualname__,
            "sha256": hashlib.sha256(digest.encode()).hexdigest(),
        }

    def label(self, inputs: Any) -> tuple[Any, dict[str, Array]]:
        """Ask the classifier about a batch."""
        rows = np.asarray(inputs)
        if rows.ndim > 2:
            rows = rows.reshape(len(rows), -1)
        # A tree has probabilities of 0, whose logarithm is floored.
        with np.errstate(divide="ignore"):
            scores = np.asarray(getattr(self.classifier, self._method)(rows))
        if self._method == "predict_proba":
            _require_one_class(scores)
            return floored_log(scores), {}
        if self._method == "predict_log_proba":
            _require_one_class(np.exp(scores))
            floor = floored_log(np.zeros((), scores.dtype))
            return np.maximum(scores, floor), {}
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        return scores, {}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The class's name, and the checksum of what it learned."""
        return self._fingerprint


def _method(classifier: Any) -> str:
    for name in ("predict_log_proba", "predict_proba", "decision_function"):
        # Some have it or not, by how they were made.
        if getattr(classifier, name, None) is not None:
            return name
    raise TypeError(
        "A teacher says how sure it is of each class. Received: a "
        f"{type(classifier).__name__} without predict_proba and without "
        "decision_function. Pass another classifier, or wrap it in "
        "sklearn.calibration.CalibratedClassifierCV."
    )


def _require_one_class(probabilities: Array) -> None:
    """Raise where they are of several labels, each by itself."""
    if not np.allclose(probabilities.sum(-1), 1, atol=1e-3):
        raise TypeError(
            "A classifier with several outputs is no teacher. Received: "
            "probabilities that don't sum to 1. Pass a classifier for each "
            "label."
        )


def _require_classes(classifier: Any) -> None:
    classes = getattr(classifier, "classes_", None)
    if classes is None:
        raise ValueError(
            "The classifier isn't fitted. Received: a "
            f"{type(classifier).__name__} without classes_. Call its fit."
        )
    if isinstance(classes, list):
        raise TypeError(
            "A classifier with several outputs is no teacher. Received: a "
            f"{type(classifier).__name__} with {len(classes)} outputs. Pass a "
            "classifier for each."
        )
    pairs = any(  # also of what is in a pipeline
        name.endswith("decision_function_shape") and value == "ovo"
        for name, value in classifier.get_params().items()
    )
    if pairs and _method(classifier) == "decision_function":
        raise ValueError(
            "The columns of a teacher's output are classes. Received: a "
            f"{type(classifier).__name__} whose columns are pairs of them. "
            "Pass one with decision_function_shape='ovr'."
        )
    if not np.array_equal(classes, np.arange(len(classes))):
        raise ValueError(
            "The columns of a teacher's output are the labels 0 to C - 1. "
            f"Received: classes_={np.asarray(classes).tolist()}. Fit it with "
            "labels that count from 0."
        )
