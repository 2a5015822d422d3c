"""Figures of a classifier's logits, each one formula in NumPy.

All take logits `(examples, classes)`, in float64, and labels `(examples,)`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BINS = 15


@dataclasses.dataclass(frozen=True)
class Bin:
    """Examples whose confidence lies in one interval.

    Attributes:
        count: How many there are.
        confidence: Mean probability of the class that was chosen.
        accuracy: Share of them that were right.
    """

    count: int
    confidence: float
    accuracy: float


def log_softmax(logits: Array, temperature: float = 1.0) -> Array:
    """Logarithm of the tempered probabilities."""
    scaled = logits / temperature
    scaled = scaled - scaled.max(-1, keepdims=True)
    normalised: Array = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    return normalised


def negative_log_likelihood(logits: Array, labels: Array) -> float:
    """Mean of `-log p_label`, in nats."""
    log_p = log_softmax(logits)
    return float(-log_p[np.arange(len(labels)), labels].mean())


def brier_score(logits: Array, labels: Array) -> float:
    """Mean of `sum_c (p_c - [c is the label])**2`."""
    p = np.exp(log_softmax(logits))
    p[np.arange(len(labels)), labels] -= 1
    return float((p**2).sum(-1).mean())


def confidence_of(logits: Array) -> Array:
    """The probability of the class that is chosen."""
    confidence: Array = np.exp(log_softmax(logits).max(-1))
    return confidence


def reliability(confidence: Array, right: Array) -> tuple[Bin, ...]:
    """Confidence against accuracy, in intervals of the same width.

    Intervals without an example are left out.
    """
    places = np.minimum((confidence * BINS).astype("int64"), BINS - 1)
    return tuple(
        Bin(
            int((places == i).sum()),
            float(confidence[places == i].mean()),
            float(right[places == i].mean()),
        )
        for i in np.unique(places)
    )


def calibration_error(bins: tuple[Bin, ...]) -> float:
    """Expected calibration error: `sum_b n_b / n * |accuracy - confidence|`."""
    gaps = sum(b.count * abs(b.accuracy - b.confidence) for b in bins)
    return gaps / sum(b.count for b in bins)


def divergence(teacher: Array, student: Array, temperature: float) -> float:
    """Mean of `sum_c p_c * (log p_c - log q_c)`, in nats.

    `p` are the teacher's tempered probabilities and `q` the student's. There
    is no factor of the temperature's square: it belongs to the gradient.
    """
    log_p = log_softmax(teacher, temperature)
    log_q = log_softmax(student, temperature)
    return float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())


def entropy_share(logits: Array, temperature: float) -> float:
    """Mean entropy of the tempered probabilities over the largest it can be.

    0 says that they are one-hot, and 1 that all classes are as likely.
    """
    log_p = log_softmax(logits, temperature)
    entropy = -(np.exp(log_p) * log_p).sum(-1).mean()
    return float(entropy / np.log(logits.shape[-1]))


def confusion(decided: Array, labels: Array, classes: int) -> Array:
    """How often an example of the row's class was taken for the column's."""
    counts = np.zeros((classes, classes), "int64")
    np.add.at(counts, (labels, decided), 1)
    return counts


def wrong_classes(logits: Array, labels: Array) -> Array:
    """The logits without the label's, `(examples, classes - 1)`."""
    others = np.arange(logits.shape[-1]) != labels[:, None]
    rest: Array = logits[others].reshape(len(labels), -1)
    return rest


def rank_correlation(teacher: Array, student: Array) -> float | None:
    """Spearman's correlation of two models' rows, averaged over examples.

    None for fewer than two columns, which have no order. A row whose values
    are all equal has no order either and counts for nothing.
    """
    from scipy.stats import rankdata

    if teacher.shape[-1] < 2:
        return None
    ranks = [rankdata(rows, axis=-1) for rows in (teacher, student)]
    a, b = (r - r.mean(-1, keepdims=True) for r in ranks)
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    known = scale > 0
    if not known.any():
        return None
    return float(((a * b).sum(-1)[known] / scale[known]).mean())


def same_favourite(teacher: Array, student: Array) -> float | None:
    """Share of examples in whose row both models have the same largest value.

    None for fewer than two columns, where it can't be otherwise.
    """
    if teacher.shape[-1] < 2:
        return None
    return float((teacher.argmax(-1) == student.argmax(-1)).mean())


def wrong_class_shares(
    logits: Array, labels: Array, temperature: float
) -> Array:
    """What a model gives to each wrong class, for examples of each class.

    Rows are the labels' classes; each sums to 1, or has zeros for a class
    without examples.
    """
    classes = logits.shape[-1]
    log_p = log_softmax(logits, temperature)
    log_p[np.arange(len(labels)), labels] = -np.inf
    shares = np.exp(log_softmax(log_p))
    table = np.zeros((classes, classes))
    np.add.at(table, labels, shares)
    counts = np.bincount(labels, minlength=classes)
    averaged: Array = table / np.maximum(counts, 1)[:, None]
    return averaged
