"""A student as a folder that a process on another backend can load."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import sys
import warnings
from typing import Any

import keras

from keras_distill.export.signature import float32_name
from keras_distill.model_graphs import layers_of


def save_student(student: keras.Model, folder: pathlib.Path) -> dict[str, Any]:
    """Save a student in float32; return its custom objects, by name."""
    try:
        with warnings.catch_warnings():
            # About lambdas: those of a loss don't matter here.
            warnings.simplefilter("ignore")
            student.save(folder, zipped=False)
    except NotImplementedError as error:
        raise ValueError(
            "Keras can't save the student, so no other process can load it. "
            f"Received: student='{student.name}'. Give the class named here a "
            f"`get_config`: {error}"
        ) from error
    file = folder / "config.json"
    config = _float32_config(json.loads(file.read_text()))
    file.write_text(json.dumps(config))
    return _custom_objects(config)


def _float32_config(config: Any) -> Any:
    """A saved model's configuration in float32, without its compilation."""
    if isinstance(config, list):
        return [_float32_config(value) for value in config]
    if isinstance(config, dict):
        return {
            key: _float32_config(value)
            for key, value in config.items()
            if key != "compile_config"
        }
    return float32_name(config) if isinstance(config, str) else config


def _custom_objects(config: Any) -> dict[str, Any]:
    if isinstance(config, list):
        parts = [_custom_objects(value) for value in config]
    elif isinstance(config, dict):
        parts = [_custom_objects(value) for value in config.values()]
        parts.append(_custom_object(config))
    else:
        return {}
    return {name: found for part in parts for name, found in part.items()}


def _custom_object(entry: dict[str, Any]) -> dict[str, Any]:
    kind: Any = entry.get("class_name")
    if kind == "function":
        found = _function(entry)
        module = found.__module__
        return {} if is_keras(module) else {entry["config"]: found}
    if "registered_name" not in entry or "module" not in entry:
        return {}
    # Keras writes no module for the script that runs.
    module = entry["module"] or "__main__"
    if is_keras(module):
        return {}
    name = entry["registered_name"] or kind
    found = keras.saving.get_registered_object(name)
    return {name: found or vars(sys.modules[module]).get(kind)}


def _function(entry: dict[str, Any]) -> Any:
    try:
        return keras.saving.deserialize_keras_object(entry)
    except TypeError as error:
        raise ValueError(
            "Another process can't find a function that isn't registered. "
            f"Received: a layer with the function '{entry['config']}'. "
            "Decorate it with `@keras.saving.register_keras_serializable()`, "
            "in a module."
        ) from error


def is_keras(module: str) -> bool:
    """Whether a module is part of Keras or of Python."""
    return module.split(".", maxsplit=1)[0] in ("keras", "builtins")


def import_places(
    custom_objects: dict[str, Any],
) -> tuple[dict[str, tuple[str, str]], str | None]:
    """Where another process can import custom objects from.

    Returns:
        The objects' modules and qualified names, and the path of the running
        script if some are defined there.
    """
    places = {name: _place(name, it) for name, it in custom_objects.items()}
    in_script = any(module == "__main__" for module, _ in places.values())
    script: str | None = sys.modules["__main__"].__file__ if in_script else None
    return places, script


def _place(name: str, found: Any) -> tuple[str, str]:
    if found is None or "<locals>" in found.__qualname__:
        raise ValueError(
            "The process that converts the student can't import a class that "
            f"is defined inside a function. Received: '{name}'. Define it at "
            "the top level of a module."
        )
    module = found.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        _require_guard(name, getattr(main, "__file__", ""))
        # `python -m module` has a name to import by.
        module = "__main__" if main.__spec__ is None else main.__spec__.name
    return module, found.__qualname__


def _require_guard(name: str, script: str) -> None:
    # A notebook has no file, and a script that is piped in a made-up one.
    source = pathlib.Path(script).read_bytes() if os.path.isfile(script) else ""
    statements = ast.parse(source).body
    tests = [ast.unparse(n.test) for n in statements if isinstance(n, ast.If)]
    if not any("__name__" in t and "__main__" in t for t in tests):
        raise ValueError(
            "The process that converts the student would run the whole script "
            f"or notebook again to find a class. Received: '{name}', defined "
            f"in {script or 'a notebook'}. Move the class to a module, or "
            'put what the script does under `if __name__ == "__main__":`.'
        )


def float32_model(
    student: keras.Model,
    folder: pathlib.Path,
    custom_objects: dict[str, Any],
) -> keras.Model:
    """The student itself if it computes in float32, else a float32 copy."""
    policies = [layer.dtype_policy for layer in layers_of(student)]
    dtypes = {p.compute_dtype for p in policies}
    dtypes |= {p.variable_dtype for p in policies}
    if all(float32_name(dtype) == dtype for dtype in dtypes):
        return student
    policy = keras.config.dtype_policy()
    # For layers that a custom layer makes without naming a dtype.
    keras.config.set_dtype_policy("float32")
    try:
        with keras.device("cpu"):
            return keras.saving.load_model(
                folder, custom_objects=custom_objects, compile=False
            )
    finally:
        keras.config.set_dtype_policy(policy)
