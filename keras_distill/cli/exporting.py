"""`keras-distill export`."""

from __future__ import annotations

import argparse
import pathlib

from keras_distill.cli.arguments import (
    Commands,
    add_command,
    refuse_data_options,
)
from keras_distill.cli.console import progress
from keras_distill.cli.files import (
    arrays_for,
    load_model,
    read_data,
    require_writable,
)
from keras_distill.cli.inspecting import show
from keras_distill.export import export_litert
from keras_distill.export.schemes import SCHEMES


def add(commands: Commands) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "export",
        _run,
        "write a .keras file as a .tflite file",
        "Write a student as a LiteRT file, check the file, and show what it\n"
        "is. The .keras file is loaded in Keras' safe mode: students with\n"
        "custom layers are exported in Python.",
        "  keras-distill export student.keras student.tflite \\\n"
        "      --quantization int8 --calibration data.npz",
        reads_data=True,
    )
    command.add_argument(
        "student", type=pathlib.Path, help="the student's .keras file"
    )
    command.add_argument(
        "file", type=pathlib.Path, help="the .tflite file to write"
    )
    command.add_argument("--force", action="store_true", help="replace files")
    add_quantization(command)
    command.add_argument(
        "--calibration",
        metavar="DATA",
        help="some hundred examples, for the ranges of int8 and int16x8",
    )


def add_quantization(command: argparse.ArgumentParser) -> None:
    """Which scheme the file has."""
    command.add_argument(
        "--quantization",
        choices=SCHEMES,
        metavar="SCHEME",
        help=f"one of {', '.join(SCHEMES)}",
    )


def _run(parsed: argparse.Namespace) -> int:
    require_writable(parsed.file, (".tflite",), parsed.force)
    if parsed.calibration is None:
        refuse_data_options(parsed, "no --calibration")
    student = load_model(parsed.student, "student")
    examples = None
    if parsed.calibration is not None:
        read = read_data(
            parsed, parsed.calibration, parsed.split, student, "student"
        )
        examples = arrays_for(student, read)
    with progress():
        export_litert(
            student,
            parsed.file,
            parsed.quantization,
            calibration_data=examples,
        )
    show(parsed.file, parsed.json)
    return 0
