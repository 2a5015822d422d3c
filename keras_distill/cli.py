"""The command `keras-distill`: the public functions, for a shell."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill.cache import Labelling
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
    _add_label(commands)
    return parser


def _add_label(commands: Any) -> None:
    command = commands.add_parser(
        "label",
        help="store what a teacher says about a transfer set",
        description="Store a teacher's outputs in a cache, for "
        "TeacherCache.open. Interrupted, the same command goes on. Several "
        "processes share the work if each gets its --rank and their number.",
    )
    command.add_argument(
        "teacher", help="a .keras, .onnx or .tflite file, or a SavedModel"
    )
    command.add_argument(
        "data", help="a .npy file, or an .npz file with an array for each input"
    )
    command.add_argument("cache", help="the folder to write")
    command.add_argument(
        "--storage",
        default="float16",
        help="float32, float16, bfloat16, uint8, top-10, sampled-50, ...",
    )
    command.add_argument("--layers", nargs="*", default=[], metavar="LAYER")
    command.add_argument("--probabilities", default="auto")
    command.add_argument("--batch-size", type=int, default=256)
    command.add_argument("--shard-rows", type=int)
    command.add_argument("--runtime", default="keras")
    command.add_argument("--rank", type=int, default=0)
    command.add_argument("--world", type=int, default=1)
    command.set_defaults(run=_label)
    _add_json(command)


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


def _label(parsed: argparse.Namespace) -> None:
    if not parsed.cache:
        raise ValueError("A cache has a folder. Received: an empty name.")
    job = Labelling(
        parsed.cache,
        parsed.teacher,
        _transfer_set(parsed.data),
        parsed.layers,
        parsed.storage,
        probabilities=parsed.probabilities,
        batch_size=parsed.batch_size,
        shard_rows=parsed.shard_rows,
        runtime=parsed.runtime,
    )
    try:
        # A bar in a log, or in JSON, is noise.
        shows = sys.stdout.isatty() and not parsed.json
        job.run(parsed.rank, parsed.world, verbose=int(shows))
        missing = job.missing()
        if not missing:
            job.finish()
    finally:
        job.close()
    facts = {
        "cache": parsed.cache,
        "examples": job.plan.size,
        "shards": job.plan.shards,
        "missing": len(missing),
        "complete": not missing,
    }
    print(json.dumps(facts, indent=2) if parsed.json else as_table(facts))


def _transfer_set(path: str) -> Any:
    """A file's array, which stays on disk; or a file's arrays by name."""
    if not path.endswith(".npy"):
        arrays = _arrays(path)
        return arrays.popitem()[1] if len(arrays) == 1 else arrays
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise ValueError(
            "Examples come in an .npy file, as `np.save` writes it. Received: "
            f"'{path}': {error}"
        ) from error


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
    except (
        AttributeError,
        EOFError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            "Examples come in an .npz file, as `np.savez` writes it. Received: "
            f"'{path}', {type(error).__name__}: {error}"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
