"""Layers that round as a LiteRT file will, and pass gradients on."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

# How fast a range follows the batches; what calibration gave is near already.
_MOMENTUM = 0.99
# No scale is zero, in the file either.
_SMALLEST_RANGE = 1e-9
_LOWEST_INTEGER, _HIGHEST_INTEGER = -128, 127
_STEPS = _HIGHEST_INTEGER - _LOWEST_INTEGER

_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


def channel_axes(kind: type[keras.Layer]) -> tuple[int, ...]:
    """The axes of a layer's kernel that its output channels are on."""
    if issubclass(kind, _TRANSPOSED):
        return (-2,)
    # Channels of the input, and how many are made of each.
    return (-2, -1) if issubclass(kind, _DEPTHWISE) else (-1,)


def fake_quantize_weights(
    weights: Any, bits: int, axes: tuple[int, ...]
) -> Any:
    """Weights rounded to integers of a channel's own scale.

    Formula:
        `scale = max|w| / (2**(bits - 1) - 1)`, `round(w / scale) * scale`; the
        gradient is that of `w`.

    Args:
        weights: A float32 tensor.
        bits: Bits of an integer.
        axes: Axes of the channels.
    """
    highest = 2 ** (bits - 1) - 1
    rank = len(weights.shape)
    channels = {axis % rank for axis in axes}
    others = [axis for axis in range(rank) if axis not in channels]
    bound = ops.max(ops.abs(weights), axis=others, keepdims=True)
    scale = ops.maximum(bound, _SMALLEST_RANGE) / highest
    integers = ops.clip(ops.round(weights / scale), -highest, highest)
    return _straight_through(integers * scale, weights)


def fake_quantize_activations(x: Any, lowest: Any, highest: Any) -> Any:
    """A tensor rounded to 256 values, of which one is exactly 0.

    Formula:
        `scale = (highest - lowest) / 255`,
        `zero_point = round(-128 - lowest / scale)`,
        `integer = clip(round(x / scale) + zero_point, -128, 127)`, result
        `(integer - zero_point) * scale`. Inside of the range the gradient is
        that of `x`, and of the scale (LSQ); outside of it, that of the bound.

    Args:
        x: A float32 tensor.
        lowest: Lower end of the range, a float32 scalar.
        highest: Upper end of the range, a float32 scalar.
    """
    # With 0 in it, so that padding costs nothing. An end at 0 stays there.
    lowest = ops.where(lowest < 0, lowest, 0.0)
    highest = ops.where(highest > 0, highest, 0.0)
    scale = ops.maximum(highest - lowest, _SMALLEST_RANGE) / _STEPS
    zero_point = ops.round(_LOWEST_INTEGER - lowest / scale)
    steps = ops.round(x / scale)
    integers = steps + zero_point
    clipped = ops.clip(integers, _LOWEST_INTEGER, _HIGHEST_INTEGER)
    rounded = x + ops.stop_gradient(steps - x / scale) * scale
    surrogate = ops.where(integers > _HIGHEST_INTEGER, highest, rounded)
    surrogate = ops.where(integers < _LOWEST_INTEGER, lowest, surrogate)
    return _straight_through((clipped - zero_point) * scale, surrogate)


def _straight_through(value: Any, surrogate: Any) -> Any:
    """The value, exactly, with the gradient of something else."""
    zero = surrogate - ops.stop_gradient(surrogate)
    return ops.stop_gradient(value) + zero


@keras.saving.register_keras_serializable("keras_distill")
class FakeQuantizedWeights(keras.layers.Wrapper):  # type: ignore[misc]  # keras is untyped
    """A layer that computes with rounded weights, and trains the exact ones.

    `quantization_aware` puts them in the place of a student's layers. An
    `Embedding` has one range for its whole table, as its file has.

    Args:
        layer: A layer with a kernel, or an `Embedding`.
        scheme: The quantisation scheme of the file that it trains for.
        bits: Bits of a weight in that scheme.
        name: The layer's name.
        trainable: Whether it trains.

    Example:
        >>> import keras, numpy as np
        >>> dense = keras.layers.Dense(1, kernel_initializer="ones")
        >>> layer = FakeQuantizedWeights(dense, "weight_only_int4", 4)
        >>> sums = layer(np.ones((1, 3), "float32"))
        >>> float(keras.ops.convert_to_numpy(sums)[0, 0])
        3.0
    """

    def __init__(
        self,
        layer: keras.Layer,
        scheme: str,
        bits: int,
        name: str | None = None,
        trainable: bool = True,
    ) -> None:
        # The layer casts for itself; the rounding is in float32. What the layer
        # adds to the losses is lost where it computes with other weights.
        super().__init__(
            layer,
            name=name,
            dtype="float32",
            autocast=False,
            activity_regularizer=layer.activity_regularizer,
        )
        self.scheme = scheme
        self.bits = bits
        self.supports_masking = layer.supports_masking
        self.trainable = trainable

    def call(self, inputs: Any) -> Any:
        """The layer's output with rounded weights."""
        kernel = self._kernel()
        values = [(v, v.value) for v in self.layer.variables]
        values = [
            (v, self._rounded(value) if v is kernel else value)
            for v, value in values
        ]
        with keras.StatelessScope(state_mapping=values):
            return self.layer(inputs)

    def _kernel(self) -> keras.Variable:
        if isinstance(self.layer, keras.layers.Embedding):
            return self.layer.embeddings
        return self.layer.kernel

    def _rounded(self, weights: Any) -> Any:
        return ops.cast(self._in_float32(weights), weights.dtype)

    def _in_float32(self, weights: Any) -> Any:
        weights = ops.cast(weights, "float32")
        if not isinstance(self.layer, keras.layers.Embedding):
            axes = channel_axes(type(self.layer))
            return fake_quantize_weights(weights, self.bits, axes)
        fixed = ops.stop_gradient(weights)
        return fake_quantize_activations(
            weights, ops.min(fixed), ops.max(fixed)
        )

    def rounded_weights(self) -> Any:
        """The kernel, or the embeddings, as the layer computes with them."""
        return self._rounded(self._kernel().value)

    def compute_output_spec(self, inputs: Any) -> Any:
        """That of the layer."""
        return self.layer.compute_output_spec(inputs)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """That of the layer."""
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer."""
        return {
            "name": self.name,
            "trainable": self.trainable,
            "layer": keras.saving.serialize_keras_object(self.layer),
            "scheme": self.scheme,
            "bits": self.bits,
        }


@keras.saving.register_keras_serializable("keras_distill")
class FakeQuantizedActivations(keras.layers.Layer):  # type: ignore[misc]  # keras is untyped
    """Rounds a tensor to 256 values within a range that it learns.

    `quantization_aware` puts one behind each layer whose output has a range of
    its own in the file.

    Args:
        ranges: "moving_average": the range follows the smallest and largest
            value of the batches, and rests at inference. "learned": its ends
            are trained as weights.
        fixed: The two ends of a range that the file doesn't choose, such as
            that of a softmax.
        name: The layer's name.
        trainable: Whether the range changes.

    Shapes:
        any; the same.

    Example:
        >>> import keras, numpy as np
        >>> layer = FakeQuantizedActivations(fixed=(0.0, 255.0))
        >>> [float(v) for v in layer(np.float32([-3.0, 7.4, 300.0]))]
        [0.0, 7.0, 255.0]

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for
        Efficient Integer-Arithmetic-Only Inference", CVPR 2018; Esser et al.,
        "Learned Step Size Quantization", ICLR 2020.
    """

    def __init__(
        self,
        ranges: str = "moving_average",
        fixed: tuple[float, float] | None = None,
        name: str | None = None,
        trainable: bool = True,
    ) -> None:
        super().__init__(name=name, dtype="float32", autocast=False)
        self.ranges = ranges
        self.fixed = None if fixed is None else tuple(fixed)
        self.trainable = trainable
        self.supports_masking = True
        # While it is true, the range grows, and nothing is rounded.
        self.observes = False

    def build(self, input_shape: Any) -> None:
        """Add the two ends of the range."""
        if self.fixed is None:
            learns = self.ranges == "learned"
            self.lowest, self.highest = (
                self.add_weight((), "zeros", trainable=learns, name=name)
                for name in ("lowest", "highest")
            )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The tensor, rounded."""
        x = ops.cast(inputs, "float32")
        if self.observes:
            self._follow(x, 0.0)
            return inputs
        if (
            training
            and self.trainable
            and self.fixed is None
            and self.ranges == "moving_average"
        ):
            self._follow(x, _MOMENTUM)
        rounded = fake_quantize_activations(x, *self._ends())
        return ops.cast(rounded, keras.backend.standardize_dtype(inputs.dtype))

    def _follow(self, x: Any, momentum: float) -> None:
        """Let the range move to a batch's; without momentum, only grow."""
        if self.fixed is not None:
            return
        x = ops.stop_gradient(x)
        low, high = ops.min(x), ops.max(x)
        if momentum:
            rest = 1 - momentum
            low = momentum * self.lowest.value + rest * ops.minimum(low, 0.0)
            high = momentum * self.highest.value + rest * ops.maximum(high, 0.0)
        else:
            low = ops.minimum(low, self.lowest.value)
            high = ops.maximum(high, self.highest.value)
        self.lowest.assign(low)
        self.highest.assign(high)

    def _ends(self) -> tuple[Any, Any]:
        if self.fixed is not None:
            return tuple(
                ops.convert_to_tensor(v, "float32") for v in self.fixed
            )
        return self.lowest.value, self.highest.value

    def range(self) -> tuple[float, float]:
        """The range's lower and upper end, with 0 in it."""
        low, high = (float(ops.convert_to_numpy(v)) for v in self._ends())
        return min(low, 0.0), max(high, 0.0)

    def compute_output_spec(
        self, inputs: Any, training: bool | None = None
    ) -> Any:
        """That of the input."""
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer."""
        return {
            "name": self.name,
            "trainable": self.trainable,
            "ranges": self.ranges,
            "fixed": self.fixed,
        }
