"""What teacher and students say of a few examples."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_distill.reports.facts import SoftTarget
from keras_distill.reports.groups import Examples, Measured, probabilities_of
from keras_distill.reports.measures import log_softmax
from keras_distill.reports.pictures import pictures_of

Array = np.ndarray[Any, Any]

# The teacher's surest example has rank 0, and its least sure one rank 1: most
# of a good teacher's targets are alike, and the last few differ.
_RANKS = (0.25, 0.6, 0.8, 0.9, 0.97, 0.995)
_CLASSES = 5


def choose(teacher: Array) -> tuple[Array, Array]:
    """Examples from those the teacher is sure of to those it isn't.

    By rank of its entropy, so that neither a student nor a label has a say.

    Returns:
        Indices of the examples, and the likeliest classes of each.
    """
    log_p = log_softmax(teacher)
    order = np.argsort(-(np.exp(log_p) * log_p).sum(-1), kind="stable")
    places = np.array(_RANKS) * (len(order) - 1)
    chosen = order[np.unique(places.round().astype("int64"))]
    classes = np.argsort(-teacher[chosen], axis=-1, kind="stable")
    return chosen, classes[:, :_CLASSES]


def soft_targets(
    x: Any,
    examples: Examples,
    temperatures: tuple[float, ...],
    alone: Measured | None,
    distilled: Measured | None,
) -> tuple[SoftTarget, ...]:
    """The chosen examples, as the teacher and two students see them."""
    indices, classes = examples.shown, examples.shown_classes
    by_temperature = np.stack(
        [
            probabilities_of(examples.teacher[indices], classes, t)
            for t in temperatures
        ],
        axis=1,
    )
    return tuple(
        SoftTarget(
            index=int(index),
            label=int(examples.labels[index]),
            picture=picture,
            classes=tuple(classes[i].tolist()),
            teacher=tuple(map(tuple, by_temperature[i].tolist())),
            alone=_row(alone, i),
            distilled=_row(distilled, i),
        )
        for i, (index, picture) in enumerate(
            zip(indices, pictures_of(x, indices), strict=True)
        )
    )


def _row(student: Measured | None, place: int) -> tuple[float, ...] | None:
    return None if student is None else tuple(student.shown[place].tolist())
