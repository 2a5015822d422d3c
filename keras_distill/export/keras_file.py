"""A `.keras` file of unknown origin: looked into, and loaded with care."""

from __future__ import annotations

import json
import pathlib
import zipfile
from typing import Any

import keras

from keras_distill.export.flatbuffer import DamagedFileError

_CONFIG = "config.json"
_METADATA = "metadata.json"
# Keras stores weights uncompressed: what unpacks to far more than the file was
# made to fill a disk or memory.
_LARGEST_RATIO = 20
_LARGEST_TEXT = 2**26


def describe_keras(path: pathlib.Path) -> dict[str, Any]:
    """What a `.keras` file says of itself, without running any of it.

    Raises:
        DamagedFileError: If it isn't one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _require_sizes(path, archive)
            damaged = archive.testzip()
            config = json.loads(archive.read(_CONFIG))
            metadata = json.loads(archive.read(_METADATA))
            facts = {
                "class": config["class_name"],
                "name": config["config"]["name"],
                "keras": metadata["keras_version"],
                "saved": metadata["date_saved"],
                "layers": [
                    f"{layer['class_name']} {layer['config'].get('name', '')}"
                    for layer in config["config"].get("layers", [])
                ],
            }
    except (DamagedFileError, FileNotFoundError):
        raise
    # Every kind of nonsense is possible in a damaged file.
    except Exception as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if damaged:
        raise _damaged(path, f"a wrong checksum of '{damaged}'")
    return facts


def load_keras(path: pathlib.Path) -> keras.Model:
    """Load a `.keras` file in Keras' safe mode, which runs no code of it.

    Raises:
        DamagedFileError: If it isn't such a file, or can't be loaded.
    """
    describe_keras(path)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    # Keras raises what comes up in it.
    except Exception as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _require_sizes(path: pathlib.Path, archive: zipfile.ZipFile) -> None:
    entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > _LARGEST_RATIO * path.stat().st_size + _LARGEST_TEXT:
        raise _damaged(path, f"{unpacked} bytes when unpacked")
    for name in (_CONFIG, _METADATA):
        if archive.getinfo(name).file_size > _LARGEST_TEXT:
            raise _damaged(path, f"a {name} of more than {_LARGEST_TEXT} bytes")


def _damaged(path: pathlib.Path, what: str) -> DamagedFileError:
    return DamagedFileError(
        "It isn't a `.keras` file that Keras wrote, or is damaged, or has "
        f"custom layers. Received: '{path}' with {what}. Get the file again, "
        "or load it with its custom objects in Python."
    )
