"""A student as an ONNX, OpenVINO or SavedModel file."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import keras

from keras_distill.export import processes
from keras_distill.export.base_artifact import ExportArtifact
from keras_distill.export.float_file import (
    describe_outputs,
    require_outside_worker,
    require_packages,
    run_converter,
    saved,
)
from keras_distill.export.format_runners import (
    Arrays,
    run_onnx,
    run_openvino,
    run_saved_model,
)
from keras_distill.export.format_writers import (
    write_onnx,
    write_openvino,
    write_saved_model,
)
from keras_distill.export.parity import require_parity
from keras_distill.export.placing import size_of, staged, target_of
from keras_distill.export.processes import WorkerError
from keras_distill.export.signature import TensorInfo

# What tf2onnx writes, from where onnxruntime is exact.
_OPSETS = range(13, 19)
_ADVICE = (
    "Replace these layers or operations, for instance a bicubic `Resizing` by "
    "a bilinear one, or use `export_saved_model`, which has all of them."
)
# What may be in a folder that a SavedModel replaces.
_SAVED_MODEL = {
    "assets",
    "fingerprint.pb",
    "saved_model.pb",
    "variables",
}


class ONNXArtifact(ExportArtifact):
    """An ONNX file, which onnxruntime runs."""

    def _run(self, inputs: Arrays) -> Arrays:
        return run_onnx(str(self.path), inputs, self.batch_size)


class OpenVINOArtifact(ExportArtifact):
    """An OpenVINO file: `path` is the `.xml`, the weights lie beside it.

    `predict` computes in float32, also on a CPU where OpenVINO prefers
    bfloat16.
    """

    def _run(self, inputs: Arrays) -> Arrays:
        return run_openvino(str(self.path), inputs, self.batch_size)


class SavedModelArtifact(ExportArtifact):
    """A SavedModel's folder, which TensorFlow runs in a process of its own."""

    def _run(self, inputs: Arrays) -> Arrays:
        path = str(self.path.absolute())
        outputs: Arrays = processes.call(
            run_saved_model, path, inputs, self.batch_size
        )
        return outputs


_A = TypeVar("_A", bound=ExportArtifact)


class _Format(NamedTuple):
    """How a format is written and run.

    Attributes:
        name: What it is called.
        extra: What to install the package with.
        packages: Names to install by, by the names to import by.
        suffixes: Ends of its files' names, first that of `path`.
        write: Writes a file: `write(request, path, *options)`.
        run: Runs a file: `run(path, inputs, batch_size)`.
    """

    name: str
    extra: str
    packages: dict[str, str]
    suffixes: tuple[str, ...]
    write: Callable[..., None]
    run: Callable[[str, Arrays, int | None], Arrays]


_ONNX = _Format(
    "ONNX",
    "onnx",
    {
        "tensorflow": "tensorflow",
        "tf2onnx": "tf2onnx",
        "onnx": "onnx",
        "onnxruntime": "onnxruntime",
    },
    (".onnx",),
    write_onnx,
    run_onnx,
)
_OPENVINO = _Format(
    "OpenVINO",
    "openvino",
    {"tensorflow": "tensorflow", "openvino": "openvino"},
    (".xml", ".bin"),
    write_openvino,
    run_openvino,
)
_TENSORFLOW = _Format(
    "TensorFlow",
    "tensorflow",
    {"tensorflow": "tensorflow"},
    (),
    write_saved_model,
    run_saved_model,
)


def export_onnx(
    student: keras.Model,
    path: str | os.PathLike[str],
    *,
    batch_size: int | None = 1,
    opset: int = 18,
) -> ONNXArtifact:
    """Write a student as an ONNX file, and check the file.

    The file counts as written once onnxruntime returned what Keras returns on
    random inputs. The student may live on TensorFlow, JAX or PyTorch, is
    exported in float32, and isn't changed; as for `export_litert`, a process
    with Keras on TensorFlow converts it.

    Args:
        student: A built model with fixed input shapes.
        path: Where the file goes; it ends in `.onnx`. A file that is there is
            replaced only by one that passed the check.
        batch_size: The file's batch size; None for any.
        opset: The version of ONNX' operations, 13 to 18: some runtimes know
            only older ones.

    Returns:
        The artifact: the file's path, size, inputs, outputs and error.

    Raises:
        TypeError: If the student isn't a Keras model.
        ValueError: If the student, the path or the opset can't be exported.
        ImportError: If TensorFlow, tf2onnx, onnx or onnxruntime isn't
            installed.
        RuntimeError: If the conversion failed, or if the file doesn't return
            what Keras returns.

    Example:
        >>> import keras, numpy as np, pathlib, tempfile
        >>> import keras_distill as kd
        >>> student = keras.Sequential(
        ...     [keras.Input((8,), name="pixels"), keras.layers.Dense(3)]
        ... )
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> artifact = kd.export_onnx(
        ...     student, folder / "student.onnx", batch_size=None
        ... )
        >>> artifact.inputs[0].name, artifact.inputs[0].shape
        ('pixels', (None, 8))
        >>> artifact.predict(np.zeros((5, 8), "float32")).shape
        (5, 3)
    """
    if opset not in _OPSETS:
        raise ValueError(
            f"An ONNX file is written with an opset from {_OPSETS[0]} to "
            f"{_OPSETS[-1]}. Received: opset={opset}."
        )
    path = pathlib.Path(path)
    return _export(ONNXArtifact, _ONNX, student, path, batch_size, opset)


def export_openvino(
    student: keras.Model,
    path: str | os.PathLike[str],
    *,
    batch_size: int | None = 1,
) -> OpenVINOArtifact:
    """Write a student as an OpenVINO file, and check the file.

    As `export_onnx`, with OpenVINO in the place of onnxruntime. The weights
    are float32.

    Args:
        student: A built model with fixed input shapes.
        path: Where the file goes; it ends in `.xml`. The weights go beside it,
            in a file that ends in `.bin`. Files that are there are replaced
            only by those that passed the check, one after the other.
        batch_size: The file's batch size; None for any.

    Returns:
        The artifact: the file's path, size, inputs, outputs and error.

    Raises:
        TypeError: If the student isn't a Keras model.
        ValueError: If the student or the path can't be exported.
        ImportError: If TensorFlow or OpenVINO isn't installed.
        RuntimeError: If the conversion failed, or if the file doesn't return
            what Keras returns.

    Example:
        >>> import keras, numpy as np, pathlib, tempfile
        >>> import keras_distill as kd
        >>> student = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(3)]
        ... )
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> artifact = kd.export_openvino(student, folder / "student.xml")
        >>> sorted(file.name for file in folder.iterdir())
        ['student.bin', 'student.xml']
        >>> artifact.predict(np.zeros((5, 8), "float32")).shape
        (5, 3)
    """
    path = pathlib.Path(path)
    return _export(OpenVINOArtifact, _OPENVINO, student, path, batch_size)


def export_saved_model(
    student: keras.Model,
    folder: str | os.PathLike[str],
    *,
    batch_size: int | None = 1,
) -> SavedModelArtifact:
    """Write a student as a SavedModel of TensorFlow, and check it.

    As `export_onnx`, with TensorFlow in the place of onnxruntime. The weights
    are constants. TensorFlow Serving and `keras.layers.TFSMLayer` find the
    signature "serving_default"; in TensorFlow, that is
    `tf.saved_model.load(folder).signatures["serving_default"](image=x)`.

    Args:
        student: A built model with fixed input shapes.
        folder: Where it goes. A SavedModel that is there is replaced only by
            one that passed the check; any other folder must be empty.
        batch_size: The SavedModel's batch size; None for any.

    Returns:
        The artifact: the folder's path, size, inputs, outputs and error.

    Raises:
        TypeError: If the student isn't a Keras model.
        ValueError: If the student or the folder can't be exported.
        ImportError: If TensorFlow isn't installed.
        RuntimeError: If the conversion failed, or if TensorFlow doesn't return
            what Keras returns.

    Example:
        >>> import keras, numpy as np, pathlib, tempfile
        >>> import keras_distill as kd
        >>> student = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(3)]
        ... )
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "student"
        >>> artifact = kd.export_saved_model(student, folder, batch_size=None)
        >>> artifact.predict(np.zeros((5, 8), "float32")).shape
        (5, 3)
    """
    path = pathlib.Path(folder)
    return _export(SavedModelArtifact, _TENSORFLOW, student, path, batch_size)


def _export(
    artifact: type[_A],
    form: _Format,
    student: keras.Model,
    path: pathlib.Path,
    batch_size: int | None,
    *options: Any,
) -> _A:
    require_outside_worker()
    _require_writable(path, form)
    require_packages(form.packages, form.extra)
    place, name = os.path.split(target_of(path))
    with (
        staged(pathlib.Path(place)) as folder,
        saved(student, batch_size) as (known, batch, expected),
    ):
        if form is _TENSORFLOW:
            _require_arguments(known.inputs)
        request = known._replace(
            output_names=_unlike_inputs(known.output_names, known.inputs)
        )
        file = str(folder / name)
        arguments = (request, file, *options)
        run_converter(student.name, form.name, _ADVICE, form.write, *arguments)
        seen = _run_apart(form, student.name, file, batch, batch_size)
        names = request.output_names
        max_error = require_parity(student, names, expected, seen)
    return artifact(
        path=path,
        size=_size(path, form),
        inputs=request.inputs,
        outputs=describe_outputs(names, seen, batch_size),
        input_names=request.input_names,
        output_names=names,
        max_error=max_error,
    )


def _run_apart(
    form: _Format, name: str, file: str, batch: Arrays, batch_size: int | None
) -> Arrays:
    """A file's outputs, run where an abort of the runtime is harmless."""
    try:
        outputs: Arrays = processes.call(form.run, file, batch, batch_size)
    except WorkerError as error:
        raise RuntimeError(
            f"The {form.name} file doesn't run. Received: student='{name}', "
            f"{error}\nReplace the operations named here, or use "
            "`export_saved_model`, which has all of them."
        ) from error
    return outputs


def _unlike_inputs(names: Any, inputs: tuple[TensorInfo, ...]) -> Any:
    """Names of outputs that no input has: in a graph, one name is one tensor.

    An autoencoder's outputs may well be called as its inputs are.
    """
    taken = {info.name for info in inputs}
    used = taken.union(keras.tree.flatten(names))
    renamed = {}
    for name in sorted(taken.intersection(keras.tree.flatten(names))):
        new = f"{name}_out"
        while new in used:
            new = f"{new}_out"
        used.add(new)
        renamed[name] = new
    return keras.tree.map_structure(lambda n: renamed.get(n, n), names)


def _require_arguments(inputs: tuple[TensorInfo, ...]) -> None:
    """Refuse names that TensorFlow doesn't take as a signature's arguments."""
    seen: dict[str, str] = {}
    for name in (info.name for info in inputs):
        twin = seen.setdefault(name.lower(), name)
        if twin != name:
            raise ValueError(
                "A SavedModel's inputs differ by more than their case. "
                f"Received: inputs '{twin}' and '{name}'. Give one of them "
                'another name: `keras.Input(..., name="...")`.'
            )
        if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_]*", name):
            raise ValueError(
                "A SavedModel's inputs are named in letters from A to Z, "
                "digits and underscores, with no underscore in front. "
                f"Received: input '{name}'. Give it another name: "
                '`keras.Input(..., name="...")`.'
            )


def _require_writable(path: pathlib.Path, form: _Format) -> None:
    place = target_of(path)
    if not place.parent.is_dir():
        raise ValueError(
            f"There is no folder '{place.parent}'. Received: path='{path}'. "
            "Make the folder first."
        )
    if not form.suffixes:
        _require_saved_model(path)
    elif path.suffix != form.suffixes[0]:
        raise ValueError(
            f"The name of an {form.name} file ends in '{form.suffixes[0]}'. "
            f"Received: path='{path}'. Pass "
            f"'{path.with_suffix(form.suffixes[0])}'."
        )
    for suffix in form.suffixes:
        if path.with_suffix(suffix).is_dir():
            raise ValueError(
                f"'{path.with_suffix(suffix)}' is a folder. Received: "
                f"path='{path}'. Pass another name."
            )
    for suffix in form.suffixes[1:]:
        # A runtime looks for it beside the name that it was given.
        if target_of(path.with_suffix(suffix)) != place.with_suffix(suffix):
            raise ValueError(
                "Files that belong together lie side by side. Received: "
                f"path='{path}', which is a link to '{place}', and "
                f"'{path.with_suffix(suffix)}' isn't one to its neighbour. "
                "Remove the link, or link both."
            )


def _require_saved_model(path: pathlib.Path) -> None:
    """Refuse to replace what isn't a SavedModel, and nothing else."""
    if not path.exists():
        return
    if not path.is_dir() or not _SAVED_MODEL.issuperset(os.listdir(path)):
        raise ValueError(
            "A SavedModel is a folder of its own, and replaces only another "
            f"one. Received: folder='{path}', which holds other things. Pass a "
            "folder that isn't there yet."
        )


def _size(path: pathlib.Path, form: _Format) -> int:
    if not form.suffixes:
        return size_of(path)
    return sum(size_of(path.with_suffix(s)) for s in form.suffixes)
