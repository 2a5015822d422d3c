"""A student as a LiteRT (TensorFlow Lite) file."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import types
from typing import Any

import keras
import numpy as np

from keras_distill.export import litert_runner
from keras_distill.export.parity import require_parity, run_on_examples
from keras_distill.export.signature import (
    TensorInfo,
    describe_inputs,
    layers_of,
    name_tensors,
)
from keras_distill.export.student_folder import (
    float32_model,
    import_places,
    is_keras,
    save_student,
)

# Marks a worker, so that a script that it imports can't export again.
_IN_WORKER = "KERAS_DISTILL_EXPORT_WORKER"


@dataclasses.dataclass(frozen=True)
class LiteRTArtifact:
    """A LiteRT file that was checked against its student.

    Attributes:
        path: Where the file is.
        size: The file's size in bytes.
        inputs: The inputs' names, shapes and dtypes.
        outputs: The outputs' names, shapes and dtypes.
        max_error: Largest absolute difference from Keras that the check saw,
            relative to the range of the output that it was seen in.
        input_names: Names of the inputs, in the structure of the student's
            inputs.
        output_names: Names of the outputs, in the structure of the student's
            outputs.
    """

    path: pathlib.Path
    size: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    max_error: float
    input_names: Any
    output_names: Any

    def predict(self, x: Any) -> Any:
        """Run the file on the LiteRT interpreter.

        The counterpart of `student.predict`, so that the two can be compared
        on data of the user's. The file has a batch of 1, so the examples run
        one after the other.

        Args:
            x: A batch of any size: an array, or arrays in the structure of the
                student's inputs.

        Returns:
            NumPy arrays, in the structure of the student's outputs.

        Raises:
            ValueError: If `x` isn't of the structure or shapes of `inputs`.
            TypeError: If an array would lose values as the input's dtype.
        """
        keras.tree.assert_same_structure(self.input_names, x)
        arrays = map(np.asarray, keras.tree.flatten(x))
        batch = {
            info.name: _as_input(array, info)
            for info, array in zip(self.inputs, arrays, strict=True)
        }
        outputs = litert_runner.run(str(self.path), batch)
        return keras.tree.map_structure(outputs.__getitem__, self.output_names)


def export_litert(
    student: keras.Model, path: str | os.PathLike[str]
) -> LiteRTArtifact:
    """Write a student as a float32 LiteRT file, and check the file.

    A phone or a board runs the file, not Keras, so the file counts as written
    once the LiteRT interpreter returned what Keras returns on random inputs.
    The student may live on TensorFlow, JAX or PyTorch: it is saved, and a
    process with Keras on TensorFlow converts it; that takes about ten seconds.

    The file has a batch of 1, LiteRT's built-in operations only and one
    signature. A student of another precision (`mixed_float16`, `bfloat16`) is
    exported in float32, and compared with a float32 copy of itself on the
    caller's backend. A float32 student is compared as it is. Both run on the
    CPU, where float32 is exact. The student isn't changed in any way.

    The process imports the modules that define custom layers. A script that
    defines some is imported as `multiprocessing` does it, with Keras on
    TensorFlow, so it needs an `if __name__ == "__main__":` guard.

    Args:
        student: A built model with fixed input shapes. Of a subclassed model
            Keras doesn't know the input dtypes: the inputs are taken to be
            float32.
        path: Where the file goes; it ends in `.tflite`. A file that is there
            is replaced only by one that passed the check.

    Returns:
        The artifact: the file's path, size, inputs, outputs and error.

    Raises:
        TypeError: If the student isn't a Keras model.
        ValueError: If the student or the path can't be exported: unbuilt,
            quantized, stateful, without fixed shapes, or with a Lambda layer.
        ImportError: If TensorFlow or ai-edge-litert isn't installed.
        RuntimeError: If the conversion failed, or if the file doesn't return
            what Keras returns.

    Example:
        >>> import keras, pathlib, tempfile
        >>> import keras_distill as kd
        >>> student = keras.Sequential(
        ...     [keras.Input((8,), name="pixels"), keras.layers.Dense(3)]
        ... )
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> artifact = kd.export_litert(student, folder / "student.tflite")
        >>> artifact.inputs
        (TensorInfo(name='pixels', shape=(1, 8), dtype='float32'),)
        >>> artifact.predict(np.zeros((5, 8), "float32")).shape
        (5, 3)
    """
    path = pathlib.Path(path)
    _require_outside_worker()
    _require_writable(path)
    _require_packages()
    _require_exportable(student)
    input_names, inputs = describe_inputs(student)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        custom_objects = save_student(student, folder / "student")
        places, script = import_places(custom_objects)
        reference = float32_model(student, folder / "student", custom_objects)
        batch, expected = run_on_examples(
            student, reference, input_names, inputs
        )
        output_names = name_tensors(expected, "output")
        request = {
            "custom_objects": places,
            "main_script": script,
            "image_data_format": keras.config.image_data_format(),
            "inputs": inputs,
            "input_names": input_names,
            "output_names": output_names,
        }
        _convert(student, folder, request)
        seen = _run_apart(student, folder, batch)
        max_error = require_parity(student, output_names, expected, seen)
        _replace(path, folder / "model.tflite")
    return LiteRTArtifact(
        path=path,
        size=path.stat().st_size,
        inputs=inputs,
        outputs=tuple(
            TensorInfo(name, (1, *seen[name].shape[1:]), seen[name].dtype.name)
            for name in keras.tree.flatten(output_names)
        ),
        max_error=max_error,
        input_names=input_names,
        output_names=output_names,
    )


def _as_input(array: np.ndarray, info: TensorInfo) -> np.ndarray:
    if array.shape[1:] != info.shape[1:]:
        raise ValueError(
            f"The file's input '{info.name}' takes examples of shape "
            f"{info.shape[1:]}. Received: a batch of shape {array.shape}. "
            "Pass `(batch, *example)`."
        )
    return array.astype(info.dtype, casting="same_kind")


def _require_outside_worker() -> None:
    if os.environ.get(_IN_WORKER):
        raise RuntimeError(
            "A script with custom layers is imported by the process that "
            "exports its student, and exports again. Received: a call of "
            "`export_litert` while the script is imported. Move the call "
            'under `if __name__ == "__main__":`.'
        )


def _require_writable(path: pathlib.Path) -> None:
    if path.suffix != ".tflite":
        raise ValueError(
            f"A LiteRT file's name ends in '.tflite'. Received: path='{path}'. "
            f"Pass '{path.with_suffix('.tflite')}'."
        )
    if not path.parent.is_dir():
        raise ValueError(
            f"There is no folder '{path.parent}'. Received: path='{path}'. "
            "Make the folder first."
        )


def _require_packages() -> None:
    packages = {"tensorflow": "tensorflow", "ai_edge_litert": "ai-edge-litert"}
    missing = [
        package
        for module, package in packages.items()
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise ImportError(
            "Exporting converts with TensorFlow and checks with LiteRT, in "
            f"processes of their own. Received: no {' and no '.join(missing)}. "
            "Run `pip install 'keras-distill[litert]'`."
        )


def _require_exportable(student: keras.Model) -> None:
    # By name: an export doesn't import what trains.
    if (
        not isinstance(student, keras.Model)
        or type(student).__module__ == "keras_distill.distiller"
    ):
        raise TypeError(
            "A LiteRT file is made of a Keras model. Received: "
            f"student={student!r}. Pass a `keras.Model`, such as "
            "`distiller.student`."
        )
    if not student.built:
        raise ValueError(
            f"The student '{student.name}' isn't built: it has no weights and "
            "no input shape yet. Received: student.built=False. Call it on a "
            "batch, or start it with `keras.Input`."
        )
    for layer in layers_of(student):
        _require_exportable_layer(layer)


def _require_exportable_layer(layer: keras.Layer) -> None:
    if isinstance(layer, keras.layers.Lambda) or _has_lambda(layer):
        raise ValueError(
            "A lambda, or a Lambda layer, can't be loaded safely in another "
            f"process. Received: layer '{layer.name}'. Write it as a "
            "`keras.Layer` subclass, or as a function with "
            "`@keras.saving.register_keras_serializable()`, in a module."
        )
    if isinstance(layer, keras.layers.RNN) and layer.stateful:
        raise ValueError(
            "A LiteRT file keeps no state from call to call. Received: layer "
            f"'{layer.name}' with stateful=True. Build it with stateful=False."
        )
    if layer.quantization_mode is not None:
        raise ValueError(
            "Layers that `quantize` changed don't convert. Received: layer "
            f"'{layer.name}' with quantization mode "
            f"'{layer.quantization_mode}'. Export the student as it was before."
        )


def _has_lambda(layer: keras.Layer) -> bool:
    # A model's lambda is its loss, and a custom layer may keep one to itself:
    # neither is saved.
    if isinstance(layer, keras.Model) or not is_keras(type(layer).__module__):
        return False
    return any(
        isinstance(value, types.FunctionType) and value.__name__ == "<lambda>"
        for value in vars(layer).values()
    )


def _convert(
    student: keras.Model, folder: pathlib.Path, request: dict[str, Any]
) -> None:
    (folder / "request.json").write_text(json.dumps(request))
    problem = _run_process("-m", "keras_distill.export.litert_worker", folder)
    if not problem:
        return
    error = folder / "error.json"
    kind, message = (
        json.loads(error.read_text()) if error.exists() else ("", problem)
    )
    if kind == "UnsupportedOpsError":
        raise RuntimeError(
            "LiteRT's built-in operations don't have all that the student "
            f"does. Received: student='{student.name}' with {message}. Replace "
            "these layers or operations, for instance a bicubic `Resizing` by "
            "a bilinear one."
        )
    raise RuntimeError(
        "The student couldn't be converted by a process with Keras on "
        f"TensorFlow. Received: student='{student.name}', {kind} {message}\n"
        "If loading failed, mend the class's `get_config`, `build` or "
        "registration. If the process was killed, free memory, and build RNN "
        "layers with unroll=True."
    )


def _run_apart(
    student: keras.Model, folder: pathlib.Path, batch: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The file's outputs, run where an abort of the interpreter is harmless."""
    (folder / "batch").write_bytes(pickle.dumps(batch))
    problem = _run_process(
        litert_runner.__file__,
        folder / "model.tflite",
        folder / "batch",
        folder / "outputs",
    )
    if problem:
        raise RuntimeError(
            "The LiteRT interpreter can't run the converted student. Received: "
            f"student='{student.name}', {problem}\nBuild RNN layers with "
            "unroll=True, or replace the operations named here."
        )
    outputs: dict[str, np.ndarray] = pickle.loads(
        (folder / "outputs").read_bytes()
    )
    return outputs


def _run_process(*arguments: str | pathlib.Path) -> str | None:
    """Run Python on the CPU; return what went wrong, if anything did."""
    environment = os.environ | {
        _IN_WORKER: "1",
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
        "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    done = subprocess.run(
        # `-P`: a file in the working folder can't stand in for a package.
        [sys.executable, "-P", *map(str, arguments)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode == 0:
        return None
    tail = "\n".join(done.stderr.splitlines()[-15:])
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"a process killed by {name}: {tail}"
    return f"a process that failed: {tail}"


def _replace(path: pathlib.Path, source: pathlib.Path) -> None:
    """Put the file in place at once: a reader never sees half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
