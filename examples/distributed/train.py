"""Distil on many devices; the same script on each engine, and on one device.

    python train.py teacher                            # once, on one device
    torchrun --nproc-per-node 2 train.py student       # KERAS_BACKEND=torch

The pages beside this file have the command for each engine. The data are
scikit-learn's digits. An interrupted training goes on where its last epoch
ended: give the same command again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_distill as kd


def main() -> None:
    args = arguments()
    if args.what == "teacher":
        train_teacher(args.folder)
    else:
        distil(args.folder, args.epochs)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["teacher", "student"])
    parser.add_argument(
        "--folder",
        type=pathlib.Path,
        default=pathlib.Path("runs/distributed"),
        help="for files; all processes must see it",
    )
    parser.add_argument("--epochs", type=int, default=10)
    return parser.parse_args()


def digits() -> tuple[Any, Any]:
    """Training and test sets."""
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8, 1) / 16).astype("float32")
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    return (x[300:], y[300:]), (x[:300], y[:300])


def network(width: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(width, 3, activation="relu", name="conv"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10),
        ]
    )


def train_teacher(folder: pathlib.Path) -> None:
    teacher = network(64)
    teacher.compile(
        optimizer="adam", loss=kd.HardLabels(), metrics=[kd.HardLabelAccuracy()]
    )
    train, test = digits()
    teacher.fit(*train, epochs=10, validation_data=test, verbose=2)
    folder.mkdir(parents=True, exist_ok=True)
    teacher.save(folder / "teacher.keras")


def scope() -> contextlib.AbstractContextManager[Any]:
    """Where models are made: TensorFlow mirrors them on all devices."""
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.distribute.MirroredStrategy().scope()


def distil(folder: pathlib.Path, epochs: int) -> dict[str, list[float]]:
    """The part that all processes run."""
    keras.utils.set_random_seed(0)
    world = kd.distribution.initialize()
    print(f"process {world.rank} of {world.size}", flush=True)
    train, test = digits()
    with scope():
        teacher = keras.models.load_model(folder / "teacher.keras")
        distiller = kd.Distiller(teacher, network(8))
        distiller.compile(optimizer=keras.optimizers.Adam(0.01))
    history = distiller.fit(
        # The batches of all processes together.
        kd.distribution.batches(train, 60, shuffle=True),
        validation_data=test,
        epochs=epochs,
        verbose=2,
        callbacks=[
            # Two checkpoints, since a process may be killed as it writes one.
            keras.callbacks.BackupAndRestore(
                folder / "backup", double_checkpoint=True
            )
        ],
    )
    if world.is_first:
        with kd.distribution.local():
            distiller.student.save(folder / "student.keras")
        print("accuracy", history.history["val_accuracy"][-1], flush=True)
    return history.history  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
