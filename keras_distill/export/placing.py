"""Puts what was written and checked where the user wants it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from keras_distill.export.processes import working_folder


@contextlib.contextmanager
def staged(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder for new files, on the disk of the folder that they go to.

    What the block leaves in it is moved to `place`: all of it, or nothing if
    the block or a move failed. What was there under the same names is replaced.
    """
    with tempfile.TemporaryDirectory(prefix=".export-", dir=place) as name:
        new, old = pathlib.Path(name, "new"), pathlib.Path(name, "old")
        new.mkdir()
        old.mkdir()
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                _flush(file)
        _move(new, old, place)


def place_file(path: pathlib.Path, content: bytes) -> None:
    """Put a file in place at once: a reader never sees half of one."""
    path = target_of(path)
    with staged(path.parent) as folder:
        (folder / path.name).write_bytes(content)


def target_of(path: pathlib.Path) -> pathlib.Path:
    """The path that links lead to: what is written there is found here."""
    return pathlib.Path(os.path.realpath(working_folder() / path))


def _move(new: pathlib.Path, old: pathlib.Path, place: pathlib.Path) -> None:
    entries = sorted(new.iterdir())
    with contextlib.ExitStack() as undo:
        for entry in entries:
            target = place / entry.name
            # One file takes another's place at once, so that there is always
            # one. Several files, or a folder, can't.
            if target.exists() and (len(entries) > 1 or target.is_dir()):
                os.replace(target, old / entry.name)
                undo.callback(os.replace, old / entry.name, target)
            os.replace(entry, target)
            if not (old / entry.name).exists():
                undo.callback(os.replace, target, entry)
        undo.pop_all()


def _flush(file: pathlib.Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def size_of(path: pathlib.Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
