"""Where the examples that a teacher speaks about come from, shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count, islice
from typing import Any, Protocol, TypeAlias

import keras
import numpy as np

from keras_distill.cache.fingerprints import arrays_digest
from keras_distill.cache.plan import Plan, StaleCacheError
from keras_distill.cache.transfer_set import (
    TransferSet,
    as_transfer_set,
    batches_of,
)
from keras_distill.cache.views import Views

Array: TypeAlias = "np.ndarray[Any, Any]"
Batches: TypeAlias = Iterator[Any]


class Source(Protocol):
    """Examples in a fixed order, in batches."""

    @property
    def size(self) -> int | None:
        """How many examples there are, `None` if only the end will tell."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells these examples from others."""

    def first(self, batch_size: int) -> Any:
        """A batch of inputs to learn the teacher's shapes from."""

    def shards(self, plan: Plan) -> Iterator[tuple[int, Batches]]:
        """Each shard's number, and its inputs in batches."""


class ArraySource:
    """Examples that are at hand by number, in one view or several.

    Row `epoch * size + number` is an example's view in an epoch.

    Args:
        data: The examples.
        views: How to make their views.
    """

    def __init__(self, data: TransferSet, views: Views | None) -> None:
        self.data = data
        self.views = views

    @property
    def size(self) -> int:
        """How many examples there are."""
        return self.data.size

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Size and digest."""
        return self.data.fingerprint

    def first(self, batch_size: int) -> Any:
        """The first examples."""
        return self.inputs(np.arange(min(batch_size, self.size)))

    def inputs(self, rows: Array) -> Any:
        """Inputs of rows, all of one epoch or not."""
        if self.views is None:
            return self.data.inputs(rows)
        epochs, ids = np.divmod(rows, self.size)
        parts = [
            self.views.make(self.data, ids[epochs == epoch], int(epoch))[0]
            for epoch in np.unique(epochs)  # rows come in order
        ]
        return keras.tree.map_structure(lambda *p: np.concatenate(p), *parts)

    def shards(self, plan: Plan) -> Iterator[tuple[int, Batches]]:
        """Each shard, made when it is asked for."""
        for shard in range(plan.shards):
            yield shard, self._batches(plan.shard_range(shard), plan.batch_size)

    def _batches(self, rows: range, batch_size: int) -> Batches:
        for start in range(rows.start, rows.stop, batch_size):
            stop = min(start + batch_size, rows.stop)
            yield self.inputs(np.arange(start, stop))


class StreamSource:
    """Examples that can only be run through, in the same order each time.

    Args:
        data: What gives batches.
    """

    size = None

    def __init__(self, data: Any) -> None:
        if iter_is_used_up(data):
            raise TypeError(
                "A generator can be run through once, and labelling looks at "
                f"the first batch beforehand. Received: {data!r}. Pass "
                "something that begins anew each time, such as a "
                "tf.data.Dataset or a keras.utils.PyDataset."
            )
        self.data = data

    @property
    def fingerprint(self) -> dict[str, Any]:
        """A digest of the first batch."""
        batch = next(batches_of(self.data), None)
        if batch is None:
            raise ValueError(
                "The transfer set is empty. Received: data that give no batch."
            )
        return {"first_batch": arrays_digest(batch)}

    def first(self, batch_size: int) -> Any:
        """The first examples."""
        return next(_rebatched(batches_of(self.data), batch_size))

    def shards(self, plan: Plan) -> Iterator[tuple[int, Batches]]:
        """Each shard, of which each batch must be asked for."""
        # Were it shuffled, its numbers would mean nothing.
        known = plan.transfer_set
        if "first_batch" in known and self.fingerprint != known:
            raise StaleCacheError(
                "The transfer set begins with other examples than before. "
                "Received: a stream whose first batch has changed since it was "
                "first looked at. Don't shuffle while labelling; label other "
                "data into an empty folder."
            )
        batches = _rebatched(batches_of(self.data), plan.batch_size)
        for shard in count():
            first = next(batches, None)
            if first is None:
                return
            rest = islice(batches, plan.shard_rows // plan.batch_size - 1)
            yield shard, chain([first], rest)


def as_source(data: Any, views: Views | None) -> ArraySource | StreamSource:
    """What gives the examples of a transfer set."""
    arrays = as_transfer_set(data)
    if arrays is not None:
        return ArraySource(arrays, views)
    if views is not None:
        raise TypeError(
            "Views are made of examples that can be had by number. Received: "
            f"views, and data of type {type(data).__name__}. Pass arrays "
            "(numpy.memmap for what doesn't fit into memory), or let the "
            "stream make the views and store each epoch's outputs."
        )
    return StreamSource(data)


def iter_is_used_up(data: Any) -> bool:
    """Whether going through some data uses it up."""
    return isinstance(data, Iterator)


def _rebatched(batches: Batches, size: int) -> Batches:
    """Batches of that size, the last one as it comes."""
    waiting: list[Any] = []
    held = 0
    for batch in batches:
        waiting.append(batch)
        held += len(keras.tree.flatten(batch)[0])
        while held >= size:
            joined = _joined(waiting)
            yield keras.tree.map_structure(lambda a: a[:size], joined)
            waiting = [keras.tree.map_structure(lambda a: a[size:], joined)]
            held -= size
    if held:
        yield _joined(waiting)


def _joined(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    return keras.tree.map_structure(lambda *p: np.concatenate(p), *parts)
