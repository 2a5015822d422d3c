"""The arguments of `keras-distill distill`."""

from __future__ import annotations

import argparse
import pathlib

from keras_distill.cli.arguments import UsageError, number, positive, seed
from keras_distill.cli.exporting import add_quantization
from keras_distill.cli.files import require_cache_folder, require_writable
from keras_distill.cli.reporting import SUFFIXES
from keras_distill.reports.packages import require_report_packages


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes, but for how to read the data."""
    _add_files(command)
    _add_method(command)
    _add_training(command)


def _add_files(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "teacher", type=pathlib.Path, help="the teacher's .keras file"
    )
    command.add_argument(
        "student",
        nargs="?",
        type=pathlib.Path,
        help="the student's .keras file, unless --width or --depth makes one",
    )
    command.add_argument("data", help="what to learn from")
    command.add_argument(
        "-o",
        "--output",
        required=True,
        type=pathlib.Path,
        metavar="FILE",
        help="the .keras file to write",
    )
    command.add_argument("--force", action="store_true", help="replace files")
    smaller = command.add_argument_group("a student from the teacher")
    smaller.add_argument(
        "--width", type=number, metavar="SHARE", help="of units and channels"
    )
    smaller.add_argument(
        "--depth", type=number, metavar="SHARE", help="of repeated layers"
    )
    smaller.add_argument(
        "--from-teacher",
        action="store_true",
        help="start with weights of the teacher",
    )
    more = command.add_argument_group("more to write")
    more.add_argument(
        "--report",
        type=pathlib.Path,
        metavar="FILE",
        help="a report on the validation data: .html, .md or .json",
    )
    more.add_argument(
        "--export",
        type=pathlib.Path,
        metavar="FILE",
        help="the student as a .tflite file",
    )
    add_quantization(command)


def _add_method(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("method")
    group.add_argument(
        "--method",
        nargs="+",
        action="append",
        metavar=("NAME", "OPTION=VALUE"),
        help="a loss and its options; may be given several times "
        "(default: soft targets)",
    )
    group.add_argument(
        "--temperature", type=number, help="of the methods that have one"
    )
    group.add_argument(
        "--weight",
        action="append",
        type=number,
        help="of each method (default: its paper's)",
    )
    group.add_argument(
        "--hard-label-weight",
        type=number,
        metavar="WEIGHT",
        help="of the labels (default: the paper's)",
    )
    group.add_argument(
        "--layers",
        nargs="+",
        default=[],
        metavar="TEACHER=STUDENT",
        help="for methods that compare layers",
    )


def _add_training(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("training")
    group.add_argument(
        "--epochs", type=positive, default=10, help="(default: 10)"
    )
    group.add_argument(
        "--batch-size", type=positive, default=32, help="(default: 32)"
    )
    group.add_argument(
        "--learning-rate",
        type=number,
        default=1e-3,
        help="of Adam (default: 0.001)",
    )
    group.add_argument(
        "--validation",
        metavar="SHARE|DATA",
        help="examples to judge by: a share of the data, or others",
    )
    group.add_argument(
        "--validation-split",
        metavar="SPLIT",
        help="part of the validation data, or of the data",
    )
    group.add_argument(
        "--seed", type=seed, default=0, help="of all that is drawn (default: 0)"
    )
    group.add_argument(
        "--cache",
        type=pathlib.Path,
        metavar="FOLDER",
        help="store what the teacher says there, and train on that",
    )
    group.add_argument(
        "--alone",
        action="store_true",
        help="train the same student without the teacher too, to compare",
    )


def require_arguments(parsed: argparse.Namespace) -> None:
    """Raise what can be seen without looking into files."""
    makes = parsed.width is not None or parsed.depth is not None
    if makes == (parsed.student is not None):
        raise UsageError(
            "The student is a .keras file, or is made with --width or --depth. "
            f"Received: {'both' if makes else 'neither'}. See keras-distill "
            "distill --help."
        )
    if parsed.from_teacher and not makes:
        raise UsageError(
            "Only a student that is made here starts with weights of the "
            "teacher. Received: --from-teacher, and a student. Leave one out."
        )
    if parsed.quantization is not None and parsed.export is None:
        raise UsageError(
            "Only a .tflite file is quantised. Received: --quantization "
            f"{parsed.quantization} without --export. Pass --export FILE."
        )
    if parsed.report is not None:
        if parsed.validation is None and parsed.validation_split is None:
            raise UsageError(
                "A report is made on examples that nothing was learned from. "
                "Received: --report without --validation. Pass --validation "
                "0.1, for instance."
            )
        require_report_packages()
    written = [
        (parsed.output, (".keras",)),
        (parsed.report, SUFFIXES),
        (parsed.export, (".tflite",)),
    ]
    for path, suffixes in written:
        if path is not None:
            require_writable(path, suffixes, parsed.force)
    if parsed.cache is not None:
        require_cache_folder(parsed.cache)
    if parsed.output.exists() and parsed.output.samefile(parsed.teacher):
        raise UsageError(
            "The student would replace its teacher. Received: "
            f"'{parsed.output}' for both. Pass another --output."
        )
