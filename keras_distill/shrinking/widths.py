"""Which units a model has, how they are tied, and what each layer keeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_distill.shrinking import (
    attention_rules,
    convolution_rules,
    shape_rules,
    vector_rules,
)
from keras_distill.shrinking.graphs import (
    Call,
    CallGraph,
    Tensor,
    tensors_of,
)
from keras_distill.shrinking.plans import LayerCall, Plan, Rule, is_kept
from keras_distill.shrinking.units import Axes, Units

# A user's subclass may compute something else.
RULES: dict[Any, Rule] = {
    **attention_rules.RULES,
    **convolution_rules.RULES,
    **shape_rules.RULES,
    **vector_rules.RULES,
}


class Widths:
    """What of each layer depends on which units.

    Args:
        graphs: The graph of the model and those of the models in it, by the
            model's id.
    """

    def __init__(self, graphs: dict[int, CallGraph]) -> None:
        self.units = Units()
        self.plans: dict[int, Plan] = {}
        # Names of layers whose units are kept, as nothing is known of them.
        self.unknown: list[str] = []
        # The axes of each model's inputs.
        self.inputs: dict[int, list[Axes]] = {}
        self._graphs = graphs

    def walk(self, model: keras.Model, inputs: list[Axes]) -> list[Axes]:
        """Follow the units through a model.

        Args:
            model: The model.
            inputs: The axes of its inputs.

        Returns:
            The axes of its outputs.
        """
        graph = self._graphs[id(model)]
        for old, new in zip(
            self.inputs.get(id(model), inputs), inputs, strict=True
        ):
            for first, second in zip(old, new, strict=True):
                self.units.tie(first, second)
        self.inputs[id(model)] = inputs
        axes = {
            t.number: given
            for t, given in zip(tensors_of(graph.inputs), inputs, strict=True)
        }
        for call in graph.calls:
            plan = self.plans.setdefault(id(call.operation), Plan())
            outputs = self._apply(LayerCall(call, plan, axes, self.units))
            for tensor, found in zip(call.outputs, outputs, strict=True):
                axes[tensor.number] = found
        return [axes[t.number] for t in tensors_of(graph.outputs)]

    def _apply(self, call: LayerCall) -> list[Axes]:
        operation = call.operation
        if id(operation) in self._graphs:
            return self.walk(operation, call.inputs)
        if type(operation) is keras.layers.TimeDistributed:
            return self._apply_to_each(call)
        if isinstance(operation, keras.Layer):
            rule = RULES.get(type(operation))
        else:
            rule = shape_rules.OPERATIONS.get(type(operation).__name__)
        read = [labels for axes in call.inputs for labels in axes]
        if rule is None or not call.inputs:
            outputs: Any = call.unknown()
        else:
            outputs = rule(call)
        if call.is_unknown and not all(map(is_kept, read)):
            self.unknown.append(operation.name)
        return outputs if isinstance(outputs, list) else [outputs]

    def _apply_to_each(self, call: LayerCall) -> list[Axes]:
        """Follow the units through a layer that sees one step at a time."""
        call.units.keep(call.x[1])
        (source,), (target,) = call.tensors, call.call.outputs
        step = [
            Tensor(i, (t.shape[0], *t.shape[2:]))
            for i, t in enumerate((source, target))
        ]
        layer = call.operation.layer
        inner = LayerCall(
            Call(layer, ((step[0],), {}), (step[1],)),
            self.plans.setdefault(id(layer), Plan()),
            {0: (call.x[0], *call.x[2:])},
            self.units,
        )
        (axes,) = self._apply(inner)
        return [(axes[0], None, *axes[1:])]

    def norms(self, layers: Iterable[Any]) -> np.ndarray:
        """The squared norm of the weights that make each unit."""
        norms = np.zeros(self.units.count)
        for layer in layers:
            for weight, (axes, axis) in zip(
                layer.weights, self.plans[id(layer)].weights or [], strict=False
            ):
                labels = None if axis is None else axes[axis]
                if axis is None or labels is None:
                    continue
                array = keras.ops.convert_to_numpy(weight).astype("float64")
                others = tuple(
                    i for i in range(array.ndim) if i != axis % array.ndim
                )
                np.add.at(norms, labels, np.square(array).sum(others))
        return norms
