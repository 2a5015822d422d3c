"""A model's graph: which layer reads what, and the same graph built anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras

# Calls an operation, with a number that counts the calls from 0, on what it
# was called on.
Call = Callable[..., Any]


class Step(NamedTuple):
    """A call in a graph.

    Attributes:
        operation: The layer, or the operation of `keras.ops`.
        inputs: Numbers of the tensors that it reads.
        outputs: Numbers of the tensors that it returns.
    """

    operation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Graph:
    """The calls of a model, in the order in which they run.

    Args:
        steps: The calls.
        inputs: Numbers of the tensors that the model takes, in its order.
        outputs: Numbers of the tensors that the model returns.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        inputs: Sequence[int],
        outputs: Sequence[int],
    ) -> None:
        self.steps = list(steps)
        self.inputs = tuple(inputs)
        self.outputs = set(outputs)
        self._calls = Counter(id(step.operation) for step in steps)
        self._readers: dict[int, list[int]] = {}
        for i, step in enumerate(steps):
            for tensor in step.inputs:
                self._readers.setdefault(tensor, []).append(i)

    def following(self, step: int) -> int | None:
        """The only call that reads the only output of a call, if it is so."""
        outputs = self.steps[step].outputs
        if len(outputs) != 1 or self.is_last(step):
            return None
        readers = self._readers.get(outputs[0], [])
        return readers[0] if len(readers) == 1 else None

    def preceding(self, step: int) -> int | None:
        """The only call that makes what a call reads, if there is one."""
        inputs = self.steps[step].inputs
        makers = [
            i for i, s in enumerate(self.steps) if set(s.outputs) & set(inputs)
        ]
        return makers[0] if len(makers) == len(inputs) == 1 else None

    def is_last(self, step: int) -> bool:
        """Whether the model returns what a call does."""
        return bool(self.outputs.intersection(self.steps[step].outputs))

    def is_called_once(self, step: int) -> bool:
        """Whether the operation isn't called a second time."""
        return self._calls[id(self.steps[step].operation)] == 1


def has_graph(model: keras.Model) -> bool:
    """Whether a model is a Functional or Sequential one."""
    # Only models that Keras runs by a graph have a list of operations.
    operations = getattr(model, "operations", None)
    return isinstance(model, keras.Sequential) or operations is not None


def trace(model: keras.Model) -> Graph:
    """The graph of a Functional or Sequential model.

    Raises:
        ValueError: If the model is neither.
    """
    if isinstance(model, keras.Sequential):
        steps = [Step(v, (i,), (i + 1,)) for i, v in enumerate(model.layers)]
        return Graph(steps, [0], [len(steps)])
    # The student's own layers would remember to have been called again.
    originals: dict[int, Any] = {}
    numbers: dict[int, int] = {}
    # Their ids are not to be used again.
    alive: list[Any] = []
    steps = []

    def number(structure: Any) -> tuple[int, ...]:
        tensors = _tensors(structure)
        alive.extend(tensors)
        return tuple(numbers.setdefault(id(t), len(numbers)) for t in tensors)

    def clone(operation: Any) -> Any:
        copy = copy_of(operation)
        originals[id(copy)] = operation
        return copy

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = operation(*args, **kwargs)
        original = originals[id(operation)]
        steps.append(Step(original, number((args, kwargs)), number(outputs)))
        return outputs

    copy = _cloned(model, clone, call)
    return Graph(steps, number(copy.inputs), number(copy.outputs))


def id_limits(model: keras.Model) -> list[int | None]:
    """For each input, how many ids it may be; None if it is something else.

    What an `Embedding` reads are ids. Keras' own inputs of them are floats,
    unless somebody says otherwise.

    Args:
        model: A Functional or Sequential model.
    """
    if not any(isinstance(v, keras.layers.Embedding) for v in layers_of(model)):
        return [None] * len(model.inputs)
    graph = trace(model)
    return [_limit_of(graph, number) for number in graph.inputs]


def _limit_of(graph: Graph, number: int) -> int | None:
    """The smallest of the tables that a tensor is looked up in."""
    known = [
        limit
        for step in graph.steps
        for place, tensor in enumerate(step.inputs)
        if tensor == number
        and (limit := _limit_in(graph, step, place)) is not None
    ]
    return min(known, default=None)


def _limit_in(graph: Graph, step: Step, place: int) -> int | None:
    operation = step.operation
    if isinstance(operation, keras.layers.Wrapper):
        operation = operation.layer
    if isinstance(operation, keras.layers.Embedding):
        return int(operation.input_dim)
    if isinstance(operation, keras.Model) and has_graph(operation):
        limits = id_limits(operation)
        # Behind its inputs are masks and the like.
        return limits[place] if place < len(limits) else None
    if type(operation).__name__ == "Cast":  # without a public name
        return _limit_of(graph, step.outputs[0])
    return None


def rebuild(
    model: keras.Model,
    call: Call,
    prepare: Callable[[Any], Any] | None = None,
) -> keras.Model:
    """A model of the same graph, with other layers in it.

    Args:
        model: A Functional or Sequential model.
        call: What to do for each call of its graph: a function of the call's
            number, of the operation, and of what that was called on.
        prepare: What to make of each input before anything reads it.

    Returns:
        A Functional model, compiled as `model` is.
    """
    if isinstance(model, keras.Sequential):
        return _rebuild_sequential(model, call, prepare)
    # What no call has returned is an input.
    known: dict[int, Any] = {}
    alive: list[Any] = []
    count = iter(range(10**9))

    def read(tensor: Any) -> Any:
        if not isinstance(tensor, keras.KerasTensor):
            return tensor
        if id(tensor) not in known:
            known[id(tensor)] = prepare(tensor) if prepare else tensor
            alive.append(tensor)
        return known[id(tensor)]

    def visit(operation: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = keras.tree.map_structure(read, (args, kwargs))
        outputs = call(next(count), operation, *args, **kwargs)
        for tensor in _tensors(outputs):
            known[id(tensor)] = tensor
            alive.append(tensor)
        return outputs

    return _cloned(model, lambda operation: operation, visit)


def _rebuild_sequential(
    model: keras.Sequential,
    call: Call,
    prepare: Callable[[Any], Any] | None,
) -> keras.Model:
    first = model.inputs[0]
    inputs = keras.Input(
        batch_shape=first.shape, dtype=first.dtype, name=first.name
    )
    x = prepare(inputs) if prepare else inputs
    for i, layer in enumerate(model.layers):
        x = call(i, layer, x)
    copy = keras.Model(inputs, x, name=model.name)
    if model.compiled:
        copy.compile_from_config(model.get_compile_config())
    return copy


def _cloned(model: keras.Model, clone: Call, call: Call) -> keras.Model:
    if not has_graph(model):
        raise ValueError(
            "A subclassed model shows no graph of its layers. Received: "
            f"'{model.name}' of type {type(model).__name__}. Build it as a "
            "Functional or Sequential model."
        )
    return keras.models.clone_model(
        model, clone_function=clone, call_function=call
    )


def layers_of(model: keras.Model) -> list[keras.Layer]:
    """The model and every layer in it, also those in private attributes."""
    seen: dict[int, keras.Layer] = {}
    waiting = [model]
    while waiting:
        layer = waiting.pop()
        if id(layer) not in seen:
            seen[id(layer)] = layer
            waiting += _layers_in(list(vars(layer).values()))
    return list(seen.values())


def _layers_in(value: Any) -> list[keras.Layer]:
    if isinstance(value, keras.Layer):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple | set):
        return []
    return [layer for item in value for layer in _layers_in(item)]


def copy_of(operation: Any) -> Any:
    """A layer or operation with the same arguments, and new variables."""
    return type(operation).from_config(operation.get_config())


def copy_variables(source: keras.Layer, target: keras.Layer) -> None:
    """Give a layer the values of another one that is built like it."""
    for ours, theirs in zip(target.variables, source.variables, strict=True):
        # Not the same array: a training step on JAX gives it away.
        ours.assign(keras.ops.convert_to_numpy(theirs.value))
    for layer in layers_of(target):
        if isinstance(layer, keras.layers.Normalization):
            # It computes with other numbers, which follow from these.
            layer.finalize_state()


def _tensors(structure: Any) -> list[Any]:
    leaves = keras.tree.flatten(structure)
    return [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
