"""Means over the examples of a batch, also where other devices have some."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeAlias

from keras import ops

Tensor: TypeAlias = Any

# Losses don't know of devices. Whoever runs a step on several says here how a
# mean is taken; in a variable of the thread, since TensorFlow has one a device.
_mean: ContextVar[Callable[[Tensor], Tensor]] = ContextVar(
    "mean", default=ops.mean
)


def batch_mean(values: Tensor) -> Tensor:
    """The mean of numbers that examples have, over the global batch."""
    return _mean.get()(values)


@contextlib.contextmanager
def means_taken_by(mean: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Context in which `batch_mean` is another function."""
    token = _mean.set(mean)
    try:
        yield
    finally:
        _mean.reset(token)
