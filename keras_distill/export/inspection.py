"""What a file for a device is, whoever wrote it."""

from __future__ import annotations

import collections
import os
import pathlib
from typing import Any

from keras_distill.export import processes, runner
from keras_distill.export.artifact import read_file
from keras_distill.export.flatbuffer import (
    DamagedFileError,
    operations,
    split,
)
from keras_distill.export.keras_file import describe_keras
from keras_distill.export.processes import WorkerError


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a `.tflite` or `.keras` file says of itself, and what it does.

    The file may come from anywhere. A `.keras` file is only read. A LiteRT file
    is opened by the interpreter in a process of its own; one of this library
    must also have the checksum that it was written with, which shows damage,
    and not malice.

    Args:
        path: The file.

    Returns:
        Facts by name, as JSON has them.

    Raises:
        FileNotFoundError: If it isn't there.
        DamagedFileError: If it is damaged, or of another kind.

    Example:
        >>> import keras, pathlib, tempfile
        >>> import keras_distill as kd
        >>> student = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(3)], name="digits"
        ... )
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "student.tflite"
        >>> artifact = kd.export_litert(student, path)
        >>> kd.export.inspect(path)["student"]["name"]
        'digits'
    """
    path = pathlib.Path(path)
    if path.suffix == ".keras":
        return {"size": path.stat().st_size, **describe_keras(path)}
    content = read_file(path)
    model, facts = split(content)
    counts = collections.Counter(o.name for o in operations(model))
    try:
        tensors = processes.call(_tensors, model)
    except WorkerError as error:
        raise DamagedFileError(
            "The LiteRT interpreter can't open the file. Received: "
            f"path='{path}', {error}. Get the file again."
        ) from error
    # What was measured overrules what the file says of itself.
    return {
        **({"note": "written by another program"} if facts is None else facts),
        "size": len(content),
        "operations": dict(counts),
        **tensors,
    }


def _tensors(content: bytes) -> dict[str, Any]:
    signature = runner.open_signature(content)
    return {
        kind: [
            {
                "name": name,
                "shape": details["shape"].tolist(),
                "dtype": details["dtype"].__name__,
            }
            for name, details in found.items()
        ]
        for kind, found in (
            ("inputs", signature.get_input_details()),
            ("outputs", signature.get_output_details()),
        )
    }
