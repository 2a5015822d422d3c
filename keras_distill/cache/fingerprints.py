"""What tells one teacher, data set or function from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_distill.teachers import NumpyTeacher

# A data set larger than this is known by rows spread over it; `verify` reads
# all of it.
MOST_BYTES = 64 * 2**20


def arrays_digest(arrays: Any) -> str:
    """SHA-256 of a structure of arrays: values, dtypes, shapes and names."""
    digest = hashlib.sha256()
    for path, given in _leaves(arrays):
        array = np.ascontiguousarray(given)
        digest.update(f"{path} {array.dtype.str} {array.shape};".encode())
        digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()


def _leaves(structure: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(structure, dict):
        items = [(str(key), structure[key]) for key in sorted(structure)]
    elif isinstance(structure, (list, tuple)):
        items = [(str(i), value) for i, value in enumerate(structure)]
    else:
        return [(path, structure)]
    return [
        leaf for key, value in items for leaf in _leaves(value, f"{path}/{key}")
    ]


def spread_rows(size: int, row_bytes: int) -> np.ndarray[Any, Any]:
    """Rows that stand for all: all, where they aren't too many bytes."""
    count = min(size, max(64, MOST_BYTES // max(row_bytes, 1)))
    return np.unique(np.linspace(0, size - 1, count).astype(np.int64))


# What Keras counts or draws anew for each object, or learns from a first call.
_PASSING = frozenset(
    ("name", "seed", "build_config", "build_input_shape", "compile_config")
)


def _lasting(config: Any) -> Any:
    """A configuration without what differs between equal layers."""
    if isinstance(config, dict):
        return {k: _lasting(v) for k, v in config.items() if k not in _PASSING}
    if isinstance(config, (list, tuple)):
        return [_lasting(part) for part in config if not _is_input(part)]
    return config


def _is_input(config: Any) -> bool:
    """Whether it is the layer that a Sequential gets with its first call."""
    return isinstance(config, dict) and config.get("class_name") == "InputLayer"


def function_fingerprint(function: Callable[..., Any] | None) -> Any:
    """What tells a layer or a function from another.

    A layer is known by its configuration and weights; a function by its
    bytecode, which is that of a version of Python, and the values that it uses.

    Raises:
        ValueError: If a function uses what can't be told apart.
    """
    if function is None:
        return None
    if isinstance(function, keras.Layer):
        config = _lasting(keras.saving.serialize_keras_object(function))
        weights = [keras.ops.convert_to_numpy(w) for w in function.weights]
        text = json.dumps(config, sort_keys=True, default=repr)
        return {
            "layer": type(function).__name__,
            "config": hashlib.sha256(text.encode()).hexdigest(),
            "weights": arrays_digest(weights),
        }
    try:
        return NumpyTeacher(function).fingerprint
    except ValueError as error:
        raise ValueError(
            "A function is known by its bytecode and the values that it uses, "
            "and this one uses what can't be told apart from another. "
            f"Received: {function!r}. Let it use numbers, texts, arrays, "
            "modules and other such functions, or pass a Keras layer."
        ) from error
