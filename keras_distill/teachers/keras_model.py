"""A Keras model of this process's backend as a teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_distill.backends import no_gradient
from keras_distill.features import (
    FeatureExtractor,
    check_inputs,
    sublayers,
    symbolic_output,
)
from keras_distill.heads import final_activation
from keras_distill.teachers import fingerprints
from keras_distill.teachers.base import Array, Teacher

_Forward = Callable[[Any], tuple[Any, dict[str, Any]]]


class KerasTeacher(Teacher):
    """A Keras model, compiled as `predict` compiles it.

    The model itself runs, in inference mode, and isn't changed. Its
    fingerprint has the configuration and the weights, but neither names that
    Keras made up, nor `trainable`, nor the code of custom layers.

    Args:
        model: A built model.
        layers: Names of its hidden layers, such as `"backbone/conv4"`.

    Raises:
        ValueError: If it isn't built, or has no layer of such a name.

    Example:
        >>> import keras, numpy as np
        >>> import keras_distill as kd
        >>> teacher = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(8, name="hidden"),
        ...      keras.layers.Dense(3, activation="softmax")])
        >>> labeller = kd.teachers.KerasTeacher(teacher, layers=["hidden"])
        >>> output, features = labeller.label(np.zeros((5, 4), "float32"))
        >>> output.shape, features["hidden"].shape, labeller.probabilities
        ((5, 3), (5, 8), True)
    """

    runtime = "keras"

    def __init__(self, model: keras.Model, layers: Sequence[str] = ()) -> None:
        if not model.built:
            raise ValueError(
                f"The teacher '{model.name}' isn't built: it has no weights "
                "yet. Received: teacher.built=False. Call it on a batch, or "
                "start it with `keras.Input`."
            )
        self.model = model
        self.layers = tuple(layers)
        self.probabilities = ends_in_probabilities(model)
        self._fingerprint = fingerprints.of_keras(model)
        self._forward = _compiled(model, self.layers)

    def label(self, inputs: Any) -> tuple[Any, dict[str, Array]]:
        """Run the model on a batch."""
        check_inputs(self.model, inputs)
        tensors = keras.tree.map_structure(_as_tensor, inputs)
        output, features = self._forward(tensors)
        arrays: tuple[Any, dict[str, Array]] = keras.tree.map_structure(
            keras.ops.convert_to_numpy, (output, features)
        )
        return arrays

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The model's name, and the checksum of configuration and weights."""
        return self._fingerprint

    def with_layers(self, layers: Sequence[str]) -> KerasTeacher:
        """The same model, with other hidden layers to look at."""
        return KerasTeacher(self.model, layers)


def ends_in_probabilities(model: keras.Model) -> bool | None:
    """Whether all of a model's outputs are probabilities, if it shows."""
    output = symbolic_output(model)
    if isinstance(output, dict):
        names: list[Any] = list(output)
    elif isinstance(output, (list, tuple)):
        names = list(range(len(output)))
    else:
        names = [None]
    if all(final_activation(model, name) for name in names):
        return True
    return False if len(names) == 1 and _ends_linear(model) else None


def _ends_linear(layer: keras.Layer) -> bool:
    """Whether the last layer of a graph computes logits."""
    if isinstance(layer, keras.Model):
        shows = symbolic_output(layer) is not None
        return shows and _ends_linear(layer.layers[-1])
    try:
        return bool(layer.get_config().get("activation") == "linear")
    except NotImplementedError:  # a custom layer without a config
        return False


def _as_tensor(array: Any) -> Any:
    array = np.asarray(array)
    if array.dtype.kind == "f":
        # As `predict` does; the model casts to what it computes in.
        array = array.astype(keras.config.floatx(), copy=False)
    # PyTorch warns of memory that it may not write to.
    return keras.ops.convert_to_tensor(np.require(array, requirements="W"))


def _compiled(model: keras.Model, layers: tuple[str, ...]) -> _Forward:
    """The forward pass, as `model.predict` would compile it."""
    extractor = FeatureExtractor(model, list(layers))

    def forward(inputs: Any) -> tuple[Any, dict[str, Any]]:
        return extractor(inputs, training=False)

    backend = keras.backend.backend()
    if backend == "torch":
        return _on_torch(model, forward)
    if model.run_eagerly:
        return forward
    if backend == "jax":
        return _on_jax(model, forward)
    if backend == "tensorflow":
        return _on_tensorflow(model, forward)
    return forward


def _on_tensorflow(model: keras.Model, forward: _Forward) -> _Forward:
    import tensorflow as tf

    compiled: _Forward = tf.function(
        forward,
        autograph=False,
        jit_compile=model.jit_compile or None,
        reduce_retracing=True,
    )
    return compiled


def _on_jax(model: keras.Model, forward: _Forward) -> _Forward:
    if not model.jit_compile:
        return forward
    import jax

    variables = list(model.variables)

    def stateless(values: list[Any], inputs: Any) -> tuple[Any, dict[str, Any]]:
        state = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=state):
            return forward(inputs)

    compiled = jax.jit(stateless)
    # The values are handed over as they lie on the device. They aren't kept:
    # `fit` and `predict` give their memory away.
    return lambda inputs: compiled([v.value for v in variables], inputs)


def _on_torch(model: keras.Model, forward: _Forward) -> _Forward:
    import torch

    if model.jit_compile and not model.run_eagerly:
        forward = torch.compile(forward)
    modules = _modules(model)

    def run(inputs: Any) -> tuple[Any, dict[str, Any]]:
        with no_gradient(), evaluating(modules):
            return forward(inputs)

    return run


def _modules(layer: keras.Layer) -> list[Any]:
    """The modules of PyTorch in a layer; Keras doesn't register its own."""
    inner = [part for child in sublayers(layer) for part in _modules(child)]
    return [*layer.modules(), *inner]


@contextlib.contextmanager
def evaluating(modules: Iterable[Any]) -> Iterator[None]:
    """Modules of PyTorch in evaluation mode, and then as they were."""
    trained = [part for part in modules if part.training]
    for part in trained:
        part.training = False
    try:
        yield
    finally:
        for part in trained:
            part.training = True
