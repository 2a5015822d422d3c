"""Which units attention reads and makes: its heads, and what it returns."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers

from keras_distill.shrinking.plans import LayerCall, Rule, WeightAxes
from keras_distill.shrinking.units import Axes, Labels


def _multi_head(call: LayerCall) -> list[Axes]:
    if not _is_plain(call):
        return call.unknown()
    layer = call.operation
    heads = call.new(layer.num_heads, "heads")
    call.count(num_heads=heads)
    out = _query_value_key(call)[0][-1]
    shape = layer.get_config()["output_shape"]
    if shape:
        out = call.new(shape[0], "outputs")
        call.size(output_shape=_as_shape(out))
    return _attend(call, heads, heads, out)


def _grouped_query(call: LayerCall) -> list[Axes]:
    if not _is_plain(call):
        return call.unknown()
    layer = call.operation
    groups = layer.num_key_value_heads
    if groups == 1:
        # All heads read the one key, which stays.
        shared, heads = None, call.new(layer.num_query_heads, "heads")
    else:
        shared = call.new(groups, "groups")
        heads = np.repeat(shared, layer.num_query_heads // groups)
    call.count(num_key_value_heads=shared, num_query_heads=heads)
    return _attend(call, heads, shared, _query_value_key(call)[0][-1])


def _is_plain(call: LayerCall) -> bool:
    """Whether it attends along one axis, and has no weights but the usual."""
    config = call.operation.get_config()
    return (
        len(call.shape) == 3
        and len(config.get("output_shape") or ()) < 2
        and not config.get("use_gate")
    )


def _attend(
    call: LayerCall, heads: np.ndarray, shared: Labels, out: Labels
) -> list[Axes]:
    query, value, key = _query_value_key(call)
    for axes in (query, value, key):
        call.units.keep(axes[1])
    makes = -1 if call.operation.get_config().get("output_shape") else None
    # A head is worth what it makes of its values.
    weights: list[WeightAxes] = [
        ((query[-1], heads, None), None),
        ((heads, None), None),
        ((key[-1], shared, None), None),
        ((shared, None), None),
        ((value[-1], shared, None), 1),
        ((shared, None), 0),
        ((heads, None, out), makes),
        ((out,), makes),
    ]
    call.weigh(*(weights if call.operation.use_bias else weights[::2]))
    # The second output, where there is one, are the scores.
    result: list[Axes] = [(None, None, out), (None, heads, None, None)]
    return result[: len(call.call.outputs)]


def _query_value_key(call: LayerCall) -> tuple[Axes, Axes, Axes]:
    args, kwargs = call.call.arguments
    given = dict(zip(("query", "value", "key"), args, strict=False)) | kwargs
    given["key"] = given.get("key") or given["value"]
    query, value, key = (
        call.axes_of(given[name]) for name in ("query", "value", "key")
    )
    return query, value, key


def _as_shape(out: np.ndarray) -> Any:
    return lambda count: (count(out),)


def _dot_product(call: LayerCall) -> list[Axes]:
    """Of layers that attend without kernels: query, value and maybe key."""
    query, value, *keys = call.inputs
    key = keys[0] if keys else value
    for axes in (query, value, key):
        call.units.keep(axes[1])
    call.units.tie(query[-1], key[-1])
    is_vector = type(call.operation) is layers.AdditiveAttention
    scale: Axes = (query[-1],) if is_vector else ()
    call.weigh(*[(scale, None)] * len(call.operation.weights))
    result: list[Axes] = [(None, None, value[-1]), (None, None, None)]
    return result[: len(call.call.outputs)]


RULES: dict[Any, Rule] = {
    layers.AdditiveAttention: _dot_product,
    layers.Attention: _dot_product,
    layers.GroupQueryAttention: _grouped_query,
    layers.MultiHeadAttention: _multi_head,
}
