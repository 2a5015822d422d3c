"""Examples from whatever they lie in."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import keras
import numpy as np

from keras_distill.data.arrays import load_npy, load_npz
from keras_distill.data.examples import Examples
from keras_distill.data.images import load_folder
from keras_distill.data.parquet import load_parquet
from keras_distill.data.public import load_public

_PUBLIC = "tfds:"


def load_data(
    source: str | os.PathLike[str],
    split: str | None = None,
    *,
    label: str | None = None,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    scale: float | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Examples:
    """Load examples, with labels where there are some.

    Nothing that is loaded is run: pickles are refused. Images and `.npy` files
    stay on disk until they are needed; the rest is read into memory.

    | source | inputs | labels |
    |---|---|---|
    | `"tfds:cifar10"` | of TensorFlow Datasets | its classes |
    | `data.npz` | all other arrays, several by name | the array `y` |
    | with `x_train`, `y_train`, ... | those of the split | the same |
    | `data.npy` | the array | – |
    | `data.parquet` | images, lists or numbers | the column `label` |
    | a folder | images, as bytes from 0 to 255 | its folders, by name |

    Args:
        source: What to load.
        split: Part of a data set that has parts, such as `"test"`; by default
            `"train"` there.
        label: Name of the array or column of labels, instead of `y` and
            `label`.
        size: Height and width that images of files are resized to. Without it,
            all must have one size.
        channels: Channels that images of files are read with: 1, 3 or 4.
            Without it, all must have as many.
        scale: What inputs are multiplied by, such as `1 / 255`. They are read
            into memory then.
        data_dir: Where TensorFlow Datasets keeps its data.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it can't be read, or an argument isn't for it.
        ImportError: If a package is missing.

    Example:
        >>> import pathlib, tempfile, numpy as np, keras_distill as kd
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "data.npz"
        >>> np.savez(path, x_train=np.zeros((6, 4)), y_train=np.arange(6) % 3,
        ...          x_test=np.zeros((2, 4)), y_test=np.zeros(2, int))
        >>> data = kd.load_data(path, "test")
        >>> data.inputs.shape, data.labels.shape
        ((2, 4), (2,))
    """
    if channels not in (None, 1, 3, 4):
        raise ValueError(
            f"Images have 1, 3 or 4 channels. Received: channels={channels!r}."
        )
    loaded = _load(os.fspath(source), split, label, size, channels, data_dir)
    return loaded if scale is None else _scaled(loaded, scale)


def _load(
    source: str,
    split: str | None,
    label: str | None,
    size: tuple[int, int] | None,
    channels: int | None,
    data_dir: str | os.PathLike[str] | None,
) -> Examples:
    if source.startswith(_PUBLIC):
        _refuse(source, size=size, channels=channels, label=label)
        return load_public(source.removeprefix(_PUBLIC), split, data_dir)
    _refuse(source, data_dir=data_dir)
    path = pathlib.Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"There are no such data. Received: '{source}'. Pass a .npz, .npy "
            "or .parquet file, a folder of images, or tfds:NAME."
        )
    if path.suffix == ".npz":
        _refuse(source, size=size, channels=channels)
        return load_npz(path, split, label)
    _refuse(source, split=split)
    if path.suffix == ".parquet":
        return load_parquet(path, label, size, channels)
    _refuse(source, label=label)
    if path.is_dir():
        return load_folder(path, size, channels)
    _refuse(source, size=size, channels=channels)
    if path.suffix == ".npy":
        return load_npy(path)
    raise ValueError(
        f"It isn't known how to read these data. Received: '{source}'. Pass a "
        ".npz, .npy or .parquet file, a folder of images, or tfds:NAME."
    )


def _refuse(source: str, **arguments: object) -> None:
    """Refuse arguments that would be ignored."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"These data take no {name}. Received: {name}={value!r} for "
                f"'{source}'. Leave it out."
            )


def _scaled(examples: Examples, scale: float) -> Examples:
    return dataclasses.replace(
        examples,
        inputs=keras.tree.map_structure(
            lambda array: np.asarray(array, "float32") * np.float32(scale),
            examples.inputs,
        ),
    )
