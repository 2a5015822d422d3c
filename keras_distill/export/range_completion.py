"""Ranges of all tensors of a file, from those of some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_distill.export.flatbuffer import (
    Operation,
    operations,
    read_model,
)
from keras_distill.export.quantizer import Ranges
from keras_distill.export.range_markers import constant

# As LiteRT's schema numbers it.
_RELU = 1
# Operations whose output has the range of their input.
_FORWARD = {
    "AVERAGE_POOL_2D",
    "BROADCAST_TO",
    "GATHER",
    "GATHER_ND",
    "MAX_POOL_2D",
    "MIRROR_PAD",
    "PAD",
    "REDUCE_MIN",
    "RESHAPE",
    "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR",
    "SLICE",
    "SPACE_TO_DEPTH",
    "SPLIT",
    "STRIDED_SLICE",
    "TRANSPOSE",
    "UNPACK",
}
# Operations whose inputs have the range of their output. What only moves
# values goes both ways.
_BACKWARD = {"CONCATENATION", "PACK", "RESHAPE", "TRANSPOSE"}
_FIXED = {"LOGISTIC": (0.0, 1.0), "SOFTMAX": (0.0, 1.0), "TANH": (-1.0, 1.0)}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "ADD": np.add,
    "MUL": np.multiply,
    "SUB": np.subtract,
}


def complete(content: bytes, ranges: Ranges) -> Ranges:
    """Ranges of all tensors of a file, from those of some.

    Raises:
        ValueError: If they don't follow.
    """
    model = read_model(content)
    known = {n: (r["min"].min(), r["max"].max()) for n, r in ranges.items()}
    graph = model.subgraphs[0]
    constants = set()
    for tensor in graph.tensors:
        values = constant(model, tensor)
        if values is not None and values.size:
            constants.add(tensor.name.decode())
            known[tensor.name.decode()] = values.min(), values.max()
    every = [o for o in operations(content) if o.subgraph == 0]
    known.update(_pixels(graph, every))
    activations = [
        getattr(o.builtinOptions, "fusedActivationFunction", 0)
        for o in graph.operators
    ]
    pairs = list(zip(every, activations, strict=True))
    before = -1
    while before != len(known):
        before = len(known)
        for operation, activation in pairs:
            _pass_forward(operation, activation, known)
        for operation, _ in reversed(pairs):
            _pass_backward(operation, known)
    _require_all(graph, every, known)
    # Those of weights are the quantizer's affair, channel by channel.
    return {n: as_range(*r) for n, r in known.items() if n not in constants}


def _pixels(graph: Any, every: list[Operation]) -> dict[str, Any]:
    """The ranges of integers of 8 bits that become floats."""
    from ai_edge_litert import schema_py_generated as schema

    types = {tensor.name.decode(): tensor.type for tensor in graph.tensors}
    return {
        operation.outputs[0]: (0, 255)
        for operation in every
        if operation.name == "CAST"
        and types[operation.inputs[0]] == schema.TensorType.UINT8
    }


def _pass_forward(
    operation: Operation, activation: int, known: dict[str, Any]
) -> None:
    if all(name in known for name in operation.outputs):
        return
    ends: list[Any] = [known.get(name) for name in operation.inputs]
    found = _FIXED.get(operation.name)
    if operation.name in _FORWARD:
        found = next((e for e in ends if e is not None), None)
    elif operation.name in _ARITHMETIC and None not in ends:
        function = _ARITHMETIC[operation.name]
        results = function(*np.ix_(*ends))
        found = _activated(results.min(), results.max(), activation)
    elif operation.name == "RELU" and ends[0] is not None:
        low, high = ends[0]
        found = _activated(low, high, _RELU)
    if found is not None:
        known.update({n: found for n in operation.outputs if n not in known})


def _activated(low: Any, high: Any, activation: int) -> tuple[Any, Any]:
    from ai_edge_litert import schema_py_generated as schema

    kinds = schema.ActivationFunctionType
    ends = {kinds.RELU: (0, np.inf), kinds.RELU6: (0, 6)}
    low, high = np.clip((low, high), *ends.get(activation, (-np.inf, np.inf)))
    return low, high


def _pass_backward(operation: Operation, known: dict[str, Any]) -> None:
    found = known.get(operation.outputs[0])
    if operation.name in _BACKWARD and found is not None:
        for name in operation.inputs:
            known.setdefault(name, found)


def _require_all(
    graph: Any, every: list[Operation], known: dict[str, Any]
) -> None:
    from ai_edge_litert import schema_py_generated as schema

    floats = {
        tensor.name.decode()
        for tensor in graph.tensors
        if tensor.type == schema.TensorType.FLOAT32
    }
    # Floats that become whole numbers, such as ids, are never rounded.
    used = [o for o in every if o.name != "CAST" or o.outputs[0] in floats]
    touched = {n for o in used for n in (*o.inputs, *o.outputs)}
    missing = sorted(touched & floats - set(known))
    if missing:
        raise ValueError(
            "The student trained without a range for some tensors of its "
            f"file. Received: {', '.join(missing[:5])} of {len(missing)}. "
            "Pass some hundred examples as calibration_data: the others keep "
            "the ranges that they trained with."
        )


def as_range(low: Any, high: Any) -> dict[str, np.ndarray]:
    """A range as ai-edge-quantizer has it."""
    return {
        "min": np.array([low], "float32"),
        "max": np.array([high], "float32"),
    }
