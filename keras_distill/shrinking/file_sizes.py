"""An estimate of a LiteRT file's size, before there is a file."""

from __future__ import annotations

import math
from typing import Any

import keras

from keras_distill.export.schemes import Scheme
from keras_distill.features import sublayers
from keras_distill.shrinking.layer_calls import LayerCall

# Bytes, fitted to the files of examples/export_table.py.
_FILE = 1600
# An operation with its tensors and their names.
_OPERATION = 220
_WEIGHTED = 400
_COMPOSITE = {
    # It is a Conv2D between two reshapes.
    "Conv1D": 900,
    "GRU": 9000,
    "GroupNormalization": 1500,
    "LSTM": 9000,
    "LayerNormalization": 1000,
    "MultiHeadAttention": 1700,
    "GroupQueryAttention": 2600,
    "RMSNormalization": 900,
    "SimpleRNN": 6000,
}
# Static schemes write a recurrent layer out, step for step.
_STEP = 3300
# Of a weight: how it is rounded, or the operation that makes it a float again.
_ROUNDED = 120
_RECURRENT = (keras.layers.GRU, keras.layers.LSTM, keras.layers.SimpleRNN)
# They become part of what stands before them, or are for training alone.
_NOTHING = (
    "Activation",
    "ActivityRegularization",
    "AlphaDropout",
    "BatchNormalization",
    "Bidirectional",
    "Dropout",
    "Functional",
    "GaussianDropout",
    "GaussianNoise",
    "Identity",
    "InputLayer",
    "Masking",
    "ReLU",
    "Sequential",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "TimeDistributed",
)
# What a scheme doesn't round.
_FLOAT = (keras.layers.Conv3D,)
_FLOAT_IN_4_BITS = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)


def estimated_bytes(calls: list[LayerCall], scheme: Scheme) -> int:
    """The size of a model's file.

    Args:
        calls: The calls of its layers, on one example.
        scheme: How the file is quantised.
    """
    layers = {id(call.layer): call.layer for call in calls}
    total = _FILE + sum(_structure(call, scheme) for call in calls)
    return round(total + sum(_weights(v, scheme) for v in layers.values()))


def _structure(call: LayerCall, scheme: Scheme) -> float:
    """Bytes of the operations of a call."""
    layer = call.layer
    kind = type(layer).__name__
    if isinstance(layer, _RECURRENT) and scheme.kind == "static":
        return float(_STEP * call.read[0][1])
    if kind in _NOTHING:
        return 0.0
    default = _WEIGHTED if _own_weights(layer) else _OPERATION
    return float(_COMPOSITE.get(kind, default))


def _weights(layer: Any, scheme: Scheme) -> float:
    """Bytes of a layer's weights, with what tells how they are rounded."""
    if isinstance(layer, keras.layers.BatchNormalization):
        # A bias is left of it.
        return 4.0 * int(layer.moving_mean.shape[0])
    return sum(
        _weight(layer, tuple(w.shape), scheme) for w in _own_weights(layer)
    )


def _weight(layer: Any, shape: tuple[int, ...], scheme: Scheme) -> float:
    size = math.prod(shape)
    is_table = isinstance(layer, keras.layers.Embedding)
    if scheme.kind == "cast" and not is_table:
        return size * 2.0 + (_ROUNDED if len(shape) > 1 else 0)
    is_static = scheme.kind == "static"
    if len(shape) < 2 or not _is_rounded(layer, scheme):
        return size * 4.0
    scales = (24 if is_static else 12) * shape[-1]
    return size * scheme.weight_bits / 8 + scales + _ROUNDED


def _is_rounded(layer: Any, scheme: Scheme) -> bool:
    if scheme.kind == "none" or isinstance(layer, _FLOAT):
        return False
    if isinstance(layer, keras.layers.Embedding):
        return scheme.kind == "static"
    return scheme.weight_bits > 4 or not isinstance(layer, _FLOAT_IN_4_BITS)


def _own_weights(layer: Any) -> list[Any]:
    """The weights of a layer that aren't those of layers within it."""
    within = {
        id(w)
        for inner in sublayers(layer)
        for w in inner.weights
        if not isinstance(layer, _RECURRENT)
    }
    return [w for w in layer.weights if id(w) not in within]
