"""One function that makes a teacher of whatever can be one."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_distill.export.artifact import LiteRTArtifact
from keras_distill.export.formats import ONNXArtifact, SavedModelArtifact
from keras_distill.export.keras_file import load_keras
from keras_distill.teachers.base import Teacher
from keras_distill.teachers.ensemble import Ensemble
from keras_distill.teachers.files import FileTeacher
from keras_distill.teachers.function import NumpyTeacher
from keras_distill.teachers.litert_file import LiteRTFile
from keras_distill.teachers.onnx_file import OnnxFile
from keras_distill.teachers.runtimes import run_keras
from keras_distill.teachers.saved_model import SavedModelFolder
from keras_distill.teachers.sklearn_classifier import SklearnTeacher
from keras_distill.teachers.torch_module import TorchTeacher

_FILES: dict[type[Any], type[FileTeacher]] = {
    LiteRTArtifact: LiteRTFile,
    ONNXArtifact: OnnxFile,
    SavedModelArtifact: SavedModelFolder,
}
_SUFFIXES: dict[str, Callable[[pathlib.Path], Teacher]] = {
    ".onnx": OnnxFile,
    ".tflite": LiteRTFile,
    "": SavedModelFolder,
}


def as_teacher(
    teacher: Any,
    layers: Sequence[str] = (),
    runtime: str = "keras",
    example: Any = None,
) -> Teacher:
    """Make something that labels batches of whatever can be a teacher.

    Args:
        teacher: One of

            - a built `keras.Model`;
            - the path of a `.keras`, `.onnx` or `.tflite` file, or of a
              SavedModel's folder, or the artifact of an export. A `.keras`
              file is loaded in safe mode (`KerasFile`: on another backend);
            - a list of teachers: an `Ensemble` with its defaults;
            - a `torch.nn.Module` (`TorchTeacher`);
            - a fitted classifier of scikit-learn (`SklearnTeacher`);
            - a function of NumPy arrays (`NumpyTeacher`);
            - a `Teacher`.
        layers: Names of hidden layers whose outputs are wanted, too: of a
            Keras model `"backbone/conv4"`, of PyTorch `"layer4.1.conv2"`.
        runtime: What runs a Keras model. `"keras"`; `"onnxruntime"`, on the
            CPU, if it returns the same to 1e-4; or `"auto"`, the faster one of
            those that do, tried on `example`. The export takes seconds, so
            this is for large transfer sets.
        example: A batch of inputs, which other runtimes are tried on.

    Returns:
        The teacher; `teacher.runtime` says what runs it.

    Raises:
        TypeError: If it isn't a teacher.
        ValueError: If it isn't built, or the layers can't be seen.
        RuntimeError: If `"onnxruntime"` doesn't return what Keras does.
        ImportError: If what runs it isn't installed.

    Example:
        >>> import keras, numpy as np
        >>> import keras_distill as kd
        >>> teacher = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(3)])
        >>> with kd.teachers.as_teacher(teacher) as labeller:
        ...     output, features = labeller.label(np.zeros((5, 4), "float32"))
        >>> output.shape, features
        ((5, 3), {})
    """
    layers = tuple(layers)
    if isinstance(teacher, (str, os.PathLike)):
        path = pathlib.Path(teacher)
        teacher = load_keras(path) if path.suffix == ".keras" else path
    if isinstance(teacher, keras.Model):
        return run_keras(teacher, layers, runtime, example)
    is_list = isinstance(teacher, (list, tuple))
    if runtime not in ("keras", "auto") and not is_list:
        raise ValueError(
            "Only a Keras model is computed by another runtime. Received: "
            f"runtime={runtime!r} for teacher={teacher!r}. Leave it out."
        )
    if isinstance(teacher, pathlib.Path):
        made = _of_path(teacher)
    elif is_list:
        made = Ensemble([as_teacher(t, (), runtime, example) for t in teacher])
    else:
        made = _of_object(teacher)
    return made if layers in ((), made.layers) else made.with_layers(layers)


def _of_path(path: pathlib.Path) -> Teacher:
    kind = _SUFFIXES.get("" if path.is_dir() else path.suffix or "none")
    if kind is None:
        raise ValueError(
            "A teacher's file ends in '.keras', '.onnx' or '.tflite', or is "
            f"the folder of a SavedModel. Received: teacher='{path}'."
        )
    return kind(path)


def _of_object(teacher: Any) -> Teacher:
    if isinstance(teacher, Teacher):
        return teacher
    kind = _FILES.get(type(teacher))
    if kind is not None:
        return kind(
            teacher.path,
            input_names=teacher.input_names,
            output_names=teacher.output_names,
        )
    # A layer of Keras on PyTorch is a module, too.
    if not isinstance(teacher, (keras.Layer, type)):
        if _is_torch_module(teacher):
            return TorchTeacher(teacher)
        if _is_classifier(teacher):
            return SklearnTeacher(teacher)
        if callable(teacher):
            return NumpyTeacher(teacher)
    raise TypeError(
        "A teacher is a keras.Model, the path of a .keras, .onnx or .tflite "
        "file or of a SavedModel's folder, an artifact of an export, a list of "
        "teachers, a torch.nn.Module, a fitted classifier of scikit-learn, a "
        "function of NumPy arrays, or a kd.teachers.Teacher. Received: "
        f"teacher={teacher!r}. Wrap it in a function: "
        '`kd.teachers.NumpyTeacher(function, fingerprint="v1")`.'
    )


# An object of a package that nobody imported can't be there.
def _is_torch_module(teacher: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(teacher, torch.nn.Module)


def _is_classifier(teacher: Any) -> bool:
    base = sys.modules.get("sklearn.base")
    return (
        base is not None
        and isinstance(teacher, base.BaseEstimator)
        and base.is_classifier(teacher)
    )
