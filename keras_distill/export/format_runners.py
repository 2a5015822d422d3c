"""Runs ONNX, OpenVINO and SavedModel files, each on what it is made for.

Each function takes arrays by the names of the file's inputs, a batch of any
size, and returns arrays by the names of its outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def run_onnx(path: str, inputs: Arrays, batch_size: int | None) -> Arrays:
    """Run an ONNX file with onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return in_chunks(
        lambda chunk: dict(zip(names, session.run(names, chunk), strict=True)),
        inputs,
        batch_size,
    )


def run_openvino(path: str, inputs: Arrays, batch_size: int | None) -> Arrays:
    """Run an OpenVINO file on the CPU."""
    # Where the CPU can, OpenVINO would compute in bfloat16.
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = import_openvino().Core().compile_model(path, "CPU", hints)

    def run(chunk: Arrays) -> Arrays:
        results = compiled(chunk)
        return {
            name: np.array(results[output])
            for output in compiled.outputs
            for name in output.get_names()
        }

    return in_chunks(run, inputs, batch_size)


def run_saved_model(
    path: str, inputs: Arrays, batch_size: int | None
) -> Arrays:
    """Run a SavedModel with TensorFlow."""
    import tensorflow as tf

    signature = tf.saved_model.load(path).signatures["serving_default"]

    def run(chunk: Arrays) -> Arrays:
        tensors = {name: tf.constant(array) for name, array in chunk.items()}
        return {n: tensor.numpy() for n, tensor in signature(**tensors).items()}

    return in_chunks(run, inputs, batch_size)


def in_chunks(
    run: Callable[[Arrays], Arrays], inputs: Arrays, batch_size: int | None
) -> Arrays:
    """Run a batch of any size in chunks of the one that a file takes."""
    size = len(next(iter(inputs.values())))
    step = batch_size or size
    rows = []
    for start in range(0, size, step):
        # The last chunk repeats its last example.
        indices = np.minimum(np.arange(start, start + step), size - 1)
        rows.append(run({n: x[indices] for n, x in inputs.items()}))
    return {
        name: np.concatenate([row[name] for row in rows])[:size]
        for name in rows[0]
    }


def import_openvino() -> Any:
    """OpenVINO, imported without the report to its makers that it sends."""
    name = "openvino_telemetry"
    if "openvino" not in sys.modules and name not in sys.modules:
        # As if it weren't installed; OpenVINO does without it.
        sys.modules[name] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            del sys.modules[name]
    import openvino

    return openvino
