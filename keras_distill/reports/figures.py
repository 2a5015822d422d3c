"""The figures of a report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from keras_distill.reports.drawing import (
    ALONE,
    DISTILLED,
    LINE,
    MUTED,
    TEACHER,
    Drawing,
    canvas,
)
from keras_distill.reports.facts import Facts, Group, Run
from keras_distill.reports.tables import groups
from keras_distill.reports.words import number, percent, plural, spread

_COLORS = {"teacher": TEACHER, "alone": ALONE, "distilled": DISTILLED}
# In inches, as wide as a telephone.
_WIDTH = 3.6
# Losses that fall by more are seen on a logarithmic axis, and by still more on
# one with powers of ten alone.
_LARGE_RANGE = 20
_HUGE_RANGE = 200
# What a distiller calls the student's own loss; a student alone has no other.
_HARD = "hard_label_loss"


def seeds(facts: Facts) -> Drawing:
    """Each pair of students, and the teacher."""
    rows = [run.name for run in facts.runs if run.distilled]
    height = 0.9 + 0.27 * len(rows)
    from matplotlib.ticker import MaxNLocator

    with canvas("seeds", _WIDTH, height) as (axes, drawn):
        for row in range(len(rows)):
            # Who can't see the colours sees the shapes.
            _student(axes, row, _accuracy(facts.alone, row), "s", ALONE)
            _student(axes, row, _accuracy(facts.distilled, row), "o", DISTILLED)
            _joined(axes, facts, row)
        teacher = facts.teacher.mean("accuracy") or 0.0
        axes.axvline(100 * teacher, color=TEACHER, linestyle=(0, (4, 3)))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.margins(x=0.08)
        axes.set_xlabel("accuracy, %")
    return Drawing(
        "Accuracy: ■ alone, ● distilled; the dashed line is the teacher",
        drawn[0],
        _seeds_alt(facts, rows),
    )


def _accuracy(group: Group | None, row: int) -> float | None:
    scores = None if group is None or not group.scores else group.scores[row]
    return None if scores is None else 100 * scores.accuracy


def _student(
    axes: Any, row: int, accuracy: float | None, marker: str, color: str
) -> None:
    if accuracy is not None:
        axes.plot(accuracy, row, marker, color=color, markersize=7, zorder=3)


def _joined(axes: Any, facts: Facts, row: int) -> None:
    ends = _accuracy(facts.alone, row), _accuracy(facts.distilled, row)
    if None not in ends:
        axes.plot(ends, (row, row), color=MUTED, linewidth=1.2, zorder=2)


def _seeds_alt(facts: Facts, rows: list[str]) -> str:
    texts = [f"Teacher {percent(facts.teacher.mean('accuracy'))}."]
    for row, name in enumerate(rows):
        found = {
            "alone": _accuracy(facts.alone, row),
            "distilled": _accuracy(facts.distilled, row),
        }
        told = ", ".join(
            f"{how} {value:.1f} %"
            for how, value in found.items()
            if value is not None
        )
        texts.append(f"{name}: {told or 'failed'}.")
    return " ".join(texts)


def curves(facts: Facts) -> list[Drawing]:
    """One drawing for each term of the loss, and each metric."""
    panels: dict[str, list[tuple[Run, str]]] = {}
    for run in facts.runs:
        for name in filter(run.epochs_of, run.curves):
            panels.setdefault(_panel_of(run, name), []).append((run, name))
    order = sorted(panels, key=lambda name: (not name.endswith("loss"), name))
    return [_curve(f"curve {i}", n, panels[n]) for i, n in enumerate(order)]


def _panel_of(run: Run, name: str) -> str:
    """Where a curve belongs: validation beside training, like beside like.

    What a distiller calls `loss` is the blend; its `val_loss`, and both losses
    of a student alone, are the student's own on hard labels.
    """
    base = name.removeprefix("val_")
    is_own = base == "loss" and (name != "loss" or not run.distilled)
    return _HARD if is_own else base


def _curve(name: str, title: str, parts: list[tuple[Run, str]]) -> Drawing:
    with canvas(name, _WIDTH, 2.1) as (axes, drawn):
        for run, key in parts:
            values = run.curves[key]
            axes.plot(
                run.epochs_of(key),
                [float("nan") if v is None else v for v in values],
                color=DISTILLED if run.distilled else ALONE,
                linestyle="--" if key.startswith("val_") else "-",
                linewidth=1.6 if run.distilled else 0.8,
                marker="o" if len(values) == 1 else "",
                alpha=0.85,
                zorder=3 if run.distilled else 2,
            )
        _scale(axes, [v for run, key in parts for v in run.curves[key] if v])
        axes.grid(axis="y")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("epoch")
    return Drawing(title.replace("_", " "), drawn[0], _curve_alt(parts))


def _scale(axes: Any, values: list[float]) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    positive = values and min(values) > 0
    fall = max(values) / min(values) if positive else 1
    if fall < _LARGE_RANGE:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return
    axes.set_yscale("log")
    between = (1,) if fall > _HUGE_RANGE else (1, 2, 5)
    axes.yaxis.set_major_locator(LogLocator(subs=between, numticks=6))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()


def _curve_alt(parts: Iterable[tuple[Run, str]]) -> str:
    """First and last values, averaged over the runs of a kind."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    for run, key in parts:
        known = [v for v in run.curves[key] if v is not None]
        where = "validation" if key.startswith("val_") else "training"
        kind = f"{'distilled' if run.distilled else 'alone'}, {where}"
        if known:
            kinds.setdefault(kind, []).append((known[0], known[-1]))
    texts = []
    for kind, ends in kinds.items():
        first, last = (sum(e) / len(ends) for e in zip(*ends, strict=True))
        texts.append(
            f"{kind}: from {number(first)} to {number(last)} "
            f"({plural(len(ends), 'run')})"
        )
    return "; ".join(texts) + "."


def reliability(facts: Facts) -> list[Drawing]:
    """Confidence against accuracy, of each group."""
    return [
        _reliability(title, group, _COLORS[name])
        for title, group, name in groups(facts)
    ]


def _reliability(title: str, group: Group, color: str) -> Drawing:
    bins = group.reliability
    total = sum(b.count for b in bins)
    with canvas(f"reliability {title}", 2.6, 2.5) as (axes, drawn):
        axes.plot((0, 100), (0, 100), color=MUTED, linewidth=1, dashes=(3, 3))
        for b in bins:
            x, y = 100 * b.confidence, 100 * b.accuracy
            axes.plot((x, x), (x, y), color=color, linewidth=1.5, alpha=0.55)
        axes.scatter(
            [100 * b.confidence for b in bins],
            [100 * b.accuracy for b in bins],
            # The area says how many examples there are; all can be seen.
            s=[14 + 130 * b.count / total for b in bins],
            color=color,
            zorder=3,
        )
        axes.set_xlim(0, 104)
        axes.set_ylim(0, 104)
        axes.set_xticks(range(0, 101, 25))
        axes.set_yticks(range(0, 101, 25))
        axes.set_aspect("equal")
        axes.grid()
        axes.tick_params(length=0)
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("accuracy, %")
        for spine in axes.spines.values():
            spine.set_visible(False)
    top = max(bins, key=lambda b: b.count)
    alt = (
        f"Expected calibration error {spread(group, 'ece')}. "
        f"{percent(top.count / total, 0)} of the examples have a confidence "
        f"of {percent(top.confidence)}, and {percent(top.accuracy)} of those "
        "are right."
    )
    return Drawing(title, drawn[0], alt)


def wrong_classes(facts: Facts) -> list[Drawing]:
    """What is given to each wrong class, of each group."""
    return [
        _wrong_classes(facts, title, group, _COLORS[name])
        for title, group, name in groups(facts)
        if group.wrong_classes is not None
    ]


def _wrong_classes(
    facts: Facts, title: str, group: Group, color: str
) -> Drawing:
    from matplotlib.patches import Rectangle

    table, names = group.wrong_classes or (), facts.classes
    largest = max(map(max, table)) or 1.0
    short = [name if len(name) < 9 else f"{name[:7]}…" for name in names]
    with canvas(f"wrong {title}", 2.8, 2.8) as (axes, drawn):
        for i, row in enumerate(table):
            for j, share in enumerate(row):
                axes.add_patch(
                    Rectangle(
                        (j + 0.04, i + 0.04),
                        *(0.92, 0.92),
                        facecolor=LINE if i == j else color,
                        alpha=0.4 if i == j else share / largest,
                        linewidth=0,
                    )
                )
        centres = [i + 0.5 for i in range(len(names))]
        is_long = max(map(len, short)) > 2
        axes.set_xticks(centres, short, rotation=90 if is_long else 0)
        axes.set_yticks(centres, short)
        axes.set_xlim(0, len(names))
        axes.set_ylim(len(names), 0)
        axes.set_aspect("equal")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    cells = [
        (share, i, j)
        for i, row in enumerate(table)
        for j, share in enumerate(row)
    ]
    share, i, j = max(cells)
    alt = (
        f"The largest: of what isn't given to the right class {names[i]}, "
        f"{percent(share, 0)} goes to {names[j]}."
    )
    return Drawing(title, drawn[0], alt)
