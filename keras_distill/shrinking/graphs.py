"""A model's calls with all that they were given, so that they can run anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from keras_distill.model_graphs import has_graph


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a graph.

    Attributes:
        number: Which one it is.
        shape: Its shape, with the batch size first.
    """

    number: int
    shape: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a layer, or of an operation of `keras.ops`.

    Attributes:
        operation: What was called: the model's own.
        arguments: Its positional and its keyword arguments, with a `Tensor` in
            the place of each tensor.
        outputs: The tensors that it returned.
    """

    operation: Any
    arguments: Any
    outputs: tuple[Tensor, ...]

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors that it reads."""
        return tensors_of(self.arguments)


@dataclasses.dataclass(frozen=True)
class CallGraph:
    """The calls of a model, in the order in which they run.

    Attributes:
        model: The model.
        inputs: Its inputs, in its own structure.
        calls: Its calls.
        outputs: What it returns, in its own structure.
    """

    model: keras.Model
    inputs: Any
    calls: tuple[Call, ...]
    outputs: Any

    def without(self, calls: set[int], renamed: dict[int, Tensor]) -> CallGraph:
        """The graph without some calls, and whatever only they read.

        Args:
            calls: Their positions.
            renamed: Of tensors that are gone, by number, what to read instead.
        """

        def rename(leaf: Any) -> Any:
            while isinstance(leaf, Tensor) and leaf.number in renamed:
                leaf = renamed[leaf.number]
            return leaf

        outputs = keras.tree.map_structure(rename, self.outputs)
        needed = {t.number for t in tensors_of(outputs)}
        kept = []
        for i, call in reversed(list(enumerate(self.calls))):
            if i in calls or not needed.intersection(
                t.number for t in call.outputs
            ):
                continue
            arguments = keras.tree.map_structure(rename, call.arguments)
            kept.append(Call(call.operation, arguments, call.outputs))
            needed |= {t.number for t in tensors_of(arguments)}
        return CallGraph(self.model, self.inputs, tuple(kept[::-1]), outputs)

    def run(self, inputs: Any, operation: Callable[[Any], Any]) -> Any:
        """Run the calls on other inputs.

        Args:
            inputs: Tensors, in the structure of the model's inputs.
            operation: What to call in the place of each operation.
        """
        values: dict[int, Any] = {}
        for tensor, value in zip(
            tensors_of(self.inputs), keras.tree.flatten(inputs), strict=True
        ):
            values[tensor.number] = value

        def read(leaf: Any) -> Any:
            return values[leaf.number] if isinstance(leaf, Tensor) else leaf

        for call in self.calls:
            args, kwargs = keras.tree.map_structure(read, call.arguments)
            outputs = operation(call.operation)(*args, **kwargs)
            for tensor, value in zip(
                call.outputs, _symbolic(outputs), strict=True
            ):
                values[tensor.number] = value
        return keras.tree.map_structure(read, self.outputs)


def trace_calls(model: keras.Model) -> CallGraph:
    """The calls of a Functional or Sequential model.

    Raises:
        ValueError: If the model is neither.
    """
    if not has_graph(model):
        raise ValueError(
            "A subclassed model shows no graph of its layers. Received: "
            f"'{model.name}' of type {type(model).__name__}. Build it as a "
            "Functional or Sequential model."
        )
    tensors: dict[int, Tensor] = {}
    # Their ids are not to be used again.
    alive: list[Any] = []
    calls: list[Call] = []

    def note(leaf: Any) -> Any:
        if not isinstance(leaf, keras.KerasTensor):
            return leaf
        alive.append(leaf)
        return tensors.setdefault(
            id(leaf), Tensor(len(tensors), tuple(leaf.shape))
        )

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = keras.tree.map_structure(note, (args, kwargs))
        specs = operation.compute_output_spec(*args, **kwargs)
        # The operation itself would remember to have been called again.
        outputs = _Returning(specs)(_symbolic((args, kwargs)))
        made = tuple(note(leaf) for leaf in _symbolic(outputs))
        calls.append(Call(operation, arguments, made))
        return outputs

    if isinstance(model, keras.Sequential):
        first = model.inputs[0]
        inputs = keras.Input(batch_shape=first.shape, dtype=first.dtype)
        note(inputs)
        outputs = inputs
        for layer in model.layers:
            outputs = call(layer, outputs)
    else:
        copy = keras.models.clone_model(
            model,
            clone_function=lambda operation: operation,
            call_function=call,
        )
        inputs, outputs = copy.input, copy.output
    return CallGraph(
        model,
        keras.tree.map_structure(note, inputs),
        tuple(calls),
        keras.tree.map_structure(note, outputs),
    )


class _Returning(keras.Layer):  # type: ignore[misc]  # keras is untyped
    """Returns symbolic tensors that are known, without computing anything."""

    def __init__(self, specs: Any) -> None:
        super().__init__(autocast=False)
        self._specs = specs

    def call(self, inputs: Any) -> Any:
        raise NotImplementedError

    def compute_output_spec(self, inputs: Any) -> Any:
        return self._specs


def tensors_of(structure: Any) -> list[Tensor]:
    """The tensors in a structure."""
    leaves = keras.tree.flatten(structure)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def remade(operation: Any, **sizes: Any) -> Any:
    """A layer or operation with the same config but for some entries.

    Raises:
        ValueError: If its config doesn't make it again.
    """
    try:
        config = {**operation.get_config(), **sizes}
        if "trainable" in config:
            # TensorFlow asks for it when a variable is made.
            config["trainable"] = True
        if type(operation) is keras.layers.Lambda:
            # Keras reads no function from a config: it may be a stranger's.
            config["function"] = operation.function
            return keras.layers.Lambda(**config)
        return type(operation).from_config(config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            "A layer can't be made again from its own config. Received: "
            f"'{operation.name}' of type {type(operation).__name__} "
            f"({error}). Give it a `get_config` that says all arguments."
        ) from error


def _symbolic(structure: Any) -> list[Any]:
    leaves = keras.tree.flatten(structure)
    return [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
