"""The rules of a verdict: each looks at the facts for one thing.

No rule knows what is right. Each has a threshold with its reason, says what it
saw, and what is worth a try. `RULES` has them in the order of the report.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Literal

from keras_distill.reports.facts import Facts, Run
from keras_distill.reports.paired import Interval
from keras_distill.reports.words import (
    interval,
    p_value,
    percent,
    plural,
    points,
    temperature,
)

_FEWEST_PAIRS = 3
_LEAST_ENTROPY = 0.02
_GOOD_ENTROPY = 0.1
_MOST_ENTROPY = 0.98
_LEAST_SHARE = 0.05
_FALL = 0.02
_GAP = 0.05
_WORSE_ECE = 0.02
_EXPORT_LOSS = 0.01
# What a distiller calls the student's own loss.
_HARD = "hard_label_loss"

Severity = Literal["problem", "warning", "note", "good"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        rule: The rule's name.
        severity: `"problem"`, `"warning"`, `"note"` or `"good"`.
        title: What it is, in a few words.
        seen: The numbers that say so.
        advice: What to try; empty where there is nothing to do.
    """

    rule: str
    severity: Severity
    title: str
    seen: str
    advice: str = ""


def failed_runs(facts: Facts) -> Finding | None:
    """A run without a student, or with one that returns no numbers.

    Reason: the mean over the seeds that came through is too good, if what
    made the others fail is chance.
    """
    failed = [run for run in facts.runs if run.failure]
    if not failed:
        return None
    reasons = "; ".join(f"{run.title}: {run.failure}" for run in failed)
    return Finding(
        "failed_runs",
        "problem",
        f"{plural(len(failed), 'run')} failed",
        f"{reasons}. The figures are of the others.",
        "Find out why, and run these seeds again. A smaller learning rate, or "
        "clipped gradients, helps where a loss grew without end.",
    )


def lost_numbers(facts: Facts) -> Finding | None:
    """A loss that was NaN or infinite in some epoch.

    Reason: from that epoch on, the weights follow no gradient.
    """
    bad = [run for run in facts.runs if run.lost_in]
    if not bad:
        return None
    places = "; ".join(f"{run.title}: from {run.lost_in} on" for run in bad)
    return Finding(
        "lost_numbers",
        "problem",
        "A loss stopped being a number",
        f"{places}.",
        "Lower the learning rate, clip gradients (`clipnorm=1.0`), or look for "
        "a smaller weight of the loss that grew first.",
    )


def interrupted_runs(facts: Facts) -> Finding | None:
    """A run with fewer epochs than it was asked for, and no callback's wish.

    Reason: a student in the middle of its schedule is no student to compare.
    """
    cut = [run for run in facts.runs if run.is_cut_off]
    if not cut:
        return None
    places = "; ".join(
        f"{run.title}: {run.finished} of {run.planned} epochs" for run in cut
    )
    return Finding(
        "interrupted_runs",
        "problem",
        f"{plural(len(cut), 'run')} didn't finish",
        f"{places}.",
        "Finish them before anything is read from this report; "
        "`keras.callbacks.BackupAndRestore` goes on where a run ended.",
    )


def unknown_runs(facts: Facts) -> Finding | None:
    """A distilled student that may have been interrupted, for all one knows.

    Reason: without a finished epoch, it was loaded, never trained, or
    interrupted in its first; and curves alone don't say how many epochs were
    asked for.
    """
    runs = [run for run in facts.runs if run.distilled and not run.failure]
    silent = [run.title for run in runs if not run.finished]
    endless = [r.title for r in runs if r.finished and r.planned is None]
    seen = []
    if silent:
        seen.append(
            f"No finished epoch of {', '.join(silent)}: loaded, never "
            "trained, or interrupted in the first epoch."
        )
    if endless:
        seen.append(
            f"Curves alone of {', '.join(endless)}, which may have been "
            "interrupted."
        )
    if not seen:
        return None
    return Finding(
        "unknown_runs",
        "note",
        "How some trainings ended isn't known",
        " ".join(seen),
        "Pass the `History` that `fit` returned, not its `.history`: "
        "`kd.report(..., histories=[...])`.",
    )


def gain_beyond_noise(facts: Facts) -> Finding | None:
    """Whether both 95 % intervals of the gain leave out 0.

    Reason: other seeds, and other test examples, would give another gain. One
    interval is of each noise (Student's t over pairs of seeds; a normal one
    over examples), and a gain that either could have made isn't shown. One
    pair, or pairs that all gained the same, have no spread to tell it from.
    """
    gain = facts.gain
    if gain is None:
        return Finding(
            "gain_beyond_noise",
            "warning",
            "The gain isn't known",
            "There is no student that was trained alone, from the same first "
            "weights, to compare with.",
            "Train one for each seed, and pass `baselines=[...]`.",
        )
    seeds, examples = gain.over_seeds, gain.over_examples
    by = points(seeds.mean)
    seen = (
        f"{by} points of accuracy over "
        f"{plural(len(gain.by_seed), 'pair')}. Other seeds: "
        f"{interval(seeds)}; other examples: {interval(examples)} (95 %). "
        f"Paired t test: p {p_value(gain.p_value)}."
    )
    if seeds.above_zero and examples.above_zero:
        return Finding(
            "gain_beyond_noise",
            "good",
            f"Distilling gained {by.removeprefix('+')} points, more than noise",
            seen,
        )
    if seeds.below_zero and examples.below_zero:
        return Finding(
            "gain_beyond_noise",
            "problem",
            f"Distilling cost {by.removeprefix('−')} points of accuracy",
            seen,
            "Look at the teacher, the temperature and the weights below; more "
            "weight of the hard labels brings the student back to itself.",
        )
    noise = "seeds" if not _leaves_out_zero(seeds) else "test examples"
    what = f"loss of {by[1:]}" if by.startswith("−") else f"gain of {by}"
    is_noise = "is no more than noise"
    if not (_may_be_zero(seeds) or _may_be_zero(examples)):
        is_noise = f"can't be told from chance without more {noise}"
    return Finding(
        "gain_beyond_noise",
        "warning",
        f"A {what} points {is_noise}",
        seen,
        f"More {noise}, before anything else is changed.",
    )


def _leaves_out_zero(found: Interval) -> bool:
    return found.above_zero or found.below_zero


def _may_be_zero(found: Interval) -> bool:
    """Whether 0 is in the interval; without a spread, whether it is all."""
    known = found.low is not None
    return not _leaves_out_zero(found) if known else found.mean == 0


def enough_seeds(facts: Facts) -> Finding | None:
    """Fewer than 3 pairs.

    Reason: one pair has no spread, and with two, Student's t is 12.7: only a
    gain of 9 times its spread would count.
    """
    pairs = 0 if facts.gain is None else len(facts.gain.by_seed)
    if facts.gain is None or pairs >= _FEWEST_PAIRS:
        return None
    return Finding(
        "enough_seeds",
        "warning",
        "Too few seeds to tell",
        f"{plural(pairs, 'pair')} of students.",
        "Run at least 3 seeds of both, better 5.",
    )


def teacher_is_better(facts: Facts) -> Finding | None:
    """Whether the teacher beats the student alone by more than chance.

    Its own score comes first: a teacher can hardly give what it hasn't got.
    Reason for the threshold: the 95 % interval over test examples of its lead,
    against the mean of the students alone, leaves out 0.
    """
    lead, alone = facts.teacher_lead, facts.alone
    if lead is None or alone is None:
        return None
    seen = (
        f"Teacher {percent(facts.teacher.mean('accuracy'))}, student alone "
        f"{percent(alone.mean('accuracy'))}: {points(lead.mean)} points "
        f"({interval(lead)}, 95 %)."
    )
    if lead.above_zero:
        return Finding(
            "teacher_is_better", "good", "The teacher is worth distilling", seen
        )
    better = "isn't shown to be" if lead.mean > 0 else "is no"
    return Finding(
        "teacher_is_better",
        "warning",
        f"The teacher {better} better than the student alone",
        seen,
        "Train the teacher longer, take a larger one, or an ensemble. What "
        "the student gains from this one is smoother labels.",
    )


def temperature_shows_something(facts: Facts) -> Finding | None:
    """The teacher's entropy at the training's temperature, from 2 % to 98 %.

    As a share of the largest entropy, that of equal probabilities. Reason:
    below 2 %, soft targets are the hard labels again (of ten classes, that is
    about 0.5 % for all the wrong ones). Above 98 %, probabilities differ by
    so little that only their tiny differences teach, the least likely classes'
    as much as the others'.
    """
    if facts.temperature is None:
        return None
    place = facts.temperatures.index(facts.temperature)
    share = facts.entropy_shares[place]
    seen = (
        f"At temperature {temperature(facts.temperature)}, the teacher's "
        f"entropy is {percent(share)} of that of a uniform guess."
    )
    if share < _LEAST_ENTROPY:
        return Finding(
            "temperature_shows_something",
            "warning",
            "The temperature is likely too low",
            seen + " The soft targets are almost the hard labels.",
            f"Double it, and again, until it is 10 % or more{_known(facts)}.",
        )
    if share > _MOST_ENTROPY:
        return Finding(
            "temperature_shows_something",
            "note",
            "The temperature may be too high",
            seen + " The soft targets are almost uniform.",
            "Try half of it. A small student has no room for what the "
            "unlikeliest classes say.",
        )
    return None


def _known(facts: Facts) -> str:
    """A temperature of the report where the entropy is enough."""
    for value, share in zip(
        facts.temperatures, facts.entropy_shares, strict=True
    ):
        if share >= _GOOD_ENTROPY:
            return f" (at {temperature(value)} it is {percent(share)})"
    return ""


def teacher_has_weight(facts: Facts) -> Finding | None:
    """The teacher's terms are 5 % of the loss at most, in each epoch.

    Each term times its weight, as it is at the end, against the sum; the
    largest share of all epochs, since a term gets small where the student has
    learned what it says. Reason: a gradient of a twentieth is lost in the
    other's noise.
    """
    shares = [s for s in map(soft_share, facts.runs) if s is not None]
    if not shares or statistics.fmean(shares) >= _LEAST_SHARE:
        return None
    return Finding(
        "teacher_has_weight",
        "warning",
        "The teacher hardly counts",
        f"Its terms are at most {percent(statistics.fmean(shares))} of the "
        "loss in any epoch.",
        "Raise `loss_weights`, or lower `hard_label_weight`, until it is half.",
    )


def soft_share(run: Run) -> float | None:
    """The largest share of the teacher's terms in a run's loss.

    None where the terms or their weights aren't known.
    """
    hard = run.curves.get(_HARD)
    soft = [name for name in run.weights if name != _HARD]
    if not run.distilled or hard is None or not soft:
        return None
    if any(name not in run.curves for name in soft):
        return None
    shares = []
    for epoch in zip(hard, *(run.curves[name] for name in soft), strict=True):
        if None in epoch:
            continue
        parts = [
            abs(run.weights[name] * (value or 0.0))
            for name, value in zip((_HARD, *soft), epoch, strict=True)
        ]
        if sum(parts) > 0:
            shares.append(sum(parts[1:]) / sum(parts))
    return max(shares, default=None)


def still_learning(facts: Facts) -> Finding | None:
    """The loss of the last tenth of the epochs is 2 % below the tenth before.

    And `val_loss`, where there is one, isn't higher. At least two epochs, in
    more than half of the distilled runs. Reason: at such a pace, a run half as
    long again would lower the loss by another tenth.
    """
    runs = [run for run in facts.runs if run.distilled]
    falls = [f for f in map(_fall, runs) if f is not None]
    falling = [fall for fall in falls if fall > _FALL]
    if not falls or len(falling) <= len(falls) / 2:
        return None
    epochs = max(run.finished or 0 for run in runs)
    return Finding(
        "still_learning",
        "note",
        "The students were still learning",
        f"After {plural(epochs, 'epoch')}, the loss still fell by "
        f"{percent(statistics.fmean(falling))} in the last tenth of them.",
        "Train longer, twice at first: distilled students gain from it for "
        "longer than others do.",
    )


def _fall(run: Run) -> float | None:
    """How much the loss fell at last; 0 if it rose on validation data."""
    if run.is_cut_off:
        return None
    before, after = _last_tenths(run, "loss")
    if before is None or after is None or before <= 0:
        return None
    val_before, val_after = _last_tenths(run, "val_loss")
    if val_before and val_after and val_after > val_before:
        return 0.0
    return 1 - after / before


def _last_tenths(run: Run, name: str) -> tuple[float | None, float | None]:
    """Means over the tenth before the last, and the last."""
    values = [v for v in run.curves.get(name, ()) if v is not None]
    width = max(1, len(values) // 10)
    if len(values) < 2:
        return None, None
    return (
        statistics.fmean(values[-2 * width : -width]),
        statistics.fmean(values[-width:]),
    )


def learned_by_heart(facts: Facts) -> Finding | None:
    """Distilled students are 5 points better on what they trained on.

    `accuracy` against `val_accuracy` in the last epoch, on average. Reason:
    less is common and harmless; with more, the student keeps examples instead
    of what the teacher says of them, and has seen too few.
    """
    gaps = [g for g in map(_accuracy_gap, facts.runs) if g is not None]
    if not gaps or statistics.fmean(gaps) <= _GAP:
        return None
    return Finding(
        "learned_by_heart",
        "warning",
        "The students learn examples by heart",
        f"Accuracy in training is {points(statistics.fmean(gaps))} points "
        "from that on validation data.",
        "Give more inputs: the teacher labels unlabelled and augmented ones. "
        "Or train for fewer epochs, with `EarlyStopping` on `val_loss`.",
    )


def _accuracy_gap(run: Run) -> float | None:
    train, val = (run.curves.get(n) for n in ("accuracy", "val_accuracy"))
    if not run.distilled or not train or not val:
        return None
    if train[-1] is None or val[-1] is None:
        return None
    return train[-1] - val[-1]


def room_to_follow(facts: Facts) -> Finding | None:
    """Whether students agree with the teacher more than the labels do.

    Agreement with the teacher against the teacher's own accuracy. Reason:
    such a student has learned the teacher, mistakes included, and what is
    missing is in the teacher.
    """
    distilled = facts.distilled
    if distilled is None:
        return None
    agreement = distilled.mean("agreement")
    accuracy = facts.teacher.mean("accuracy")
    if agreement is None or accuracy is None or agreement <= accuracy:
        return None
    return Finding(
        "room_to_follow",
        "note",
        "The students follow the teacher further than it is right",
        f"They agree with it on {percent(agreement)}, and it is right on "
        f"{percent(accuracy)}.",
        "A better teacher will do more now than more of the same; where "
        "labels are good, so does more weight of them.",
    )


def better_calibrated(facts: Facts) -> Finding | None:
    """Whether distilling made the confidence worse, by 2 points of ECE.

    Reason: of 15 intervals and a thousand examples, chance alone makes one or
    two points.
    """
    if facts.alone is None or facts.distilled is None:
        return None
    alone, distilled = facts.alone.mean("ece"), facts.distilled.mean("ece")
    if alone is None or distilled is None or distilled <= alone + _WORSE_ECE:
        return None
    return Finding(
        "better_calibrated",
        "note",
        "Distilling made the student's confidence worse",
        f"Expected calibration error {percent(distilled)}, alone "
        f"{percent(alone)}; the teacher's is "
        f"{percent(facts.teacher.mean('ece'))}.",
        "Calibrate the teacher first, or the student's logits afterwards, by "
        "one temperature that is fitted on validation data.",
    )


def exports_keep_accuracy(facts: Facts) -> Finding | None:
    """A file loses more than 1 point of accuracy against Keras.

    Reason: that is what most gains of a distillation are made of.
    """
    losses = [
        (export.scheme, export.keras_accuracy - export.accuracy)
        for export in facts.exports
        if export.accuracy is not None and export.keras_accuracy is not None
    ]
    # 0.95 - 0.94 is a little more than 0.01.
    bad = [(name, loss) for name, loss in losses if loss > _EXPORT_LOSS + 1e-9]
    if not bad:
        return None
    listed = ", ".join(f"{name} {points(-loss)}" for name, loss in bad)
    return Finding(
        "exports_keep_accuracy",
        "warning",
        "A file loses accuracy on the device",
        f"Points of accuracy against Keras: {listed}.",
        "Try `kd.layer_errors` to see where, `kd.quantization_aware`, or a "
        "scheme that is more exact.",
    )


RULES: tuple[Callable[[Facts], Finding | None], ...] = (
    interrupted_runs,
    failed_runs,
    lost_numbers,
    gain_beyond_noise,
    enough_seeds,
    teacher_is_better,
    temperature_shows_something,
    teacher_has_weight,
    still_learning,
    learned_by_heart,
    room_to_follow,
    better_calibrated,
    exports_keep_accuracy,
    unknown_runs,
)
