"""What a model ends in: logits, a softmax or sigmoids."""

from __future__ import annotations

from typing import Any

import keras

from keras_distill.fake_quantization import (
    FakeQuantizedActivations,
    FakeQuantizedWeights,
)
from keras_distill.features import (
    LayerName,
    find_layer,
    symbolic_output,
)

_PROBABILITIES = ("softmax", "sigmoid")
# These pass a probability on as it is.
_TRANSPARENT = (
    FakeQuantizedActivations,
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.Permute,
    keras.layers.Reshape,
)


def final_activation(model: keras.Model, name: LayerName = None) -> str | None:
    """Find the softmax or sigmoid that an output of a model goes through.

    Looks at the graph of Functional and Sequential models. A subclassed model
    shows none, and neither does a Lambda layer.

    Args:
        model: A built model.
        name: One of its layers, the key or index of an output, or `None` for
            its only output.

    Returns:
        `"softmax"`, `"sigmoid"`, or `None` where none is seen.
    """
    output = symbolic_output(model)
    if isinstance(name, str) and not (
        isinstance(output, dict) and name in output
    ):
        try:
            return layer_activation(find_layer(model, name))
        except ValueError:  # the key of an output that no graph shows
            return None
    if name is not None:
        try:
            output = output[name] if keras.tree.is_nested(output) else None
        except (KeyError, IndexError, TypeError):  # no such output
            return None
    tensors = keras.tree.flatten(output)
    if len(tensors) != 1:
        return None
    return _if_probability(_activation_of_tensor(tensors[0]))


def output_activations(model: keras.Model) -> list[str | None]:
    """Find the activation that each output of a model goes through.

    Args:
        model: A built model.

    Returns:
        Names of `keras.activations`, such as `"linear"`, in the order of the
        flattened outputs; `None` where none is seen. Empty where the model
        shows no graph.
    """
    tensors = keras.tree.flatten(symbolic_output(model))
    return [_activation_of_tensor(t) for t in tensors if t is not None]


def layer_activation(layer: keras.Layer) -> str | None:
    """Find the softmax or sigmoid that a layer's or a model's output is of.

    Returns:
        `"softmax"`, `"sigmoid"`, or `None` where none is seen.
    """
    return _if_probability(_activation_of_layer(layer))


def _if_probability(activation: str | None) -> str | None:
    return activation if activation in _PROBABILITIES else None


def _activation_of_tensor(tensor: Any) -> str | None:
    # Which call of which operation a symbolic tensor comes from. An
    # operation's `output` won't do: a sub-model's belongs to another graph,
    # and a layer that was called twice has none.
    history = getattr(tensor, "_keras_history", None)
    if history is None:
        return None
    operation, node, index = history
    if isinstance(operation, keras.Model):
        # Tensors of the sub-model's own graph; a subclassed one has none.
        inner = getattr(operation, "outputs", None)
        return _activation_of_tensor(inner[index]) if inner else None
    if _passes_on(operation):
        (source,) = operation._inbound_nodes[node].input_tensors
        return _activation_of_tensor(source)
    if isinstance(operation, keras.layers.Average):
        # As an ensemble ends: a mean of probabilities is one.
        sources = operation._inbound_nodes[node].input_tensors
        found = {_activation_of_tensor(source) for source in sources}
        return found.pop() if len(found) == 1 else None
    if isinstance(operation, keras.Layer):
        return _activation_of_config(operation)
    # A function of keras.ops that was called on a symbolic tensor.
    return type(operation).__name__.lower()


def _activation_of_layer(layer: keras.Layer) -> str | None:
    tensors = keras.tree.flatten(symbolic_output(layer))
    if len(tensors) == 1 and tensors[0] is not None:
        return _activation_of_tensor(tensors[0])
    return _activation_of_config(layer)


def _activation_of_config(layer: keras.Layer) -> str | None:
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    if isinstance(layer, keras.layers.TimeDistributed | FakeQuantizedWeights):
        return _activation_of_config(layer.layer)
    try:
        activation = layer.get_config().get("activation")
    except NotImplementedError:  # a custom layer without a config
        return None
    # A custom function's is a dict.
    return activation if isinstance(activation, str) else None


def _passes_on(operation: Any) -> bool:
    if isinstance(operation, keras.layers.Activation):
        return bool(operation.get_config()["activation"] == "linear")
    # `ops.cast` has no layer, and the class of its operation no public name.
    return isinstance(operation, _TRANSPARENT) or (
        not isinstance(operation, keras.Layer)
        and type(operation).__name__
        in ("Cast", "ExpandDims", "Reshape", "Squeeze")
    )
