"""Which units layers over vectors, sequences and their norms read and make."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers

from keras_distill.shrinking.plans import LayerCall, Rule, bias, replaced
from keras_distill.shrinking.units import Axes

# How many times a recurrent layer's units stand in its kernel.
_GATES = {layers.GRU: 3, layers.LSTM: 4, layers.SimpleRNN: 1}


def _dense(call: LayerCall) -> Axes:
    out = call.new(call.operation.units)
    call.count(units=out)
    call.weigh(((call.x[-1], out), -1), *bias(call, out))
    return replaced(call.x, -1, out)


def _embedding(call: LayerCall) -> Axes:
    out = call.new(call.operation.output_dim)
    call.count(output_dim=out)
    call.weigh(((None, out), -1))
    return (*call.x, out)


def _recurrent(call: LayerCall) -> list[Axes]:
    out, weights = _recurrent_weights(call, call.operation, "units")
    call.count(units=out)
    call.weigh(*weights)
    for state in call.inputs[1:]:
        call.units.tie(state[-1], out)
    return [replaced(_none(t.shape), -1, out) for t in call.call.outputs]


def _recurrent_weights(
    call: LayerCall, layer: Any, name: str
) -> tuple[np.ndarray, list[tuple[Axes, int | None]]]:
    call.units.keep(call.x[1])
    out = call.new(layer.units, name)
    gates = np.tile(out, _GATES[type(layer)])
    weights: list[tuple[Axes, int | None]] = [
        ((call.x[-1], gates), -1),
        ((out, gates), -1),
    ]
    if layer.use_bias:
        twice = type(layer) is layers.GRU and layer.reset_after
        weights.append(((None, gates) if twice else (gates,), -1))
    return out, weights


def _bidirectional(call: LayerCall) -> list[Axes]:
    layer = call.operation
    if not {type(layer.forward_layer), type(layer.backward_layer)} <= {*_GATES}:
        return call.unknown()
    sides, weights = [], []
    for name in ("forward_layer", "backward_layer"):
        out, axes = _recurrent_weights(call, getattr(layer, name), name)
        sides.append(out)
        weights += axes
    forward, backward = sides
    call.weigh(*weights)
    call.size(layer=_resized(layer, "layer", forward))
    call.size(backward_layer=_resized(layer, "backward_layer", backward))
    if layer.merge_mode == "concat":
        merged = [np.concatenate(sides)]
    elif layer.merge_mode is None:
        merged = sides
    else:
        call.units.tie(forward, backward)
        merged = [forward]
    states = len(call.call.outputs) - len(merged)
    for i, state in enumerate(call.inputs[1:]):
        call.units.tie(state[-1], sides[i * 2 // (len(call.inputs) - 1)])
    labels = [
        *merged,
        *(side for side in sides for _ in range(states // 2)),
    ]
    return [
        replaced(_none(t.shape), -1, out)
        for t, out in zip(call.call.outputs, labels, strict=True)
    ]


def _resized(layer: Any, name: str, out: np.ndarray) -> Any:
    def entry(count: Any) -> Any:
        old = layer.get_config()[name]
        # Without the sizes of the teacher that it would be built with.
        kept = {k: v for k, v in old.items() if k != "build_config"}
        changed = {"units": count(out), "trainable": True}
        return {**kept, "config": {**old["config"], **changed}}

    return entry


def _none(shape: tuple[int | None, ...]) -> Axes:
    return (None,) * len(shape)


def _norm(call: LayerCall) -> Axes:
    """A normalisation with weights along axes of its own."""
    axis = call.operation.axis
    axes = [axis] if isinstance(axis, int) else axis
    labels = tuple(call.x[i] for i in axes)
    call.weigh(*[(labels, None) for _ in call.operation.weights])
    return call.x


def _group_norm(call: LayerCall) -> Axes:
    layer = call.operation
    labels = call.x[layer.axis]
    if labels is not None and layer.groups > 1:
        rows = labels.reshape(layer.groups, -1)
        # A group goes as a whole, so that others have the statistics they had.
        call.units.tie(rows, rows[:, :1])
        call.count(groups=rows[:, 0])
    call.weigh(*[((labels,), None) for _ in layer.weights])
    return call.x


def _slopes(call: LayerCall) -> Axes:
    shared = call.operation.shared_axes or ()
    axes = tuple(
        None if i in shared else labels
        for i, labels in enumerate(call.x)
        if i > 0
    )
    call.weigh((axes, None))
    return call.x


def _repeated(call: LayerCall) -> Axes:
    return (None, None, call.x[-1])


RULES: dict[Any, Rule] = {
    layers.BatchNormalization: _norm,
    layers.Bidirectional: _bidirectional,
    layers.Dense: _dense,
    layers.Embedding: _embedding,
    layers.GRU: _recurrent,
    layers.GroupNormalization: _group_norm,
    layers.LSTM: _recurrent,
    layers.LayerNormalization: _norm,
    layers.PReLU: _slopes,
    layers.RMSNormalization: _norm,
    layers.RepeatVector: _repeated,
    layers.SimpleRNN: _recurrent,
}
