"""A model whose outputs keep names that its last layers don't have."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable("keras_distill")
class NamedOutputs(keras.Model):  # type: ignore[misc]  # keras is untyped
    """A Functional model with names of its own for its outputs.

    Keras calls an output by the layer that it comes from, and finds losses,
    metrics and labels by that name.
    """

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this model."""
        return {**super().get_config(), "output_names": self.output_names}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> NamedOutputs:
        """Rebuild a model from what `get_config` returned."""
        config = dict(config)
        names = config.pop("output_names")
        model: NamedOutputs = super().from_config(config, custom_objects)
        model.output_names = names
        return model


def with_output_names(model: keras.Model, names: list[str]) -> keras.Model:
    """The same Functional model, compiled as it is, with names for its outputs.

    Example:
        >>> inputs = keras.Input((2,))
        >>> model = keras.Model(inputs, keras.layers.ReLU(name="relu")(inputs))
        >>> with_output_names(model, ["positive"]).output_names
        ['positive']
    """
    named = NamedOutputs(model.input, model.output, name=model.name)
    named.output_names = names
    if model.compiled:
        named.compile_from_config(model.get_compile_config())
    return named
