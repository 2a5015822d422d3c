"""Hard labels in either form: class indices, or one-hot rows."""

from __future__ import annotations

from typing import Any, TypeAlias

from keras import ops

from keras_distill.batch_means import batch_mean
from keras_distill.masks import mask_of

Tensor: TypeAlias = Any


def are_indices(y_true: Tensor, y_pred: Tensor) -> bool:
    """Whether labels are class indices rather than one-hot rows."""
    if len(y_true.shape) < len(y_pred.shape):
        return True
    return bool(y_true.shape[-1] == 1 and y_pred.shape[-1] != 1)


def as_indices(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Class indices from labels in either form, -1 for none.

    Raises:
        ValueError: If one-hot rows are for another number of classes.
    """
    if not are_indices(y_true, y_pred):
        columns, classes = y_true.shape[-1], y_pred.shape[-1]
        if columns != classes and None not in (columns, classes):
            raise ValueError(
                "One-hot labels have a column for each class. Received: labels "
                f"of shape {tuple(y_true.shape)} for outputs of shape "
                f"{tuple(y_pred.shape)}. Pass class indices, or rows of "
                f"{classes}."
            )
        known = ops.all(ops.cast(y_true, "float32") >= 0, axis=-1)
        return ops.where(known, ops.argmax(y_true, axis=-1), -1)
    if len(y_true.shape) == len(y_pred.shape):
        y_true = ops.squeeze(y_true, axis=-1)
    return ops.cast(y_true, "int32")


def without_padding(
    y_true: Tensor, y_pred: Tensor, dtype: Any
) -> tuple[Tensor, Tensor]:
    """Labels with -1 where Keras masked the output, and it without the mask.

    Padding is then like an example without a label. Keras would take the mean
    over the places that aren't padding once more.
    """
    mask = mask_of(y_pred)
    if mask is None or len(mask.shape) != len(y_pred.shape) - 1:
        return y_true, y_pred
    y_true = ops.cast(y_true, dtype)
    places = ops.expand_dims(mask, axis=-1)
    aligned = places if len(y_true.shape) > len(mask.shape) else mask
    return ops.where(aligned, y_true, -1.0), ops.where(places, y_pred, 0.0)


def weight_of_known(known: Tensor, dtype: Any, reduction: str | None) -> Tensor:
    """What makes a loss's reduction one over the places that count."""
    if reduction in ("mean", "sum_over_batch_size", None):
        return known_share(known, dtype)
    return ops.cast(known, dtype)


def known_share(known: Tensor, dtype: Any) -> Tensor:
    """1 for each place that counts, scaled to a mean over those alone."""
    known = ops.cast(known, dtype)
    return known / ops.maximum(batch_mean(known), 1e-12)
