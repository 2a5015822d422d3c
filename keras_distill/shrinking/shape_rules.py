"""Which units what has no weights passes on: merges, reshapes, functions."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers

from keras_distill.shrinking.graphs import Tensor
from keras_distill.shrinking.plans import LayerCall, Rule, Size
from keras_distill.shrinking.units import Axes, Labels


def _same(call: LayerCall) -> Axes:
    return call.x


def _merged(call: LayerCall) -> Axes:
    """Of a merge layer: it puts missing axes behind the batch's."""
    return _broadcast(call, behind_batch=True)


def _combined(call: LayerCall) -> Axes | list[Axes]:
    """Of an operation on two tensors: missing axes come first."""
    args, kwargs = call.call.arguments
    constants = [
        leaf
        for leaf in (*args, *kwargs.values())
        if not isinstance(leaf, Tensor | str | type(None))
    ]
    if any(np.ndim(leaf) for leaf in constants):
        return call.unknown()
    return _broadcast(call, behind_batch=False)


def _broadcast(call: LayerCall, behind_batch: bool) -> Axes:
    rank = len(call.output_shape)
    result: list[Labels] = [None] * rank
    for position in range(rank):
        found = []
        for axes, tensor in zip(call.inputs, call.tensors, strict=True):
            axis = position - (rank - len(axes))
            if behind_batch and position == 0:
                axis = 0
            is_missing = axis < int(behind_batch and position > 0)
            if is_missing or tensor.shape[axis] == 1:
                # It is repeated, whatever the size.
                call.units.keep(None if is_missing else axes[axis])
            else:
                found.append(axes[axis])
        for other in found[1:]:
            call.units.tie(found[0], other)
        result[position] = found[0] if found else None
    return tuple(result)


def _concatenated(call: LayerCall) -> Axes | list[Axes]:
    axis = _axis(call)
    if axis is None:
        return call.unknown()
    result = list(call.x)
    for i in range(len(result)):
        parts = [axes[i] for axes in call.inputs]
        if i != axis % len(result):
            for other in parts[1:]:
                call.units.tie(parts[0], other)
        elif any(part is not None for part in parts):
            sizes = [t.shape[i] for t in call.tensors]
            # The units of a part that has none are kept.
            result[i] = np.concatenate(
                [
                    np.zeros(size or 0, "int64") if part is None else part
                    for part, size in zip(parts, sizes, strict=True)
                ]
            )
    return tuple(result)


def _axis(call: LayerCall) -> Any:
    operation = call.operation
    if isinstance(operation, layers.Concatenate):
        return operation.axis
    return operation.get_config().get("axis", -1)


def _reshaped(call: LayerCall) -> Axes:
    out = call.reshaped(call.x, call.shape, call.output_shape)
    call.size(target_shape=_sizes(call.operation.target_shape, out[1:]))
    return out


def _reshaped_by_operation(call: LayerCall) -> Axes:
    out = call.reshaped(call.x, call.shape, call.output_shape)
    call.size(newshape=_sizes(call.operation.get_config()["newshape"], out))
    return out


def _sizes(target: tuple[int, ...], axes: Axes) -> Size:
    """A shape for what stays; a size that Keras finds by itself stays so."""
    return lambda count: tuple(
        size if size == -1 or labels is None else count(labels)
        for size, labels in zip(target, axes, strict=True)
    )


def _squeezed(call: LayerCall) -> Axes | list[Axes]:
    axis = call.operation.get_config().get("axis")
    if not isinstance(axis, int):
        return call.unknown()
    call.units.keep(call.x[axis])
    gone = axis % len(call.x)
    return tuple(v for i, v in enumerate(call.x) if i != gone)


def _permuted(call: LayerCall) -> Axes:
    return (call.x[0], *(call.x[i] for i in call.operation.dims))


def _transposed(call: LayerCall) -> Axes | list[Axes]:
    axes = call.operation.get_config().get("axes")
    order = axes or range(len(call.x))[::-1]
    return tuple(call.x[i] for i in order)


def _reduced(call: LayerCall) -> Axes | list[Axes]:
    config = call.operation.get_config()
    axis = config.get("axis")
    if axis is None:
        return call.unknown()
    gone = {
        i % len(call.x) for i in ([axis] if isinstance(axis, int) else axis)
    }
    for i in gone:
        call.units.keep(call.x[i])
    if config.get("keepdims"):
        return tuple(None if i in gone else v for i, v in enumerate(call.x))
    return tuple(v for i, v in enumerate(call.x) if i not in gone)


def _indexed(call: LayerCall) -> Axes | list[Axes]:
    """Of a part of a tensor, such as the first token."""
    key = call.call.arguments[0][1]
    keys = list(key) if isinstance(key, tuple) else [key]
    if not all(isinstance(k, int | slice) for k in keys):
        return call.unknown()
    keys += [slice(None)] * (len(call.x) - len(keys))
    result: list[Labels] = []
    for labels, k in zip(call.x, keys, strict=True):
        if k != slice(None):
            call.units.keep(labels)
        if isinstance(k, slice):
            result.append(labels if k == slice(None) else None)
    return tuple(result)


def _expanded(call: LayerCall) -> Axes | list[Axes]:
    axis = call.operation.get_config().get("axis")
    if not isinstance(axis, int):
        return call.unknown()
    rank = len(call.output_shape)
    result = list(call.x)
    result.insert(axis % rank, None)
    return tuple(result)


RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        (
            layers.Activation,
            layers.ActivityRegularization,
            layers.AlphaDropout,
            layers.Dropout,
            layers.ELU,
            layers.GaussianDropout,
            layers.GaussianNoise,
            layers.Identity,
            layers.LeakyReLU,
            layers.Masking,
            layers.ReLU,
            layers.Softmax,
            layers.SpatialDropout1D,
            layers.SpatialDropout2D,
            layers.SpatialDropout3D,
            layers.UnitNormalization,
        ),
        _same,
    ),
    **dict.fromkeys(
        (
            layers.Add,
            layers.Average,
            layers.Maximum,
            layers.Minimum,
            layers.Multiply,
            layers.Subtract,
        ),
        _merged,
    ),
    layers.Concatenate: _concatenated,
    layers.Permute: _permuted,
    layers.Reshape: _reshaped,
}
# Operations of keras.ops have no public class: their names.
OPERATIONS: dict[str, Rule] = {
    **dict.fromkeys(
        [
            "Abs",
            "Cast",
            "Celu",
            "Elu",
            "Erf",
            "Exp",
            "Gelu",
            "HardSigmoid",
            "HardSilu",
            "HardSwish",
            "HardTanh",
            "Identity",
            "LeakyRelu",
            "Log",
            "Log1p",
            "Log2",
            "Mish",
            "Negative",
            "Relu",
            "Relu6",
            "Rsqrt",
            "Selu",
            "Sigmoid",
            "Silu",
            "Softplus",
            "Softsign",
            "Sqrt",
            "Square",
            "StopGradient",
            "Swish",
            "Tanh",
        ],
        _same,
    ),
    **dict.fromkeys(
        [
            "Add",
            "Divide",
            "Equal",
            "Greater",
            "GreaterEqual",
            "Less",
            "LessEqual",
            "LogicalAnd",
            "LogicalOr",
            "Maximum",
            "Minimum",
            "Multiply",
            "NotEqual",
            "Power",
            "Subtract",
            "TrueDivide",
        ],
        _combined,
    ),
    **dict.fromkeys(
        ["All", "Any", "Max", "Mean", "Min", "Sum", "Std", "Var"], _reduced
    ),
    "Concatenate": _concatenated,
    "ExpandDims": _expanded,
    "GetItem": _indexed,
    "Reshape": _reshaped_by_operation,
    "Softmax": _same,
    "Squeeze": _squeezed,
    "Transpose": _transposed,
}
