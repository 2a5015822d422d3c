"""Where and how a report was made."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shlex
import sys

import keras

_BACKENDS = {"tensorflow": ("tensorflow", "tensorflow-cpu")}
_PACKAGES = ("numpy", "keras-distill")


def environment() -> dict[str, str]:
    """Versions of what computed, and the machine."""
    backend = keras.backend.backend()
    version = _version(*_BACKENDS.get(backend, (backend,)))
    packages = {name: _version(name) for name in _PACKAGES}
    return {
        "keras": keras.version(),
        "backend": f"{backend} {version}",
        **packages,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
    }


def _version(*names: str) -> str:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed as a package"


def command_line() -> str:
    """What started this process, wherever its Python is."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
