"""Which units convolutions and what goes over maps read and make."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import layers

from keras_distill.shrinking.plans import LayerCall, Rule, bias, replaced
from keras_distill.shrinking.units import Axes, Labels


def _convolution(call: LayerCall) -> Axes:
    layer, channels = call.operation, call.x[_channel_axis(call.operation)]
    groups, out = layer.groups, None
    read = channels
    each = layer.weights[0].shape[-2]
    if groups > 1 and each == 1:
        # Each filter sees one channel, and goes with it.
        read = None
        if channels is not None:
            out = np.repeat(channels, layer.filters // groups)
            call.count(groups=channels)
    else:
        out = call.new(layer.filters)
        if groups > 1:
            # All groups keep the same positions.
            read = _first_group(call, channels, groups)
            _first_group(call, out, groups)
    call.count(filters=out)
    space = (None,) * len(layer.kernel_size)
    call.weigh(((*space, read, out), -1), *bias(call, out))
    return _mapped(call, out)


def _first_group(call: LayerCall, labels: Labels, groups: int) -> Labels:
    if labels is None:
        return None
    rows = labels.reshape(groups, -1)
    call.units.tie(rows, rows[:1])
    return np.asarray(rows[0])


def _transposed(call: LayerCall) -> Axes:
    layer, channels = call.operation, call.x[_channel_axis(call.operation)]
    out = call.new(layer.filters)
    call.count(filters=out)
    space = (None,) * len(layer.kernel_size)
    call.weigh(((*space, out, channels), -2), *bias(call, out))
    return _mapped(call, out)


def _depthwise(call: LayerCall) -> Axes:
    layer, channels = call.operation, call.x[_channel_axis(call.operation)]
    out = _multiplied(channels, layer.depth_multiplier)
    space = (None,) * len(layer.kernel_size)
    # It makes no units: its channels are those that it reads.
    call.weigh(
        ((*space, channels, None), None),
        *[(axes, None) for axes, _ in bias(call, out)],
    )
    return _mapped(call, out)


def _separable(call: LayerCall) -> Axes:
    layer, channels = call.operation, call.x[_channel_axis(call.operation)]
    between = _multiplied(channels, layer.depth_multiplier)
    out = call.new(layer.filters)
    call.count(filters=out)
    space = (None,) * len(layer.kernel_size)
    call.weigh(
        ((*space, channels, None), None),
        ((*space, between, out), -1),
        *bias(call, out),
    )
    return _mapped(call, out)


def _multiplied(labels: Labels, times: int) -> Labels:
    return None if labels is None else np.repeat(labels, times)


def _recurrent_convolution(call: LayerCall) -> list[Axes]:
    layer = call.operation
    channels = call.x[_channel_axis(layer)]
    out = call.new(layer.filters)
    call.count(filters=out)
    gates = np.tile(out, 4)
    space = (None,) * len(layer.kernel_size)
    call.weigh(
        ((*space, channels, gates), -1),
        ((*space, out, gates), -1),
        *bias(call, gates),
    )
    axis = _channel_axis(layer)
    for state in call.inputs[1:]:
        call.units.tie(state[axis], out)
    return [
        replaced((None,) * len(t.shape), axis, out) for t in call.call.outputs
    ]


def _resampled(call: LayerCall) -> Axes:
    return _mapped(call, call.x[_channel_axis(call.operation)])


def _resampled_sequence(call: LayerCall) -> Axes:
    call.units.keep(call.x[1])
    return (None, None, call.x[-1])


def _flatten(call: LayerCall) -> Axes:
    axes, shape = call.x, call.shape
    if call.operation.data_format == "channels_first" and len(axes) > 1:
        axes = (axes[0], *axes[2:], axes[1])
        shape = (shape[0], *shape[2:], shape[1])
    return call.reshaped(axes, shape, call.output_shape)


def _channel_axis(layer: Any) -> int:
    return 1 if layer.data_format == "channels_first" else -1


def _mapped(call: LayerCall, channels: Labels) -> Axes:
    """The axes of a map whose places depend on places around them."""
    axis = _channel_axis(call.operation) % len(call.x)
    for i, labels in enumerate(call.x):
        if i != axis:
            call.units.keep(labels)
    axes: Axes = (None,) * len(call.output_shape)
    if len(axes) < len(call.x):  # a global pooling
        return replaced(axes, -1, channels)
    return replaced(axes, axis, channels)


def _all_ranks(names: str, rule: Rule) -> dict[Any, Rule]:
    kinds = [f"{n}{d}D" for n in names.split() for d in (1, 2, 3)]
    return {
        getattr(layers, kind): rule for kind in kinds if kind in dir(layers)
    }


RULES: dict[Any, Rule] = {
    **_all_ranks("Conv", _convolution),
    **_all_ranks("DepthwiseConv", _depthwise),
    **_all_ranks("SeparableConv", _separable),
    **_all_ranks("ConvLSTM", _recurrent_convolution),
    **_all_ranks(
        "AveragePooling MaxPooling GlobalAveragePooling GlobalMaxPooling"
        " AdaptiveAveragePooling AdaptiveMaxPooling",
        _resampled,
    ),
    layers.Conv1DTranspose: _transposed,
    layers.Conv2DTranspose: _transposed,
    layers.Conv3DTranspose: _transposed,
    layers.Cropping2D: _resampled,
    layers.Cropping3D: _resampled,
    layers.Resizing: _resampled,
    layers.UpSampling2D: _resampled,
    layers.UpSampling3D: _resampled,
    layers.ZeroPadding1D: _resampled,
    layers.ZeroPadding2D: _resampled,
    layers.ZeroPadding3D: _resampled,
    layers.Cropping1D: _resampled_sequence,
    layers.UpSampling1D: _resampled_sequence,
    layers.Flatten: _flatten,
}
