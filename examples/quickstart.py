"""Distil a small network on real images, and run it as a LiteRT file.

    python examples/quickstart.py --backend jax

Takes a few minutes on a laptop's CPU and downloads nothing: the images of
handwritten digits come with scikit-learn.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import statistics
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import figures
import numpy as np

RESULTS = figures.RESULTS / "quickstart.json"
BACKENDS = ("tensorflow", "jax", "torch")
# What the script uses besides Keras and one backend, whichever that is.
NEEDED = (
    *("keras", "sklearn", "tensorflow", "ai_edge_litert"),
    *("jinja2", "matplotlib", "scipy"),
)
LABELS_PER_CLASS = 6
BATCH_SIZE = 32
STORY = (
    "The teacher learned from {teacher} labelled images. The student, "
    "{ratio:.0f} times smaller, gets {transfer} other images, of which only "
    "{labelled} have labels: alone it learns from those {labelled}; distilled, "
    "from the teacher's opinion on all {transfer} as well. Both begin with the "
    "same weights and take as many steps. All are tested once, after "
    "their last step, on {shown} images that none has seen."
)


class Examples(NamedTuple):
    """Images and the digits that they show."""

    images: np.ndarray
    digits: np.ndarray


class Data(NamedTuple):
    """Four parts of the data set without an image in common."""

    teacher: Examples
    transfer: Examples
    validation: Examples
    test: Examples


class Score(NamedTuple):
    """How a model did on images that it hadn't seen."""

    accuracy: float
    agreement: float


def main() -> None:
    arguments = parse_arguments()
    if arguments.table:
        figures.show(arguments.json or RESULTS, table)
        return
    choose_backend(arguments.backend)
    started = time.perf_counter()

    import keras_distill as kd

    arguments.output.mkdir(parents=True, exist_ok=True)
    data = load_data()
    shown = getattr(data, arguments.split)
    teacher = train_teacher(data.teacher)
    teacher_digits = predict(teacher, shown.images)
    tell_story(data, teacher, shown)

    alone, distilled, baselines, distillers = [], [], [], []
    seeds = range(1, arguments.seeds + 1)
    for seed in seeds:
        labelled = choose_labelled(data.transfer, seed)
        student = train_alone(data.transfer, labelled, seed, arguments)
        alone.append(score(student, shown, teacher_digits))
        baselines.append(student)
        distiller = distil(teacher, data.transfer, labelled, seed, arguments)
        distilled.append(score(distiller, shown, teacher_digits))
        distillers.append(distiller)
        print(
            f"seed {seed}: student alone {alone[-1].accuracy:.1%}, "
            f"distilled {distilled[-1].accuracy:.1%}",
            flush=True,
        )

    # The first, not the best: nothing is chosen by what it scores.
    student = distillers[0].student
    student.save(arguments.output / "quickstart_student.keras")
    artifact = kd.export_litert(
        student, arguments.output / "quickstart_student.tflite"
    )
    report = kd.report(
        teacher,
        distillers,
        tuple(shown),
        baselines=baselines,
        exports=[kd.verify_litert(artifact, student, tuple(shown))],
        seeds=seeds,
    )
    report.save(arguments.output / "quickstart_report.html")
    on_litert = compare(
        artifact.predict(shown.images).argmax(-1), shown, teacher_digits
    )
    right = compare(teacher_digits, shown, teacher_digits).accuracy
    seconds = latency(artifact.path, shown.images)
    parameters = f"{student.count_params():,}"
    print_table(
        ("", "parameters", "accuracy", "agreement", "file", "1 image"),
        (
            "teacher",
            f"{teacher.count_params():,}",
            percent([right]),
        ),
        ("student alone", parameters, *percents(alone)),
        ("student distilled", parameters, *percents(distilled)),
        (
            "the first of these, on LiteRT",
            parameters,
            *percents([on_litert]),
            f"{artifact.size / 1024:.1f} KiB",
            f"{seconds * 1e6:.1f} µs",
        ),
    )
    print(
        "Mean ± standard deviation over seeds; agreement is with the teacher; "
        "1 image on\n1 thread.\n"
        f"{report.verdict.headline}\n"
        f"Data: {len(shown.digits)} {arguments.split} images of scikit-learn's "
        f"digits. Seeds: 1 to {arguments.seeds}. {versions()}. "
        f"{time.perf_counter() - started:.0f} s.\n"
        f"Files: {arguments.output}/quickstart_student.keras and .tflite "
        "(seed 1),\nand quickstart_report.html, which shows all of it."
    )

    if arguments.json:
        facts = {
            "parameters": [teacher.count_params(), student.count_params()],
            "teacher": [right],
            "student alone": [one.accuracy for one in alone],
            "student distilled": [one.accuracy for one in distilled],
            "file": [on_litert.accuracy, artifact.size, seconds],
        }
        figures.keep(arguments.json, facts)


def table(kept: dict[str, Any]) -> str:
    """What was measured on each backend, side by side."""
    found = [
        (name, kept[b]) for b, name in figures.BACKENDS.items() if b in kept
    ]
    rows = [
        [
            name,
            f"{found[0][1]['parameters'][name != 'teacher']:,}",
            *(figures.percent(facts[name]) for _, facts in found),
        ]
        for name in ("teacher", "student alone", "student distilled")
    ]
    files = [facts["file"] for _, facts in found]
    size = files[0][1] / 1024
    cells = [f"{100 * a:.1f} %, {s * 1e6:.1f} µs" for a, _, s in files]
    rows.append(["the first of these, on LiteRT", f"{size:.1f} KiB", *cells])
    return figures.markdown(
        ["", "parameters", *(name for name, _ in found)], rows
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
        "--seeds",
        type=int,
        default=3,
        help="how many students to train each way, at least 2 (default: 3)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("quickstart-output"),
        help="folder for the student's files (default: %(default)s)",
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
        "--epochs",
        type=int,
        default=40,
        help="passes of each student over its images (default: %(default)s)",
    )
    tuning.add_argument(
        "--temperature",
        type=float,
        default=4.0,
        help="of the soft targets (default: %(default)s)",
    )
    tuning.add_argument(
        "--hard-label-weight",
        type=float,
        default=0.1,
        help="of the labels, beside the teacher (default: %(default)s)",
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
    module = importlib.import_module(backend)
    if backend == "torch":
        # Networks as small as these only wait for each other's threads; on a
        # busy computer, for ever so long.
        module.set_num_threads(1)


def load_data() -> Data:
    """The 1797 images of 8x8 pixels, split with equal shares of each digit."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, digits = load_digits(return_X_y=True)
    rest = images.reshape(-1, 8, 8, 1).astype("float32"), digits.astype("int32")
    parts = []
    for size in (600, 600, 200):
        part, left, part_digits, left_digits = train_test_split(
            *rest, train_size=size, stratify=rest[1], random_state=0
        )
        parts.append(Examples(part, part_digits))
        rest = left, left_digits
    return Data(*parts, Examples(*rest))


def train_teacher(examples: Examples) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    teacher = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Rescaling(1 / 16),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(128, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10),
        ]
    )
    teacher.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    teacher.fit(*examples, batch_size=BATCH_SIZE, epochs=30, verbose=0)
    return teacher


def make_student(seed: int) -> Any:
    """A student whose first weights depend on the seed alone."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Rescaling(1 / 16),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def choose_labelled(transfer: Examples, seed: int) -> np.ndarray:
    """Indices of the few images whose labels the student may see."""
    random = np.random.default_rng(seed)
    return np.concatenate(
        [
            random.choice(
                np.flatnonzero(transfer.digits == digit),
                LABELS_PER_CLASS,
                replace=False,
            )
            for digit in range(10)
        ]
    )


def train_alone(
    transfer: Examples,
    labelled: np.ndarray,
    seed: int,
    arguments: argparse.Namespace,
) -> Any:
    import keras

    student = make_student(seed)
    student.compile(
        optimizer=keras.optimizers.Adam(0.005),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    # Repeated, so that an epoch has as many steps as one of distillation.
    repeated = np.resize(labelled, len(transfer.digits))
    student.fit(
        transfer.images[repeated],
        transfer.digits[repeated],
        batch_size=BATCH_SIZE,
        epochs=arguments.epochs,
        verbose=0,
    )
    return student


def distil(
    teacher: Any,
    transfer: Examples,
    labelled: np.ndarray,
    seed: int,
    arguments: argparse.Namespace,
) -> Any:
    import keras

    import keras_distill as kd

    # -1 stands for "no label".
    digits = np.full_like(transfer.digits, -1)
    digits[labelled] = transfer.digits[labelled]
    distiller = kd.Distiller(
        teacher,
        make_student(seed),
        losses=kd.losses.SoftTargets(temperature=arguments.temperature),
        hard_label_weight=arguments.hard_label_weight,
    )
    distiller.compile(optimizer=keras.optimizers.Adam(0.005))
    distiller.fit(
        transfer.images,
        digits,
        batch_size=BATCH_SIZE,
        epochs=arguments.epochs,
        verbose=0,
    )
    return distiller


def predict(model: Any, images: np.ndarray) -> np.ndarray:
    return model.predict(images, verbose=0).argmax(-1)


def score(model: Any, shown: Examples, teacher_digits: np.ndarray) -> Score:
    return compare(predict(model, shown.images), shown, teacher_digits)


def compare(
    digits: np.ndarray, shown: Examples, teacher_digits: np.ndarray
) -> Score:
    return Score(
        accuracy=float(np.mean(digits == shown.digits)),
        agreement=float(np.mean(digits == teacher_digits)),
    )


def latency(path: pathlib.Path, images: np.ndarray) -> float:
    """Median seconds for one image on one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    index = interpreter.get_input_details()[0]["index"]
    seconds = []
    for image in np.resize(images, (1000, *images.shape[1:])):
        interpreter.set_tensor(index, image[None])
        started = time.perf_counter()
        interpreter.invoke()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def tell_story(data: Data, teacher: Any, shown: Examples) -> None:
    story = STORY.format(
        teacher=len(data.teacher.digits),
        transfer=len(data.transfer.digits),
        labelled=10 * LABELS_PER_CLASS,
        shown=len(shown.digits),
        ratio=teacher.count_params() / make_student(0).count_params(),
    )
    print(textwrap.fill(story, 79), end="\n\n", flush=True)


def percents(scores: Sequence[Score]) -> list[str]:
    return [percent(values) for values in zip(*scores, strict=True)]


def percent(values: Sequence[float]) -> str:
    text = f"{statistics.mean(values) * 100:.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values) * 100:.1f}"
    return text + " %"


def print_table(*rows: Sequence[str]) -> None:
    rows = [(*row, *["—"] * (len(rows[0]) - len(row))) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for first, *rest in rows:
        cells = zip(rest, widths[1:], strict=True)
        print(
            first.ljust(widths[0]),
            *(cell.rjust(width) for cell, width in cells),
            sep="   ",
        )
    print()


def versions() -> str:
    import keras

    backend = keras.backend.backend()
    return (
        f"Keras {keras.version()} on {backend} "
        f"{importlib.import_module(backend).__version__}, LiteRT "
        f"{importlib.metadata.version('ai-edge-litert')}"
    )


if __name__ == "__main__":
    main()
