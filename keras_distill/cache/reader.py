"""Records by number, from files mapped into memory."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from typing import Any, TypeAlias

import numpy as np

from keras_distill.cache.folders import Folder
from keras_distill.cache.plan import (
    DamagedCacheError,
    Field,
    Plan,
    shard_name,
)

Array: TypeAlias = "np.ndarray[Any, Any]"

# Each open map holds a file handle, of which a process has some 1,000.
_MOST_MAPS = 256
# A page that was touched counts as memory of the process, though it can be
# taken away at any time; reading one maps its neighbours too.
_MOST_RESIDENT = 96 * 2**20
_MAPPED_AROUND = 64 * 2**10


class Reader:
    """Takes records out of shards; safe to use in several threads.

    Args:
        folder: Where the shards are.
        plan: What they hold.
    """

    def __init__(self, folder: Folder, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self._maps: OrderedDict[str, np.memmap[Any, Any]] = OrderedDict()
        self._touched = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which opens the files itself."""
        return Reader, (self.folder, self.plan)

    def read(self, field: Field, rows: Array) -> Array:
        """Records of these rows, in their order."""
        if not len(rows):
            return np.empty(0, field.record)
        shards, places = np.divmod(rows, self.plan.shard_rows)
        if (shards == shards[0]).all():
            return self._take(field, int(shards[0]), places)
        records = np.empty(len(rows), field.record)
        order = np.argsort(shards, kind="stable")
        ends = np.flatnonzero(np.diff(shards[order])) + 1
        for group in np.split(order, ends):
            shard = int(shards[group[0]])
            records[group] = self._take(field, shard, places[group])
        return records

    def _take(self, field: Field, shard: int, places: Array) -> Array:
        name = f"{shard_name(shard)}/{field.file}"
        records: Array = np.take(np.asarray(self._map(field, name)), places)
        self._touched += len(places) * max(
            field.record.itemsize, _MAPPED_AROUND
        )
        if self._touched > _MOST_RESIDENT:
            self._let_go()
        return records

    def _map(self, field: Field, name: str) -> np.memmap[Any, Any]:
        found = self._maps.get(name)
        if found is None:
            found = self._open(field, name)
            self._maps[name] = found
            if len(self._maps) > _MOST_MAPS:
                self._maps.popitem(last=False)
        return found

    def _open(self, field: Field, name: str) -> np.memmap[Any, Any]:
        try:
            found = np.lib.format.open_memmap(self.folder.local(name), "r")
        except Exception as error:  # the header is parsed as Python
            raise DamagedCacheError(
                f"A file of the cache can't be read. Received: '{name}': "
                f"{error}. Remove the shard's folder and label again, which "
                "writes what is missing."
            ) from error
        rows = len(self.plan.shard_range(int(name.split("/")[1])))
        if found.dtype != field.record or found.shape != (rows,):
            raise DamagedCacheError(
                "A file of the cache holds other records than its manifest "
                f"says. Received: '{name}' of {found.shape} {found.dtype}, "
                f"expected {(rows,)} {field.record}. Label anew, into an "
                "empty folder."
            )
        return found

    def _let_go(self) -> None:
        """Drop pages from this process; they stay in the system's cache."""
        self._touched = 0
        resident = sum(found.nbytes for found in self._maps.values())
        if resident <= _MOST_RESIDENT or "MADV_DONTNEED" not in dir(mmap):
            return
        for found in list(self._maps.values()):
            pages: Any = found.base
            pages.madvise(mmap.MADV_DONTNEED)
