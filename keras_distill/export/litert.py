"""A student as a LiteRT (TensorFlow Lite) file."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
from typing import Any

import keras
import numpy as np

from keras_distill.export.artifact import LiteRTArtifact
from keras_distill.export.budget import Budget
from keras_distill.export.examples import as_examples, require_finite
from keras_distill.export.float_file import (
    require_exportable,
    require_outside_worker,
    require_packages,
)
from keras_distill.export.metadata import Metadata, as_metadata
from keras_distill.export.parity import random_batch
from keras_distill.export.placing import place_file, target_of
from keras_distill.export.quantized_file import LayerError
from keras_distill.export.schemes import Quantization, as_quantization
from keras_distill.export.search import best_that_fits, schemes_to_try
from keras_distill.export.signature import describe_inputs
from keras_distill.export.student_files import StudentFiles
from keras_distill.export.trained_ranges import trained_scheme
from keras_distill.export.verify import Reference, require_measurable

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
            is replaced only by one that passed the check; a link leads there.
        quantization: A scheme's name, such as "int8", "dynamic_int8" or
            "float16"; or a `Quantization`, which lists them all. None is
            float32, or what a student of `quantization_aware` trained for.
        calibration_data: Some hundred examples like those of the device, for
            the ranges of a static scheme (`int8`, `int16x8`): inputs in the
            structure of the student's, `(x, y)`, a data set or a list of such
            batches, or a function that returns one. Labels aren't used. Other
            schemes are only compared on it.
        budget: What the file may cost and must keep. The schemes are tried
            from the most exact to the smallest, those with ranges only if there
            is calibration data, and the first that fits is written; with
            `quantization`, only that one is tried.
        validation_data: Examples to judge a budget by: `(x, y)`, inputs alone,
            or a data set of such batches. A budget of sizes and times needs
            none.
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
        TypeError: If the student isn't a Keras model, or an argument is of
            another type.
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
    # A student that trained for a scheme has no other file.
    quantization = quantization or trained_scheme(student)
    require_exportable(student)
    files = StudentFiles(
        student,
        _calibration_examples(student, calibration_data, batch_size),
        batch_size,
        signature,
        allow_flex,
        as_metadata(metadata),
    )
    if budget is None:
        return files.write(path, as_quantization(quantization))
    named = None if quantization is None else as_quantization(quantization)
    reference = _reference(files, budget, validation_data)
    require_measurable(budget, reference)
    with tempfile.TemporaryDirectory() as folder:
        best = best_that_fits(
            files.write,
            pathlib.Path(folder),
            reference,
            budget,
            schemes_to_try(named, calibration_data is not None),
            files.worst_layers,
        )
        place_file(path, best.path.read_bytes())
    return dataclasses.replace(best, path=path)


def layer_errors(
    student: keras.Model,
    quantization: Quantization | str,
    calibration_data: Any = None,
) -> list[LayerError]:
    """Which layer loses it: the error that each one brings when quantised.

    Each layer is quantised alone, with all others in float, and the outputs
    are compared with those of the float32 file. Of a student of
    `quantization_aware` that is the file of its exact weights, without any
    rounding: compared with the student itself, each layer would be blamed for
    the rounding that the others lack.

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
    require_exportable(student)
    examples = _calibration_examples(student, calibration_data, 1)
    files = StudentFiles(
        student, examples, 1, "serving_default", False, Metadata()
    )
    return files.layer_errors(quantization)


def require_litert(student: keras.Model, batch_size: int | None = 1) -> None:
    """Raise what `export_litert` would, before a training that ends in it.

    Raises:
        ValueError: If the student can't be exported.
        ImportError: If a package is missing.
    """
    require_packages(_PACKAGES)
    require_exportable(student)
    describe_inputs(student, batch_size)


def _calibration_examples(
    student: keras.Model, data: Any, batch_size: int | None
) -> dict[str, np.ndarray] | None:
    if data is None:
        return None
    examples = as_examples(data, *describe_inputs(student, batch_size), student)
    require_finite(examples)
    return examples


def _reference(
    files: StudentFiles, budget: Budget, validation_data: Any
) -> Reference:
    """What the student returns for the data that a budget is judged by."""
    names, inputs = describe_inputs(files.student, files.batch_size)
    if validation_data is None:
        if budget.needs_data:
            raise ValueError(
                "A budget for what a file keeps needs data to judge it by. "
                f"Received: budget={budget} with validation_data=None. Pass "
                "`(x, y)`."
            )
        examples = files.examples or random_batch(files.student, inputs)
        validation_data = keras.tree.map_structure(examples.get, names)
    return Reference.of(files.student, validation_data, names, inputs)


def _require_writable(path: pathlib.Path) -> None:
    if path.suffix != ".tflite":
        raise ValueError(
            f"A LiteRT file's name ends in '.tflite'. Received: path='{path}'. "
            f"Pass '{path.with_suffix('.tflite')}'."
        )
    place = target_of(path)
    if place.is_dir():
        raise ValueError(
            f"A folder is in the file's place. Received: path='{path}'. Pass "
            "another name, or remove the folder."
        )
    if not place.parent.is_dir():
        raise ValueError(
            f"There is no folder '{place.parent}'. Received: path='{path}'. "
            "Make the folder first."
        )
    if not os.access(path.parent, os.W_OK):
        raise ValueError(
            f"The folder '{path.parent}' can't be written to. Received: "
            f"path='{path}'. Pass another folder."
        )
