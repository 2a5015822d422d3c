"""From a float32 LiteRT file to a quantised one, by ai-edge-quantizer.

Runs in the process of `processes`: the calibrator is native code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_distill.export.flatbuffer import (
    Operation,
    operation_names,
    operations,
    read_model,
)
from keras_distill.export.processes import report
from keras_distill.export.schemes import Quantization

# Ranges by tensor name, as ai-edge-quantizer has them.
Ranges = dict[str, dict[str, np.ndarray]]
# What is this far below the other logits has no weight after a softmax that is
# an integer of 8 bits.
_MASK_GAP = 8.0
# A masked logit; no network computes such a number.
_MASKED = -1e4
_SPLITS = ("SPLIT", "SPLIT_V", "UNPACK")


def calibrate(
    model: bytes,
    signature: str,
    examples: Iterable[dict[str, np.ndarray]],
) -> Ranges:
    """The smallest and largest value of each tensor over the examples.

    Args:
        model: A float32 file.
        signature: Name of its signature.
        examples: Inputs by name, each with the file's batch size.
    """
    from ai_edge_quantizer import calibrator, recipe, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    # Its default, a moving average, loses 10 dB and more on small networks.
    runner = calibrator.Calibrator(
        model,
        num_threads=1,
        mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
        qsv_update_func=qsv_utils.min_max_update,
    )
    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    for count, example in enumerate(examples, 1):
        runner.calibrate({signature: [example]}, manager)
        report(count)
    ranges: Ranges = runner.get_model_qsvs()
    return ranges


def quantize(
    model: bytes,
    quantization: Quantization,
    ranges: Ranges | None = None,
    float_operations: Sequence[Operation] = (),
) -> bytes:
    """The quantised file.

    Args:
        model: A float32 file.
        quantization: What is asked for.
        ranges: The tensors' ranges, for a static scheme.
        float_operations: Operations that stay in float.
    """
    from ai_edge_quantizer import quantizer

    if quantization.scheme == "float32":
        return model
    tool = quantizer.Quantizer(
        model, _recipe(model, quantization, float_operations)
    )
    if quantization.details.kind == "static":
        if ranges is None:
            raise ValueError(
                "A static scheme needs ranges. Received: ranges=None with "
                f"scheme={quantization.scheme!r}. Pass what `calibrate` saw."
            )
        ranges = _tie_parts(operations(model), _clamp_masks(model, ranges))
    else:
        ranges = None
    result = tool.quantize(
        ranges, enable_progress_bar=False, enable_progress_report=False
    )
    content = _complete_parts(bytes(result.quantized_model))
    return _mend_outputs(content)


def _recipe(
    model: bytes, quantization: Quantization, kept: Sequence[Operation]
) -> Any:
    from ai_edge_quantizer import qtyping, recipe_manager

    details = quantization.details
    names, granularities = qtyping.TFLOperationName, qtyping.QuantGranularity
    granularity = (
        granularities.CHANNELWISE
        if quantization.per_channel
        else granularities.TENSORWISE
    )
    every = (".*", names.ALL_SUPPORTED)
    manager = recipe_manager.RecipeManager()
    if details.kind == "cast":
        manager.add_quantization_config(
            *every, _float16_config(), algorithm_key="float_casting"
        )
    elif details.kind == "weight_only":
        manager.add_weight_only_config(*every, details.weight_bits, granularity)
    elif details.kind == "dynamic":
        manager.add_dynamic_config(*every, details.weight_bits, granularity)
    else:
        manager.add_static_config(
            *every, details.activation_bits, details.weight_bits, granularity
        )
        if not quantization.integer_io:
            for name in (names.INPUT, names.OUTPUT):
                _keep(manager, ".*", name)
            kept = [*kept, *_comparisons(model)]
    if details.block and (blockwise := _blockwise(model, details.block)):
        manager.add_dynamic_config(
            _pattern(blockwise),
            names.FULLY_CONNECTED,
            details.weight_bits,
            granularities.BLOCKWISE_32,
        )
    if kept:
        _keep(manager, _pattern(kept), names.ALL_SUPPORTED)
    return manager.get_quantization_recipe()


def _comparisons(model: bytes) -> list[Operation]:
    """Those of inputs, such as of ids with 0, which rounding would change."""
    graph = read_model(model).subgraphs[0]
    inputs = {graph.tensors[number].name.decode() for number in graph.inputs}
    return [
        operation
        for operation in operations(model)
        if operation.name in ("EQUAL", "NOT_EQUAL")
        and not inputs.isdisjoint(operation.inputs)
    ]


def _keep(manager: Any, pattern: str, name: Any) -> None:
    manager.add_quantization_config(pattern, name, algorithm_key="no_quantize")


def _pattern(chosen: Sequence[Operation]) -> str:
    # The quantizer knows an operation by the names of its outputs.
    names = ["".join(f"{n};" for n in o.outputs) for o in chosen]
    return f"^(?:{'|'.join(map(re.escape, names))})$"


def _float16_config() -> Any:
    from ai_edge_quantizer import qtyping

    return qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=16, dtype=qtyping.TensorDataType.FLOAT
        ),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )


def _blockwise(model: bytes, block: int) -> list[Operation]:
    """The operations whose weights divide into blocks."""
    graph = read_model(model).subgraphs[0]
    shapes = {t.name.decode(): list(t.shape) for t in graph.tensors}
    return [
        operation
        for operation in operations(model)
        if operation.name == "FULLY_CONNECTED"
        and shapes.get(operation.inputs[1], [1])[-1] % block == 0
    ]


def _clamp_masks(model: bytes, ranges: Ranges) -> Ranges:
    """Ranges in which what a mask hides isn't told from very small.

    A masked logit of -1e9 takes all 256 steps of the range for itself.
    """
    ranges = dict(ranges)
    for operation in operations(model):
        known = [n for n in operation.inputs if n in ranges]
        values = [n for n in known if ranges[n]["min"].min() > _MASKED]
        for name in operation.outputs:
            if name not in ranges or ranges[name]["min"].min() > _MASKED:
                continue
            low = min((ranges[n]["min"].item() for n in values), default=0.0)
            high = max((ranges[n]["max"].item() for n in values), default=0.0)
            masks = [n for n in known if n not in values]
            for mask in masks:
                ranges[mask] = _range(low - high - _MASK_GAP, 0.0)
            ranges[name] = _range(
                low - _MASK_GAP, max(high, ranges[name]["max"].item())
            )
    return ranges


def _range(low: float, high: float) -> dict[str, np.ndarray]:
    return {"min": np.array([low]), "max": np.array([high])}


def _tie_parts(graph: Sequence[Operation], ranges: Ranges) -> Ranges:
    """Ranges in which the parts of a SPLIT have the range of the whole.

    The kernels copy the parts: they can't rescale them.
    """
    ranges = dict(ranges)
    for operation in graph:
        if operation.name in _SPLITS:
            # A mask's parts are no numbers and have no range.
            for whole in [n for n in operation.inputs if n in ranges]:
                ranges |= dict.fromkeys(operation.outputs, ranges[whole])
    return ranges


def _complete_parts(content: bytes) -> bytes:
    """The file with the same type for all parts of a SPLIT.

    A part that nothing reads stays in float, and no kernel takes that.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    splits = {o.outputs for o in operations(content) if o.name in _SPLITS}
    if not splits:
        return content
    model = read_model(content)
    for graph in model.subgraphs:
        read = {i for o in graph.operators for i in o.inputs}
        for operator in graph.operators:
            parts = [graph.tensors[i] for i in operator.outputs]
            used = [graph.tensors[i] for i in operator.outputs if i in read]
            if tuple(p.name.decode() for p in parts) in splits and used:
                for part in parts:
                    part.type = used[0].type
                    part.quantization = used[0].quantization
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _mend_outputs(content: bytes) -> bytes:
    """The file with what the quantizer does wrong at its outputs mended.

    Operations that read an output get the floats that are made for the caller,
    of which no kernel makes integers; and where an operation in float reads it,
    or it is returned twice, the signature keeps the integers.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = read_model(content)
    changed = False
    for number, graph in enumerate(model.subgraphs):
        names = operation_names(model, number)
        pairs = list(zip(names, graph.operators or [], strict=True))
        integers = _returned_integers(graph, pairs)
        for name, operator in pairs:
            reads = integers.keys() & {int(i) for i in operator.inputs}
            if reads and name != "QUANTIZE" and _is_quantized(graph, operator):
                inputs = [integers.get(int(i), int(i)) for i in operator.inputs]
                operator.inputs = np.array(inputs, "int32")
                changed = True
        floats = {source: output for output, source in integers.items()}
        returned = {int(i) for i in graph.outputs}
        for signature in model.signatureDefs or []:
            for entry in signature.outputs:
                index = entry.tensorIndex
                if signature.subgraphIndex == number and index not in returned:
                    entry.tensorIndex = floats.get(index, index)
                    changed = True
    if not changed:
        return content
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _returned_integers(
    graph: Any, pairs: list[tuple[str, Any]]
) -> dict[int, int]:
    """By outputs that are floats, the integers that these are made of."""
    returned = {int(i) for i in graph.outputs}
    return {
        int(operator.outputs[0]): int(operator.inputs[0])
        for name, operator in pairs
        if name == "DEQUANTIZE" and int(operator.outputs[0]) in returned
    }


def _is_quantized(graph: Any, operator: Any) -> bool:
    """Whether an operation returns integers that stand for floats."""
    details = graph.tensors[operator.outputs[0]].quantization
    return details is not None and details.scale is not None
