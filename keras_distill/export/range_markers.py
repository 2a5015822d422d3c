"""Marks in a float32 file of which of its tensors a student gave a range.

A marker is an operation that changes nothing and that no converter removes.
Markers are taken out of the file before it is quantised.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_distill.export.flatbuffer import read_model

# A minimum with a number that no network reaches; a marker's own number is
# added in steps that float32 can tell apart.
_MARK = 1e38
_MARK_STEP = 1e33


@keras.saving.register_keras_serializable("keras_distill")
class RangeMarker(keras.layers.Layer):  # type: ignore[misc]  # keras is untyped
    """Marks a tensor in a file; returns it as it is.

    Args:
        number: The marker's number.
        name: The layer's name.
    """

    def __init__(self, number: int, name: str | None = None) -> None:
        super().__init__(name=name, dtype="float32", autocast=False)
        self.number = number
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """The tensor."""
        mark = _MARK + self.number * _MARK_STEP
        return keras.ops.minimum(keras.ops.cast(inputs, "float32"), mark)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer."""
        return {"name": self.name, "number": self.number}


def take_out_markers(content: bytes) -> tuple[bytes, dict[str, int]]:
    """The file without its markers, and their numbers by tensor."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = read_model(content)
    graph = model.subgraphs[0]
    sources: dict[int, int] = {}
    numbers: dict[str, int] = {}
    kept = []
    for operator in graph.operators:
        number = _marker_number(model, graph, operator)
        if number is None:
            kept.append(operator)
            continue
        source = int(operator.inputs[0])
        source = sources.get(source, source)
        sources[int(operator.outputs[0])] = source
        numbers[graph.tensors[source].name.decode()] = number
    graph.operators = kept
    _renumber_tensors(model, graph, sources)
    _renumber_codes(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model)), numbers


def _marker_number(model: Any, graph: Any, operator: Any) -> int | None:
    from ai_edge_litert import schema_py_generated as schema

    code = model.operatorCodes[operator.opcodeIndex]
    minimum = schema.BuiltinOperator.MINIMUM
    if max(code.builtinCode, code.deprecatedBuiltinCode) != minimum:
        return None
    mark = constant(model, graph.tensors[operator.inputs[1]])
    if mark is None or mark.size != 1 or mark.item() < _MARK * 0.99:
        return None
    number: int = round((mark.item() - _MARK) / _MARK_STEP)
    return number


def constant(model: Any, tensor: Any) -> np.ndarray | None:
    """A float32 tensor's values, if the file has them."""
    from ai_edge_litert import schema_py_generated as schema

    data = model.buffers[tensor.buffer].data
    if data is None or tensor.type != schema.TensorType.FLOAT32:
        return None
    return np.frombuffer(np.asarray(data, "uint8").tobytes(), "float32")


def _renumber_tensors(model: Any, graph: Any, sources: dict[int, int]) -> None:
    """Read what markers read instead of the markers, and drop what's unused."""

    def now(indices: Any) -> list[int]:
        return [sources.get(int(i), int(i)) for i in indices]

    lists = [
        (holder, name)
        for holder in graph.operators
        for name in ("inputs", "outputs", "intermediates")
        if getattr(holder, name) is not None
    ] + [(graph, "inputs"), (graph, "outputs")]
    used = {i for holder, name in lists for i in now(getattr(holder, name))} - {
        -1
    }
    places = {old: new for new, old in enumerate(sorted(used))}
    places[-1] = -1
    for holder, name in lists:
        indices = [places[i] for i in now(getattr(holder, name))]
        setattr(holder, name, np.array(indices, "int32"))
    for signature in model.signatureDefs:
        for entry in (*signature.inputs, *signature.outputs):
            (entry.tensorIndex,) = (places[i] for i in now([entry.tensorIndex]))
    graph.tensors = [graph.tensors[i] for i in sorted(used)]


def _renumber_codes(model: Any) -> None:
    operators = [o for graph in model.subgraphs for o in graph.operators]
    used = sorted({o.opcodeIndex for o in operators})
    model.operatorCodes = [model.operatorCodes[i] for i in used]
    for operator in operators:
        operator.opcodeIndex = used.index(operator.opcodeIndex)
