"""`keras-distill inspect`."""

from __future__ import annotations

import argparse
import pathlib

from keras_distill.cli.arguments import Commands, add_command
from keras_distill.cli.console import print_json
from keras_distill.export import inspect
from keras_distill.export.table import as_table


def add(commands: Commands) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "inspect",
        _run,
        "show what a .tflite or .keras file is",
        "Show what a .tflite or .keras file says of itself, and what is in\n"
        "it. Nothing of it is run.",
        "  keras-distill inspect student.tflite",
    )
    command.add_argument(
        "file", type=pathlib.Path, help="the .tflite or .keras file"
    )


def _run(parsed: argparse.Namespace) -> int:
    show(parsed.file, parsed.json)
    return 0


def show(file: pathlib.Path, as_json: bool) -> None:
    """Print what a file is."""
    facts = inspect(file)
    if as_json:
        print_json(facts)
    else:
        print(as_table(facts))
