"""From a saved student to ONNX, OpenVINO and SavedModel files.

Runs in the process of `processes`, with Keras on TensorFlow.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_distill.export.conversion import (
    ConversionRequest,
    UnsupportedOpsError,
    frozen_student,
    places_of,
    save_frozen,
    save_named,
)
from keras_distill.export.format_runners import import_openvino
from keras_distill.export.layer_names import readable


def write_saved_model(request: ConversionRequest, path: str) -> None:
    """Write the student as the folder of a SavedModel."""
    names = [info.name for info in request.inputs]
    save_frozen(frozen_student(request), request, names, path)


def write_openvino(request: ConversionRequest, path: str) -> None:
    """Write the student as an `.xml` file and the `.bin` beside it."""
    openvino = import_openvino()
    frozen = frozen_student(request)
    with tempfile.TemporaryDirectory() as folder:
        save_named(frozen, request, folder)
        try:
            # `openvino.convert_model` does the same and calls its makers.
            model = openvino.Core().read_model(folder)
        except RuntimeError as error:
            pattern = r"(?:rule found for operations|failed for): (.+)"
            found = re.findall(pattern, str(error))
            ops = sorted({op for line in found for op in line.split(", ")})
            if not ops:
                raise
            raise UnsupportedOpsError(places_of(frozen, ops)) from error
        # In float16 the weights would differ from those that Keras has.
        openvino.save_model(model, path, compress_to_fp16=False)


def write_onnx(request: ConversionRequest, path: str, opset: int) -> None:
    """Write the student as an ONNX file."""
    import onnx
    from tf2onnx.convert import from_graph_def

    frozen = frozen_student(request)
    inputs = [tensor.name for tensor in frozen.inputs]
    outputs = [tensor.name for tensor in frozen.outputs]
    names = [
        *(info.name for info in request.inputs),
        *keras.tree.flatten(request.output_names),
    ]
    model, _ = from_graph_def(
        _inlinable(frozen.graph.as_graph_def()),
        name="student",
        input_names=inputs,
        output_names=outputs,
        opset=opset,
        custom_op_handlers={"Erfc": (_convert_erfc, [])},
        tensors_to_rename=dict(zip([*inputs, *outputs], names, strict=True)),
    )
    _require_onnx_ops(model, opset)
    _name_batch(model)
    onnx.save(model, path)


def _inlinable(graph: Any) -> Any:
    """The graph without the marks of what XLA is to compile.

    Keras has them at convolutions with groups, and tf2onnx would keep these as
    calls of functions that ONNX doesn't know.
    """
    functions = graph.library.function
    inner = [node for function in functions for node in function.node_def]
    for marked in (*graph.node, *functions, *inner):
        for mark in ("_XlaMustCompile", "_noinline"):
            marked.attr.pop(mark, None)
    return graph


def _convert_erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """`1 - erf(x)`: ONNX has no erfc, which is in Keras' gelu."""
    (output,) = node.output
    shapes, dtypes = [context.get_shape(output)], [context.get_dtype(output)]
    one = context.make_const(f"{name}_one", np.ones((), "float32"))
    erf = context.make_node("Erf", [node.input[0]])
    context.remove_node(name)
    context.make_node(
        "Sub",
        [one.output[0], erf.output[0]],
        outputs=[output],
        name=name,
        shapes=shapes,
        dtypes=dtypes,
    )


def _require_onnx_ops(model: Any, opset: int) -> None:
    """Refuse a model in which tf2onnx left operations of TensorFlow."""
    from onnx import defs

    places = [
        f"{node.op_type} at '{readable(node.name)}'"
        for node in _nodes(model.graph)
        if not defs.has(node.op_type, opset, node.domain)
    ]
    if places:
        raise UnsupportedOpsError(", ".join(places[:5]))


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _name_batch(model: Any) -> None:
    """Call a batch of any size "batch" instead of "unk__58"."""
    # Shapes of what lies between are hints, and have the old name.
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape
        if shape.dim and not shape.dim[0].HasField("dim_value"):
            shape.dim[0].dim_param = "batch"
