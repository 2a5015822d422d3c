"""Hard labels in either form: class indices, or one-hot rows."""

from __future__ import annotations

from typing import Any, TypeAlias

from keras import ops

Tensor: TypeAlias = Any


def are_indices(y_true: Tensor, y_pred: Tensor) -> bool:
    """Whether labels are class indices rather than one-hot rows."""
    if len(y_true.shape) < len(y_pred.shape):
        return True
    return bool(y_true.shape[-1] == 1 and y_pred.shape[-1] != 1)


def as_indices(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Class indices from labels in either form, -1 for none."""
    if not are_indices(y_true, y_pred):
        known = ops.all(y_true >= 0, axis=-1)
        return ops.where(known, ops.argmax(y_true, axis=-1), -1)
    if len(y_true.shape) == len(y_pred.shape):
        y_true = ops.squeeze(y_true, axis=-1)
    return ops.cast(y_true, "int32")


def known_share(known: Tensor, dtype: Any) -> Tensor:
    """1 for each labelled example, scaled to a mean over those alone."""
    known = ops.cast(known, dtype)
    return known / ops.maximum(ops.mean(known), 1e-12)
