"""A data set of which each process loads its share of each global batch."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_distill.cache.transfer_set import as_transfer_set
from keras_distill.distribution.shares import Rows, Share

Array: TypeAlias = "np.ndarray[Any, Any]"


class GlobalBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Base of data sets that own the order of their examples.

    The order is a new one in each epoch, which follows from `(seed, epoch)`
    alone: the same on one device and on many. A subclass says in `examples`
    what to load.

    Attributes:
        epoch: The epoch that comes next, or is going on.
        share: What this process loads of each batch. `Distiller.fit` sets it.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        shuffle: bool,
        seed: int,
        epoch: int,
        workers: int,
    ) -> None:
        super().__init__(workers=workers)
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(
                "A batch holds at least one example. Received: "
                f"batch_size={batch_size!r}."
            )
        self.size = size
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = epoch
        self.share = Share()
        self._order: tuple[int, Array] | None = None

    def __len__(self) -> int:
        """Batches in an epoch, the last one as large as it comes."""
        return math.ceil(self.size / self.batch_size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """This process's share of the batch at a place in the epoch's order."""
        if not 0 <= index < len(self):
            raise IndexError(
                f"There are {len(self)} batches. Received: index={index}."
            )
        epoch = self.epoch
        start = index * self.batch_size
        ids = self.order(epoch)[start : start + self.batch_size]
        mine, marker = self.share.rows(ids)
        x, *rest = self.examples(mine, epoch)
        while rest and rest[-1] is None:
            rest.pop()
        return (x if marker is None else Rows(x, marker), *rest)

    def examples(self, ids: Array, epoch: int) -> tuple[Any, Any, Any]:
        """Inputs, labels and sample weights of some examples."""
        raise NotImplementedError

    def labels(self) -> Any:
        """All hard labels, or None where nobody has them at hand."""
        return None

    def on_epoch_end(self) -> None:
        """Go on to the next epoch, with another order."""
        self.epoch += 1

    def order(self, epoch: int) -> Array:
        """The examples' numbers in the order of an epoch."""
        if self._order is None or self._order[0] != epoch:
            ids = np.arange(self.size)
            if self.shuffle:
                ids = np.random.default_rng([self.seed, epoch]).permutation(ids)
            self._order = epoch, ids
        return self._order[1]


class ShardedBatches(GlobalBatches):
    """What `distribution.batches` returns; pass it to `fit` as `x`."""

    def __init__(
        self,
        data: Any,
        batch_size: int,
        shuffle: bool,
        seed: int,
        epoch: int,
        workers: int,
    ) -> None:
        super().__init__(data.size, batch_size, shuffle, seed, epoch, workers)
        self.data = data

    def __repr__(self) -> str:
        return (
            f"ShardedBatches({len(self)} batches of {self.batch_size}, epoch "
            f"{self.epoch}{', shuffled' * self.shuffle})"
        )

    def labels(self) -> Any:
        """All hard labels."""
        return self.data.parts[1]

    def examples(self, ids: Array, epoch: int) -> tuple[Any, Any, Any]:
        """Inputs, labels and sample weights of some examples."""
        inputs, labels, weights = self.data.take(ids)
        return inputs, labels, weights


def batches(
    data: Any,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 1,
) -> ShardedBatches:
    """Batches of arrays, of which each process loads its share alone.

    The batches are global ones: `batch_size` counts the examples of all
    processes, and the batches of an epoch, and their order, are the same on
    one device and on many, the last one as large as it comes.

    Args:
        data: Arrays; a tuple `(inputs, labels)` or `(inputs, labels,
            sample_weight)` of them. What is on disk, such as `numpy.memmap`,
            is read by row.
        batch_size: Examples in a batch, over all processes.
        shuffle: Whether each epoch has an order of its own. `fit` then takes
            no `steps_per_epoch`: an epoch is once through all of them.
        seed: What the orders follow from.
        epoch: The first epoch.
        workers: As in `keras.utils.PyDataset`.

    Returns:
        A `keras.utils.PyDataset`.

    Raises:
        TypeError: If it is something else than arrays.

    Example:
        >>> import numpy as np, keras_distill as kd
        >>> x, y = np.zeros((10, 4)), np.arange(10)
        >>> data = kd.distribution.batches((x, y), 4, shuffle=True)
        >>> [len(labels) for _, labels in (data[i] for i in range(3))]
        [4, 4, 2]
    """
    arrays = as_transfer_set(data)
    if arrays is None:
        raise TypeError(
            "Batches are made of examples that can be had by number. Received: "
            f"data of type {type(data).__name__}. Pass arrays, or a data set "
            "that gives each process its share already."
        )
    return ShardedBatches(arrays, batch_size, shuffle, seed, epoch, workers)
