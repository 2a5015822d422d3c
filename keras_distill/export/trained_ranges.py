"""Files of students that trained as their quantised file computes.

The float32 file is that of a copy without rounding, with a marker where the
student rounds a tensor: so the file says by itself which of its tensors have
which range.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np

from keras_distill.export import processes
from keras_distill.export.flatbuffer import read_model
from keras_distill.export.float_file import FloatFile
from keras_distill.export.quantized_file import Calibrated, calibrate
from keras_distill.export.quantizer import Ranges
from keras_distill.export.range_completion import as_range, complete
from keras_distill.export.range_markers import RangeMarker, take_out_markers
from keras_distill.export.schemes import Quantization
from keras_distill.fake_quantization import (
    FakeQuantizedActivations,
    FakeQuantizedWeights,
)
from keras_distill.model_graphs import (
    copy_of,
    copy_variables,
    layers_of,
    rebuild,
)
from keras_distill.predictions import predict

# Examples that the file is compared on with its student.
_COMPARED = 64


class TrainedStudent(NamedTuple):
    """What a student that trained with rounding consists of.

    Attributes:
        plain: A float32 copy without rounding, with markers.
        ranges: The ranges, by the markers' numbers.
    """

    plain: keras.Model
    ranges: list[tuple[float, float]]


def is_trained(student: keras.Model) -> bool:
    """Whether a student trained with rounding."""
    return bool(_schemes(student))


def trained_scheme(student: keras.Model) -> str | None:
    """The scheme that a student trained with; None if it didn't, or mixed."""
    found = _schemes(student) if isinstance(student, keras.Model) else set()
    return found.pop() if len(found) == 1 else None


def _schemes(student: keras.Model) -> set[str]:
    layers = layers_of(student)
    return {v.scheme for v in layers if isinstance(v, FakeQuantizedWeights)}


def require_trained_for(
    student: keras.Model, quantization: Quantization
) -> None:
    """Refuse a file that rounds in another way than the student did.

    Raises:
        ValueError: If it does.
    """
    (*others, scheme) = sorted(_schemes(student))
    other = not quantization.per_channel or quantization.equalize
    if others or scheme != quantization.scheme or other:
        raise ValueError(
            "The student trained with the rounding of another file. Received: "
            f"{quantization} for a student made by "
            f"`quantization_aware(..., {scheme!r})`. Pass "
            f"quantization={scheme!r}, or the student as it was before."
        )
    if quantization.min_snr_db is not None:
        raise ValueError(
            "A student that trained with rounding is quantised as it trained, "
            "however far that is from float. Received: "
            f"min_snr_db={quantization.min_snr_db}. Leave it out, or name "
            "layers in float_layers."
        )


def plain_student(student: keras.Model) -> TrainedStudent:
    """A student's copy without rounding, and the ranges it rounded in.

    Raises:
        ValueError: If a subclassed model hides layers that round.
    """
    ranges: list[tuple[float, float]] = []
    copies: dict[int, Any] = {}
    values: list[tuple[keras.Layer, keras.Layer]] = []

    def call(_: int, operation: Any, *args: Any, **kwargs: Any) -> Any:
        if id(operation) not in copies:
            copies[id(operation)] = copy(operation)
        return copies[id(operation)](*args, **kwargs)

    def copy(operation: Any) -> Any:
        if isinstance(operation, FakeQuantizedActivations):
            ranges.append(operation.range())
            return RangeMarker(len(ranges) - 1, name=operation.name)
        if isinstance(operation, keras.Model) and is_trained(operation):
            return rebuild(operation, call)
        if isinstance(operation, FakeQuantizedWeights):
            operation = operation.layer
        new = copy_of(operation)
        if isinstance(new, keras.Layer):
            values.append((operation, new))
        return new

    plain = rebuild(student, call)
    for source, target in values:
        copy_variables(source, target)
    return TrainedStudent(plain, ranges)


def calibrate_as_trained(
    student: keras.Model,
    trained: TrainedStudent,
    file: FloatFile,
    examples: dict[str, np.ndarray] | None,
    static: bool,
) -> Calibrated:
    """A float32 file with the ranges that its student trained with.

    Args:
        student: The student that trained with rounding.
        trained: What it consists of.
        file: The file of `trained.plain`.
        examples: Calibration examples, for tensors without a trained range.
        static: Whether ranges are needed.

    Raises:
        ValueError: If a tensor has no range.
    """
    content, numbers = processes.call(take_out_markers, file.content)
    file = file._replace(content=content)
    found = {name: as_range(*trained.ranges[i]) for name, i in numbers.items()}
    seen: Ranges = {}
    if static and examples is not None:
        seen = calibrate(file, examples, static).ranges or {}
    ranges = complete(content, {**seen, **found}) if static else None
    compared = examples or _within(file, found)
    compared = {name: array[:_COMPARED] for name, array in compared.items()}
    return Calibrated(file, compared, _outputs(student, file, compared), ranges)


def _outputs(
    student: keras.Model, file: FloatFile, batch: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What the student, with its rounding, returns."""
    x = keras.tree.map_structure(batch.__getitem__, file.input_names)
    outputs = keras.tree.flatten(predict(student, x))
    names = keras.tree.flatten(file.output_names)
    return dict(zip(names, outputs, strict=True))


def _within(file: FloatFile, ranges: Ranges) -> dict[str, np.ndarray]:
    """Random inputs of values that the student knows."""
    random = np.random.default_rng(0)
    model = read_model(file.content)
    tensors = {
        entry.name.decode(): model.subgraphs[0].tensors[entry.tensorIndex]
        for signature in model.signatureDefs
        for entry in signature.inputs
    }
    examples = dict(file.examples)
    for name, array in examples.items():
        known = ranges.get(tensors[name].name.decode())
        if known is not None:
            examples[name] = random.uniform(
                known["min"], known["max"], array.shape
            ).astype(array.dtype)
    return examples
