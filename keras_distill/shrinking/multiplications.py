"""Multiply-accumulates of a layer, from the shapes of what it reads."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from keras import layers

Shape: TypeAlias = "tuple[int, ...]"
# Of a layer, of the shapes that it reads, and of the shape that it returns.
Count: TypeAlias = "Callable[[Any, list[Shape], Shape], int]"


def _dense(layer: Any, _: list[Shape], returned: Shape) -> int:
    return math.prod(returned) * _size(layer.kernel.shape[:1])


def _convolution(layer: Any, _: list[Shape], returned: Shape) -> int:
    # A kernel without its filters is what one output value takes.
    return math.prod(returned) * _size(layer.kernel.shape[:-1])


def _depthwise(layer: Any, _: list[Shape], returned: Shape) -> int:
    return math.prod(returned) * _size(layer.kernel.shape[:-2])


def _separable(layer: Any, read: list[Shape], returned: Shape) -> int:
    depthwise, pointwise = layer.depthwise_kernel, layer.pointwise_kernel
    places = math.prod(returned) // int(layer.filters)
    return places * (_size(depthwise.shape) + _size(pointwise.shape))


def _transposed(layer: Any, read: list[Shape], _: Shape) -> int:
    # Each input value is multiplied with the kernel of its channel.
    return math.prod(read[0]) * _size(layer.kernel.shape[:-1])


def _einsum(layer: Any, read: list[Shape], returned: Shape) -> int:
    """The sizes of all indices, those that are summed over included."""
    left, result = layer.equation.split("->")
    kernel = left.split(",")[1]
    summed = [
        int(size)
        for letter, size in zip(
            re.sub(r"\W", "", kernel), layer.kernel.shape, strict=True
        )
        if letter not in result
    ]
    return math.prod(returned) * math.prod(summed)


def _attention(layer: Any, read: list[Shape], _: Shape) -> int:
    """Queries with keys, and scores with values; kernels count alone."""
    query, value = read[0], read[1]
    pairs = query[0] * math.prod(query[1:-1]) * math.prod(value[1:-1])
    if type(layer) is layers.GroupQueryAttention:
        return pairs * 2 * int(layer.num_query_heads * layer.head_dim)
    sizes = layer.key_dim + layer.value_dim
    return pairs * int(layer.num_heads * sizes)


def _dot_product(layer: Any, read: list[Shape], _: Shape) -> int:
    query, value = read[0], read[1]
    return query[0] * query[1] * value[1] * (query[-1] + value[-1])


def _recurrent(layer: Any, read: list[Shape], _: Shape) -> int:
    cell = layer.cell
    kernels = (cell.kernel, cell.recurrent_kernel)
    steps = read[0][0] * read[0][1]
    return steps * sum(_size(kernel.shape) for kernel in kernels)


def _size(shape: Any) -> int:
    return int(math.prod(shape))


def _of_ranks(name: str, count: Count) -> dict[Any, Count]:
    kinds = {f"{name}1D", f"{name}2D", f"{name}3D"} & set(dir(layers))
    return {getattr(layers, kind): count for kind in kinds}


COUNTS: dict[Any, Count] = {
    **_of_ranks("Conv", _convolution),
    **_of_ranks("DepthwiseConv", _depthwise),
    **_of_ranks("SeparableConv", _separable),
    layers.AdditiveAttention: _dot_product,
    layers.Attention: _dot_product,
    layers.Conv1DTranspose: _transposed,
    layers.Conv2DTranspose: _transposed,
    layers.Conv3DTranspose: _transposed,
    layers.Dense: _dense,
    layers.EinsumDense: _einsum,
    layers.GRU: _recurrent,
    layers.GroupQueryAttention: _attention,
    layers.LSTM: _recurrent,
    layers.MultiHeadAttention: _attention,
    layers.SimpleRNN: _recurrent,
}
# They have weights, but add or scale, or look up.
UNCOUNTED = (
    layers.BatchNormalization,
    layers.Embedding,
    layers.GroupNormalization,
    layers.LayerNormalization,
    layers.Normalization,
    layers.PReLU,
    layers.RMSNormalization,
)
