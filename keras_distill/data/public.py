"""Public data sets, by their names in TensorFlow Datasets."""

from __future__ import annotations

import os

from keras_distill.data.examples import Examples


def load_public(
    name: str, split: str | None, folder: str | os.PathLike[str] | None
) -> Examples:
    """Load a data set of pairs, into memory.

    Args:
        name: Its name, such as `"cifar10"`.
        split: `"train"` by default, or `"test"`, `"train[:10%]"`, ...
        folder: Where data sets lie, or are downloaded to.

    Raises:
        ValueError: If there is no such data set or split, or it isn't one of
            inputs and labels.
        ImportError: If tensorflow-datasets isn't there.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "Public data sets come from tensorflow-datasets. Received: "
            f"{error}. Run `pip install 'keras-distill[examples]'`."
        ) from error
    part = split or "train"
    try:
        loaded, info = tfds.load(
            name,
            split=part,
            data_dir=None if folder is None else os.fspath(folder),
            batch_size=-1,
            as_supervised=True,
            with_info=True,
        )
    # It has kinds of errors of its own: no such name, split, or network.
    except Exception as error:
        raise ValueError(
            "A data set can't be loaded. Received: "
            f"'tfds:{name}', {type(error).__name__}: {error}"
        ) from error
    x, y = tfds.as_numpy(loaded)
    label = info.features[info.supervised_keys[1]]
    names = (
        tuple(label.names)
        if isinstance(label, tfds.features.ClassLabel)
        else ()
    )
    return Examples(x, y, names, f"tfds:{name}", part)
