"""A model's smaller copy, built from what its layers keep."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_distill.shrinking.graphs import CallGraph, remade, tensors_of
from keras_distill.shrinking.units import Axes, Labels
from keras_distill.shrinking.widths import Widths


class Builder:
    """Builds students from graphs.

    Args:
        graphs: The graph of each model, by the model's id.
        widths: What each layer depends on.
        stays: Whether each unit stays.
    """

    def __init__(
        self, graphs: dict[int, CallGraph], widths: Widths, stays: np.ndarray
    ) -> None:
        self._graphs = graphs
        self._widths = widths
        self._stays = stays
        # Each layer of the teacher, and what takes its place.
        self.made: dict[int, tuple[Any, Any]] = {}

    def model(self, model: keras.Model) -> keras.Model:
        """The student of a model, without its weights."""
        graph = self._graphs[id(model)]
        tensors = tensors_of(graph.inputs)
        inputs = [
            keras.Input(
                batch_shape=self._shape(tensor.shape, axes),
                dtype=given.dtype,
                name=name,
                sparse=given.sparse,
            )
            for tensor, axes, given, name in zip(
                tensors,
                self._widths.inputs[id(model)],
                *_inputs(model),
                strict=True,
            )
        ]
        if isinstance(model, keras.Sequential):
            layers = [self.operation(call.operation) for call in graph.calls]
            return keras.Sequential([*inputs, *layers], name=model.name)
        packed = keras.tree.pack_sequence_as(graph.inputs, inputs)
        outputs = graph.run(packed, self.operation)
        return keras.Model(packed, outputs, name=model.name)

    def operation(self, operation: Any) -> Any:
        """What takes the place of a layer or an operation."""
        if id(operation) not in self.made:
            self.made[id(operation)] = operation, self._new(operation)
        return self.made[id(operation)][1]

    def copy_weights(self, every: bool) -> None:
        """Give the student the weights of the teacher's units that stay.

        Args:
            every: Whether to do so for all layers, and not only for those
                whose weights are statistics of the data.
        """
        for source, target in self.made.values():
            is_plain = isinstance(source, keras.Layer) and not (
                id(source) in self._graphs
                or isinstance(source, keras.layers.TimeDistributed)
            )
            if not is_plain or not source.weights:
                continue
            is_statistic = isinstance(source, keras.layers.Normalization)
            if every or is_statistic:
                target.set_weights(self._weights(source))
            if is_statistic:
                # It computes with other numbers, which follow from these.
                target.finalize_state()

    def _new(self, operation: Any) -> Any:
        if id(operation) in self._graphs:
            return self.model(operation)
        if type(operation) is keras.layers.TimeDistributed:
            inner = self.operation(operation.layer)
            return keras.layers.TimeDistributed(
                inner, name=operation.name, dtype=operation.dtype_policy
            )
        sizes = self._widths.plans[id(operation)].sizes
        return remade(
            operation,
            **{name: size(self._count) for name, size in sizes.items()},
        )

    def _weights(self, layer: Any) -> list[np.ndarray]:
        arrays = [keras.ops.convert_to_numpy(w) for w in layer.weights]
        told = self._widths.plans[id(layer)].weights
        if told is None:
            return arrays
        for i, (axes, _) in enumerate(told):
            for axis, labels in enumerate(axes):
                if labels is not None:
                    arrays[i] = arrays[i].compress(self._stays[labels], axis)
        return arrays

    def _shape(
        self, shape: tuple[int | None, ...], axes: Axes
    ) -> tuple[int | None, ...]:
        return tuple(
            size if labels is None else self._count(labels)
            for size, labels in zip(shape, axes, strict=True)
        )

    def _count(self, labels: Labels) -> int:
        return int(self._stays[labels].sum())


def _inputs(model: keras.Model) -> tuple[list[Any], list[str | None]]:
    """A model's inputs, and the names of their layers."""
    tensors = keras.tree.flatten(model.inputs)
    # A Sequential model lists no layer for its input.
    names = {
        id(layer.output): layer.name
        for layer in model.layers
        if isinstance(layer, keras.layers.InputLayer)
    }
    return tensors, [names.get(id(tensor)) for tensor in tensors]
