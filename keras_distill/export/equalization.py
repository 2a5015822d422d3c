"""Cross-layer equalisation: channels that share a scale get the same range."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from keras_distill.export.flatbuffer import operation_names, read_model

# Axis of the output and of the input channels in an operation's weights. A
# depthwise convolution has one of both.
_AXES = {
    "CONV_2D": (0, 3),
    "DEPTHWISE_CONV_2D": (3, 3),
    "FULLY_CONNECTED": (0, 1),
}
# What does the same to each channel, whatever its scale.
_TRANSPARENT = ("MAX_POOL_2D", "AVERAGE_POOL_2D")
_ROUNDS = 20
_SMALLEST = 1e-8


class _Layer(NamedTuple):
    """An operation's weights and bias, to be changed in place."""

    kernel: np.ndarray
    bias: np.ndarray | None
    out_axis: int
    in_axis: int


def equalize(content: bytes) -> bytes:
    """A float32 file that computes the same, and loses less to integers.

    Where a layer's output goes to one other layer alone, its channels can be
    divided by any positive factors if the next layer's weights are multiplied
    by them: a ReLU lets factors through.

    Formula:
        `s_c = sqrt(r1_c / r2_c)`, with the largest weights `r1_c` of the first
        layer's output channel c and `r2_c` of the second's input channel c;
        `W1_c / s_c`, `b1_c / s_c`, `W2_c * s_c`, until nothing changes.

    Reference:
        Nagel et al., "Data-Free Quantization Through Weight Equalization and
        Bias Correction", ICCV 2019.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = read_model(content)
    pairs = _pairs(model)
    if not pairs:
        return content
    for _ in range(_ROUNDS):
        factors = [_balance(first, second) for first, second in pairs]
        if max(float(np.abs(np.log(f)).max()) for f in factors) < 1e-3:
            break
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _balance(first: _Layer, second: _Layer) -> np.ndarray:
    largest_1 = _largest(first.kernel, first.out_axis)
    largest_2 = _largest(second.kernel, second.in_axis)
    dead = (largest_1 < _SMALLEST) | (largest_2 < _SMALLEST)
    factors = np.sqrt(
        np.where(dead, 1, largest_1) / np.where(dead, 1, largest_2)
    ).astype("float32")
    first.kernel[:] /= _along(factors, first.kernel, first.out_axis)
    if first.bias is not None:
        first.bias[:] /= factors
    second.kernel[:] *= _along(factors, second.kernel, second.in_axis)
    return factors


def _largest(kernel: np.ndarray, axis: int) -> np.ndarray:
    others = tuple(i for i in range(kernel.ndim) if i != axis)
    largest: np.ndarray = np.abs(kernel).max(others)
    return largest


def _along(factors: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    shape = [1] * kernel.ndim
    shape[axis] = -1
    return factors.reshape(shape)


def _pairs(model: Any) -> list[tuple[_Layer, _Layer]]:
    """Layers of which one feeds the other, and nothing else."""
    graph, names = model.subgraphs[0], operation_names(model)
    readers: dict[int, list[int]] = {i: [-1] for i in graph.outputs}
    for number, operator in enumerate(graph.operators):
        for i in operator.inputs:
            readers.setdefault(i, []).append(number)
    layers = {
        number: layer
        for number, name in enumerate(names)
        if (layer := _layer(model, number, name, readers)) is not None
    }
    found = []
    for number, first in layers.items():
        follower = _only_reader(graph, names, number, readers)
        second = layers.get(follower)
        if (
            second is not None
            and _is_homogeneous(graph.operators[number])
            and first.kernel.shape[first.out_axis]
            == second.kernel.shape[second.in_axis]
        ):
            found.append((first, second))
    return found


def _only_reader(
    graph: Any, names: list[str], number: int, readers: dict[int, list[int]]
) -> int:
    """The operation that alone reads another's output, past pooling; or -1."""
    while True:
        (output,) = graph.operators[number].outputs
        found = readers.get(output, [])
        if len(found) != 1 or found[0] < 0:
            return -1
        number = found[0]
        if names[number] not in _TRANSPARENT or not _is_homogeneous(
            graph.operators[number]
        ):
            # As the input, and not as the weights.
            return number if graph.operators[number].inputs[0] == output else -1


def _is_homogeneous(operator: Any) -> bool:
    from ai_edge_litert.schema_py_generated import ActivationFunctionType as Act

    activation = operator.builtinOptions.fusedActivationFunction
    return activation in (Act.NONE, Act.RELU)


def _layer(
    model: Any, number: int, name: str, readers: dict[int, list[int]]
) -> _Layer | None:
    if name not in _AXES:
        return None
    # A bias may be absent: -1, or no third input.
    inputs = [i for i in model.subgraphs[0].operators[number].inputs if i >= 0]
    arrays = [_writable(model, i, readers[i] == [number]) for i in inputs[1:]]
    found = [array for array in arrays if array is not None]
    if len(found) < len(arrays):
        return None
    kernel, *rest = found
    return _Layer(kernel, rest[0] if rest else None, *_AXES[name])


def _writable(model: Any, index: int, read_once: bool) -> np.ndarray | None:
    """A constant as an array that may be changed; None if others read it."""
    tensors = model.subgraphs[0].tensors
    tensor = tensors[index]
    data = model.buffers[tensor.buffer].data
    if data is None:
        return None
    # A copy in the place of the original.
    data = np.array(data, "uint8")
    array = data.view("float32").reshape(tensor.shape)
    shared = sum(t.buffer == tensor.buffer for t in tensors) > 1
    if shared or not read_once:
        # Zeros stay zeros, whatever they are multiplied by.
        return None if array.any() else array
    model.buffers[tensor.buffer].data = data
    return array
