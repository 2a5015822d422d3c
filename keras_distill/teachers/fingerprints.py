"""What tells one teacher from another, on any backend and in any process."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from typing import Any

import keras
import numpy as np

# Of a saved model, what doesn't change its outputs.
_WITHOUT_EFFECT = ("build_config", "compile_config", "seed", "trainable")


def of_keras(model: keras.Model) -> dict[str, Any]:
    """A Keras model's name, and the checksum of its configuration and weights.

    Names that Keras counted up, such as "dense_7", depend on what else the
    process made, so they are counted again.
    """
    names: dict[str, str] = {}
    text = json.dumps(_canonical(_config(model), names), sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for weight in model.weights:
        array = keras.ops.convert_to_numpy(weight.value)
        # Not each backend has bfloat16 in NumPy.
        brain = weight.dtype == "bfloat16"
        add_array(digest, array.astype("float32") if brain else array)
    return {
        "kind": "keras",
        "name": names.get(model.name, model.name),
        "sha256": digest.hexdigest(),
    }


def of_file(path: pathlib.Path) -> str:
    """Checksum of a file, or of all files in a folder and their names."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file())
    for file in files or [path]:
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(
            f"{file.relative_to(path).as_posix()} {content};".encode()
        )
    return digest.hexdigest()


def add_array(digest: Any, array: np.ndarray[Any, Any]) -> None:
    """Add an array's dtype, shape and values to a checksum."""
    array = np.ascontiguousarray(array)
    digest.update(f"{array.dtype.name} {array.shape};".encode())
    digest.update(array.tobytes())


def _config(model: keras.Model) -> Any:
    try:
        config = keras.saving.serialize_keras_object(model)
    except NotImplementedError:  # a subclassed model without a config
        config = [_described(layer) for layer in (model, *model.layers)]
    # What was loaded has lists where what was built has tuples.
    return _with_effect(json.loads(json.dumps(config, default=repr)))


def _described(layer: keras.Layer) -> Any:
    """Class and plain attributes, of a layer without a configuration."""
    plain = {
        name: repr(value)
        for name, value in vars(layer).items()
        if not name.startswith("_")
        and name not in ("name", "trainable", "built")
        and isinstance(value, (bool, int, float, str, tuple))
    }
    kind = type(layer)
    return [kind.__module__, kind.__qualname__, plain]


def _with_effect(config: Any) -> Any:
    """A configuration without what doesn't change the model's outputs."""
    if isinstance(config, dict):
        return {
            key: _with_effect(value)
            for key, value in config.items()
            if key not in _WITHOUT_EFFECT and not key.endswith("_initializer")
        }
    if isinstance(config, list):
        return [_with_effect(value) for value in config]
    return config


def _canonical(config: Any, names: dict[str, str]) -> Any:
    """A configuration in which names are counted by order of appearance."""
    _count_names(config, names)
    return _renamed(config, names)


def _count_names(config: Any, names: dict[str, str]) -> None:
    if isinstance(config, list):
        for value in config:
            _count_names(value, names)
    if not isinstance(config, dict):
        return
    kind = config.get("class_name")
    inner = config.get("config")
    name = inner.get("name") if isinstance(inner, dict) else None
    if isinstance(name, str) and name not in names and _is_counted(name, kind):
        base = re.sub(r"_\d+$", "", name)
        names[name] = f"{base}_{len(names)}"
    for key in sorted(config):
        _count_names(config[key], names)


def _is_counted(name: str, kind: Any) -> bool:
    """Whether Keras made a layer's name of its class."""
    base = re.sub(r"_\d+$", "", name).replace("_", "")
    return base == str(kind).replace("_", "").lower()


def _renamed(config: Any, names: dict[str, str]) -> Any:
    if isinstance(config, dict):
        # Elsewhere a text may be one by chance, such as "softmax".
        return {
            key: _renamed(value, names)
            if key == "name" or not isinstance(value, str)
            else value
            for key, value in config.items()
        }
    if isinstance(config, list):
        return [_renamed(value, names) for value in config]
    return names.get(config, config) if isinstance(config, str) else config
