"""Arrays in `.npy` and `.npz` files. Never a pickle, which could run code."""

from __future__ import annotations

import pathlib
import zipfile
import zlib
from typing import Any, TypeAlias

import numpy as np

from keras_distill.data.examples import Examples, number_labels

Array: TypeAlias = "np.ndarray[Any, Any]"

# What Python and NumPy raise where a file isn't what its name says.
_DAMAGED = (
    AttributeError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


def load_npy(path: pathlib.Path) -> Examples:
    """Inputs alone, which stay on disk.

    Raises:
        ValueError: If it is no such file.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.ndim == 0:
            raise ValueError("one number")
    except _DAMAGED as error:
        raise _damaged("npy", "save", path, error) from error
    return Examples(array, source=str(path))


def load_npz(
    path: pathlib.Path, split: str | None, label: str | None
) -> Examples:
    """Inputs, several by their names, and labels.

    Args:
        path: The file.
        split: Of arrays `x_train`, `y_train` and so on, those that are read.
        label: Name of the labels' array; `y`, if there is one.

    Raises:
        ValueError: If it is no such file, or holds no such split.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as file:
            arrays = dict(file)
    except _DAMAGED as error:
        raise _damaged("npz", "savez", path, error) from error
    part = split or _default_split(arrays)
    chosen = dict(arrays) if part is None else _of_split(path, arrays, part)
    if label is not None and label not in chosen:
        raise ValueError(
            "There is no such array of labels. Received: "
            f"label={label!r}, and arrays {', '.join(arrays)} in '{path}'."
        )
    for name, array in chosen.items():
        if array.ndim == 0:
            raise ValueError(
                "Examples are arrays of one row each. Received: one value "
                f"as '{name}' in '{path}'."
            )
    labels, names = number_labels(chosen.pop(label or "y", None))
    if not chosen:
        raise ValueError(
            "Examples are arrays of one row each. Received: arrays "
            f"{', '.join(arrays) or 'none'} in '{path}'."
        )
    inputs: Any = chosen
    if len(chosen) == 1:
        (inputs,) = chosen.values()
    return Examples(inputs, labels, names, str(path), part or "")


def _default_split(arrays: dict[str, Array]) -> str | None:
    """`"train"` where arrays have parts; others may be inputs named so."""
    whole = "x" in arrays or "y" in arrays
    return None if whole or "x_train" not in arrays else "train"


def _of_split(
    path: pathlib.Path, arrays: dict[str, Array], split: str
) -> dict[str, Array]:
    """The arrays of a split, without its name."""
    splits = sorted(
        name.removeprefix("x_") for name in arrays if name.startswith("x_")
    )
    ending = f"_{split}"
    chosen = {
        name.removesuffix(ending): array
        for name, array in arrays.items()
        if name.endswith(ending)
    }
    if not chosen:
        raise ValueError(
            f"There is no such split in '{path}'. Received: split={split!r}, "
            f"and arrays {', '.join(arrays)}. Name one of "
            f"{', '.join(splits) or 'none'}, or leave the split out."
        )
    return chosen


def _damaged(
    kind: str, writer: str, path: pathlib.Path, error: Exception
) -> ValueError:
    return ValueError(
        f"Examples come in an .{kind} file, as `np.{writer}` writes it, and "
        f"without pickles. Received: '{path}', {type(error).__name__}: {error}"
    )
