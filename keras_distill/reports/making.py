"""From models and test examples to a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import keras
import numpy as np

from keras_distill.cache.fingerprints import arrays_digest
from keras_distill.distiller import Distiller
from keras_distill.export.verify import LiteRTCheck
from keras_distill.reports import arguments
from keras_distill.reports.environment import command_line, environment, now
from keras_distill.reports.facts import Export, Facts, Run
from keras_distill.reports.groups import (
    Examples,
    Measured,
    group_of,
    measure,
    mistakes_of,
)
from keras_distill.reports.histories import History, run_of, temperature_of
from keras_distill.reports.measures import entropy_share
from keras_distill.reports.outputs import student_logits, teacher_logits
from keras_distill.reports.packages import require_report_packages
from keras_distill.reports.paired import (
    Gain,
    Interval,
    gain_of,
    normal_interval,
)
from keras_distill.reports.result import Report
from keras_distill.reports.soft_targets import choose, soft_targets
from keras_distill.reports.verdict import judge

_TEMPERATURES = (1.0, 2.0, 4.0, 8.0)

_T = TypeVar("_T")

Models: TypeAlias = keras.Model | Sequence[keras.Model | None]


def report(
    teacher: Any,
    students: Models,
    data: tuple[Any, Any],
    *,
    baselines: Models = (),
    histories: Sequence[History | None] | None = None,
    exports: Sequence[LiteRTCheck] = (),
    class_names: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    command: str | None = None,
) -> Report:
    """Measure what a distillation did, and judge it.

    Distillation is worth its trouble where a student gains more from the
    teacher than from another seed. So students come in pairs: one distilled
    and one trained alone, from the same first weights, for each of several
    seeds. All are measured on examples that nothing was chosen by.

    Of the training, it tells what Keras remembers: the curves of each term of
    the loss, and whether all epochs were finished. A run that was interrupted,
    or whose loss stopped being a number, is said to be so.

    Args:
        teacher: A Keras model, a `teachers.Teacher`, or an array of what the
            teacher says of the examples.
        students: The `Distiller` of each seed, or a Keras model. None stands
            for a run that failed.
        data: Test examples, `(x, y)`: arrays in the structure of the
            students' inputs, and class numbers or one-hot rows. Examples with
            a label of -1 are left out.
        baselines: The same students trained alone, in the same order.
        histories: What `fit` returned for each of `students`, where models
            were loaded; by default the models' own. Its `.history` has the
            curves alone, and doesn't say whether all epochs were finished.
        exports: What `verify_litert` returned.
        class_names: Names of the classes; by default their numbers.
        seeds: The seed of each pair.
        command: How to make this again; by default what started Python.

    Returns:
        The report, with a verdict. It can be saved as HTML, Markdown and JSON.

    Raises:
        ValueError: If the models have not the same classes, or a sigmoid for
            each of several; or the examples, names, seeds or histories aren't
            as many as they must be.
        TypeError: If something is no model, history or check.
        ImportError: If a package is missing.

    Example:
        >>> import keras, numpy as np, keras_distill as kd
        >>> def network(seed):
        ...     keras.utils.set_random_seed(seed)
        ...     return keras.Sequential([keras.Input((4,)),
        ...                              keras.layers.Dense(3)])
        >>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 2, 0])
        >>> made = kd.report(network(0), network(1), (x, y),
        ...                  baselines=network(1), seeds=[1])
        >>> made.facts.gain.by_seed
        (0.0,)
        >>> print(made.verdict.headline)
        A gain of 0.0 points is no more than noise.
    """
    require_report_packages()
    arguments.require_checks(exports)
    distilled = arguments.as_models("students", students)
    alone = arguments.as_models("baselines", baselines)
    arguments.require_pairs(distilled, alone, histories, seeds)
    distiller = _first(m for m in distilled if isinstance(m, Distiller))
    x, examples = _read(teacher, data, distiller)
    names = arguments.read_names(class_names, examples.teacher.shape[-1])
    seen = [_measured(model, x, examples) for model in distilled]
    seen_alone = [_measured(model, x, examples) for model in alone]
    runs = [
        *_runs(distilled, seen, True, histories, seeds),
        *_runs(alone, seen_alone, False, None, seeds),
    ]
    facts = Facts(
        classes=names,
        examples=len(examples.labels),
        distilled=group_of(seen, examples, _parameters(distilled)),
        alone=group_of(seen_alone, examples, _parameters(alone)),
        runs=tuple(runs),
        exports=tuple(map(_export, exports)),
        seeds=None if seeds is None else tuple(map(int, seeds)),
        data=arrays_digest((x, examples.labels)),
        environment=environment(),
        command=command_line() if command is None else command,
        made=now(),
        **_of_teacher(teacher, x, examples, seen_alone, seen),
    )
    return Report(facts, judge(facts))


def require_reportable(
    teacher: keras.Model, student: keras.Model, x: Any, y: Any
) -> None:
    """Refuse now what `report` would refuse after the training.

    Args:
        teacher: As in `report`.
        student: A student, or its distiller.
        x: Some of the examples.
        y: The labels of all.

    Raises:
        ValueError: If these can't be compared, or the labels aren't classes.
    """
    taught = teacher_logits(
        teacher, x, student if isinstance(student, Distiller) else None
    )
    _require_same_classes(taught, student_logits(student, x), student)
    rows = np.broadcast_to(taught[:1], (len(y), taught.shape[-1]))
    arguments.read_labels(np.asarray(y), rows)


def _read(
    teacher: Any, data: Any, distiller: Distiller | None
) -> tuple[Any, Examples]:
    """The labelled examples, and what the teacher says of them."""
    x, y = arguments.read_examples(data)
    logits = teacher_logits(teacher, x, distiller)
    labels = arguments.read_labels(y, logits)
    if not np.isfinite(logits).all():
        raise ValueError(
            "A teacher without an opinion can't be measured. Received: a "
            "teacher that returns NaN or infinite values for the examples."
        )
    known = labels >= 0
    logits = logits[known]
    x = keras.tree.map_structure(lambda array: array[known], x)
    temperature = temperature_of(distiller)
    return x, Examples(labels[known], logits, temperature, *choose(logits))


def _measured(
    model: keras.Model | None, x: Any, examples: Examples
) -> Measured | None:
    """A student's figures; None if it has no finite opinion."""
    if model is None:
        return None
    logits = student_logits(model, x)
    _require_same_classes(examples.teacher, logits, model)
    return measure(logits, examples) if np.isfinite(logits).all() else None


def _require_same_classes(
    teacher: Any, student: Any, model: keras.Model
) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            "Teacher and student are compared class by class. Received: a "
            f"teacher of {teacher.shape[-1]} classes and '{model.name}' of "
            f"{student.shape[-1]}. Pass as teacher an array of its logits for "
            "the student's classes."
        )


def _runs(
    models: list[keras.Model | None],
    seen: list[Measured | None],
    distilled: bool,
    histories: Sequence[History | None] | None,
    seeds: Sequence[int] | None,
) -> list[Run]:
    names = (
        [f"run {i}" for i in range(1, len(models) + 1)]
        if seeds is None
        else [f"seed {seed}" for seed in seeds]
    )
    runs = [
        run_of(name, model, distilled, history)
        for name, model, history in zip(
            names, models, histories or [None] * len(models), strict=False
        )
    ]
    return [
        run
        if found or run.failure
        else dataclasses.replace(run, failure="its outputs are no numbers")
        for run, found in zip(runs, seen, strict=True)
    ]


def _of_teacher(
    teacher: Any,
    x: Any,
    examples: Examples,
    alone: list[Measured | None],
    distilled: list[Measured | None],
) -> dict[str, Any]:
    """The facts that the teacher has a part in."""
    taught = measure(examples.teacher, examples)
    temperatures = tuple(sorted({*_TEMPERATURES, examples.temperature or 1.0}))
    return {
        "teacher": group_of([taught], examples, _parameters([teacher])),
        "gain": _gain(alone, distilled, examples),
        "teacher_lead": _lead(taught, alone, examples),
        "mistakes": mistakes_of(taught, alone, distilled, examples),
        "temperature": examples.temperature,
        "temperatures": temperatures,
        "entropy_shares": tuple(
            entropy_share(examples.teacher, t) for t in temperatures
        ),
        "soft_targets": soft_targets(
            x, examples, temperatures, _first(alone), _first(distilled)
        ),
    }


def _gain(
    alone: list[Measured | None],
    distilled: list[Measured | None],
    examples: Examples,
) -> Gain | None:
    pairs = [
        (a.decided == examples.labels, d.decided == examples.labels)
        for a, d in zip(alone, distilled, strict=False)
        if a is not None and d is not None
    ]
    return gain_of(*zip(*pairs, strict=True)) if pairs else None


def _lead(
    teacher: Measured, alone: list[Measured | None], examples: Examples
) -> Interval | None:
    right = [m.decided == examples.labels for m in alone if m is not None]
    if not right:
        return None
    knows = (teacher.decided == examples.labels).astype("float64")
    return normal_interval(knows - np.mean(right, 0))


def _export(check: LiteRTCheck) -> Export:
    return Export(
        scheme=check.scheme,
        size=check.size,
        accuracy=check.accuracy,
        keras_accuracy=check.keras_accuracy,
        agreement=check.agreement,
        latency_ms=check.latency.median_ms,
        p90_ms=check.latency.p90_ms,
        threads=check.latency.threads,
        peak_memory=check.peak_memory,
        arena=None if check.micro is None else check.micro.arena,
    )


def _parameters(models: Sequence[Any]) -> int | None:
    """Number of weights of the first model; None if none was given."""
    model = _first(m for m in models if isinstance(m, keras.Model))
    if isinstance(model, Distiller):
        model = model.student
    return None if model is None else int(model.count_params())


def _first(found: Iterable[_T | None]) -> _T | None:
    return next((x for x in found if x is not None), None)
