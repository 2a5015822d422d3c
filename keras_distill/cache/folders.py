"""Folders whose files are there as a whole, or not at all."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import pathlib
import shutil
import tempfile
import uuid
import weakref
from abc import ABC, abstractmethod
from typing import Any

# What begins like this is being written, or its writer died.
PARTIAL = ".partial-"
# The last file of a shard: with it, the shard is finished.
MARKER = "shard.json"


class Folder(ABC):
    """A folder of files and of folders of files, the shards.

    What is in it is never changed: it is written aside, and then appears.
    Several processes may write the same thing; the first one counts.
    """

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """A file's bytes, or `None` if there is no such file."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> None:
        """Write a file, unless it is there."""

    @abstractmethod
    def publish(self, name: str, files: dict[str, bytes | memoryview]) -> None:
        """Write a shard, `MARKER` being its last file, unless it is there."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Sizes in bytes of all files of finished shards, by name."""

    @abstractmethod
    def local(self, name: str) -> pathlib.Path:
        """Where a file can be mapped into memory."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what was never finished, once all shards are there."""


class LocalFolder(Folder):
    """A folder on a file system of this machine.

    Args:
        path: The folder; it is made if need be, by the first that writes.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __str__(self) -> str:
        """The path."""
        return str(self.path)

    def read(self, name: str) -> bytes | None:
        """A file's bytes, or `None` if there is no such file."""
        path = self.path / name
        # Reading a pipe would wait for ever.
        return path.read_bytes() if path.is_file() else None

    def create(self, name: str, data: bytes) -> None:
        """Write a file, unless it is there."""
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self._partial(name)
        try:
            _write(partial, data)
            _link(partial, self.path / name)
        finally:
            partial.unlink(missing_ok=True)
        _sync(self.path)

    def publish(self, name: str, files: dict[str, bytes | memoryview]) -> None:
        """Write a shard beside its place, and rename its folder."""
        partial = self._partial(name.rpartition("/")[2])
        final = self.path / name
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.mkdir()
            for file, data in files.items():
                _write(partial / file, data)
            _sync(partial)
            partial.rename(final)
        except OSError as error:
            occupied = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            if (final / MARKER).exists() and (
                occupied or error.errno == errno.ENOENT
            ):
                return  # another process was faster; it may have swept up
            if occupied:
                raise OSError(
                    error.errno,
                    f"There are files in the place of shard '{name}', and no "
                    f"'{MARKER}' among them. Remove the folder, and write "
                    "again",
                    str(final),
                ) from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        _sync(final.parent)

    def sizes(self) -> dict[str, int]:
        """Sizes of the files in the folders in `shards/`."""
        found = {}
        top = self.path / "shards"
        shards = os.scandir(top) if top.is_dir() else ()
        for shard in shards:
            if not (shard.is_dir() and _is_shard(shard.name)):
                continue  # such as what a file browser leaves
            for file in os.scandir(shard.path):
                name = f"shards/{shard.name}/{file.name}"
                found[name] = file.stat().st_size
        return found

    def local(self, name: str) -> pathlib.Path:
        """The file itself."""
        return self.path / name

    def sweep(self) -> None:
        """Remove what writers that died have left."""
        for path in self.path.glob(f"{PARTIAL}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _partial(self, name: str) -> pathlib.Path:
        return self.path / f"{PARTIAL}{name}-{uuid.uuid4().hex}"


class RemoteFolder(Folder):
    """A folder on a file system that fsspec knows, such as `s3://...`.

    Such file systems have no folders to rename: a shard is finished with its
    last file. To be read, files are copied to this machine, once.

    Args:
        url: Of the folder.
        copy: A folder of this machine that holds the copies; `None` for one
            that is removed when the program ends.
    """

    def __init__(self, url: str, copy: pathlib.Path | None = None) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise ImportError(
                "A cache that isn't on this machine needs fsspec. Received: "
                f"{url}. Run: pip install fsspec"
            ) from error
        self.files, self.root = fsspec.core.url_to_fs(url)
        self._copy = copy
        self._url = url

    def __str__(self) -> str:
        """The URL."""
        return self._url

    def read(self, name: str) -> bytes | None:
        """A file's bytes, or `None` if there is no such file."""
        try:
            data: bytes = self.files.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return None
        return data

    def create(self, name: str, data: bytes) -> None:
        """Write a file, unless it is there."""
        if not self.files.exists(f"{self.root}/{name}"):
            self._put(name, data)

    def publish(self, name: str, files: dict[str, bytes | memoryview]) -> None:
        """Write a shard's files, the marker last."""
        if self.files.exists(f"{self.root}/{name}/{MARKER}"):
            return
        for file, data in files.items():
            self._put(f"{name}/{file}", bytes(data))

    def sizes(self) -> dict[str, int]:
        """Sizes of the files of shards that have their marker."""
        try:
            found = self.files.find(f"{self.root}/shards", detail=True)
        except FileNotFoundError:
            return {}
        names = {
            "shards/" + path.rpartition("/shards/")[2]: entry["size"]
            for path, entry in found.items()
            if _is_shard(path.split("/")[-2])
        }
        return {
            name: size
            for name, size in names.items()
            if f"{name.rpartition('/')[0]}/{MARKER}" in names
        }

    @functools.cached_property
    def _whose(self) -> str:
        """Of which plan a copy is: not of another cache, or an earlier one."""
        plan = self.read("plan.json") or b""
        return hashlib.sha256(plan).hexdigest()[:16]

    def local(self, name: str) -> pathlib.Path:
        """A copy of the file."""
        if self._copy is None:
            self._copy = pathlib.Path(tempfile.mkdtemp("-teacher-cache"))
            weakref.finalize(self, shutil.rmtree, self._copy, True)
        path = self._copy / self._whose / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{PARTIAL}{uuid.uuid4().hex}")
            self.files.get_file(f"{self.root}/{name}", str(partial))
            partial.replace(path)
        return path

    def sweep(self) -> None:
        """Remove what writers that died have left."""
        for path in self.files.glob(f"{self.root}/{PARTIAL}*"):
            self.files.rm_file(path)

    def _put(self, name: str, data: bytes) -> None:
        self.files.makedirs(
            f"{self.root}/{name}".rpartition("/")[0], exist_ok=True
        )
        partial = f"{self.root}/{PARTIAL}{uuid.uuid4().hex}"
        self.files.pipe_file(partial, data)
        self.files.mv(partial, f"{self.root}/{name}")


def as_folder(path: Any, copy: Any = None) -> Folder:
    """The folder of a path or of a URL such as `s3://bucket/cache`."""
    if isinstance(path, Folder):
        return path
    if isinstance(path, str) and "://" in path:
        return RemoteFolder(path, None if copy is None else pathlib.Path(copy))
    return LocalFolder(pathlib.Path(path))


def _is_shard(name: str) -> bool:
    return len(name) >= 6 and name.isdigit()


def _write(path: pathlib.Path, data: bytes | memoryview) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(partial: pathlib.Path, final: pathlib.Path) -> None:
    try:
        os.link(partial, final)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        if not final.exists():
            partial.replace(final)


def _sync(folder: pathlib.Path) -> None:
    """Make sure that the names in a folder outlast a power failure."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
