"""From a model's outputs to rows: logits of classes, labels and weights."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill.labels import as_indices
from keras_distill.losses.base import (
    Shape,
    Tensor,
    align_weights,
    fits,
    refuse_one_class,
    to_logits,
)
from keras_distill.masks import mask_of


class Rows(NamedTuple):
    """A batch as every metric of classifiers sees it.

    A row that counts for nothing holds zeros, whatever the models said of it.
    The weight of one for which a model says NaN, or whose label is beyond the
    classes, is NaN, so that the metric is too.

    Attributes:
        logits: Tensors `(rows, classes)`, one for each model.
        labels: Class indices `(rows,)`, or `None` where none were asked for.
        weights: What each row counts, `(rows,)`.
    """

    logits: list[Tensor]
    labels: Tensor
    weights: Tensor


def rows_of(
    outputs: list[Tensor],
    labels: Tensor,
    weights: Tensor,
    metric: Any,
) -> Rows:
    """Rows of models' outputs as `class_logits` gives them.

    Args:
        outputs: Logits `(batch, ..., classes)` of each model.
        labels: Class indices `(batch, ...)`, -1 for none; or `None`.
        weights: What each place counts, `(batch, ...)`.
        metric: The metric that they are for.
    """
    classes = outputs[0].shape[-1]
    weights = ops.reshape(weights, (-1,))
    outputs = [ops.reshape(x, (-1, classes)) for x in outputs]
    if labels is not None:
        labels = ops.reshape(labels, (-1,))
        weights = ops.where(labels < 0, 0.0, weights)
        weights = _spoiled(weights, labels >= classes)
        labels = ops.where((labels < 0) | (labels >= classes), 0, labels)
    counts = ops.expand_dims(weights != 0, axis=-1)
    for x in outputs:
        weights = _spoiled(weights, ops.any(ops.isnan(x), axis=-1))
    logits = [ops.where(counts, x, 0.0) for x in outputs]
    return Rows(logits, labels, ops.cast(weights, metric.dtype))


def _spoiled(weights: Tensor, where: Tensor) -> Tensor:
    return ops.where(where & (weights != 0), math.nan, weights)


def sums_of(columns: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of columns `(rows, n)`, NaN if a weight is.

    Compilers may drop a product of NaN with a zero. And it is no matrix
    product, in which some accelerators round.
    """
    columns = ops.cast(columns, weights.dtype)
    sums = ops.sum(columns * ops.expand_dims(weights, axis=-1), axis=0)
    return ops.where(ops.isnan(ops.sum(weights)), math.nan, sums)


def class_logits(
    outputs: Tensor, activation: str, from_logits: bool, dtype: Any
) -> Tensor:
    """Logits with the classes in the last axis; two for each sigmoid."""
    outputs = ops.cast(outputs, dtype)
    if not from_logits:
        outputs = to_logits(outputs, activation)
    if activation == "sigmoid":
        return ops.stack([ops.zeros_like(outputs), outputs], axis=-1)
    refuse_one_class(tuple(outputs.shape))
    return outputs


def class_labels(labels: Any, outputs: Tensor, activation: str) -> Tensor:
    """Class indices of the shape of an output's places, -1 for no label."""
    labels = ops.convert_to_tensor(labels)
    if activation != "sigmoid":
        indices = as_indices(labels, outputs)
        _check_places(indices, tuple(outputs.shape[:-1]), outputs)
        return indices
    if len(labels.shape) < len(outputs.shape):
        labels = ops.expand_dims(labels, axis=-1)
    if labels.shape[-1] != outputs.shape[-1]:
        raise ValueError(
            "Each sigmoid has a label of its own, 0 or 1. Received: labels of "
            f"shape {tuple(labels.shape)} for outputs of shape "
            f"{tuple(outputs.shape)}. Pass a column for each output; for "
            "classes of which one is right, use activation='softmax'."
        )
    _check_places(labels, tuple(outputs.shape), outputs)
    # TensorFlow compares no whole numbers, or booleans, with 0.5.
    labels = ops.cast(labels, "float32")
    known = labels >= 0
    if len(labels.shape) > 1:  # else each example has one
        known = ops.all(known, axis=-1, keepdims=True)
    return ops.where(known, ops.cast(labels > 0.5, "int32"), -1)


def _check_places(labels: Tensor, places: Shape, outputs: Tensor) -> None:
    """Raise where one label would silently count for several places."""
    if not fits(tuple(labels.shape), places):
        raise ValueError(
            "There is a label for each place of an output, -1 for none. "
            f"Received: labels of shape {tuple(labels.shape)} for outputs of "
            f"shape {tuple(outputs.shape)}. Pass as many labels as outputs."
        )


def place_weights(
    sample_weight: Any, outputs: Tensor, activation: str, metric: Any
) -> Tensor:
    """What each place of an output counts: weights times the mask."""
    shape = ops.shape(outputs)
    places = shape if activation == "sigmoid" else shape[:-1]
    weights = ops.ones(places, metric.dtype)
    if sample_weight is not None:
        weights = align_weights(sample_weight, places, metric)
    mask = mask_of(outputs)
    if mask is None or len(mask.shape) != len(shape) - 1:
        return weights
    return weights * align_weights(ops.cast(mask, metric.dtype), places, metric)


def as_tensor(value: Any) -> Tensor:
    """A tensor, with the mask that it may have, or of numbers."""
    return value if ops.is_tensor(value) else ops.convert_to_tensor(value)


def summing_dtype(dtype: Any) -> Any:
    """The dtype of a metric's sums: float32 at least.

    Raises:
        ValueError: If another is asked for.
    """
    if dtype is None:
        return keras.backend.result_type(keras.config.floatx(), "float32")
    if keras.dtype_policies.get(dtype).compute_dtype not in (
        "float32",
        "float64",
    ):
        raise ValueError(
            "Metrics sum in float32 at least, whatever the models do. "
            f"Received: dtype={dtype!r}. Pass 'float32', 'float64', or None."
        )
    return dtype


def check_activation(activation: str) -> None:
    """Raise unless it is one that makes probabilities of classes."""
    if activation not in ("softmax", "sigmoid"):
        raise ValueError(
            "Probabilities of classes come from a softmax or from sigmoids. "
            f"Received: activation={activation!r}. Pass 'softmax' or 'sigmoid'."
        )
