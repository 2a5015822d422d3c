"""A student's files in all schemes, with what they share made once."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, cast

import keras
import numpy as np

from keras_distill.export import processes, runner, trained_ranges
from keras_distill.export.artifact import LiteRTArtifact, with_details
from keras_distill.export.equalization import equalize
from keras_distill.export.flatbuffer import split, with_facts
from keras_distill.export.float_file import FloatFile, make_float_file
from keras_distill.export.metadata import Metadata
from keras_distill.export.placing import place_file
from keras_distill.export.quantized_file import (
    Calibrated,
    LayerError,
    QuantizedFile,
    calibrate,
    layer_errors_of,
    quantize_file,
)
from keras_distill.export.schemes import Quantization
from keras_distill.export.signature import TensorInfo, require_whole_ids
from keras_distill.model_graphs import layers_of


@dataclasses.dataclass
class StudentFiles:
    """A student's files in one scheme and another."""

    student: keras.Model
    # Calibration examples by input name; None without any.
    examples: dict[str, np.ndarray] | None
    batch_size: int | None
    signature: str
    allow_flex: bool
    metadata: Metadata
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
        facts = _facts(self.student, file, result, self.metadata)
        content = with_facts(result.content, facts, self.metadata.labels)
        place_file(path, content)
        return dataclasses.replace(
            LiteRTArtifact.from_facts(path, len(content), split(content)[1]),
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
        if quantization.integer_io:
            require_whole_ids(self.student)
        if not trained_ranges.is_trained(self.student):
            _require_data(quantization, self.examples)
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
        if self.trained:
            return trained_ranges.calibrate_as_trained(
                self.student, self.trained, file, self.examples, static
            )
        if quantization.equalize:
            content = processes.call(equalize, file.content)
            equal = calibrate(
                file._replace(content=content), self.examples, static
            )
            # Compared with what it was: equalising may have gone wrong.
            plain = equal._replace(file=file).compared_with_float()
            return equal._replace(expected=plain.expected)
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
                self.metadata,
            )
        return self.files[unroll]


def _facts(
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


def _require_data(
    quantization: Quantization, examples: dict[str, np.ndarray] | None
) -> None:
    if quantization.details.kind == "static" and examples is None:
        raise ValueError(
            f"{quantization.scheme!r} needs the ranges of the activations. "
            "Received: calibration_data=None. Pass some hundred examples like "
            "those of the device, or a scheme without ranges, such as "
            "'dynamic_int8'."
        )
