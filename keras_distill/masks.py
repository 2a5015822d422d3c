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


class _Masker(keras.layers.Layer):  # type: ignore[misc]
    """Gives a tensor the mask that comes with it."""

    def __init__(self) -> None:
        super().__init__(autocast=False)
        self.built = True

    def call(self, inputs: Any) -> Any:
        # Another tensor, so that the first one keeps what it has.
        return keras.ops.copy(inputs[0])

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return inputs[1]


_seer = functools.cache(_Seer)
_masker = functools.cache(_Masker)


def lost_masks(structure: Any) -> list[list[Any]]:
    """Masks of tensors that lose them where Keras takes the gradient.

    On JAX, what comes out of there are other tensors. Elsewhere masks go along.
    """
    if keras.backend.backend() != "jax":
        return []
    masks = map(mask_of, keras.tree.flatten(structure))
    return [[] if mask is None else [mask] for mask in masks]


def with_masks(structure: Any, masks: list[list[Any]]) -> Any:
    """The tensors, with what `lost_masks` returned."""
    if not any(masks):
        return structure
    leaves = zip(keras.tree.flatten(structure), masks, strict=True)
    return keras.tree.pack_sequence_as(
        structure, [_masker()([x, *m]) if m else x for x, m in leaves]
    )


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
