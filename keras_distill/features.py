"""One forward pass of a model that also hands out what its layers computed."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import keras

from keras_distill.backends import untraced

# Tensors of three frameworks have no common type that could be imported
# without importing a framework.
Tensor: TypeAlias = Any
# A layer's path ("conv4", "backbone/conv4"), a key of a dict output, the index
# of a list output, or None for the model's whole output.
LayerName: TypeAlias = "str | int | None"


class TransferBatch(NamedTuple):
    """Inputs together with what the teacher says about them.

    `Distiller` makes one of each batch. A batch that arrives as one, from
    outputs that were stored earlier, is taken as it is: the teacher doesn't
    run. One without a teacher's outputs only adds `sample_ids`, and the
    teacher runs.

    A data set yields it as `(batch,)`, `(batch, y)` or `(batch, y,
    sample_weight)`. Bare, Keras would read this tuple as those three, and
    refuses it.

    Attributes:
        inputs: What the student sees, any structure of tensors.
        teacher_output: The teacher's output, as the teacher returns it.
        teacher_features: What the named layers of the teacher returned, by
            name. Empty if no loss looks at a hidden layer.
        sample_ids: Which examples of the transfer set these are, integers from
            0, for a loss that keeps something for each example.

    Example:
        >>> import numpy as np
        >>> images = np.zeros((4, 8, 8, 1), "float32")
        >>> logits = np.zeros((4, 10), "float32")
        >>> import keras_distill as kd
        >>> batch = kd.TransferBatch(images, logits)
        >>> batch.teacher_features
        {}
    """

    inputs: Any
    # Keras slices what arrays it finds here, and can't slice `None`.
    teacher_output: Any = {}  # noqa: RUF012 (never mutated)
    teacher_features: dict[str, Tensor] = {}  # noqa: RUF012
    sample_ids: Any = {}  # noqa: RUF012

    @property
    def holds_teacher(self) -> bool:
        """Whether the teacher has spoken."""
        said = keras.tree.flatten((self.teacher_output, self.teacher_features))
        return any(tensor is not None for tensor in said)


class StoredTeacher(NamedTuple):
    """What is known of a teacher whose outputs were stored.

    Passed to `Distiller` in place of the teacher, it lets projectors be made
    and mistakes be seen before the first batch. `TeacherCache.teacher` is one.

    Attributes:
        output: The structure of the teacher's output, of `keras.KerasTensor`.
        features: The same for each hidden layer that was stored, by name.
        activation: `"softmax"` or `"sigmoid"` if the output is what that
            returns; `None` for logits.

    Example:
        >>> import keras, keras_distill as kd
        >>> stored = kd.StoredTeacher(keras.KerasTensor((None, 10)))
        >>> student = keras.Sequential([keras.Input((4,)),
        ...                             keras.layers.Dense(10)])
        >>> kd.Distiller(stored, student).teacher is None
        True
    """

    output: Any
    features: dict[str, Any] = {}  # noqa: RUF012 (never mutated)
    activation: str | None = None


class FeatureExtractor:
    """Runs a model once and returns its output and its layers' outputs.

    The model runs as itself, so nested and subclassed models work, as do
    masks, regularisers and training mode. Each named layer's `call` is watched
    for the duration of that one run; the model's graph is left as it was.

    Args:
        model: A built Keras model.
        layer_names: Paths of layers: `"conv4"`, or `"backbone/conv4"` for a
            layer of a sub-model.

    Raises:
        ValueError: If there is no layer of that name.
    """

    def __init__(
        self, model: keras.Model, layer_names: list[str] | None = None
    ) -> None:
        self.model = model
        self.layers = {
            name: find_layer(model, name) for name in layer_names or []
        }

    def __call__(
        self, inputs: Any, training: bool | None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Return the model's output and the named layers' outputs."""
        if not self.layers:
            inputs = select_inputs(self.model, inputs)
            return self.model(inputs, training=training), {}
        # The compiler of PyTorch can't follow a layer that is being watched.
        result: tuple[Any, dict[str, Tensor]]
        result = untraced(self._watch)(inputs, training)
        return result

    def _watch(
        self, inputs: Any, training: bool | None
    ) -> tuple[Any, dict[str, Tensor]]:
        with _watching(self.model, self.layers) as seen:
            output = self.model(
                select_inputs(self.model, inputs), training=training
            )
        missing = sorted(set(self.layers) - set(seen))
        if missing:
            raise ValueError(
                f"The forward pass of '{self.model.name}' never calls "
                f"{missing}. Received: layer names {sorted(self.layers)}. "
                "Name layers that the model runs."
            )
        return output, seen

    def specs(self) -> tuple[Any, dict[str, Any]] | None:
        """Shapes and dtypes of what a call returns, without computing it.

        Returns:
            The structure that a call returns, of `KerasTensor`, or `None` for
            a subclassed model that doesn't tell its input shape.
        """
        inputs = symbolic_inputs(self.model)
        if inputs is None:
            return None
        if _symbolic(self.model, "input") is not None:
            return self._traced(inputs)
        # A model without a graph tells no dtype, and one that looks up tokens
        # takes no floats: what Keras says then differs by backend.
        try:
            return self._traced(inputs)
        except (TypeError, ValueError) as error:
            numbers = keras.tree.map_structure(
                lambda x: keras.KerasTensor(x.shape, "int32"), inputs
            )
            try:
                return self._traced(numbers)
            except (TypeError, ValueError):
                raise error from None

    def _traced(self, inputs: Any) -> tuple[Any, dict[str, Any]]:
        specs: tuple[Any, dict[str, Any]] = _Traced(self)(inputs)
        return specs


class _Traced(keras.Layer):  # type: ignore[misc]  # keras is untyped
    """Gives an extractor Keras' symbolic call."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__(autocast=False)
        self.extractor = extractor
        self.built = True

    def call(self, inputs: Any) -> Any:
        return self.extractor(inputs, training=False)


@contextlib.contextmanager
def _watching(
    model: keras.Model, layers: dict[str, keras.Layer]
) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}

    def watch(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if name in seen:
                raise ValueError(
                    f"Layer '{name}' of '{model.name}' is called more than "
                    "once in a forward pass, so its output is ambiguous. "
                    f"Received: layer name '{name}'. Name a layer that is "
                    "called once, such as the one that follows it."
                )
            seen[name] = call(*args, **kwargs)
            return seen[name]

        return watched

    # An attribute of the instance hides the method of the class; deleting it
    # afterwards restores the layer exactly.
    watched_layers = []
    try:
        for name, layer in layers.items():
            hidden = vars(layer).get("call")
            watched_layers.append((layer, hidden))
            layer.call = watch(name, layer.call)
        yield seen
    finally:
        for layer, hidden in reversed(watched_layers):
            if hidden is None:
                del layer.call
            else:
                layer.call = hidden


def sublayers(layer: keras.Layer) -> list[keras.Layer]:
    """The layers that a model or a composite layer holds directly."""
    if isinstance(layer, keras.Model):
        return list(layer.layers)
    # As `Model.layers` has it. The attributes won't do: on PyTorch, a module
    # keeps its submodules elsewhere.
    return list(layer._flatten_layers(include_self=False, recursive=False))


def data_formats(model: keras.Layer) -> set[str]:
    """Where the layers of feature maps of a model have their channels."""
    found: set[str] = set()
    for layer in sublayers(model):
        spec = layer.input_spec
        if not isinstance(spec, keras.InputSpec):
            spec = keras.InputSpec()
        # Flatten, and layers of sequences, have a format that says nothing.
        if (spec.ndim or spec.min_ndim or 0) > 3:
            found |= {layer.get_config().get("data_format")} - {None}
        found |= data_formats(layer)
    return found


def find_layer(model: keras.Model, path: str) -> keras.Layer:
    """The layer at a path such as `"backbone/conv4"`."""
    layer = model
    for depth, part in enumerate(path.split("/")):
        names = {child.name: child for child in sublayers(layer)}
        if part not in names:
            inside = "/".join(path.split("/")[:depth]) or model.name
            close = difflib.get_close_matches(part, names, n=3, cutoff=0.4)
            hint = f"Did you mean {close}? " if close else ""
            raise ValueError(
                f"There is no layer '{part}' in '{inside}'. "
                f"Received: layer name '{path}'. {hint}"
                f"Its layers are {sorted(names)}."
            )
        layer = names[part]
    return layer


def select_inputs(model: keras.Model, inputs: Any) -> Any:
    """From a dict batch, the entries that the model has inputs for."""
    names = input_names(model)
    if not isinstance(inputs, dict) or names is None:
        return inputs
    missing = sorted(set(names) - set(inputs))
    if missing:
        raise ValueError(
            f"'{model.name}' has inputs {names} but the batch has no "
            f"{missing}. Received: a dict batch with keys {sorted(inputs)}. "
            "Rename the keys, or pass `teacher_inputs=` if it is the teacher "
            "that needs other inputs."
        )
    if isinstance(_symbolic(model, "input"), dict):
        return {name: inputs[name] for name in names}
    if len(names) == 1:
        return inputs[names[0]]
    return [inputs[name] for name in names]


def input_names(model: keras.Model) -> list[str] | None:
    """Names of a Functional or Sequential model's inputs, else `None`."""
    graph = _symbolic(model, "input")
    if graph is None:
        return None
    if isinstance(graph, dict):
        return list(graph)
    return [tensor.name for tensor in keras.tree.flatten(graph)]


def symbolic_inputs(model: keras.Model) -> Any:
    """Fresh symbolic inputs for a built model, or `None` if unknown."""
    graph = _symbolic(model, "input")
    if graph is not None:
        return keras.tree.map_structure(
            lambda t: keras.KerasTensor(t.shape, t.dtype), graph
        )
    config = model.get_build_config() or {}
    shape = config.get("input_shape")
    if shape is None:
        return None
    return keras.tree.map_shape_structure(
        lambda s: keras.KerasTensor((None, *s[1:]), model.input_dtype), shape
    )


def check_inputs(model: keras.Model, inputs: Any) -> None:
    """Raise where a batch isn't what a teacher's graph takes."""
    graph = _symbolic(model, "input")
    if graph is None:
        return
    specs = keras.tree.flatten(graph)
    values = keras.tree.flatten(select_inputs(model, inputs))
    if len(specs) != len(values):
        raise ValueError(
            f"Teacher '{model.name}' can't take the batch's inputs. Received: "
            f"{len(values)} arrays where it has {len(specs)} inputs. Data come "
            "as a tuple (inputs, labels); several inputs as a list or a dict."
        )
    for spec, value in zip(specs, values, strict=True):
        dtype = keras.backend.standardize_dtype(value.dtype)
        wrong = [
            f"a size of {given} instead of {wanted}"
            for wanted, given in zip(
                spec.shape[1:], value.shape[1:], strict=False
            )
            if wanted != given and None not in (wanted, given)
        ]
        if "int" in spec.dtype and "float" in dtype:
            # Keras would cut the fractions off.
            wrong.append(f"{dtype} instead of {spec.dtype}")
        if wrong:
            raise ValueError(
                f"Teacher '{model.name}' can't take the batch's inputs. "
                f"Received: {wrong[0]}, in inputs of shape "
                f"{tuple(value.shape)} where it takes {spec.shape}. Pass "
                "teacher_inputs=..., a function or layer that makes the "
                "teacher's inputs from the batch's (such as "
                "keras.layers.Resizing)."
            )


def symbolic_output(model: keras.Model) -> Any:
    """The output tensors of a Functional model's graph, else `None`."""
    return _symbolic(model, "output")


def _symbolic(layer: keras.Layer, which: str) -> Any:
    # Keras raises AttributeError or ValueError where a layer has no graph or
    # was called several times.
    try:
        if isinstance(layer, keras.Sequential):
            # Its `input` and `output` are those of a model it is part of.
            tensors = layer.inputs if which == "input" else layer.outputs
            return tensors[0] if len(tensors) == 1 else tensors
        return layer.input if which == "input" else layer.output
    except (AttributeError, ValueError):
        return None
