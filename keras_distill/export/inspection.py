"""What a file for a device is, whoever wrote it."""

from __future__ import annotations

import collections
import os
import pathlib
from typing import Any

from keras_distill.export.artifact import read_file
from keras_distill.export.flatbuffer import interface, operations, split
from keras_distill.export.keras_file import describe_keras


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a `.tflite` or `.keras` file says of itself, and what it does.

    The file may come from anywhere: it is only read, and nothing of it is run.
    A LiteRT file of this library must have the checksum that it was written
    with, which shows damage, and not malice.

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
    inputs, outputs = interface(model)
    # What is in the file overrules what the file says of itself.
    return {
        **({"note": "written by another program"} if facts is None else facts),
        "size": len(content),
        "operations": dict(counts),
        "inputs": inputs,
        "outputs": outputs,
    }
