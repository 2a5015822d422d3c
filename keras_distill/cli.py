"""The command `keras-distill`: the public functions, for a shell."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import zipfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill.export import export_litert, inspect
from keras_distill.export.keras_file import load_keras
from keras_distill.export.schemes import SCHEMES
from keras_distill.export.signature import describe_inputs
from keras_distill.export.table import as_table

# As programs do for a wrong command line, so that a script can tell.
_USERS_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    Args:
        arguments: The command line without the program; None is that of the
            process.

    Returns:
        0; or 2 if what was passed can't be used, 1 if something else failed.

    Example:
        >>> main(["inspect", "no-such-file.tflite"])
        2
    """
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except (OSError, RuntimeError, TypeError, ValueError, ImportError) as error:
        print(f"keras-distill: {' '.join(str(error).split())}", file=sys.stderr)
        users = isinstance(error, OSError | TypeError | ValueError)
        return _USERS_ERROR if users else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-distill", description="Knowledge distillation for Keras 3."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "inspect",
        help="show what a .tflite or .keras file is",
        description="Show what a .tflite or .keras file says of itself, and "
        "what is in it. Nothing of it is run.",
    )
    command.add_argument("file", help="the .tflite or .keras file")
    command.set_defaults(run=_inspect)
    _add_json(command)
    command = commands.add_parser(
        "export",
        help="write a .keras file as a .tflite file",
        description="Write a student as a LiteRT file, check the file, and "
        "show what it is. The .keras file is loaded in Keras' safe mode: "
        "students with custom layers are exported in Python.",
    )
    command.add_argument("student", help="the .keras file")
    command.add_argument("file", help="the .tflite file to write")
    command.add_argument(
        "--quantization",
        choices=SCHEMES,
        metavar="SCHEME",
        help=f"one of {', '.join(SCHEMES)}",
    )
    command.add_argument(
        "--calibration",
        metavar="NPZ",
        help="an .npz file of examples: an array for each input, "
        "by the inputs' names",
    )
    command.set_defaults(run=_export)
    _add_json(command)
    return parser


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--json", action="store_true", help="print JSON, for other programs"
    )


def _inspect(parsed: argparse.Namespace) -> None:
    facts = inspect(parsed.file)
    print(json.dumps(facts, indent=2) if parsed.json else as_table(facts))


def _export(parsed: argparse.Namespace) -> None:
    student = load_keras(pathlib.Path(parsed.student))
    examples = None
    if parsed.calibration is not None:
        examples = _examples(student, parsed.calibration)
    export_litert(
        student,
        parsed.file,
        parsed.quantization,
        calibration_data=examples,
    )
    _inspect(parsed)


def _examples(student: keras.Model, path: str) -> Any:
    """A file's arrays in the structure of the student's inputs."""
    arrays = _arrays(path)
    names, _ = describe_inputs(student, None)
    inputs = keras.tree.flatten(names)
    if len(inputs) == len(arrays) == 1:
        (array,) = arrays.values()
        arrays = {inputs[0]: array}
    if set(arrays) != set(inputs):
        raise ValueError(
            "The examples are named as the student's inputs. Received: "
            f"arrays {', '.join(arrays)} in '{path}', for inputs "
            f"{', '.join(inputs)}. Save them with "
            f"`np.savez(path, {', '.join(f'{n}=...' for n in inputs)})`."
        )
    return keras.tree.map_structure(arrays.__getitem__, names)


def _arrays(path: str) -> dict[str, np.ndarray]:
    try:
        # No pickles: they run whatever their maker liked.
        with (
            pathlib.Path(path).open("rb") as file,
            np.load(file, allow_pickle=False) as archive,
        ):
            return dict(archive)
    except (AttributeError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            "Examples come in an .npz file, as `np.savez` writes it. Received: "
            f"'{path}', {type(error).__name__}: {error}"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
