"""The texts and rows that a page and a text have in common."""

from __future__ import annotations

from keras_distill.reports import words
from keras_distill.reports.facts import Facts, Group, Run, Scores

OUTCOMES = (
    ("both right", "both_right"),
    ("only the teacher right", "teacher_only"),
    ("only the student right", "student_only"),
    ("both wrong, same mistake", "same_mistake"),
    ("both wrong, other mistakes", "other_mistake"),
)
TWO_CLASSES = (
    "With two classes, there is one wrong class, and nothing to learn from its "
    "probability but how sure the teacher is."
)
_KINDS = (
    ("Teacher", "teacher"),
    ("Student alone", "alone"),
    ("Student distilled", "distilled"),
)


def groups(facts: Facts) -> list[tuple[str, Group, str]]:
    """The groups that there are: title, facts, and name in `Facts`."""
    found = [(title, getattr(facts, name), name) for title, name in _KINDS]
    return [row for row in found if row[1] is not None]


def summary(facts: Facts) -> str:
    """What was done, in a sentence or two."""
    distilled = [run for run in facts.runs if run.distilled]
    parts = [
        f"{words.plural(len(distilled), 'student')} learned from a teacher"
    ]
    if facts.temperature is not None:
        parts.append(f"at temperature {words.temperature(facts.temperature)}")
    if facts.alone is not None:
        parts.append("and the same ones without")
    text = " ".join(parts) + "; "
    text += f"{words.plural(facts.examples, 'example')} test them all."
    ratio = _ratio(facts)
    if ratio is not None:
        text += f" The student is {ratio} its teacher."
    lead = facts.teacher_lead
    if facts.gap_closed is not None and lead is not None and lead.above_zero:
        closed = facts.gap_closed >= 0
        by = words.percent(abs(facts.gap_closed), 0)
        text += (
            f" Distilling closed {by} of the gap between them."
            if closed
            else f" Distilling widened the gap between them by {by}."
        )
    return text


def _ratio(facts: Facts) -> str | None:
    student = facts.distilled and facts.distilled.parameters
    if not facts.teacher.parameters or not student:
        return None
    ratio = facts.teacher.parameters / student
    times = f"{max(ratio, 1 / ratio):.3g}"
    if times == "1":
        return "as large as"
    return f"{times} times {'larger' if ratio < 1 else 'smaller'} than"


def models(facts: Facts) -> list[list[str]]:
    """A row for each figure, a column for each group."""
    found = [group for _, group, _ in groups(facts)]
    shares = {"accuracy": "accuracy", "calibration error": "ece"}
    numbers = {"negative log-likelihood": "nll", "Brier score": "brier"}
    fidelity = {"divergence": "divergence"}
    if facts.temperature is not None:
        at = words.temperature(facts.temperature)
        fidelity[f"divergence at temperature {at}"] = "tempered_divergence"
    rows = [["weights", *(words.count(g.parameters) for g in found)]]
    rows += [
        [title, *(words.spread(g, name) for g in found)]
        for title, name in shares.items()
    ]
    rows += [
        [title, *(words.spread_number(g, name) for g in found)]
        for title, name in numbers.items()
    ]
    # The teacher agrees with itself.
    others = found[1:]
    rows.append(
        [
            "agreement",
            words.NOTHING,
            *(words.spread(g, "agreement") for g in others),
        ]
    )
    rows += [
        [
            title,
            words.NOTHING,
            *(words.spread_number(g, name) for g in others),
        ]
        for title, name in fidelity.items()
    ]
    return rows


def tests(facts: Facts) -> str:
    """What the paired tests say of the gain."""
    gain = facts.gain
    if gain is None:
        return ""
    pairs = words.plural(len(gain.by_seed), "pair")
    text = f"Paired t test over {pairs}: p {words.p_value(gain.p_value)}."
    if gain.sign_flip_p is None:
        return text
    return text + (
        " Exact sign-flip test, which assumes no distribution: "
        f"p {words.p_value(gain.sign_flip_p)}; with {pairs}, the smallest "
        f"there is, is {words.number(gain.smallest_p)}."
    )


def wrong_classes(facts: Facts) -> list[list[str]]:
    """How well the students rank what is wrong; empty for two classes."""
    if len(facts.classes) < 3:
        return []
    found = [group for _, group, name in groups(facts) if name != "teacher"]
    return [
        [
            "same likeliest wrong class",
            *(words.spread(g, "same_favourite") for g in found),
        ],
        [
            "rank correlation over the wrong classes",
            *(words.spread_number(g, "rank_correlation", 2) for g in found),
        ],
    ]


def made(facts: Facts) -> list[tuple[str, str]]:
    """What it takes to make the report again."""
    seeds = "not told"
    if facts.seeds is not None:
        seeds = ", ".join(map(str, facts.seeds))
    return [
        ("command", facts.command),
        ("seeds", seeds),
        ("test data", f"{facts.examples:,} examples, sha256 {facts.data}"),
        *facts.environment.items(),
        ("made", facts.made),
    ]


def mean_confusion(group: Group) -> list[list[int]]:
    """Counts for one model, rounded."""
    models = len(group.values("accuracy"))
    return [[round(n / models) for n in row] for row in group.confusion or ()]


def largest_mistake(confusion: list[list[int]]) -> int:
    """The largest count beside the diagonal, and at least 1."""
    counts = [
        n
        for i, row in enumerate(confusion)
        for j, n in enumerate(row)
        if i != j
    ]
    return max(1, *counts)


def all_as_planned(facts: Facts) -> bool:
    """Whether all runs did the same, and nothing is to be said of one."""
    ends = {(words.end(run), words.epochs(run)) for run in facts.runs}
    return len(ends) == 1 and {end for end, _ in ends} == {"as planned"}


def runs(facts: Facts) -> list[tuple[Run, Scores | None]]:
    """Each run, and what its student scored."""
    found = []
    for distilled, group in ((True, facts.distilled), (False, facts.alone)):
        kind = [run for run in facts.runs if run.distilled == distilled]
        scores = (None,) * len(kind) if group is None else group.scores
        found += list(zip(kind, scores, strict=True))
    return found


def undrawn(facts: Facts) -> list[str]:
    """Curves of some epochs, nobody knows which."""
    return sorted(
        {
            name
            for run in facts.runs
            for name, values in run.curves.items()
            if values and run.epochs_of(name) is None
        }
    )


def ends(facts: Facts) -> list[tuple[Run, str, float | None, float | None]]:
    """Each curve's first and last value."""
    return [
        (run, name, values[0], values[-1])
        for run in facts.runs
        for name, values in sorted(run.curves.items())
        if values
    ]
