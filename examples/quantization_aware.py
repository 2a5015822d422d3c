"""Does it help to train with the rounding of the file on the device?

    python examples/quantization_aware.py --backend tensorflow

A small student of depthwise separable convolutions learns from a teacher on
Fashion-MNIST, in float. Then it learns on in two ways, for as many epochs: in
float, to be quantised afterwards, and as `quantization_aware` makes it. Each
file is measured on the LiteRT interpreter. Takes some ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any, NamedTuple

import figures
import numpy as np

RESULTS = figures.RESULTS / "quantization_aware.json"
BACKENDS = ("tensorflow", "jax", "torch")
# What the script uses besides Keras and one backend, whichever that is.
NEEDED = ("keras", "tensorflow", "ai_edge_litert", "ai_edge_quantizer")
BATCH_SIZE = 64
# Images for the first ranges of the activations, and for those of int8 files.
CALIBRATION = 500
VALIDATION = 5_000


class Images(NamedTuple):
    """Images and their classes."""

    x: np.ndarray
    y: np.ndarray


class Data(NamedTuple):
    """Three parts of the data set without an image in common."""

    train: Images
    validation: Images
    test: Images


def main() -> None:
    arguments = parse_arguments()
    if arguments.table:
        figures.show(arguments.json or RESULTS, table)
        return
    choose_backend(arguments.backend)
    started = time.perf_counter()
    data = load_data(arguments)
    shown = getattr(data, arguments.split)
    teacher = train_teacher(data.train, arguments)
    print(f"teacher: {accuracy(predict(teacher, shown.x), shown):.2%}")

    results: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        row = run_seed(seed, teacher, data, shown, arguments)
        for name, value in row.items():
            results.setdefault(name, []).append(value)
        print(
            f"seed {seed}: "
            + ", ".join(f"{name} {value:.2%}" for name, value in row.items()),
            flush=True,
        )
    print_table(results)
    for scheme in arguments.schemes:
        print(verdict(scheme, results))
    print(
        f"Accuracy on {len(shown.y)} {arguments.split} images of "
        f"Fashion-MNIST, mean ± standard deviation over {arguments.seeds} "
        f"seeds.\n{versions()}. {time.perf_counter() - started:.0f} s."
    )

    if arguments.json:
        figures.keep(arguments.json, results)


def table(kept: dict[str, Any]) -> str:
    """Accuracy of each kind of file: over seeds, and of each."""
    (facts,) = kept.values()
    return figures.markdown(
        ("file", "accuracy", "seed by seed"),
        [
            (
                name.replace(" after", ", quantised after").replace(
                    " aware", ", aware"
                ),
                figures.percent(values),
                ", ".join(f"{100 * value:.1f}" for value in values),
            )
            for name, values in facts.items()
            if name != "about"
        ],
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="what Keras runs on (default: what KERAS_BACKEND says, or else "
        "tensorflow)",
    )
    parser.add_argument(
        "--data",
        type=pathlib.Path,
        help="an npz file of Fashion-MNIST with x_train, y_train, x_test and "
        "y_test (default: tensorflow_datasets downloads it)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="how many students to train each way, at least 2 (default: 3)",
    )
    parser.add_argument(
        "--schemes",
        nargs="+",
        choices=(
            "int8",
            "dynamic_int8",
            "dynamic_int4",
            "weight_only_int8",
            "weight_only_int4",
        ),
        default=["int8", "weight_only_int4"],
        help="quantisation schemes to compare (default: int8 and "
        "weight_only_int4)",
    )
    figures.add_arguments(parser)
    tuning = parser.add_argument_group(
        "to try other settings",
        "The defaults were chosen by the validation images. To choose others,\n"
        "pass --split validation, and leave the test images for the end.",
    )
    tuning.add_argument(
        "--split",
        choices=("test", "validation"),
        default="test",
        help="images to report on (default: %(default)s)",
    )
    tuning.add_argument(
        "--train-size",
        type=int,
        default=10_000,
        help="images to train on (default: %(default)s)",
    )
    tuning.add_argument(
        "--epochs",
        type=int,
        default=8,
        help="epochs of each student in float (default: %(default)s)",
    )
    tuning.add_argument(
        "--extra-epochs",
        type=int,
        default=4,
        help="epochs after these, with rounding or without (default: "
        "%(default)s)",
    )
    tuning.add_argument(
        "--ranges",
        choices=("moving_average", "learned"),
        default="moving_average",
        help="how int8 finds its ranges (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("a spread takes at least 2 seeds")
    return arguments


def choose_backend(backend: str | None) -> None:
    """Tell Keras its backend, which it asks for when it is imported."""
    missing = [
        name for name in NEEDED if importlib.util.find_spec(name) is None
    ]
    if missing:
        sys.exit(
            f"Not installed: {', '.join(missing)}. "
            "Run: pip install 'keras-distill[examples]'"
        )
    backend = backend or os.environ.get("KERAS_BACKEND") or "tensorflow"
    if importlib.util.find_spec(backend) is None:
        sys.exit(f"Not installed: {backend}. Pass another --backend.")
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Before TensorFlow, which the process may come to import: in the other
    # order, PyTorch can crash it.
    importlib.import_module(backend)


def load_data(arguments: argparse.Namespace) -> Data:
    if arguments.data is None:
        train, test = download()
    else:
        with np.load(arguments.data) as file:
            train = Images(file["x_train"], file["y_train"])
            test = Images(file["x_test"], file["y_test"])
    # The same for each seed, so that only the students differ.
    order = np.random.default_rng(0).permutation(len(train.y))
    chosen = order[VALIDATION : VALIDATION + arguments.train_size]
    return Data(
        prepare(train, chosen),
        prepare(train, order[:VALIDATION]),
        prepare(test, np.arange(len(test.y))),
    )


def download() -> tuple[Images, Images]:
    import tensorflow_datasets as tfds

    parts = tfds.load("fashion_mnist", batch_size=-1, as_supervised=True)
    train, test = (
        Images(*map(np.asarray, tfds.as_numpy(parts[name])))
        for name in ("train", "test")
    )
    return train, test


def prepare(images: Images, chosen: np.ndarray) -> Images:
    x = images.x[chosen].reshape(-1, 28, 28, 1).astype("float32") / 255
    return Images(x, images.y[chosen].astype("int32"))


def train_teacher(train: Images, arguments: argparse.Namespace) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    teacher = keras.Sequential(
        [
            keras.Input((28, 28, 1), name="image"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.4),
            layers.Dense(10),
        ]
    )
    teacher.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    teacher.fit(*train, batch_size=BATCH_SIZE, epochs=10, verbose=0)
    return teacher


def make_student(seed: int) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    image = keras.Input((28, 28, 1), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.ReLU(6)(layers.BatchNormalization()(x))
    for filters, strides in ((16, 1), (32, 2), (32, 1)):
        x = layers.DepthwiseConv2D(
            3, strides=strides, padding="same", use_bias=False
        )(x)
        x = layers.ReLU(6)(layers.BatchNormalization()(x))
        x = layers.Conv2D(filters, 1, use_bias=False)(x)
        x = layers.ReLU(6)(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10)(x))


def distil(
    teacher: Any, student: Any, train: Images, epochs: int, rate: float
) -> None:
    """Train a student in place; the learning rate falls to 0."""
    import keras

    import keras_distill as kd

    steps = epochs * -(-len(train.y) // BATCH_SIZE)
    distiller = kd.Distiller(teacher, student)
    distiller.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(rate, steps)
        )
    )
    distiller.fit(*train, batch_size=BATCH_SIZE, epochs=epochs, verbose=0)


def run_seed(
    seed: int,
    teacher: Any,
    data: Data,
    shown: Images,
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """The accuracies of one student's files, by how they were made."""
    import keras

    import keras_distill as kd

    student = make_student(seed)
    distil(teacher, student, data.train, arguments.epochs, 3e-3)
    calibration = data.train.x[:CALIBRATION]
    students = {}
    for scheme in arguments.schemes:
        students[scheme] = kd.quantization_aware(
            student, scheme, calibration, arguments.ranges
        )
    # Made before the student goes on: all begin with the same weights, and
    # see the same batches.
    for trained in (student, *students.values()):
        keras.utils.set_random_seed(seed)
        distil(teacher, trained, data.train, arguments.extra_epochs, 1e-3)

    row = {"float32": file_accuracy(student, "float32", None, shown)}
    for scheme, trained in students.items():
        row[f"{scheme} afterwards"] = file_accuracy(
            student, scheme, calibration, shown
        )
        row[f"{scheme} aware"] = file_accuracy(trained, scheme, None, shown)
    return row


def file_accuracy(
    student: Any, scheme: str, calibration: np.ndarray | None, shown: Images
) -> float:
    """The accuracy of a student's file on the LiteRT interpreter."""
    import keras_distill as kd

    with tempfile.TemporaryDirectory() as folder:
        artifact = kd.export_litert(
            student,
            pathlib.Path(folder) / "student.tflite",
            scheme,
            calibration_data=calibration,
        )
        return accuracy(artifact.predict(shown.x), shown)


def predict(model: Any, x: np.ndarray) -> np.ndarray:
    return model.predict(x, batch_size=256, verbose=0)


def accuracy(logits: np.ndarray, shown: Images) -> float:
    return float(np.mean(logits.argmax(-1) == shown.y))


def print_table(results: dict[str, list[float]]) -> None:
    width = max(map(len, results))
    print()
    for name, values in results.items():
        mean, spread = statistics.mean(values), statistics.stdev(values)
        each = "  ".join(f"{100 * value:.2f}" for value in values)
        print(
            f"{name.ljust(width)}   {100 * mean:.2f} ± {100 * spread:.2f} %   "
            f"({each})"
        )
    print()


def verdict(scheme: str, results: dict[str, list[float]]) -> str:
    """How much of what quantisation loses comes back."""
    rows = zip(
        results["float32"],
        results[f"{scheme} afterwards"],
        results[f"{scheme} aware"],
        strict=True,
    )
    losses, gains = [], []
    for exact, afterwards, aware in rows:
        losses.append(100 * (exact - afterwards))
        gains.append(100 * (aware - afterwards))
    loss, gain = statistics.mean(losses), statistics.mean(gains)
    each = ", ".join(f"{gain:+.2f}" for gain in gains)
    text = (
        f"{scheme}: quantising afterwards costs {loss:.2f} points; training "
        f"with the rounding gives back {gain:+.2f} ({each})"
    )
    if loss < 2 * statistics.stdev(losses):
        return f"{text}. The cost is within its spread: nothing to win here."
    return f"{text}: {gain / loss:.0%} of the cost."


def versions() -> str:
    import keras

    backend = keras.backend.backend()
    return (
        f"Keras {keras.version()} on {backend} "
        f"{importlib.import_module(backend).__version__}"
    )


if __name__ == "__main__":
    main()
