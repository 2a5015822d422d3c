"""From the logits of several models to the facts of a group of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_distill.reports import measures
from keras_distill.reports.facts import Group, Mistake, Outcomes, Scores

Array = np.ndarray[Any, Any]

# Tables of more classes than these are no picture.
MOST_CLASSES = 12
# As many kinds of mistakes are listed.
_MISTAKES = 8


class Examples(NamedTuple):
    """What models are measured against.

    Attributes:
        labels: The examples' classes.
        teacher: The teacher's logits.
        temperature: Of the training; None if that isn't known.
        shown: Indices of the examples that are shown.
        shown_classes: The classes that are shown of each.
    """

    labels: Array
    teacher: Array
    temperature: float | None
    shown: Array
    shown_classes: Array


class Measured(NamedTuple):
    """One model, without the logits, which may be many.

    Attributes:
        scores: Its figures.
        decided: Its decisions.
        confidence: Its probabilities of them.
        shares: What it gives to each wrong class; None where that is no
            picture.
        shown: Its probabilities for the examples and classes that are shown.
    """

    scores: Scores
    decided: Array
    confidence: Array
    shares: Array | None
    shown: Array


def measure(logits: Array, examples: Examples) -> Measured:
    """Reduce a model's logits to its figures."""
    labels, teacher, temperature, shown, shown_classes = examples
    decided = logits.argmax(-1)
    confidence = measures.confidence_of(logits)
    bins = measures.reliability(confidence, decided == labels)
    wrong = [measures.wrong_classes(z, labels) for z in (teacher, logits)]
    scores = Scores(
        accuracy=float((decided == labels).mean()),
        nll=measures.negative_log_likelihood(logits, labels),
        brier=measures.brier_score(logits, labels),
        ece=measures.calibration_error(bins),
        agreement=float((decided == teacher.argmax(-1)).mean()),
        divergence=measures.divergence(teacher, logits, 1.0),
        tempered_divergence=None
        if temperature is None
        else measures.divergence(teacher, logits, temperature),
        rank_correlation=measures.rank_correlation(*wrong),
        same_favourite=measures.same_favourite(*wrong),
    )
    at = temperature or 1.0
    has_table = 2 < logits.shape[-1] <= MOST_CLASSES
    return Measured(
        scores,
        decided,
        confidence,
        measures.wrong_class_shares(logits, labels, at) if has_table else None,
        probabilities_of(logits[shown], shown_classes, at),
    )


def probabilities_of(
    logits: Array, classes: Array, temperature: float
) -> Array:
    """Tempered probabilities of some classes of each row."""
    p = np.exp(measures.log_softmax(logits, temperature))
    return np.take_along_axis(p, classes, -1)


def group_of(
    measured: Sequence[Measured | None],
    examples: Examples,
    parameters: int | None,
) -> Group | None:
    """The facts of models that were trained in the same way.

    None if all of them failed.
    """
    known = [m for m in measured if m is not None]
    if not known:
        return None
    classes, labels = examples.teacher.shape[-1], examples.labels
    decided = np.stack([m.decided for m in known])
    shares = [m.shares for m in known if m.shares is not None]
    return Group(
        parameters=parameters,
        scores=tuple(None if m is None else m.scores for m in measured),
        reliability=measures.reliability(
            np.concatenate([m.confidence for m in known]),
            (decided == labels).ravel(),
        ),
        outcomes=outcomes(examples.teacher.argmax(-1), decided, labels),
        confusion=_rows(_confusion(decided, labels, classes))
        if classes <= MOST_CLASSES
        else None,
        wrong_classes=_rows(np.mean(shares, 0)) if shares else None,
    )


def outcomes(teacher: Array, students: Array, labels: Array) -> Outcomes:
    """Who is right.

    Args:
        teacher: The teacher's decisions.
        students: Those of some students, a row for each.
        labels: The right ones.
    """
    knows, learned = teacher == labels, students == labels
    return Outcomes(
        both_right=float((knows & learned).mean()),
        teacher_only=float((knows & ~learned).mean()),
        student_only=float((~knows & learned).mean()),
        same_mistake=float((~knows & (students == teacher)).mean()),
        other_mistake=float((~knows & ~learned & (students != teacher)).mean()),
    )


def _confusion(decided: Array, labels: Array, classes: int) -> Array:
    counts = [measures.confusion(row, labels, classes) for row in decided]
    total: Array = np.sum(counts, 0)
    return total


def mistakes_of(
    teacher: Measured,
    alone: Sequence[Measured | None],
    distilled: Sequence[Measured | None],
    examples: Examples,
) -> tuple[Mistake, ...]:
    """The most frequent mistakes of the three together, worst first."""
    kinds = [
        _mistake_counts(group, examples)
        for group in ([teacher], alone, distilled)
    ]
    total = np.sum([counts for counts in kinds if counts is not None], 0)
    worst = np.argsort(-total, axis=None, kind="stable")[:_MISTAKES]
    pairs = zip(*np.unravel_index(worst, total.shape), strict=True)
    return tuple(
        Mistake(int(i), int(j), *(_count(counts, i, j) for counts in kinds))
        for i, j in pairs
        if total[i, j] > 0
    )


def _count(counts: Array | None, label: int, decided: int) -> float | None:
    return None if counts is None else float(counts[label, decided])


def _mistake_counts(
    group: Sequence[Measured | None], examples: Examples
) -> Array | None:
    """Mean counts of a group's models, without what was right."""
    decided = [m.decided for m in group if m is not None]
    if not decided:
        return None
    classes = examples.teacher.shape[-1]
    counts = _confusion(np.stack(decided), examples.labels, classes)
    np.fill_diagonal(counts, 0)
    return counts / len(decided)


def _rows(table: Array) -> tuple[tuple[Any, ...], ...]:
    return tuple(map(tuple, table.tolist()))
