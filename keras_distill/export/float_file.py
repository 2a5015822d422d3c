"""The float32 file of a student: what every other file is made of."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_distill.export import processes, runner
from keras_distill.export.conversion import (
    ConversionRequest,
    convert,
    run_frozen,
)
from keras_distill.export.flatbuffer import Operation, operations
from keras_distill.export.metadata import Metadata
from keras_distill.export.parity import require_parity, run_on_examples
from keras_distill.export.processes import WorkerError
from keras_distill.export.signature import (
    TensorInfo,
    describe_inputs,
    name_tensors,
)
from keras_distill.export.student_folder import (
    float32_model,
    import_places,
    is_keras,
    save_student,
)
from keras_distill.model_graphs import layers_of

_ADVICE = (
    "Replace these layers or operations, for instance a bicubic `Resizing` by "
    "a bilinear one, or pass allow_flex=True if the device's runtime has "
    "TensorFlow's operations."
)


class FloatFile(NamedTuple):
    """A student's float32 file, which was compared with Keras.

    Attributes:
        content: The file's content.
        inputs: The file's inputs.
        outputs: The file's outputs.
        input_names: The inputs' names, in the structure of the student's.
        output_names: The outputs' names, in the structure of the student's.
        batch_size: The file's batch size; None if it takes any.
        signature: Name of the file's signature.
        max_error: Largest difference from Keras, relative to an output's range.
        examples: The random inputs that it was compared on.
        sources: Names of the operations that the outputs come from, by the
            outputs' names.
    """

    content: bytes
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    input_names: Any
    output_names: Any
    batch_size: int | None
    signature: str
    max_error: float
    examples: dict[str, np.ndarray]
    sources: dict[str, str]

    @property
    def operations(self) -> list[Operation]:
        """The file's operations."""
        return operations(self.content)


def make_float_file(
    student: keras.Model,
    batch_size: int | None = 1,
    signature: str = "serving_default",
    allow_flex: bool = False,
    unroll: bool = False,
    metadata: Metadata | None = None,
) -> FloatFile:
    """Convert a student, and compare the file with it.

    Raises:
        ValueError: If the metadata isn't about such a student.
        RuntimeError: If the conversion failed, or if the file doesn't return
            what Keras returns.
    """
    with saved(student, batch_size) as (known, batch, expected):
        if metadata is not None:
            metadata.require_inputs(known.inputs)
            metadata.require_classes(expected)
        request = known._replace(
            allow_flex=allow_flex, unroll=unroll, signature=signature
        )
        content, sources = run_converter(
            student.name, "LiteRT", _ADVICE, convert, request
        )
        seen = _run(student.name, content, request, batch)
    output_names = request.output_names
    return FloatFile(
        content=content,
        inputs=request.inputs,
        outputs=describe_outputs(output_names, seen, batch_size),
        input_names=request.input_names,
        output_names=output_names,
        batch_size=batch_size,
        signature=signature,
        max_error=require_parity(student, output_names, expected, seen),
        examples=batch,
        sources=sources,
    )


def _run(
    name: str,
    content: bytes,
    request: ConversionRequest,
    batch: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    if not any(o.name.startswith("Flex") for o in operations(content)):
        return run_apart(name, content, batch, request.inputs[0].shape[0])
    warnings.warn(
        f"The file of '{name}' has operations of TensorFlow, which no "
        "interpreter for Python runs: what was compared with Keras is the "
        "graph that the file was made from. Check it on the device.",
        stacklevel=5,
    )
    outputs: dict[str, np.ndarray] = processes.call(run_frozen, request, batch)
    return outputs


@contextlib.contextmanager
def saved(
    student: keras.Model, batch_size: int | None
) -> Iterator[tuple[ConversionRequest, dict[str, np.ndarray], Any]]:
    """Save a student where a converter finds it, until the block ends.

    Yields:
        What the converter must know, random inputs by name, and the outputs
        that Keras has for them.
    """
    require_exportable(student)
    # Its imports take longer than what this process does meanwhile.
    processes.start()
    input_names, inputs = describe_inputs(student, batch_size)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name) / "student"
        custom_objects = save_student(student, folder)
        places, script = import_places(custom_objects)
        reference = float32_model(student, folder, custom_objects)
        batch, expected = run_on_examples(
            student, reference, input_names, inputs
        )
        request = ConversionRequest(
            folder=str(folder),
            custom_objects=places,
            main_script=script,
            image_data_format=keras.config.image_data_format(),
            inputs=inputs,
            input_names=input_names,
            output_names=name_tensors(expected, "output"),
        )
        yield request, batch, expected


def describe_outputs(
    output_names: Any, seen: dict[str, np.ndarray], batch_size: int | None
) -> tuple[TensorInfo, ...]:
    """The outputs of a file that returned some."""
    return tuple(
        TensorInfo(
            name, (batch_size, *seen[name].shape[1:]), seen[name].dtype.name
        )
        for name in keras.tree.flatten(output_names)
    )


def run_converter(
    name: str,
    target: str,
    advice: str,
    function: Callable[..., Any],
    *arguments: Any,
) -> Any:
    """Run a converter in a process apart, and say what it couldn't convert.

    Args:
        name: The student's.
        target: What the student is converted to.
        advice: What to do about operations that aren't there.
        function: The converter.
        *arguments: What it is called with.

    Raises:
        RuntimeError: If the conversion failed.
    """
    try:
        return processes.call(function, *arguments)
    except WorkerError as error:
        if error.kind == "UnsupportedOpsError":
            raise RuntimeError(
                f"{target} doesn't have all the operations of the student. "
                f"Received: student='{name}' with {error.message}. {advice}"
            ) from error
        raise RuntimeError(
            "The student couldn't be converted by a process with Keras on "
            f"TensorFlow. Received: student='{name}', {error}\n"
            f"{_what_to_do(error)}"
        ) from error


def _what_to_do(error: WorkerError) -> str:
    if error.killed:
        return "Free memory, and build RNN layers with unroll=True."
    if "Exception encountered when calling" in error.message:
        return (
            "In the layer's `call`, use `keras.ops` instead of NumPy, "
            "`jax.numpy` or `torch`: it has to run on TensorFlow, too."
        )
    return "Mend the class's `get_config`, `build` or registration."


def run_apart(
    name: str,
    content: bytes,
    batch: dict[str, np.ndarray],
    batch_size: int | None,
) -> dict[str, np.ndarray]:
    """A file's outputs, run where an abort of the interpreter is harmless.

    Raises:
        RuntimeError: If the interpreter doesn't take the file.
    """
    try:
        outputs: dict[str, np.ndarray] = processes.call(
            runner.run, content, batch, batch_size
        )
    except WorkerError as error:
        raise RuntimeError(
            "The LiteRT interpreter can't run the file. Received: "
            f"'{name}', {error}\nReplace the operations named here; build RNN "
            "layers, if it has some, with unroll=True."
        ) from error
    return outputs


def require_outside_worker() -> None:
    """Refuse to export in a script that the worker imports."""
    if os.environ.get(processes.IN_WORKER):
        raise RuntimeError(
            "A script with custom layers is imported by the process that "
            "exports its student, and exports again. Received: an export "
            "while the script is imported. Move the call under "
            '`if __name__ == "__main__":`.'
        )


def require_packages(names: dict[str, str], extra: str = "litert") -> None:
    """Refuse to start without the packages that exporting needs.

    Args:
        names: Names to install by, by the names to import by.
        extra: What installs them all.
    """
    missing = [
        package
        for module, package in names.items()
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise ImportError(
            "Exporting converts with TensorFlow, and runs the file to check "
            f"it. Received: no {' and no '.join(missing)}. Run `pip install "
            f"'keras-distill[{extra}]'`."
        )


def require_exportable(student: keras.Model) -> None:
    """Refuse what no file can be made of.

    Raises:
        TypeError: If the student isn't a Keras model.
        ValueError: If it can't be exported.
    """
    # By name: an export doesn't import what trains.
    if (
        not isinstance(student, keras.Model)
        or type(student).__module__ == "keras_distill.distiller"
    ):
        raise TypeError(
            "An exported file is made of a Keras model. Received: "
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
            "An exported file keeps no state from call to call. Received: "
            f"layer '{layer.name}' with stateful=True. Build it with "
            "stateful=False."
        )
    if layer.quantization_mode is not None:
        raise ValueError(
            "Layers that `quantize` changed don't convert. Received: layer "
            f"'{layer.name}' with quantization mode "
            f"'{layer.quantization_mode}'. Export the student as it was "
            "before, with `quantization=`."
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
