"""Arrays and JSON over a pipe, without pickle.

A message is its length, JSON, and then each array's length and content as
`numpy.save` has it. In the JSON, `{"array": 0}` stands for the first array, and
tuples and dicts are marked as such.
"""

from __future__ import annotations

import io
import json
import struct
from typing import IO, Any

import numpy as np

_LENGTH = struct.Struct("<Q")


def write(file: IO[bytes], message: Any) -> None:
    """Write lists, tuples and dicts of arrays, texts and numbers."""
    arrays: list[np.ndarray[Any, Any]] = []
    text = json.dumps(_encoded(message, arrays))
    _write_bytes(file, text.encode())
    for array in arrays:
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        _write_bytes(file, content.getbuffer())
    file.flush()


def read(file: IO[bytes]) -> Any:
    """Read what `write` wrote.

    Raises:
        EOFError: If the other side is gone.
    """
    skeleton = json.loads(_read_bytes(file))
    return _decoded(skeleton, file)


def _encoded(value: Any, arrays: list[np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        arrays.append(np.asarray(value))
        return {"array": len(arrays) - 1}
    if isinstance(value, dict):
        return {"dict": {k: _encoded(v, arrays) for k, v in value.items()}}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(v, arrays) for v in value]}
    if isinstance(value, list):
        return [_encoded(v, arrays) for v in value]
    return value


def _decoded(value: Any, file: IO[bytes]) -> Any:
    # The arrays come in the order in which they are named.
    if isinstance(value, list):
        return [_decoded(v, file) for v in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_decoded(v, file) for v in value["tuple"])
    if "dict" in value:
        return {k: _decoded(v, file) for k, v in value["dict"].items()}
    content = io.BytesIO(_read_bytes(file))
    return np.load(content, allow_pickle=False)


def _write_bytes(file: IO[bytes], content: bytes | memoryview) -> None:
    file.write(_LENGTH.pack(len(content)))
    file.write(content)


def _read_bytes(file: IO[bytes]) -> bytes:
    (length,) = _LENGTH.unpack(_read_exactly(file, _LENGTH.size))
    return _read_exactly(file, length)


def _read_exactly(file: IO[bytes], length: int) -> bytes:
    content = file.read(length)
    if len(content) < length:
        raise EOFError("The other side of the pipe is gone.")
    return content
