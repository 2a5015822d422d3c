"""A layer in the parts that a LiteRT file has of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np

from keras_distill.fake_quantization import channel_axes

_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)
_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose)
_SEPARABLE = {
    keras.layers.SeparableConv1D: (
        keras.layers.DepthwiseConv1D,
        keras.layers.Conv1D,
    ),
    keras.layers.SeparableConv2D: (
        keras.layers.DepthwiseConv2D,
        keras.layers.Conv2D,
    ),
}
# A user's subclass may compute something else.
_WEIGHTED = {*_CONVOLUTIONS, *_TRANSPOSED, *_SEPARABLE, keras.layers.Dense}
# What the operation of a layer does by itself.
_FUSED = ("linear", "relu", "relu6")


class Stage(NamedTuple):
    """A part of a layer.

    Attributes:
        layer: A new layer, not yet built.
        weights: What its weights are to be, in its order.
    """

    layer: keras.Layer
    weights: list[np.ndarray]


def has_stages(layer: Any) -> bool:
    """Whether a layer is one that `stages` knows."""
    if type(layer) in _SEPARABLE:
        return bool(layer.padding != "causal")
    return type(layer) in _WEIGHTED


def fuses(layer: Any) -> bool:
    """Whether a file has a layer and a ReLU behind it as one operation."""
    kind = type(layer).__name__
    if kind in ("Add", "BatchNormalization", "Multiply", "Subtract"):
        return True
    return (
        has_stages(layer)
        and type(layer) not in _TRANSPOSED
        and activation_of(layer) == "linear"
    )


def can_fold(layer: Any, norm: Any) -> bool:
    """Whether a normalisation behind a layer can be part of its weights."""
    if type(norm) is not keras.layers.BatchNormalization:
        return False
    if not has_stages(layer) or activation_of(layer) != "linear":
        return False
    if layer.activity_regularizer or norm.activity_regularizer:
        # Of values that one layer wouldn't have.
        return False
    first = getattr(layer, "data_format", "") == "channels_first"
    # The rank of a map is that of the kernels that go over it.
    rank = len(layer.weights[0].shape)
    is_map = type(layer) is not keras.layers.Dense
    channels = {1} if first else {-1, rank - 1} if is_map else {-1}
    return norm.axis in channels


def stages(layer: keras.Layer, norm: keras.Layer | None) -> list[Stage]:
    """A layer as layers that are one operation each.

    Args:
        layer: A built layer that `has_stages`.
        norm: A `BatchNormalization` behind it that becomes part of it.
    """
    arrays = [keras.ops.convert_to_numpy(v) for v in layer.weights]
    *kernels, bias = arrays if layer.use_bias else [*arrays, None]
    activation = activation_of(layer)
    fused = activation in _FUSED and (
        activation == "linear" or type(layer) not in _TRANSPOSED
    )
    found, main = _depthwise_stage(layer, kernels), layer.get_config()
    kind = type(layer)
    if kind in _SEPARABLE:
        main, kind = _pointwise_config(main), _SEPARABLE[kind][1]
    if norm is not None:
        kernels[-1], bias = _fold(kind, kernels[-1], bias, norm)
    main["use_bias"] = bias is not None
    # It is for what the layer returns, behind the activation.
    main["activity_regularizer"] = layer.activity_regularizer if fused else None
    if not fused:
        main["activation"] = "linear"
    weights = [kernels[-1]] if bias is None else [kernels[-1], bias]
    found.append(Stage(kind.from_config(main), weights))
    if not fused:
        after = keras.layers.Activation(
            layer.activation,
            name=f"{layer.name}_activation",
            dtype=layer.dtype_policy,
            activity_regularizer=layer.activity_regularizer,
        )
        found.append(Stage(after, []))
    return found


def _depthwise_stage(
    layer: keras.Layer, kernels: list[np.ndarray]
) -> list[Stage]:
    if type(layer) not in _SEPARABLE:
        return []
    config = layer.get_config()
    kept = (
        "trainable",
        "dtype",
        "kernel_size",
        "strides",
        "padding",
        "data_format",
        "dilation_rate",
        "depth_multiplier",
        "depthwise_initializer",
        "depthwise_regularizer",
        "depthwise_constraint",
    )
    arguments = {name: config[name] for name in kept}
    depthwise = _SEPARABLE[type(layer)][0].from_config(
        {**arguments, "use_bias": False, "name": f"{layer.name}_depthwise"}
    )
    return [Stage(depthwise, kernels[:1])]


def _pointwise_config(config: dict[str, Any]) -> dict[str, Any]:
    same = (
        "name",
        "trainable",
        "dtype",
        "filters",
        "data_format",
        "activation",
        "use_bias",
        "bias_initializer",
        "bias_regularizer",
        "bias_constraint",
    )
    renamed = ("initializer", "regularizer", "constraint")
    return {
        **{name: config[name] for name in same},
        **{f"kernel_{n}": config[f"pointwise_{n}"] for n in renamed},
        "kernel_size": 1,
    }


def _fold(
    kind: type[keras.Layer],
    kernel: np.ndarray,
    bias: np.ndarray | None,
    norm: keras.Layer,
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias with a normalisation at inference as part of them."""

    def value(variable: Any, default: float) -> Any:
        if variable is None:
            return default
        return keras.ops.convert_to_numpy(variable).astype("float64")

    deviation = np.sqrt(value(norm.moving_variance, 1.0) + norm.epsilon)
    scale = value(getattr(norm, "gamma", None), 1.0) / deviation
    shift = (0.0 if bias is None else bias) - value(norm.moving_mean, 0.0)
    axes = channel_axes(kind)
    shape = [
        kernel.shape[axis] if axis - kernel.ndim in axes else 1
        for axis in range(kernel.ndim)
    ]
    return (
        (kernel * scale.reshape(shape)).astype("float32"),
        (value(getattr(norm, "beta", None), 0.0) + shift * scale).astype(
            "float32"
        ),
    )


def activation_of(operation: Any) -> str:
    """The name of what a layer ends in: "linear", "relu" ... or "other"."""
    if isinstance(operation, keras.layers.Softmax):
        return "softmax"
    if isinstance(operation, keras.layers.ReLU):
        return _relu_name(operation)
    if isinstance(operation, keras.layers.Activation) or has_stages(operation):
        name = keras.activations.serialize(operation.activation)
        return name if isinstance(name, str) else "other"
    if isinstance(operation, keras.layers.Layer):
        return "other"
    return type(operation).__name__.lower()


def _relu_name(layer: keras.layers.ReLU) -> str:
    if layer.negative_slope or layer.threshold:
        return "other"
    names = {None: "relu", 6.0: "relu6"}
    return names.get(layer.max_value, "other")
