"""Search for temperature, weight and learning rate, asking the teacher once.

    KERAS_BACKEND=jax python examples/tune.py

What a teacher says of the transfer set doesn't depend on how a student learns
from it. So it is stored once, and each trial of the search costs what training
the small student costs. The search looks at validation images; test images are
for the end: the settings found against the defaults, over new seeds, and
against the defaults with the learning rate found.

Data: scikit-learn's handwritten digits, nothing is downloaded. KerasTuner
searches (`pip install keras-tuner`).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import sys
from typing import Any, NamedTuple

import figures
import numpy as np

RESULTS = figures.RESULTS / "tune.json"
os.environ.setdefault("KERAS_BACKEND", "jax")
if os.environ["KERAS_BACKEND"] == "torch":
    # Before TensorFlow, which KerasTuner may come to import.
    importlib.import_module("torch").set_num_threads(1)

BATCH_SIZE = 32
DEFAULTS = {
    "temperature": 4.0,
    "hard_label_weight": 0.1,
    "learning_rate": 1e-3,
}


RATE_ALONE = "defaults, learning rate found"


class Examples(NamedTuple):
    """Images and the digits that they show."""

    images: np.ndarray
    digits: np.ndarray


class Data(NamedTuple):
    """Parts of the data set without an image in common."""

    teacher: Examples
    transfer: Examples
    validation: Examples
    test: Examples


def main() -> None:
    arguments = parse_arguments()
    if arguments.table:
        figures.show(arguments.json or RESULTS, table)
        return
    if importlib.util.find_spec("keras_tuner") is None:
        sys.exit("Not installed: keras-tuner. Run: pip install keras-tuner")
    import keras_distill as kd

    data = load_data(arguments.examples)
    teacher = train_teacher(data.teacher, arguments.epochs)
    cache = kd.TeacherCache.write(
        arguments.output / f"{name_of(arguments)}-cache",
        teacher,
        tuple(data.transfer),
        verbose=0,
    )
    found = search(cache, data.validation, arguments)
    rate = {**DEFAULTS, "learning_rate": found["learning_rate"]}
    seeds = range(1, arguments.seeds + 1)
    facts = {
        "teacher": accuracy(teacher, data.test),
        "found": found,
        "defaults": DEFAULTS,
        RATE_ALONE: rate,
        **{
            f"test accuracy, {name}": [
                accuracy(
                    distil(cache, settings, seed, arguments.epochs), data.test
                )
                for seed in seeds
            ]
            for name, settings in (
                ("found", found),
                ("defaults", DEFAULTS),
                (RATE_ALONE, rate),
            )
        },
        "trials": arguments.trials,
        "epochs": arguments.epochs,
    }
    print(table({"": facts}))
    if arguments.json:
        figures.keep(arguments.json, facts)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--trials", type=int, default=30, help="settings to try (%(default)s)"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=20,
        help="of each student over the transfer set (%(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=5,
        help="students of the final comparison, at least 2 (%(default)s)",
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=600,
        help="of the teacher, and of the transfer set (%(default)s)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("tune-output"),
        help="folder for the cache and the trials; the same command goes on "
        "where it stopped (%(default)s)",
    )
    figures.add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("a spread takes at least 2 seeds")
    return arguments


def load_data(count: int) -> Data:
    """Images of 8x8 pixels, split with equal shares of each digit."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, digits = load_digits(return_X_y=True)
    rest = images.reshape(-1, 8, 8, 1).astype("float32"), digits.astype("int32")
    parts = []
    for size in (count, count, 200):
        part, left, part_digits, left_digits = train_test_split(
            *rest, train_size=size, stratify=rest[1], random_state=0
        )
        parts.append(Examples(part, part_digits))
        rest = left, left_digits
    return Data(*parts, Examples(*rest))


def network(width: int) -> Any:
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Rescaling(1 / 16),
            layers.Conv2D(width, 3, strides=2, activation="relu"),
            layers.Conv2D(2 * width, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def train_teacher(examples: Examples, epochs: int) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    teacher = network(64)
    teacher.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    teacher.fit(*examples, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)
    return teacher


def name_of(arguments: argparse.Namespace) -> str:
    """Of what a teacher and trials of other settings say nothing about."""
    return f"{arguments.examples}-examples-{arguments.epochs}-epochs"


def search(
    cache: Any, validation: Examples, arguments: argparse.Namespace
) -> dict[str, float]:
    """The settings whose students did best on the validation images."""
    import keras_tuner

    class Search(keras_tuner.RandomSearch):
        """Random settings; `BayesianOptimization` takes its place as it is."""

        def run_trial(self, trial: Any) -> list[float]:
            hp = trial.hyperparameters
            settings = {
                "temperature": hp.Float("temperature", 1, 20, sampling="log"),
                "hard_label_weight": hp.Choice(
                    "hard_label_weight", [0.0, 0.1, 0.3, 1.0]
                ),
                "learning_rate": hp.Float(
                    "learning_rate", 3e-4, 3e-2, sampling="log"
                ),
            }
            # Of one student alone, luck would be what is found. These seeds
            # aren't those of the final comparison.
            return [
                accuracy(
                    distil(cache, settings, seed, arguments.epochs), validation
                )
                for seed in (101, 102)
            ]

    tuner = Search(
        objective=keras_tuner.Objective("accuracy", "max"),
        max_trials=arguments.trials,
        seed=0,
        directory=str(arguments.output),
        project_name=name_of(arguments),
    )
    tuner.search()
    found: dict[str, float] = tuner.get_best_hyperparameters()[0].values
    return found


def distil(
    cache: Any, settings: dict[str, float], seed: int, epochs: int
) -> Any:
    """A student, trained on the stored outputs."""
    import keras

    import keras_distill as kd

    keras.utils.set_random_seed(seed)
    distiller = kd.Distiller(
        cache.teacher,
        network(4),
        losses=kd.losses.SoftTargets(settings["temperature"]),
        hard_label_weight=settings["hard_label_weight"],
    )
    distiller.compile(keras.optimizers.Adam(settings["learning_rate"]))
    distiller.fit(
        cache.batches(BATCH_SIZE, shuffle=True, seed=seed),
        epochs=epochs,
        verbose=0,
    )
    return distiller.student


def accuracy(model: Any, examples: Examples) -> float:
    decided = model.predict(examples.images, verbose=0).argmax(-1)
    return float(np.mean(decided == examples.digits))


def table(kept: dict[str, Any]) -> str:
    """What was found, and what it is worth on images that nobody chose by."""
    (facts,) = kept.values()
    rows = [
        [
            name,
            *(f"{facts[name][setting]:.3g}" for setting in DEFAULTS),
            figures.percent(facts[f"test accuracy, {name}"]),
        ]
        for name in ("defaults", RATE_ALONE, "found")
    ]
    settings = [name.replace("_", " ") for name in DEFAULTS]
    return figures.markdown(["", *settings, "accuracy"], rows)


if __name__ == "__main__":
    main()
