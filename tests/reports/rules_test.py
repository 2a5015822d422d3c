"""Each rule fires where it should, and not where it shouldn't."""

import dataclasses

import pytest
import report_facts as made

from keras_distill.reports import rules, tables, verdict
from keras_distill.reports.paired import Gain, Interval


@pytest.fixture(scope="module")
def facts():
    return made.constructed()


def gained(seeds, examples, count=3):
    mean = sum(seeds) / 2
    return Gain(
        (mean,) * count,
        Interval(mean, *seeds),
        Interval(mean, *examples),
        *(0.01, 0.25, 0.25),
    )


def change(facts, **changes):
    return dataclasses.replace(facts, **changes)


def with_temperature(facts, share):
    place = facts.temperatures.index(facts.temperature)
    shares = list(facts.entropy_shares)
    shares[place] = share
    return change(facts, entropy_shares=tuple(shares))


def with_planned(facts, **changes):
    return made.with_runs(facts, planned=100, finished=7, **changes)


CHANGES = {
    "interrupted_runs": [(with_planned, "problem")],
    "failed_runs": [
        (lambda f: made.with_runs(f, failure="no model"), "problem")
    ],
    "lost_numbers": [
        (lambda f: made.with_curves(f, loss=(1.0, None, None)), "problem")
    ],
    "unknown_runs": [
        (
            lambda f: made.with_runs(f, curves={}, finished=None, planned=None),
            "note",
        ),
        (lambda f: made.with_runs(f, planned=None), "note"),
    ],
    "gain_beyond_noise": [
        (lambda f: change(f, gain=None), "warning"),
        (lambda f: change(f, gain=gained((1, 2), (1, 2))), "good"),
        (lambda f: change(f, gain=gained((-1, 2), (1, 2))), "warning"),
        (lambda f: change(f, gain=gained((1, 2), (-1, 2))), "warning"),
        (lambda f: change(f, gain=gained((-2, -1), (-2, -1))), "problem"),
    ],
    "enough_seeds": [
        (lambda f: change(f, gain=gained((1, 2), (1, 2), 2)), "warning")
    ],
    "teacher_is_better": [
        (lambda f: change(f, teacher_lead=Interval(0.1, 0.05, 0.2)), "good"),
        (lambda f: change(f, teacher_lead=Interval(0.1, -0.1, 0.2)), "warning"),
    ],
    "temperature_shows_something": [
        (lambda f: with_temperature(f, 0.019), "warning"),
        (lambda f: with_temperature(f, 0.981), "note"),
    ],
    "teacher_has_weight": [
        (
            lambda f: made.with_runs(
                f, weights={"hard_label_loss": 1.0, "soft_targets_loss": 0.05}
            ),
            "warning",
        )
    ],
    "still_learning": [
        (
            lambda f: made.with_curves(
                f,
                loss=tuple(0.9**i for i in range(20)),
                val_loss=tuple(0.9**i for i in range(20)),
            ),
            "note",
        )
    ],
    "learned_by_heart": [
        (
            lambda f: made.with_curves(
                f, accuracy=(0.5, 0.95), val_accuracy=(0.5, 0.89)
            ),
            "warning",
        )
    ],
    "room_to_follow": [
        (
            lambda f: made.with_means(
                made.with_means(f, "teacher", accuracy=0.8),
                "distilled",
                agreement=0.81,
            ),
            "note",
        )
    ],
    "better_calibrated": [
        (
            lambda f: made.with_means(
                made.with_means(f, "alone", ece=0.03), "distilled", ece=0.06
            ),
            "note",
        )
    ],
    "exports_keep_accuracy": [
        (
            lambda f: change(
                f, exports=(dataclasses.replace(f.exports[0], accuracy=0.88),)
            ),
            "warning",
        ),
        # One scheme may have several files.
        (
            lambda f: change(
                f,
                exports=(
                    dataclasses.replace(f.exports[0], accuracy=0.6),
                    f.exports[0],
                ),
            ),
            "warning",
        ),
    ],
}
QUIET = {
    "interrupted_runs": lambda f: with_planned(f, stopped=True),
    "failed_runs": lambda f: f,
    "lost_numbers": lambda f: made.with_curves(f, f1=(1.0, None)),
    "unknown_runs": lambda f: f,
    "enough_seeds": lambda f: f,
    "teacher_is_better": lambda f: change(f, alone=None, teacher_lead=None),
    "temperature_shows_something": lambda f: with_temperature(f, 0.5),
    "teacher_has_weight": lambda f: made.with_runs(
        f, weights={"hard_label_loss": 1.0, "soft_targets_loss": 0.06}
    ),
    "still_learning": lambda f: made.with_curves(
        f,
        loss=tuple(0.9**i for i in range(20)),
        val_loss=tuple(1.01**i for i in range(20)),
    ),
    "learned_by_heart": lambda f: made.with_curves(
        f, accuracy=(0.5, 0.95), val_accuracy=(0.5, 0.91)
    ),
    "room_to_follow": lambda f: made.with_means(
        made.with_means(f, "teacher", accuracy=0.8), "distilled", agreement=0.79
    ),
    "better_calibrated": lambda f: made.with_means(
        made.with_means(f, "alone", ece=0.03), "distilled", ece=0.04
    ),
    # To the point: 0.9 - 0.89 is a little more than 0.01.
    "exports_keep_accuracy": lambda f: change(
        f, exports=(dataclasses.replace(f.exports[0], accuracy=0.89),)
    ),
}
CASES = [(n, *case) for n, cases in CHANGES.items() for case in cases]


def rule(name):
    (found,) = (r for r in rules.RULES if r.__name__ == name)
    return found


@pytest.mark.parametrize(("name", "changed", "severity"), CASES)
def test_fires(name, changed, severity, facts):
    finding = rule(name)(changed(facts))
    assert finding.rule == name
    assert finding.severity == severity
    assert finding.seen.endswith(".")
    assert finding.advice or severity == "good"


@pytest.mark.parametrize("name", QUIET)
def test_does_not_fire(name, facts):
    assert rule(name)(QUIET[name](facts)) is None


def test_each_rule_is_tested_and_says_its_reason():
    names = [r.__name__ for r in rules.RULES]
    assert sorted(names) == sorted(CHANGES)
    # This one always says something.
    assert set(names) - set(QUIET) == {"gain_beyond_noise"}
    for each in rules.RULES:
        text = each.__doc__.lower()
        assert "reason" in text, each.__name__


def test_numbers_are_those_of_the_facts(facts):
    changed = with_temperature(facts, 0.0123)
    finding = rules.temperature_shows_something(changed)
    assert "temperature 4" in finding.seen
    assert "1.2 %" in finding.seen
    gain = change(facts, gain=gained((0.01, 0.02), (0.005, 0.025)))
    seen = rules.gain_beyond_noise(gain).seen
    assert "+1.5 points of accuracy over 3 pairs" in seen
    assert "+1.0 to +2.0" in seen
    assert "+0.5 to +2.5" in seen


def test_soft_share_is_the_largest_of_the_epochs(facts):
    run = facts.runs[0]
    curves = {"hard_label_loss": (1.0, 2.0), "soft_targets_loss": (3.0, None)}
    run = dataclasses.replace(run, curves=curves)
    assert rules.soft_share(run) == pytest.approx(2.7 / 2.8)
    assert rules.soft_share(dataclasses.replace(run, weights={})) is None
    assert rules.soft_share(facts.runs[-1]) is None


def test_verdict_has_problems_first(facts):
    changed = with_temperature(with_planned(facts), 0.01)
    found = verdict.judge(changed)
    kinds = [f.severity for f in found.findings]
    order = ["problem", "warning", "good", "note"]
    assert kinds == sorted(kinds, key=order.index)
    assert found.obstacles == found.findings[:1]
    assert "incomplete" in found.headline
    text = str(found)
    assert "[problem] 3 runs didn't finish" in text
    assert "7 of 100 epochs" in text


def test_verdict_of_what_came_to_its_end(facts):
    found = verdict.judge(
        change(facts, gain=gained((0.01, 0.02), (0.01, 0.02)))
    )
    assert found.headline == "Distilling gained 1.5 points, more than noise."
    assert not found.obstacles
    lost = verdict.judge(
        change(facts, gain=gained((-0.02, -0.01), (-0.02, -0.01)))
    )
    assert lost.headline == "Distilling cost 1.5 points of accuracy."


@pytest.mark.parametrize(
    ("ends", "title", "told"),
    [
        ((-0.01, 0.03), "A gain of +1.0 points", "closed 10 % of the gap"),
        ((-0.03, 0.01), "A loss of 1.0 points", "widened the gap between"),
    ],
)
def test_a_loss_is_called_one(facts, ends, title, told):
    changed = change(facts, gain=gained(ends, ends))
    found = rules.gain_beyond_noise(changed)
    assert found.title == f"{title} is no more than noise"
    reached = {"teacher": 0.9, "alone": 0.8, "distilled": 0.8 + sum(ends) / 2}
    for group, accuracy in reached.items():
        changed = made.with_means(changed, group, accuracy=accuracy)
    assert f"Distilling {told}" in tables.summary(changed)


@pytest.mark.parametrize(
    ("seeds", "examples", "title"),
    [
        # One pair, or several that gained the same.
        ((0.5, None, None), (0.5, 0.4, 0.6), "can't be told from chance"),
        ((-0.5, None, None), (-0.5, -0.6, -0.4), "can't be told from chance"),
        ((0.5, 0.4, 0.6), (0.5, None, None), "can't be told from chance"),
        ((0.5, None, None), (0.5, -0.1, 1.1), "is no more than noise"),
        ((0.0, None, None), (0.0, None, None), "is no more than noise"),
    ],
)
def test_without_a_spread_noise_is_unknown(facts, seeds, examples, title):
    gain = Gain(
        (seeds[0],), Interval(*seeds), Interval(*examples), None, None, None
    )
    found = rules.gain_beyond_noise(change(facts, gain=gain))
    assert title in found.title
    assert found.severity == "warning"


def test_gap_has_a_name_where_it_is_shown(facts):
    changed = change(facts, teacher_lead=Interval(0.1, -0.02, 0.22))
    assert facts.gap_closed is not None
    assert "of the gap" in tables.summary(facts)
    assert "the gap" not in tables.summary(changed)
    title = rules.teacher_is_better(changed).title
    assert title.startswith("The teacher isn't shown to be better")
    worse = change(facts, teacher_lead=Interval(-0.1, -0.2, -0.02))
    assert "is no better" in rules.teacher_is_better(worse).title
