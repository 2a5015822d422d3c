"""A process's own devices, where a distribution has those of others too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def local() -> Iterator[None]:
    """Surrounds what one process does without the others, such as saving.

    On JAX, Keras puts each variable that it makes on the devices of all
    processes, which takes all of them; it makes some where it saves a model. A
    `Distiller` saves itself so.

    Example:
        >>> import keras, tempfile, keras_distill as kd
        >>> student = keras.Sequential([keras.Input((4,)),
        ...                             keras.layers.Dense(3)])
        >>> if kd.distribution.world().is_first:
        ...     with kd.distribution.local():
        ...         student.save(tempfile.mkdtemp() + "/student.keras")
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        yield
        return
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)
