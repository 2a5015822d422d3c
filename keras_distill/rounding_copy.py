"""A copy of a student that rounds where its quantised file does."""

from __future__ import annotations

import functools
from typing import Any

import keras

from keras_distill.fake_quantization import (
    FakeQuantizedActivations,
    FakeQuantizedWeights,
)
from keras_distill.layer_stages import (
    activation_of,
    can_fold,
    fuses,
    has_stages,
    stages,
)
from keras_distill.model_graphs import (
    Graph,
    copy_of,
    copy_variables,
    has_graph,
    id_limits,
    layers_of,
    rebuild,
    trace,
)
from keras_distill.output_names import with_output_names

# What ai-edge-quantizer rounds; it leaves other layers in float.
_ROUNDED_TO_4_BITS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Dense,
)
_ROUNDED_TO_8_BITS = (
    *_ROUNDED_TO_4_BITS,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)
# Their outputs have the ranges of their inputs.
_SAME_RANGE = (
    "AveragePooling1D",
    "AveragePooling2D",
    "Cropping1D",
    "Cropping2D",
    "Dropout",
    "Flatten",
    "GaussianNoise",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "Identity",
    "MaxPooling1D",
    "MaxPooling2D",
    "Permute",
    "RepeatVector",
    "Reshape",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "Transpose",
    "ZeroPadding1D",
    "ZeroPadding2D",
)
# A file has these ranges, whatever the values are.
_FIXED = {
    "sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}


class RoundingCopy:
    """Copies a student's graph, with layers that round.

    Args:
        student: A built Functional or Sequential model.
        scheme: The quantisation scheme.
        ranges: The kind of the activations' ranges.
    """

    def __init__(self, student: keras.Model, scheme: str, ranges: str) -> None:
        self.student = student
        self.scheme = scheme
        self.ranges = ranges
        self.names = {layer.name for layer in layers_of(student)}
        # Of each layer: what takes its place, and the normalisation in it.
        self.copies: dict[int, tuple[list[keras.Layer], Any]] = {}
        # What to do once all variables are there.
        self.values: list[tuple[keras.Layer, Any]] = []

    @functools.cached_property
    def _ids(self) -> set[str]:
        """Inputs that are looked up in a table: these have no ranges."""
        limits = id_limits(self.student)
        inputs = zip(self.student.inputs, limits, strict=True)
        return {x.name for x, limit in inputs if limit is not None}

    def make(self) -> keras.Model:
        """The student's copy."""
        copy = with_output_names(
            self._copy_model(self.student), _output_names(self.student)
        )
        for layer, source in self.values:
            if isinstance(source, list):
                layer.set_weights(source)
            else:
                copy_variables(source, layer)
        return copy

    def _copy_model(self, model: keras.Model) -> keras.Model:
        graph = trace(model)

        def call(step: int, _: Any, *args: Any, **kwargs: Any) -> Any:
            return self._call(graph, step, args, kwargs)

        outermost = model is self.student
        return rebuild(model, call, self._prepare if outermost else None)

    def _prepare(self, inputs: Any) -> Any:
        if inputs.name in self._ids:
            return inputs
        named = not inputs.name.startswith("keras_tensor")
        return self._ranged(inputs, inputs.name if named else "input")

    def _call(self, graph: Graph, step: int, args: Any, kwargs: Any) -> Any:
        if _is_folded(graph, step):
            return args[0]
        operation = graph.steps[step].operation
        first, *others = self._copies_of(graph, step)
        x = first(*args, **kwargs)
        for before, layer in zip([first, *others], others, strict=False):
            x = layer(self._ranged(x, before.name))
        if not self._has_range(graph, step):
            return x
        name = (others or [first])[-1].name
        ending = activation_of(operation)
        return keras.tree.map_structure(
            lambda tensor: self._ranged(tensor, name, _FIXED.get(ending)), x
        )

    def _copies_of(self, graph: Graph, step: int) -> list[keras.Layer]:
        operation, norm = graph.steps[step].operation, _norm(graph, step)
        if id(operation) not in self.copies:
            self.copies[id(operation)] = self._new_copies(operation, norm), norm
        layers, seen = self.copies[id(operation)]
        if seen is not norm:
            raise ValueError(
                "A layer that several models share has a BatchNormalization "
                f"behind it in one of them. Received: layer '{operation.name}'."
                " Give each of the models a layer of its own."
            )
        return layers

    def _new_copies(self, operation: Any, norm: Any) -> list[keras.Layer]:
        if isinstance(operation, keras.Model) and has_graph(operation):
            return [self._copy_model(operation)]
        if has_stages(operation):
            parts = stages(operation, norm)
            self.values += [(v.layer, v.weights) for v in parts if v.weights]
            return [self._rounding(part.layer) for part in parts]
        copy = copy_of(operation)
        if isinstance(copy, keras.Layer):
            self.values.append((copy, operation))
        return [self._rounding(copy)]

    def _rounding(self, layer: Any) -> Any:
        """A layer with rounded weights, if its file has them."""
        bits = 4 if self.scheme.endswith("int4") else 8
        rounded = _ROUNDED_TO_4_BITS if bits == 4 else _ROUNDED_TO_8_BITS
        if self.scheme == "int8":
            rounded = (*rounded, keras.layers.Embedding)
        if type(layer) not in rounded:
            return layer
        return FakeQuantizedWeights(
            layer, self.scheme, bits, name=layer.name, trainable=layer.trainable
        )

    def _has_range(self, graph: Graph, step: int) -> bool:
        """Whether a file gives the output of a call a range of its own."""
        operation = graph.steps[step].operation
        if _keeps_range(operation):
            return False
        if activation_of(operation) in _FIXED and graph.is_last(step):
            # It would hide from a loss that the student ends in a softmax.
            return False
        after = graph.following(_end(graph, step))
        if after is None:
            return True
        reader = graph.steps[after].operation
        if type(reader).__name__ == "Concatenate":
            return False
        # A layer with weights has its activation behind them.
        return not (
            fuses(operation)
            and not has_stages(reader)
            and activation_of(reader) in ("relu", "relu6")
        )

    def _ranged(self, x: Any, name: str, fixed: Any = None) -> Any:
        is_float = keras.backend.is_float_dtype(x.dtype)
        if self.scheme != "int8" or not is_float:
            return x
        layer = FakeQuantizedActivations(
            self.ranges, fixed, name=self._new_name(f"{name}_range")
        )
        return layer(x)

    def _new_name(self, name: str) -> str:
        names = (name, *(f"{name}_{i}" for i in range(1, len(self.names) + 1)))
        name = next(n for n in names if n not in self.names)
        self.names.add(name)
        return name


def _keeps_range(operation: Any) -> bool:
    """Whether an output is rounded if the input is, or the weights are."""
    if isinstance(operation, keras.Model) and has_graph(operation):
        return True
    if activation_of(operation) == "linear" and not has_stages(operation):
        return True
    return type(operation).__name__ in (*_SAME_RANGE, "Embedding")


def _output_names(student: keras.Model) -> list[str]:
    if isinstance(student, keras.Sequential):
        return [student.layers[-1].name]
    return list(student.output_names)


def _norm(graph: Graph, step: int) -> Any:
    """The normalisation that becomes part of a layer, or None."""
    after = graph.following(step)
    if after is None:
        return None
    layer, norm = graph.steps[step].operation, graph.steps[after].operation
    alone = graph.is_called_once(step) and graph.is_called_once(after)
    return norm if alone and can_fold(layer, norm) else None


def _is_folded(graph: Graph, step: int) -> bool:
    before = graph.preceding(step)
    return before is not None and _norm(graph, before) is not None


def _end(graph: Graph, step: int) -> int:
    """The call that returns what a layer and its normalisation do."""
    after = graph.following(step)
    return step if after is None or _norm(graph, step) is None else after
