"""Probabilities and logits in log space, for softmax and for sigmoids."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_distill.teachers.base import Array

# The smallest number that float32 has with all its bits.
_TINY = np.finfo(np.float32).tiny


def as_float(array: Any) -> Array:
    """An array in float32, or in float64 if it is."""
    array = np.asarray(array)
    dtype = np.result_type(array.dtype, np.float32)
    floats: Array = array.astype(dtype, copy=False)
    return floats


def floored_log(probabilities: Array) -> Array:
    """The logarithm, in which 0 counts as the smallest float32."""
    logarithms: Array = np.log(np.maximum(as_float(probabilities), _TINY))
    return logarithms


def log_softmax(logits: Array) -> Array:
    """`x - log(sum(exp(x)))` over the last axis."""
    shifted: Array = logits - logits.max(-1, keepdims=True)
    logarithms: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logarithms


def log_sigmoid(logits: Array) -> Array:
    """`-log(1 + exp(-x))`."""
    softplus: Array = np.logaddexp(np.zeros((), logits.dtype), -logits)
    return -softplus


def log_mean(logarithms: Array) -> Array:
    """The logarithm of the mean over the first axis."""
    largest = logarithms.max(0)
    mean: Array = largest + np.log(np.exp(logarithms - largest).mean(0))
    return mean


def logit(probabilities: Array) -> Array:
    """`log(p) - log(1 - p)`, both floored."""
    probabilities = as_float(probabilities)
    return floored_log(probabilities) - floored_log(1 - probabilities)
