"""A quantised file, made of a float32 one and compared with it."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from typing import NamedTuple

import keras
import numpy as np

from keras_distill.export import processes, quantizer, runner
from keras_distill.export.flatbuffer import Operation, output_tensors
from keras_distill.export.float_file import FloatFile, run_apart
from keras_distill.export.layer_names import is_in_model, layer_path
from keras_distill.export.processes import WorkerError
from keras_distill.export.schemes import Quantization

# What is compared after each attempt; the ranges are of all examples.
_COMPARED = 64
# A file that returns zeros has 0 dB.
_USELESS_DB = 1.0
_POOR_DB = 10.0
_WEIGHTED = (
    "CONV_2D",
    "CONV_3D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "TRANSPOSE_CONV",
)


class LayerError(NamedTuple):
    """What quantising one layer alone does to the outputs.

    Attributes:
        layer: The Keras layer's name, with those of the models that it is in.
            An operation of no layer, such as `x + 1` in a Functional model, has
            the name of its own, in angle brackets: "<add>".
        operations: Names of its operations in the file.
        snr_db: Signal-to-noise ratio of the worst output with this layer
            quantised and all others in float, in dB. The lowest loses most.
    """

    layer: str
    operations: tuple[str, ...]
    snr_db: float


class QuantizedFile(NamedTuple):
    """A quantised file.

    Attributes:
        content: The file's content.
        quantization: How it was made; `float_layers` are those that stayed.
        snr_db: Signal-to-noise ratio of its worst output against the float32
            file, in dB.
    """

    content: bytes
    quantization: Quantization
    snr_db: float


class Calibrated(NamedTuple):
    """A float32 file with what was seen when it ran on examples.

    Attributes:
        file: The float32 file.
        examples: Examples to compare on.
        expected: The float32 file's outputs for them; those of the student
            itself, if it trained with rounding.
        ranges: The tensors' ranges over all calibration examples; None where
            no scheme needs them.
    """

    file: FloatFile
    examples: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    ranges: quantizer.Ranges | None

    def compared_with_float(self) -> Calibrated:
        """The same, to be compared with what the float32 file returns."""
        expected = run_apart(
            "the float32 file",
            self.file.content,
            self.examples,
            self.file.batch_size,
        )
        return self._replace(expected=expected)


def calibrate(
    file: FloatFile, examples: dict[str, np.ndarray] | None, static: bool
) -> Calibrated:
    """Run the float32 file on examples, and note what is seen.

    Args:
        file: The float32 file.
        examples: Calibration examples; None where no scheme needs them.
        static: Whether ranges are needed.
    """
    ranges = None
    if static:
        if examples is None:
            raise ValueError(
                "The ranges of a static scheme are seen on examples. Received: "
                "examples=None. Pass some hundred."
            )
        ranges = _ranges(file, examples)
    compared = {
        name: array[:_COMPARED]
        for name, array in (examples or file.examples).items()
    }
    expected = run_apart(
        "the float32 file", file.content, compared, file.batch_size
    )
    return Calibrated(file, compared, expected, ranges)


def _ranges(
    file: FloatFile, examples: dict[str, np.ndarray]
) -> quantizer.Ranges:
    step = file.batch_size or 1
    starts = range(0, len(next(iter(examples.values()))), step)
    rows = [
        {name: runner.chunk_of(x, i, step) for name, x in examples.items()}
        for i in starts
    ]
    bar = keras.utils.Progbar(
        len(rows), verbose=_verbosity(), unit_name="calibration batch"
    )
    try:
        ranges: quantizer.Ranges = processes.call(
            quantizer.calibrate,
            file.content,
            file.signature,
            rows,
            on_progress=bar.update,
        )
    except WorkerError as error:
        raise RuntimeError(
            "The float32 file couldn't be calibrated. Received: "
            f"{error}\nPass a scheme without calibration, such as "
            "'dynamic_int8'."
        ) from error
    return ranges


def _verbosity() -> int:
    # A bar that moves is for eyes, and its colours are noise in a file.
    return int(sys.stdout.isatty() or "ipykernel" in sys.modules)


def quantize_file(
    calibrated: Calibrated, quantization: Quantization
) -> QuantizedFile:
    """Quantise a file, with layers in float as far as that is asked for.

    Raises:
        RuntimeError: If it can't be quantised, or isn't of use then.
        ValueError: If `float_layers` has an unknown layer.
    """
    by_layer = layers_in(calibrated.file)
    _require_layers(quantization.float_layers, by_layer)
    result = _attempt(calibrated, quantization)
    bound = quantization.min_snr_db
    if bound is not None and result.snr_db < bound:
        result = _mixed(calibrated, quantization, bound)
    if result.snr_db < _USELESS_DB:
        raise RuntimeError(
            "Quantisation destroyed the student: its file is hardly better "
            "than one that returns zeros. Received: "
            f"quantization={quantization.scheme!r} with a signal-to-noise "
            f"ratio of {result.snr_db:.1f} dB. See `layer_errors` for the "
            "layer that loses it, and name it in "
            "`Quantization(float_layers=...)`; or train the student with "
            "`quantization_aware`."
        )
    if result.snr_db < _POOR_DB:
        warnings.warn(
            f"Quantisation to {quantization.scheme!r} left a signal-to-noise "
            f"ratio of {result.snr_db:.1f} dB. `layer_errors` says which layer "
            "loses it.",
            stacklevel=3,
        )
    return result


def _attempt(
    calibrated: Calibrated, quantization: Quantization
) -> QuantizedFile:
    by_layer = layers_in(calibrated.file)
    kept = [
        operation
        for layer, chosen in by_layer.items()
        if _is_named(layer, quantization.float_layers)
        for operation in chosen
    ]
    content, snr_db = _run(calibrated, quantization, kept)
    return QuantizedFile(content, quantization, snr_db)


def _run(
    calibrated: Calibrated, quantization: Quantization, kept: list[Operation]
) -> tuple[bytes, float]:
    try:
        content: bytes = processes.call(
            quantizer.quantize,
            calibrated.file.content,
            quantization,
            calibrated.ranges,
            kept,
        )
    except WorkerError as error:
        raise RuntimeError(
            f"The student can't be quantised to {quantization.scheme!r}. "
            f"Received: {error}\nName the layer in "
            "`Quantization(float_layers=...)`, or pass another scheme."
        ) from error
    seen = run_apart(
        quantization.scheme,
        content,
        calibrated.examples,
        calibrated.file.batch_size,
    )
    return content, snr_db(calibrated.expected, seen)


def snr_db(
    expected: dict[str, np.ndarray], seen: dict[str, np.ndarray]
) -> float:
    """Signal-to-noise ratio of the worst output, in dB.

    Formula:
        `10 * log10(sum(expected**2) / sum((expected - seen)**2))`
    """
    return min(_snr_db(expected[name], seen[name]) for name in expected)


def _snr_db(expected: np.ndarray, seen: np.ndarray) -> float:
    expected, seen = expected.astype("float64"), seen.astype("float64")
    # What is infinite on purpose, such as a masked logit, has no noise.
    finite = np.isfinite(expected)
    if not np.isfinite(seen[finite]).all():
        return float("-inf")
    signal = float(np.square(expected[finite]).sum())
    noise = float(np.square(expected[finite] - seen[finite]).sum())
    if not noise:
        return float("inf")
    return 10 * float(np.log10(signal / noise)) if signal else float("-inf")


def _mixed(
    calibrated: Calibrated, quantization: Quantization, bound: float
) -> QuantizedFile:
    """The file with as few layers in float as reach the bound."""
    errors = layer_errors_of(calibrated, quantization)
    fewest, most = 1, len(errors)
    best = None
    while fewest <= most:
        count = (fewest + most) // 2
        layers = tuple(error.layer for error in errors[:count])
        attempt = _attempt(
            calibrated,
            dataclasses.replace(
                quantization, float_layers=quantization.float_layers + layers
            ),
        )
        if attempt.snr_db >= bound:
            best, most = attempt, count - 1
        else:
            fewest = count + 1
    if best is None:
        raise RuntimeError(
            "Not even with all layers in float does the file reach what was "
            f"asked for. Received: min_snr_db={bound} with "
            f"quantization={quantization.scheme!r}. Ask for less."
        )
    kept = best.quantization.float_layers
    every = layers_in(calibrated.file)
    if all(_is_named(layer, kept) for layer in every):
        warnings.warn(
            "The file reaches what was asked for with all layers in float, so "
            f"it is hardly smaller. Received: min_snr_db={bound} with "
            f"quantization={quantization.scheme!r}. Ask for less, or train the "
            "student with `quantization_aware`.",
            stacklevel=3,
        )
    return best


def layer_errors_of(
    calibrated: Calibrated, quantization: Quantization
) -> list[LayerError]:
    """The layers' errors, those that lose most first."""
    by_layer = layers_in(calibrated.file)
    every = [operation for chosen in by_layer.values() for operation in chosen]
    errors = []
    for layer, chosen in by_layer.items():
        if _is_named(layer, quantization.float_layers):
            continue
        others = [operation for operation in every if operation not in chosen]
        _, ratio = _run(calibrated, quantization, others)
        names = tuple(operation.name for operation in chosen)
        errors.append(LayerError(layer, names, ratio))
    return sorted(errors, key=lambda error: error.snr_db)


def layers_in(file: FloatFile) -> dict[str, list[Operation]]:
    """The file's operations by the path of the layer they come from."""
    sources = {
        tensor: file.sources[output]
        for output, tensor in output_tensors(file.content).items()
    }
    return operations_by_layer(file.operations, sources)


def operations_by_layer(
    operations: list[Operation], sources: dict[str, str]
) -> dict[str, list[Operation]]:
    """The main graph's operations by the path of the layer they come from.

    Args:
        operations: The operations.
        sources: What the tensors that the file returns were called before they
            got names such as "PartitionedCall:0".
    """
    found: dict[str, list[Operation]] = {}
    for operation in operations:
        if operation.subgraph == 0:
            layer = _layer_of(operation, sources)
            found.setdefault(layer, []).append(operation)
    return found


def _layer_of(operation: Operation, sources: dict[str, str]) -> str:
    # An operation with weights does its layer's work, whatever activation or
    # normalisation the converter made a part of it.
    weights = operation.inputs[1:2] if operation.name in _WEIGHTED else ()
    made = [
        part
        for name in (*weights, *operation.outputs)
        for part in (*name.split(";"), sources.get(name, ""))
    ]
    found = next(filter(None, map(layer_path, made)), "")
    outside = next(filter(is_in_model, made), "").rpartition("/")[-1]
    if found or outside:
        return found or f"<{outside}>"
    read = [part for name in operation.inputs for part in name.split(";")]
    return next(filter(None, map(layer_path, read)), operation.outputs[0])


def _is_named(layer: str, names: tuple[str, ...]) -> bool:
    return any(layer == n or layer.endswith(f"/{n}") for n in names)


def _require_layers(
    names: tuple[str, ...], by_layer: dict[str, list[Operation]]
) -> None:
    for name in names:
        if not any(_is_named(layer, (name,)) for layer in by_layer):
            raise ValueError(
                "float_layers names a layer that has no operation in the file. "
                f"Received: '{name}'. A BatchNormalization or activation is "
                "part of the layer before it. The file has "
                f"{', '.join(by_layer)}."
            )
