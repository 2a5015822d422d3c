"""One symbolic run of a model on one example, with what its layers read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras

from keras_distill.features import sublayers, symbolic_inputs

# What happens in these goes by their own shapes, not by the steps within.
_WHOLE = (
    keras.layers.GRU,
    keras.layers.LSTM,
    keras.layers.SimpleRNN,
    keras.layers.TimeDistributed,
)


class LayerCall(NamedTuple):
    """A call of a layer.

    Attributes:
        layer: The layer.
        read: The shapes of the tensors that it read.
        returned: The shape of the first tensor that it returned.
    """

    layer: keras.Layer
    read: list[tuple[int, ...]]
    returned: tuple[int, ...]


def layer_calls(model: keras.Model) -> list[LayerCall]:
    """What the layers of a model read and return for one example.

    Raises:
        ValueError: If the model's inputs have no fixed shapes.
    """
    inputs = symbolic_inputs(model)
    shapes = [t.shape for t in keras.tree.flatten(inputs) if t is not None]
    if not shapes or any(None in shape[1:] for shape in shapes):
        raise ValueError(
            "What a model costs depends on the shape of its inputs, which "
            f"isn't known. Received: '{model.name}' with inputs of shapes "
            f"{shapes}. Give it one shape: "
            "`keras.Sequential([keras.Input((224, 224, 3)), model])`."
        )
    one = keras.tree.map_structure(
        lambda t: keras.KerasTensor((1, *t.shape[1:]), t.dtype), inputs
    )
    return _calls_on(model, one)


def calls_in_step(call: LayerCall) -> list[LayerCall]:
    """The calls of one step of a `TimeDistributed`."""
    batch, _, *shape = call.read[0]
    step = keras.KerasTensor((batch, *shape), call.layer.compute_dtype)
    return _calls_on(call.layer.layer, step)


def _calls_on(model: keras.Layer, inputs: Any) -> list[LayerCall]:
    calls: list[LayerCall] = []
    with _watching(model, calls):
        _Run(model, calls.clear)(inputs)
    return calls


class _Run(keras.Layer):  # type: ignore[misc]  # keras is untyped
    """Gives a model Keras' symbolic call."""

    def __init__(self, model: keras.Layer, begin: Callable[[], None]) -> None:
        super().__init__(autocast=False)
        self.model = model
        self.begin = begin
        self.built = True

    def call(self, inputs: Any) -> Any:
        # A backend may try a second time.
        self.begin()
        return self.model(inputs, training=False)


@contextlib.contextmanager
def _watching(model: keras.Layer, calls: list[LayerCall]) -> Iterator[None]:
    within: list[keras.Layer] = []

    def watch(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if within:
                return call(*args, **kwargs)
            is_whole = type(layer) in _WHOLE
            within.extend([layer] if is_whole else [])
            try:
                outputs = call(*args, **kwargs)
            finally:
                within.clear()
            tensors = _shapes((args, kwargs))
            calls.append(LayerCall(layer, tensors, _shapes(outputs)[0]))
            return outputs

        return watched

    # An attribute of the instance hides the method of the class; deleting it
    # afterwards restores the layer exactly.
    watched_layers = _every_layer(model)
    try:
        for layer in watched_layers:
            layer.call = watch(layer, layer.call)
        yield
    finally:
        for layer in watched_layers:
            del layer.call


def _every_layer(model: keras.Layer) -> list[keras.Layer]:
    found: dict[int, keras.Layer] = {}
    waiting = [model]
    while waiting:
        layer = waiting.pop()
        if id(layer) not in found:
            found[id(layer)] = layer
            waiting += sublayers(layer)
    return list(found.values())


def _shapes(structure: Any) -> list[tuple[int, ...]]:
    return [
        tuple(leaf.shape)
        for leaf in keras.tree.flatten(structure)
        if isinstance(leaf, keras.KerasTensor) or keras.ops.is_tensor(leaf)
    ]
