"""A Keras model that another runtime computes, once it is proven equal."""

from __future__ import annotations

import importlib.util
import pathlib
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill.export.formats import export_onnx
from keras_distill.features import find_layer, select_inputs, symbolic_output
from keras_distill.teachers.base import Array, Teacher
from keras_distill.teachers.keras_model import KerasTeacher
from keras_distill.teachers.onnx_file import OnnxFile

_RUNTIMES = ("keras", "onnxruntime", "auto")
_PACKAGES = ("tensorflow", "tf2onnx", "onnx", "onnxruntime")
# Largest difference from Keras, relative to an array's largest value.
_TOLERANCE = 1e-4
_ROUNDS = 3


class OnnxRuntimeTeacher(Teacher):
    """A Keras model that onnxruntime computes, on the CPU.

    The model is exported, which takes seconds, and counts as a teacher once it
    returns what Keras returns, to 1e-4 of each array's largest value. So its
    fingerprint is the model's.

    Args:
        teacher: The model, as Keras computes it.
        example: A batch of inputs to prove it on.

    Raises:
        ValueError: If a hidden layer isn't in the graph that is exported.
        RuntimeError: If it can't be exported, or returns something else.
        ImportError: If a package is missing.
    """

    runtime = "onnxruntime"

    def __init__(self, teacher: KerasTeacher, example: Any) -> None:
        self.layers = teacher.layers
        self.probabilities = teacher.probabilities
        self._teacher = teacher
        self._output, _ = expected = teacher.label(example)
        view = _with_hidden_outputs(teacher.model, teacher.layers)
        self._file = _exported(view)
        _require_equal(expected, self.label(example), teacher.model.name)

    def label(self, inputs: Any) -> tuple[Any, dict[str, Array]]:
        """Run the exported model on a batch."""
        selected = select_inputs(self._teacher.model, inputs)
        arrays, _ = self._file.label(keras.tree.flatten(selected))
        count = len(arrays) - len(self.layers)
        output = keras.tree.pack_sequence_as(self._output, arrays[:count])
        return output, dict(zip(self.layers, arrays[count:], strict=True))

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The Keras model's."""
        return self._teacher.fingerprint


def run_keras(
    model: keras.Model,
    layers: Sequence[str],
    runtime: str,
    example: Any,
) -> Teacher:
    """A Keras model on the runtime that is asked for.

    Raises:
        ValueError: If there is no such runtime, or no example to prove it on.
        RuntimeError: If a runtime that is insisted on doesn't compute the same.
    """
    if runtime not in _RUNTIMES:
        raise ValueError(
            f"A Keras model runs on one of {_RUNTIMES}. Received: "
            f"runtime={runtime!r}."
        )
    teacher = KerasTeacher(model, layers)
    if runtime == "keras":
        return teacher
    if example is None:
        raise ValueError(
            "Another runtime must show that it computes what Keras does. "
            f"Received: runtime={runtime!r} and example=None. Pass a batch of "
            "inputs as `example`."
        )
    if runtime == "onnxruntime":
        return OnnxRuntimeTeacher(teacher, example)
    if any(importlib.util.find_spec(name) is None for name in _PACKAGES):
        return teacher
    return _fastest(teacher, example)


def _fastest(teacher: KerasTeacher, example: Any) -> Teacher:
    try:
        other = OnnxRuntimeTeacher(teacher, example)
    # Converters and runtimes raise errors of their own.
    except Exception as error:
        warnings.warn(
            f"The teacher '{teacher.model.name}' stays with Keras: on "
            f"onnxruntime it isn't the same. Received: runtime='auto', "
            f"{type(error).__name__}: {error}",
            stacklevel=4,
        )
        return teacher
    # In turns, so that what else the machine does hits both.
    seconds = [
        [_seconds(candidate, example) for candidate in (teacher, other)]
        for _ in range(_ROUNDS)
    ]
    keras_seconds, other_seconds = np.median(seconds, axis=0)
    return other if other_seconds < keras_seconds else teacher


def _seconds(teacher: Teacher, example: Any) -> float:
    start = time.perf_counter()
    teacher.label(example)
    return time.perf_counter() - start


def _with_hidden_outputs(
    model: keras.Model, layers: tuple[str, ...]
) -> keras.Model:
    """A model of the same layers that also returns what some of them do."""
    if not layers:
        return model
    hidden = [_hidden(model, name) for name in layers]
    outputs = keras.tree.flatten(symbolic_output(model))
    return keras.Model(model.inputs, [*outputs, *hidden])


def _hidden(model: keras.Model, name: str) -> Any:
    layer = find_layer(model, name)
    shows = symbolic_output(model) is not None and "/" not in name
    # The output of a sub-model belongs to a graph of its own.
    is_inner = isinstance(layer, keras.Model)
    tensor = symbolic_output(layer) if shows and not is_inner else None
    if not isinstance(tensor, keras.KerasTensor):
        raise ValueError(
            "An export shows hidden layers that the teacher's own graph calls "
            f"once. Received: layer name '{name}' of '{model.name}', which is "
            "a sub-model or inside one, or is called more than once. Pass "
            "runtime='keras'."
        )
    return tensor


def _exported(model: keras.Model) -> OnnxFile:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "teacher.onnx")
        artifact = export_onnx(model, path, batch_size=None)
        # The session has read all of the file.
        return OnnxFile(
            path,
            input_names=keras.tree.flatten(artifact.input_names),
            output_names=keras.tree.flatten(artifact.output_names),
        )


def _require_equal(expected: Any, seen: Any, name: str) -> None:
    pairs = zip(
        keras.tree.flatten(expected), keras.tree.flatten(seen), strict=True
    )
    error = max(_error(theirs, ours) for theirs, ours in pairs)
    if error > _TOLERANCE:
        raise RuntimeError(
            "onnxruntime doesn't compute what Keras does. Received: teacher="
            f"'{name}', which differs by {error:.1e} of its largest value on "
            f"the example (accepted: {_TOLERANCE:.0e}). Pass runtime='keras'."
        )


def _error(expected: Array, seen: Array) -> float:
    same = expected.shape == seen.shape and expected.dtype == seen.dtype
    if not same or not np.isfinite(expected).all():
        return np.inf
    scale = np.abs(expected.astype("float64")).max() or 1.0
    error = np.abs(expected.astype("float64") - seen).max() / scale
    return float(error) if np.isfinite(error) else np.inf
