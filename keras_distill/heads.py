"""What a model ends in: logits, a softmax or sigmoids."""

from __future__ import annotations

from typing import Any

import keras

from keras_distill.features import (
    LayerName,
    find_layer,
    sublayers,
    symbolic_output,
)

_PROBABILITIES = ("softmax", "sigmoid")
# These pass a probability on as it is.
_TRANSPARENT = (
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
        return _activation_of_layer(find_layer(model, name))
    if output is None:
        return None
    if name is not None:
        output = output[name]
    tensors = keras.tree.flatten(output)
    if len(tensors) != 1:
        return None
    return _activation_of_tensor(model, tensors[0])


def _activation_of_tensor(model: keras.Model, tensor: Any) -> str | None:
    operations = [
        operation
        for operation in model.operations
        if any(t is tensor for t in keras.tree.flatten(_output(operation)))
    ]
    if not operations:
        return None
    operation = operations[0]
    if isinstance(operation, keras.Layer):
        activation = _activation_of_layer(operation)
        passes_on = isinstance(operation, _TRANSPARENT) or (
            isinstance(operation, keras.layers.Activation)
            and operation.get_config()["activation"] == "linear"
        )
        if passes_on and not isinstance(operation, keras.Model):
            return _activation_of_tensor(model, operation.input)
        return activation
    # A function of keras.ops that was called on a symbolic tensor.
    kind = type(operation).__name__.lower()
    return kind if kind in _PROBABILITIES else None


def _activation_of_layer(layer: keras.Layer) -> str | None:
    if isinstance(layer, keras.Model):
        if symbolic_output(layer) is None or not sublayers(layer):
            return None
        return final_activation(layer)
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    try:
        activation = layer.get_config().get("activation")
    except NotImplementedError:  # a custom layer without a config
        return None
    return activation if activation in _PROBABILITIES else None


def _output(operation: Any) -> Any:
    try:
        return operation.output
    except (AttributeError, ValueError):  # called several times, or never
        return None
