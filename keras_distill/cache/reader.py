"""Records by number, from files."""

from __future__ import annotations

import os
import weakref
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

# Of some 1,000 that a process may have open.
_MOST_FILES = 256
# What is mapped and was touched counts as memory of the process, and touching
# one record maps a megabyte around it. So only small caches are mapped; of
# others each record is read, which costs a system call.
_MOST_MAPPED = 96 * 2**20


class Reader:
    """Takes records out of shards; safe to use in several threads.

    Args:
        folder: Where the shards are.
        plan: What they hold.
    """

    def __init__(self, folder: Folder, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self._files: OrderedDict[str, _File] = OrderedDict()
        bytes_per_row = sum(field.record.itemsize for field in plan.fields)
        small = bytes_per_row * plan.rows <= _MOST_MAPPED
        self._maps = small or "preadv" not in dir(os)

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
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = self._open(field, name)
            if len(self._files) > _MOST_FILES:
                self._files.popitem(last=False)
        return file.take(places)

    def _open(self, field: Field, name: str) -> _File:
        try:
            path = self.folder.local(name)
            found = np.lib.format.open_memmap(path, "r")
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
        return _Mapped(found) if self._maps else _Read(path, found)


class _Mapped:
    """A file in memory."""

    def __init__(self, records: np.memmap[Any, Any]) -> None:
        self.records = np.asarray(records)

    def take(self, places: Array) -> Array:
        records: Array = np.take(self.records, places)
        return records


class _Read:
    """A file that stays on disk, and in the system's cache."""

    def __init__(self, path: Any, records: np.memmap[Any, Any]) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        self.path = path
        self.dtype = records.dtype
        self.offset = records.offset

    def take(self, places: Array) -> Array:
        size = self.dtype.itemsize
        buffer = bytearray(len(places) * size)
        view = memoryview(buffer)
        count = 0
        for start, offset in zip(
            range(0, len(buffer), size),
            (self.offset + places * size).tolist(),
            strict=True,
        ):
            part = view[start : start + size]
            count += os.preadv(self.descriptor, [part], offset)
        if count != len(buffer):
            raise DamagedCacheError(
                f"A file of the cache is cut off. Received: '{self.path}', "
                "shorter than when it was opened. Remove the shard's folder "
                "and label again, which writes what is missing."
            )
        return np.frombuffer(buffer, self.dtype)


_File: TypeAlias = "_Mapped | _Read"
