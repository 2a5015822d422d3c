"""The mask that Keras attached to a tensor."""

from __future__ import annotations

import functools
from typing import Any

import keras


class _Seer(keras.layers.Layer):  # type: ignore[misc]
    """Gives the mask that Keras hands to each layer with its input."""

    def __init__(self) -> None:
        super().__init__(autocast=False)
        self.built = True

    def call(self, inputs: Any, mask: Any = None) -> Any:
        return [] if mask is None else [mask]

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        # What comes out is no sequence that could be masked.
        return None


_seer = functools.cache(_Seer)


def mask_of(tensor: Any) -> Any:
    """Where `tensor` counts, as Keras layers said, or `None` if everywhere."""
    if keras.backend.backend() == "jax" and keras.ops.is_tensor(tensor):
        # Its tensors take no attributes, and Keras keeps the mask elsewhere. A
        # layer is told it, which costs 0.1 ms, but here in tracing alone.
        found = _seer()(tensor)
        return found[0] if found else None
    # No public function gives it, and at each step of PyTorch a layer's 0.1 ms
    # would be as much as some losses take.
    return getattr(tensor, "_keras_mask", None)
