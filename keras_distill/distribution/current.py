"""The engine in use."""

from __future__ import annotations

from typing import Any

import keras

from keras_distill.distribution.engines import OneDevice


def engine_of(model: Any) -> OneDevice:
    """The engine of the backend, as it has been set up for a model."""
    # Each imports its framework.
    backend = keras.backend.backend()
    if backend == "torch":
        from keras_distill.distribution.torch_engine import torch_engine

        return torch_engine()
    if backend == "jax":
        from keras_distill.distribution.jax_engine import jax_engine

        return jax_engine()
    if backend == "tensorflow":
        from keras_distill.distribution.tensorflow_engine import (
            tensorflow_engine,
        )

        return tensorflow_engine(model)
    return OneDevice()
