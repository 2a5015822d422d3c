"""What a model says of arrays, also in a program that has several devices."""

from __future__ import annotations

from typing import Any

import keras

from keras_distill.local_devices import local


def predict(model: keras.Model, x: Any, batch_size: int | None = None) -> Any:
    """As `model.predict`, on one device.

    On JAX's several, Keras shares out batches of a size that it can divide
    alone, and a `predict` that fails loses the model's variables.

    Raises:
        ValueError: If the model is on the devices of several processes.
    """
    if keras.backend.backend() == "jax" and not all(
        variable.value.is_fully_addressable for variable in model.variables
    ):
        raise ValueError(
            "One process can't ask a model that is on the devices of several. "
            f"Received: '{model.name}'. Save it and load it again in `with "
            "kd.distribution.local():`, or in a program of its own."
        )
    with local():
        return model.predict(x, batch_size=batch_size, verbose=0)
