"""`keras-distill report`."""

from __future__ import annotations

import argparse
import pathlib
import shlex

from keras_distill.cli.arguments import (
    Commands,
    UsageError,
    add_command,
    refuse_data_options,
    seed,
)
from keras_distill.cli.console import print_json, progress
from keras_distill.cli.files import (
    load_model,
    read_data,
    require_chosen_part,
    require_inputs,
    require_labels,
    require_writable,
)
from keras_distill.reports import Report, report
from keras_distill.reports.codec import encode

SUFFIXES = (".html", ".md", ".json")
_NEEDED = ("teacher", "students", "data")
_OPTIONAL = ("baselines", "seeds", "class_names")


def add(commands: Commands) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "report",
        _run,
        "measure a distillation, or show what was measured",
        "Read a report's facts from its .json file; or measure a teacher, its\n"
        "students and the same students trained alone, on test examples. Say\n"
        "the verdict, and write the report as .html, .md or .json.",
        "  keras-distill report report.json -o report.html\n"
        "  keras-distill report --teacher teacher.keras --data test.npz \\\n"
        "      --students s1.keras s2.keras --baselines a1.keras a2.keras \\\n"
        "      --seeds 1 2 -o report.html",
        reads_data=True,
    )
    command.add_argument(
        "facts",
        nargs="?",
        type=pathlib.Path,
        help="a report that was saved as .json",
    )
    command.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        type=pathlib.Path,
        metavar="FILE",
        help="a file to write; may be given several times",
    )
    command.add_argument("--force", action="store_true", help="replace files")
    measured = command.add_argument_group("what to measure")
    measured.add_argument("--teacher", type=pathlib.Path, metavar="FILE")
    measured.add_argument(
        "--students", nargs="+", type=pathlib.Path, metavar="FILE"
    )
    measured.add_argument(
        "--baselines",
        nargs="+",
        type=pathlib.Path,
        metavar="FILE",
        help="the same students trained alone, in the same order",
    )
    measured.add_argument("--data", help="examples nothing was chosen by")
    measured.add_argument("--seeds", nargs="+", type=seed, metavar="SEED")
    measured.add_argument("--class-names", nargs="+", metavar="NAME")


def _run(parsed: argparse.Namespace) -> int:
    given = [
        name
        for name in (*_NEEDED, *_OPTIONAL)
        if getattr(parsed, name) is not None
    ]
    missing = [name for name in _NEEDED if name not in given]
    if (parsed.facts is None) == bool(missing) or (parsed.facts and given):
        raise UsageError(
            "A report is read from one .json file, or measured with --teacher, "
            "--students and --data. Received: "
            f"{parsed.facts or 'no file'} and "
            f"{', '.join(f'--{n}' for n in given) or 'no models'}."
        )
    if parsed.facts is not None:
        refuse_data_options(parsed, f"'{parsed.facts}', which holds facts")
    for path in parsed.output:
        require_writable(path, SUFFIXES, parsed.force)
    made = (
        _measured(parsed) if parsed.facts is None else Report.load(parsed.facts)
    )
    for path in parsed.output:
        made.save(path)
    if parsed.json:
        print_json(encode(made))
    else:
        print(made.verdict)
    return 0


def _measured(parsed: argparse.Namespace) -> Report:
    teacher = load_model(parsed.teacher, "teacher")
    students = [load_model(path, "student") for path in parsed.students]
    baselines = [
        load_model(path, "baseline") for path in parsed.baselines or []
    ]
    data = read_data(parsed, parsed.data, parsed.split, teacher, "teacher")
    require_chosen_part(parsed, data)
    if data.labels is None:
        raise ValueError(
            "A report counts what is right. Received: "
            f"'{data.source}' without labels."
        )
    for who, models in (
        ("teacher", [teacher]),
        ("student", students),
        ("baseline", baselines),
    ):
        for model in models:
            require_inputs(model, who, data)
            require_labels(model, who, data)
    x, y = data.arrays()
    with progress():
        return report(
            teacher,
            students,
            (x, y),
            baselines=baselines,
            class_names=parsed.class_names or data.class_names or None,
            seeds=parsed.seeds,
            command=shlex.join(["keras-distill", *parsed.given]),
        )
