"""A student as a LiteRT (TensorFlow Lite) file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
from typing import Any, cast

import keras
import numpy as np

from keras_distill.export import processes, runner, trained_ranges
from keras_distill.export.artifact import LiteRTArtifact, with_details
from keras_distill.export.budget import Budget
from keras_distill.export.equalization import equalize
from keras_distill.export.examples import as_examples
from keras_distill.export.flatbuffer import with_facts
from keras_distill.export.float_file import (
    FloatFile,
    make_float_file,
    require_outside_worker,
    require_packages,
)
from keras_distill.export.metadata import Metadata
from keras_distill.export.quantized_file import (
    Calibrated,
    LayerError,
    QuantizedFile,
    calibrate,
    layer_errors_of,
    quantize_file,
)
from keras_distill.export.schemes import Quantization, as_quantization
from keras_distill.export.search import best_that_fits, schemes_to_try
from keras_distill.export.signature import TensorInfo, layers_of
from keras_distill.export.verify import Reference

_PACKAGES = {
    "tensorflow": "tensorflow",
    "ai_edge_litert": "ai-edge-litert",
    "ai_edge_quantizer": "ai-edge-quantizer",
}


def export_litert(
    student: keras.Model,
    path: str | os.PathLike[str],
    quantization: Quantization | str | None = None,
    *,
    calibration_data: Any = None,
    budget: Budget | None = None,
    validation_data: Any = None,
    batch_size: int | None = 1,
    signature: str = "serving_default",
    allow_flex: bool = False,
    metadata: Metadata | None = None,
) -> LiteRTArtifact:
    """Write a student as a LiteRT file, and check the file.

    A phone or a board runs the file, not Keras, so the file counts as written
    once the LiteRT interpreter returned what Keras returns on random inputs.
    The student may live on TensorFlow, JAX or PyTorch: it is saved, and a
    process with Keras on TensorFlow converts it. The first export of a program
    waits some seconds for that process to start; later ones find it there.

    A student of another precision (`mixed_float16`, `bfloat16`) is exported in
    float32, and compared with a float32 copy of itself on the caller's backend.
    A float32 student is compared as it is. Both run on the CPU, where float32
    is exact. A quantised file is made from the float32 one, and compared with
    it. The student isn't changed in any way.

    The process imports the modules that define custom layers. A script that
    defines some is imported as `multiprocessing` does it, with Keras on
    TensorFlow, so it needs an `if __name__ == "__main__":` guard.

    Args:
        student: A built model with fixed input shapes. Of a subclassed model
            Keras doesn't know the input dtypes: the inputs are taken to be
            float32.
        path: Where the file goes; it ends in `.tflite`. A file that is there
            is replaced only by one that passed the check.
        quantization: A scheme's name, such as "int8", "dynamic_int8" or
            "float16"; or a `Quantization`, which lists them all. None is
            float32.
        calibration_data: Some hundred examples like those of the device, for
            the ranges of a static scheme (`int8`, `int16x8`): inputs in the
            structure of the student's, or a data set of batches. Other schemes
            are only compared on it.
        budget: What the file may cost and must keep. The schemes are tried
            from the most exact to the smallest, those with ranges only if there
            is calibration data, and the first that fits is written; with
            `quantization`, only that one is tried.
        validation_data: Examples to judge a budget by: `(x, y)`, inputs alone,
            or a data set of such batches.
        batch_size: The file's batch size; None for any, which some runtimes
            don't support, nor do recurrent layers.
        signature: Name of the file's signature.
        allow_flex: Whether the file may have operations of TensorFlow where
            LiteRT has none of its own. A runtime needs the Flex delegate then.
        metadata: Labels, normalisation and whatever else the file shall say of
            itself.

    Returns:
        The artifact: the file's path, size, inputs, outputs and errors.

    Raises:
        TypeError: If the student isn't a Keras model.
        ValueError: If the student, the path or the data can't be exported:
            unbuilt, quantized, stateful, without fixed shapes, or with a Lambda
            layer; a static scheme without calibration data.
        ImportError: If TensorFlow, ai-edge-litert or ai-edge-quantizer isn't
            installed.
        RuntimeError: If the conversion or quantisation failed, or if the file
            doesn't return what Keras returns.

    Example:
        >>> import keras, numpy as np, pathlib, tempfile
        >>> import keras_distill as kd
        >>> student = keras.Sequential(
        ...     [keras.Input((8,), name="pixels"), keras.layers.Dense(3)]
        ... )
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> artifact = kd.export_litert(student, folder / "student.tflite")
        >>> artifact.inputs[0].name, artifact.inputs[0].shape
        ('pixels', (1, 8))
        >>> artifact.predict(np.zeros((5, 8), "float32")).shape
        (5, 3)
    """
    path = pathlib.Path(path)
    require_outside_worker()
    _require_writable(path)
    require_packages(_PACKAGES)
    files = _Files(
        student,
        calibration_data,
        batch_size,
        signature,
        allow_flex,
        metadata or Metadata(),
    )
    if budget is None:
        return files.write(path, as_quantization(quantization))
    if validation_data is None:
        raise ValueError(
            "A budget needs data to judge the files by. Received: "
            f"budget={budget} with validation_data=None. Pass `(x, y)`."
        )
    named = None if quantization is None else as_quantization(quantization)
    with tempfile.TemporaryDirectory() as folder:
        best = best_that_fits(
            files.write,
            pathlib.Path(folder),
            lambda artifact: Reference.of(artifact, student, validation_data),
            budget,
            schemes_to_try(named, calibration_data is not None),
            files.worst_layers,
        )
        replace(path, best.path.read_bytes())
    return dataclasses.replace(best, path=path)


@dataclasses.dataclass
class _Files:
    """A student's files in one scheme and another."""

    student: keras.Model
    calibration_data: Any
    batch_size: int | None
    signature: str
    allow_flex: bool
    metadata: Metadata
    examples: dict[str, np.ndarray] | None = None
    # What a student that trained with rounding consists of.
    trained: trained_ranges.TrainedStudent | None = None
    # By whether recurrent layers are unrolled.
    files: dict[bool, FloatFile] = dataclasses.field(default_factory=dict)
    # By that, and by whether channels are equalised.
    calibrated: dict[tuple[bool, bool], Calibrated] = dataclasses.field(
        default_factory=dict
    )

    def write(
        self, path: pathlib.Path, quantization: Quantization
    ) -> LiteRTArtifact:
        """Write the file in a scheme."""
        if quantization.scheme == "float32" and not trained_ranges.is_trained(
            self.student
        ):
            file = self._float_file(unroll=False)
            result = QuantizedFile(file.content, quantization, float("inf"))
        else:
            calibrated = self._calibrated(quantization)
            file = calibrated.file
            result = quantize_file(calibrated, quantization)
        facts = facts_of(self.student, file, result, self.metadata)
        content = with_facts(result.content, facts, self.metadata.labels)
        replace(path, content)
        return dataclasses.replace(
            LiteRTArtifact.from_facts(path, len(content), facts),
            # JSON knows no tuples.
            input_names=file.input_names,
            output_names=file.output_names,
        )

    def worst_layers(self, quantization: Quantization) -> list[str]:
        """The layers that lose most in a scheme, the worst first."""
        return [error.layer for error in self.layer_errors(quantization)]

    def layer_errors(self, quantization: Quantization) -> list[LayerError]:
        """The layers' errors in a scheme, those that lose most first."""
        calibrated = self._calibrated(quantization)
        if self.trained:
            calibrated = calibrated.compared_with_float()
        return layer_errors_of(calibrated, quantization)

    def _calibrated(self, quantization: Quantization) -> Calibrated:
        """The float32 file that a scheme starts from, made once."""
        static = quantization.details.kind == "static"
        if not trained_ranges.is_trained(self.student):
            _require_data(quantization, self.calibration_data)
        else:
            trained_ranges.require_trained_for(self.student, quantization)
            self.trained = self.trained or trained_ranges.plain_student(
                self.student
            )
        # Loops have no ranges of their own.
        unroll = static and any(
            isinstance(v, keras.layers.RNN) for v in layers_of(self.student)
        )
        key = (unroll, quantization.equalize)
        known = self.calibrated.get(key)
        if known is None or (static and known.ranges is None):
            self.calibrated[key] = self._calibrate(
                self._float_file(unroll), quantization
            )
        return self.calibrated[key]

    def _calibrate(
        self, file: FloatFile, quantization: Quantization
    ) -> Calibrated:
        static = quantization.details.kind == "static"
        # Once: a generator has no second time.
        if self.examples is None and self.calibration_data is not None:
            self.examples = as_examples(
                self.calibration_data, file.input_names, file.inputs
            )
        if self.trained:
            return trained_ranges.calibrate_as_trained(
                self.student, self.trained, file, self.examples, static
            )
        if quantization.equalize:
            content = processes.call(equalize, file.content)
            file = file._replace(content=content)
        return calibrate(file, self.examples, static)

    def _float_file(self, unroll: bool) -> FloatFile:
        """The float32 file, made once."""
        if unroll not in self.files:
            self.files[unroll] = make_float_file(
                self.trained.plain if self.trained else self.student,
                self.batch_size,
                self.signature,
                self.allow_flex,
                unroll,
            )
        return self.files[unroll]


def layer_errors(
    student: keras.Model,
    quantization: Quantization | str,
    calibration_data: Any = None,
) -> list[LayerError]:
    """Which layer loses it: the error that each one brings when quantised.

    Each layer is quantised alone, with all others in float, and the outputs
    are compared with those of the float32 file.

    Formula:
        `10 * log10(sum(float**2) / sum((float - quantised)**2))`, the lowest
        over the outputs, in dB.

    Args:
        student: As for `export_litert`.
        quantization: As for `export_litert`.
        calibration_data: As for `export_litert`. Without it, random inputs are
            compared.

    Returns:
        The layers, those that lose most first.

    Raises:
        ValueError: As `export_litert`.
        RuntimeError: As `export_litert`.

    Example:
        >>> import keras
        >>> student = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(3, name="head")]
        ... )
        >>> errors = layer_errors(student, "dynamic_int8")
        >>> [(error.layer, error.operations) for error in errors]
        [('head', ('FULLY_CONNECTED',))]
    """
    quantization = as_quantization(quantization)
    require_outside_worker()
    require_packages(_PACKAGES)
    files = _Files(
        student, calibration_data, 1, "serving_default", False, Metadata()
    )
    return files.layer_errors(quantization)


def facts_of(
    student: keras.Model,
    file: FloatFile,
    result: QuantizedFile,
    metadata: Metadata,
) -> dict[str, Any]:
    """What a file says of itself."""
    inputs, outputs = file.inputs, file.outputs
    if result.quantization.scheme != "float32":
        inputs, outputs = processes.call(
            _tensors, result.content, inputs, outputs
        )
    facts = {
        "inputs": [info._asdict() for info in inputs],
        "outputs": [info._asdict() for info in outputs],
        "input_names": file.input_names,
        "output_names": file.output_names,
        "signature": file.signature,
        "quantization": dataclasses.asdict(result.quantization),
        "max_error": file.max_error,
        "snr_db": None if result.snr_db == float("inf") else result.snr_db,
        **metadata.facts(student),
    }
    return cast(dict[str, Any], json.loads(json.dumps(facts)))


def _tensors(
    content: bytes,
    inputs: tuple[TensorInfo, ...],
    outputs: tuple[TensorInfo, ...],
) -> tuple[list[TensorInfo], list[TensorInfo]]:
    """Inputs and outputs with the dtypes and scales that the file gives."""
    runs = runner.open_signature(content)
    ins, outs = runs.get_input_details(), runs.get_output_details()
    return (
        [with_details(info, ins[info.name]) for info in inputs],
        [with_details(info, outs[info.name]) for info in outputs],
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


def _require_data(quantization: Quantization, data: Any) -> None:
    if quantization.details.kind == "static" and data is None:
        raise ValueError(
            f"{quantization.scheme!r} needs the ranges of the activations. "
            "Received: calibration_data=None. Pass some hundred examples like "
            "those of the device, or a scheme without ranges, such as "
            "'dynamic_int8'."
        )


def replace(path: pathlib.Path, content: bytes) -> None:
    """Put a file in place at once: a reader never sees half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
