"""Write CIFAR-10 as tensorflow_datasets would, from a file instead of the web.

    python .ci/prepare_cifar10.py cifar10.npz data/

The file holds `x_train`, `y_train`, `x_test` and `y_test`, uint8 images of
32x32x3 and their labels. Afterwards this needs no network:

    tfds.load("cifar10", data_dir="data/", download=False)
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def main() -> None:
    """Read the file, write the data set."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("npz", type=pathlib.Path, help="file to read")
    parser.add_argument("data_dir", type=pathlib.Path, help="folder to fill")
    parser.add_argument(
        "--limit",
        type=int,
        help="write the first LIMIT images of each split, not all",
    )
    arguments = parser.parse_args()
    with np.load(arguments.npz) as arrays:
        splits = {
            split: examples(
                split,
                arrays[f"x_{split}"][: arguments.limit],
                arrays[f"y_{split}"][: arguments.limit],
            )
            for split in ("train", "test")
        }
    prepare(splits, arguments.data_dir)


def examples(
    split: str, images: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records, with the keys and ids of the official data set."""
    for index, (image, label) in enumerate(
        zip(images, labels.reshape(-1), strict=True)
    ):
        yield (
            index,
            {
                "id": f"{split}_{index:05d}",
                "image": image,
                "label": int(label),
            },
        )


def prepare(splits: dict[str, Any], data_dir: pathlib.Path) -> None:
    """Write the records, unless the folder has the data set already."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("cifar10", data_dir=data_dir)
    builder.info.features["label"].names = list(NAMES)
    # Everything is the official builder's but for the download, which is all
    # that this method does besides.
    builder._split_generators = lambda dl_manager: splits
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    print(f"{builder.info.full_name} is in {builder.data_path}.")


if __name__ == "__main__":
    main()
