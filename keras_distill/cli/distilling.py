"""`keras-distill distill`."""

from __future__ import annotations

import argparse
import pathlib
import shlex
import tempfile
import time
from typing import Any

import keras
import numpy as np

from keras_distill.cli.arguments import Commands, add_command
from keras_distill.cli.console import columns, print_json, progress, warn
from keras_distill.cli.distill_arguments import (
    add_arguments,
    require_arguments,
)
from keras_distill.cli.distill_data import (
    Data,
    load,
    require_fitting,
    require_what_needs_labels,
)
from keras_distill.cli.files import (
    arrays_for,
    classes_of,
    load_model,
    save_model,
)
from keras_distill.cli.scores import Score, chance, score
from keras_distill.cli.training import (
    chosen_losses,
    make_distiller,
    train_alone,
    train_distilled,
)
from keras_distill.cli.verifying import facts_of
from keras_distill.distiller import Distiller
from keras_distill.export import LiteRTCheck, export_litert, verify_litert
from keras_distill.export.litert import require_litert
from keras_distill.reports import report
from keras_distill.reports.making import require_reportable
from keras_distill.shrinking import shrink

# As many examples as give a static scheme its ranges.
_CALIBRATION = 256
# As many tell whether a report can compare the models.
_LOOKED_AT = 16


def add(commands: Commands) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "distill",
        _run,
        "train a student on what a teacher says",
        "Train a student on what a teacher says about the data, and write it.\n"
        "The teacher's own score comes first: a teacher that knows no more\n"
        "than its student has nothing to teach. The student is one of your\n"
        "own, whose weights are where it starts; or with --width or --depth,\n"
        "a smaller one of the teacher's kind.",
        "  keras-distill distill teacher.keras student.keras data.npz \\\n"
        "      -o distilled.keras --validation 0.1 --epochs 20 \\\n"
        "      --method SoftTargets temperature=4\n"
        "  keras-distill distill teacher.keras images/ --width 0.5 \\\n"
        "      -o small.keras --method Hint projector=auto --layers c4=c4",
        reads_data=True,
        interrupted="Nothing was written but what --cache stored, from which "
        "the same command goes on.",
    )
    add_arguments(command)


def _run(parsed: argparse.Namespace) -> int:
    require_arguments(parsed)
    # Mistakes in words show before models are loaded.
    chosen_losses(parsed)
    teacher = load_model(parsed.teacher, "teacher")
    keras.utils.set_random_seed(parsed.seed)
    student = _student(parsed, teacher)
    data = load(parsed, teacher)
    require_fitting(parsed, teacher, student, data)
    # Raises what doesn't fit, before the teacher speaks for long.
    distiller = make_distiller(parsed, teacher, student)
    losses = list(distiller.distillation_losses.values())
    require_what_needs_labels(parsed, losses, data)
    if parsed.report is not None:
        some = data.test.take(np.arange(min(_LOOKED_AT, len(data.test))))
        require_reportable(
            teacher, distiller, some.arrays()[0], data.test.labels
        )
    if parsed.export is not None:
        require_litert(student)
    taught = _score_of_teacher(teacher, student, data)
    before = score(student, data.test)
    _introduce(parsed, taught, before, data)
    alone = None
    if parsed.alone:
        # A clone would lose what a Normalization layer has found out.
        alone = _copy(student)
    started = time.monotonic()
    distiller = train_distilled(parsed, teacher, distiller, data)
    save_model(student, parsed.output)
    parsed.interrupted = f"The student is written: '{parsed.output}'."
    facts = {
        "methods": [type(loss).__name__ for loss in losses],
        "epochs": parsed.epochs,
        "seconds": round(time.monotonic() - started, 1),
        "examples": len(data.train),
        "judged_by": len(data.test),
        "held_out": data.held_out,
        "teacher": _facts(taught),
        "student_before": _facts(before, taught),
    }
    try:
        if alone is not None:
            train_alone(parsed, alone, data)
            facts["alone"] = _facts(score(alone, data.test), taught)
        facts["student"] = _facts(score(student, data.test), taught)
        checks = []
        if parsed.export is not None:
            checks = [_exported(parsed, student, data)]
            facts["export"] = facts_of(checks[0])
        if parsed.report is not None:
            _report(parsed, teacher, distiller, alone, checks, data)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise RuntimeError(f"{error} {parsed.interrupted}") from error
    _show(parsed, {**facts, "written": _written(parsed)})
    return 0


def _written(parsed: argparse.Namespace) -> list[str]:
    files = (parsed.output, parsed.export, parsed.report)
    return [str(path) for path in files if path is not None]


def _student(parsed: argparse.Namespace, teacher: keras.Model) -> keras.Model:
    if parsed.student is not None:
        return load_model(parsed.student, "student")
    return shrink(
        teacher,
        width=1.0 if parsed.width is None else parsed.width,
        depth=1.0 if parsed.depth is None else parsed.depth,
        initialize="norm" if parsed.from_teacher else None,
    )


def _score_of_teacher(
    teacher: keras.Model, student: keras.Model, data: Data
) -> Score:
    if classes_of(teacher) == classes_of(student):
        return score(teacher, data.test)
    # The labels are the student's classes; a class_map has the teacher's.
    return Score(int(teacher.count_params()), None, None)


def _introduce(
    parsed: argparse.Namespace, taught: Score, before: Score, data: Data
) -> None:
    """Say what the teacher knows, before anything is learned from it."""
    where = f"{'validation' if data.held_out else 'training'} data"
    if taught.accuracy is None:
        warn(f"how good the teacher is isn't known: the {where} don't say")
        return
    if not parsed.json:
        print(f"teacher: {taught.accuracy:.1%} of the {where}", flush=True)
    guess = chance(data.test)
    # Keras' accuracy is rounded to float32.
    if guess is not None and taught.accuracy <= guess + 1e-6:
        warn(
            f"the teacher is right in {taught.accuracy:.1%}, no better than "
            f"naming the most frequent class ({guess:.1%}). Does it take "
            "inputs of this scale (--scale), and classes in this order?"
        )
    elif before.accuracy is not None and taught.accuracy <= before.accuracy:
        warn(
            f"the teacher is right in {taught.accuracy:.1%}, no better than "
            f"the student as it is ({before.accuracy:.1%})"
        )


def _copy(model: keras.Model) -> keras.Model:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        return load_model(path, "student")


def _exported(
    parsed: argparse.Namespace, student: keras.Model, data: Data
) -> LiteRTCheck:
    # Files may have one class after the other.
    some = np.random.default_rng(parsed.seed).permutation(len(data.train))
    some = np.sort(some[:_CALIBRATION])
    calibration = arrays_for(student, data.train.take(some))
    x, y = arrays_for(student, data.test), data.test.labels
    with progress():
        artifact = export_litert(
            student,
            parsed.export,
            parsed.quantization,
            calibration_data=calibration,
        )
        return verify_litert(artifact, student, x if y is None else (x, y))


def _report(
    parsed: argparse.Namespace,
    teacher: keras.Model,
    distiller: Distiller,
    alone: keras.Model | None,
    checks: list[LiteRTCheck],
    data: Data,
) -> None:
    with progress():
        made = report(
            teacher,
            distiller,
            data.test.arrays(),
            baselines=[] if alone is None else alone,
            exports=checks,
            class_names=data.test.class_names or None,
            seeds=[parsed.seed],
            command=shlex.join(["keras-distill", *parsed.given]),
        )
    made.save(parsed.report)


def _facts(found: Score, teacher: Score | None = None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "parameters": found.parameters,
        "accuracy": found.accuracy,
    }
    if teacher is not None:
        facts["agreement"] = found.agreement(teacher)
    return facts


def _show(parsed: argparse.Namespace, facts: dict[str, Any]) -> None:
    if parsed.json:
        print_json(facts)
        return
    titles = {
        "teacher": "teacher",
        "student_before": "student before",
        "alone": "student alone",
        "student": "student distilled",
    }
    rows = [
        (
            title,
            f"{facts[name]['parameters']:,}",
            _percent(facts[name]["accuracy"]),
            _percent(facts[name].get("agreement")),
        )
        for name, title in titles.items()
        if name in facts
    ]
    header = ("", "parameters", "accuracy", "agrees with the teacher")
    print(columns(header, rows))
    if "export" in facts:
        print(
            f"on the device: {facts['export']['size']:,} bytes, "
            f"{_percent(facts['export']['accuracy'])}"
        )
    where = "validation" if facts["held_out"] else "training"
    print(
        f"{', '.join(facts['methods'])}: {facts['epochs']} epochs of "
        f"{facts['examples']:,} examples in {facts['seconds']} s; judged by "
        f"{facts['judged_by']:,} of the {where} data"
    )
    print(f"written: {', '.join(facts['written'])}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
