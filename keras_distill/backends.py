"""The few things that the backends do differently."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np


def no_gradient() -> contextlib.AbstractContextManager[Any]:
    """Context in which PyTorch records nothing for a backward pass.

    TensorFlow records only under a tape, JAX only what it is told to
    differentiate.
    """
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    context: contextlib.AbstractContextManager[Any] = torch.no_grad()
    return context


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that `torch.compile` calls as it is, and compiles around."""
    if keras.backend.backend() != "torch":
        return function
    import torch

    wrapped: Callable[..., Any] = torch.compiler.disable(function)
    return wrapped


@contextlib.contextmanager
def values_kept(
    constant: Sequence[Any], changing: Callable[[], Sequence[Any]], trains: bool
) -> Iterator[None]:
    """Bring variables back that a failed or interrupted loop has lost.

    On JAX a loop takes the values out of the variables and gives their memory
    away; an exception at the wrong moment loses them for good. So copies are
    kept in host memory. Where they are needed, all variables go back to their
    values from before the loop, with a warning if steps are lost: half of a
    step would be worse.

    Args:
        constant: Variables that the loop doesn't change.
        changing: Gives the variables that it does change.
        trains: Whether it changes them on purpose.
    """
    if keras.backend.backend() != "jax":
        yield
        return
    kept = [(v, _copy(v)) for v in constant]
    before = [(v, v.value, _copy(v)) for v in changing()]
    try:
        yield
    except BaseException:
        for variable, copy in kept:
            if _is_lost(variable):
                variable.assign(copy())
        if any(_is_lost(v) for v in changing()):
            for variable, _, copy in before:
                variable.assign(copy())
            for variable in changing():
                if _is_lost(variable):  # a metric that the loop made
                    variable.assign(np.zeros(variable.shape))
            # What was never given away didn't take a step.
            if trains and any(value.is_deleted() for _, value, _ in before):
                warnings.warn(
                    "The training loop stopped inside a step, and JAX had "
                    "given the memory of the weights away. The student is as "
                    "it was before this call. To lose less next time, save "
                    "checkpoints (keras.callbacks.BackupAndRestore).",
                    stacklevel=4,
                )
        raise


def as_array(variable: Any) -> np.ndarray[Any, Any]:
    """A variable's value, wherever it is."""
    value = variable.value
    if keras.backend.backend() == "tensorflow":
        # A number that it mirrors on devices is no array until it is a tensor.
        value = keras.ops.convert_to_tensor(value)
    array: np.ndarray[Any, Any] = keras.ops.convert_to_numpy(value)
    return array


def _copy(variable: Any) -> Any:
    """A function that gives the value again, from host memory."""
    value = variable.value
    if value.is_fully_addressable or value.is_fully_replicated:
        whole = np.array(keras.ops.convert_to_numpy(value))
        return lambda: whole
    import jax

    # Other processes hold the rest of it.
    pieces = {str(x.index): np.array(x.data) for x in value.addressable_shards}
    where = value.shape, value.sharding
    return lambda: jax.make_array_from_callback(
        *where, lambda index: pieces[str(index)]
    )


def _is_lost(variable: Any) -> bool:
    try:
        return bool(variable.value.is_deleted())
    except TypeError:
        # Its value was taken out: Keras looks for an initializer, in vain.
        return True
