"""JAX: one program over a mesh of devices, of one or several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_distill.distribution.callbacks import Placed
from keras_distill.distribution.engines import OneDevice
from keras_distill.distribution.shares import Share
from keras_distill.distribution.world import gone, world

# What carries exchanges between processes, or watches over them.
_EXCHANGES = ("Gloo", "NCCL", "heartbeat", "UNAVAILABLE")


def jax_engine() -> OneDevice:
    """The engine for the distribution that was set."""
    distribution = keras.distribution.distribution()
    return OneDevice() if distribution is None else JaxMesh(distribution)


class JaxMesh(OneDevice):
    """Devices of a `keras.distribution`.

    A step sees the global batch as one array, so that every mean, and every
    relation between examples, is over all of it. What is left to do is to put
    things where they belong.
    """

    splits_arrays = True

    def __init__(self, distribution: Any) -> None:
        self.distribution = distribution
        self.replicas = distribution.num_model_replicas
        shares = min(self.replicas, distribution.num_processes)
        self.share = Share(
            distribution.data_shard_id, shares, self.replicas, marked=True
        )

    def check(self, model: Any) -> None:
        """Refuse data that would be shared twice."""
        if self.distribution.num_processes > 1 and (
            self.distribution.auto_shard_dataset
        ):
            raise ValueError(
                "Each process loads its share of each batch by itself. "
                "Received: a distribution with auto_shard_dataset=True. Pass "
                "auto_shard_dataset=False."
            )

    def prepare(self, model: Any) -> None:
        """Bring variables to the devices that were made before."""
        if self.place(model):  # steps were compiled for where they were
            model.train_function = None
            model.test_function = None
            model.predict_function = None

    def each(self, number: int) -> list[int]:
        """A number of each process."""
        if self.distribution.num_processes == 1:
            return [number]
        from jax.experimental import multihost_utils

        found = multihost_utils.process_allgather(np.uint32(number))
        return [int(x) for x in found]

    @contextlib.contextmanager
    def training(self, model: Any) -> Iterator[None]:
        """Say what it means that an exchange failed."""
        import jax

        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            rank, size = world()
            if size > 1 and any(x in str(error) for x in _EXCHANGES):
                raise gone(error, rank, size) from error
            raise

    def callbacks(self, user: list[Any]) -> list[Any]:
        """One callback, which places what a backup brought."""
        return [Placed(self)]

    def place(self, model: Any) -> bool:
        """Whether some of a model's variables had to be moved."""
        moved = [v for v in model.all_variables if self._place(v)]
        return bool(moved)

    def _place(self, variable: Any) -> bool:
        """Whether a variable had to be moved."""
        import jax

        value = variable.value
        if not isinstance(value.sharding, jax.sharding.SingleDeviceSharding):
            return False
        layout = self.distribution.get_variable_layout(variable)
        if layout is None:
            layout = keras.distribution.TensorLayout(
                [None] * len(value.shape), self.distribution.device_mesh
            )
        placed = keras.distribution.distribute_tensor(value, layout)
        variable.assign(placed)
        return True

    def pieces(self, rows: Any) -> list[slice]:
        """Where in the batch of a step each replica's rows are."""
        size = -(-rows // self.replicas)
        return [slice(i, i + size) for i in range(0, rows, size)]
