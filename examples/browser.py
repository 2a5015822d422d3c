"""Distil a network that reads handwritten digits, and run it in a browser.

    python examples/browser.py --backend jax

Trains a teacher and a student on MNIST, exports the student as a LiteRT file,
puts a page to draw on next to it, and serves both on this computer. The page
runs the file itself, with LiteRT's build for WebAssembly, which npm fetches;
once that is done, nothing needs a network.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import importlib
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any, ClassVar, NamedTuple

import figures
import numpy as np

RESULTS = figures.RESULTS / "browser.json"
BACKENDS = ("tensorflow", "jax", "torch")
# What the script uses besides Keras and one backend, whichever that is.
NEEDED = ("keras", "tensorflow", "tensorflow_datasets")
PAGE = pathlib.Path(__file__).with_name("browser")
MODEL = "student.tflite"
SIZE = 28
BATCH_SIZE = 64


class Examples(NamedTuple):
    """Images, 28 x 28 x 1 with values from 0 to 255, and their digits."""

    images: np.ndarray
    digits: np.ndarray


def main() -> None:
    arguments = parse_arguments()
    if arguments.table:
        figures.show(arguments.json or RESULTS, table)
        return
    output: pathlib.Path = arguments.output
    if arguments.no_page:
        choose_backend(arguments.backend)
        make_folder(output)
        make_model(arguments)
        return
    # What may fail at once should do so now, and not after the training.
    npm = find_npm()
    server = make_server(output, arguments.port)
    if not arguments.serve_only:
        choose_backend(arguments.backend)
        make_folder(output)
        make_model(arguments)
    elif not (output / MODEL).exists():
        sys.exit(f"There is no {output / MODEL}. Leave out --serve-only.")
    make_page(output, npm)
    print(
        f"Draw a digit on http://localhost:{server.server_port} "
        "(Ctrl-C ends the server)",
        flush=True,
    )
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


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
        help="MNIST as a .npz file with x_train, y_train, x_test and y_test "
        "(default: tensorflow_datasets, which downloads it once)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=8000,
        help="of the page, 0 for any that is free (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("browser-output"),
        help="folder for the page and the model (default: %(default)s)",
    )
    parser.add_argument(
        "--serve-only",
        action="store_true",
        help="serve what an earlier run left in the folder",
    )
    parser.add_argument(
        "--no-page",
        action="store_true",
        help="make the model, and no page of it",
    )
    parser.add_argument(
        "--quantization",
        default="int8",
        help="scheme of the file, such as float32 (default: %(default)s)",
    )
    tuning = parser.add_argument_group("to try other settings")
    tuning.add_argument(
        "--train-size",
        type=int,
        default=20_000,
        help="how many training images to use (default: %(default)s)",
    )
    tuning.add_argument(
        "--epochs",
        type=int,
        default=8,
        help="passes over them, of teacher and student each (default: "
        "%(default)s)",
    )
    tuning.add_argument(
        "--seed", type=int, default=1, help="default: %(default)s"
    )
    figures.add_arguments(parser)
    return parser.parse_args()


def find_npm() -> str:
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("Not installed: npm. It comes with Node.js, from nodejs.org.")
    return npm


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


def make_model(arguments: argparse.Namespace) -> None:
    """Train both networks, and write the student's file."""
    train, test = load_data(arguments.data)
    train = Examples(*(part[: arguments.train_size] for part in train))
    started = time.perf_counter()
    teacher = train_teacher(train, arguments.epochs, arguments.seed)
    student = distil(teacher, train, arguments.epochs, arguments.seed)
    seconds = time.perf_counter() - started
    artifact = export(
        student, train, arguments.output / MODEL, arguments.quantization
    )
    scheme = arguments.quantization
    found = {
        "teacher": (accuracy_of(teacher, test), parameters(teacher)),
        "student": (accuracy_of(student, test), parameters(student)),
        f"its file, {scheme}": (
            accuracy_of(artifact, test),
            f"{artifact.size / 1024:.1f} KiB",
        ),
    }
    for name, (accuracy, size) in found.items():
        print(f"{name:<18}{accuracy:>8.2%} of test images{size:>20}")
    print(
        f"{len(train.digits)} training images, {len(test.digits)} test images, "
        f"seed {arguments.seed}, trained in {seconds:.0f} s",
        flush=True,
    )
    if arguments.json:
        kept = ("seed", "epochs", "train_size", "quantization")
        settings = {name: vars(arguments)[name] for name in kept}
        settings["backend"] = os.environ["KERAS_BACKEND"]
        figures.append(arguments.json, {"settings": settings, "found": found})


def table(runs: list[dict[str, Any]]) -> str:
    """Accuracy of the networks and the file, over the seeds."""
    rows = []
    for name, (_, size) in runs[0]["found"].items():
        scores = [run["found"][name][0] for run in runs]
        rows.append((name, size, figures.percent(scores, ".2f")))
    return figures.markdown(("", "size", "MNIST's test images"), rows)


def load_data(path: pathlib.Path | None) -> tuple[Examples, Examples]:
    """MNIST's training and test images."""
    if path is None:
        import tensorflow_datasets as tfds

        parts = [
            (arrays["image"], arrays["label"])
            for arrays in tfds.as_numpy(
                tfds.load("mnist", split=["train", "test"], batch_size=-1)
            )
        ]
    else:
        with np.load(path) as file:
            parts = [
                (file[f"x_{part}"], file[f"y_{part}"])
                for part in ("train", "test")
            ]
    train, test = (
        Examples(
            images.reshape(-1, SIZE, SIZE, 1).astype("float32"),
            digits.ravel().astype("int32"),
        )
        for images, digits in parts
    )
    return train, test


def views_of(examples: Examples, seed: int) -> Any:
    """Batches of warped images, other ones in each epoch.

    What people draw with a mouse leans and bends more than MNIST does, and has
    thinner or thicker lines. Keras runs teacher and student on the same batch,
    so the student learns what the teacher makes of just this view.
    """
    import keras

    class Views(keras.utils.PyDataset):
        def __init__(self) -> None:
            super().__init__()
            self.random = np.random.default_rng(seed)
            self.on_epoch_end()

        def __len__(self) -> int:
            return max(1, len(examples.digits) // BATCH_SIZE)

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            chosen = self.order[index * BATCH_SIZE :][:BATCH_SIZE]
            images = warp(examples.images[chosen], self.random)
            return images, examples.digits[chosen]

        def on_epoch_end(self) -> None:
            self.order = self.random.permutation(len(examples.digits))

    return Views()


def warp(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Images turned, slanted, stretched, moved, and thinner or thicker."""
    count = len(images)
    angles = np.deg2rad(random.uniform(-15, 15, count))
    slants = random.uniform(-0.25, 0.25, count)
    stretches = random.uniform(0.85, 1.15, (count, 2, 1, 1))
    moves = random.uniform(-1.5, 1.5, (count, 2, 1, 1))
    # From where a pixel comes, seen from the middle.
    middle = (SIZE - 1) / 2
    y, x = np.moveaxis(
        (np.indices((SIZE, SIZE)) - middle - moves) / stretches, 1, 0
    )
    cosines, sines = (f(angles)[:, None, None] for f in (np.cos, np.sin))
    x = x + slants[:, None, None] * y
    y, x = cosines * y - sines * x, sines * y + cosines * x
    warped = at(images[..., 0], y + middle, x + middle)
    lines = random.integers(5, size=count)
    for kind, pick in ((0, np.maximum), (1, np.minimum)):
        some = warped[lines == kind]
        for axis in (1, 2):
            some = pick(some, np.roll(some, 1, axis))
        warped[lines == kind] = some
    return warped[..., None]


def at(images: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The images between their pixels, linearly; 0 outside of them."""
    # Two more on each side, so that what is outside finds zeros there.
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    y, x = (np.clip(axis + 2, 0, SIZE + 2) for axis in (y, x))
    top, left = (np.floor(axis).astype("int32") for axis in (y, x))
    down, right = (y - top).astype("float32"), (x - left).astype("float32")
    which = np.arange(len(images))[:, None, None]
    upper, lower = (
        padded[which, row, left] * (1 - right)
        + padded[which, row, left + 1] * right
        for row in (top, top + 1)
    )
    return upper * (1 - down) + lower * down


def make_network(widths: tuple[int, ...], units: int, seed: int) -> Any:
    """Convolutions that halve the image, and a classifier."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    network = keras.Sequential([keras.Input((SIZE, SIZE, 1), name="image")])
    network.add(layers.Rescaling(1 / 255))
    for width in widths:
        network.add(
            layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)
        )
        network.add(layers.BatchNormalization(momentum=0.9))
        network.add(layers.ReLU())
    network.add(layers.Flatten())
    if units:
        network.add(layers.Dropout(0.4))
        network.add(layers.Dense(units, activation="relu"))
        network.add(layers.Dropout(0.4))
    network.add(layers.Dense(10))
    return network


def compile_arguments(rate: float, steps: int) -> dict[str, Any]:
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    return {
        "optimizer": keras.optimizers.Adam(schedule),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }


def train_teacher(train: Examples, epochs: int, seed: int) -> Any:
    views = views_of(train, seed)
    teacher = make_network((32, 64, 128), 128, seed)
    teacher.compile(**compile_arguments(2e-3, epochs * len(views)))
    print(f"Teacher: {epochs} epochs", flush=True)
    teacher.fit(views, epochs=epochs, verbose=0)
    return teacher


def distil(teacher: Any, train: Examples, epochs: int, seed: int) -> Any:
    import keras_distill as kd

    views = views_of(train, seed + 1)
    distiller = kd.Distiller(
        teacher,
        make_network((8, 16, 32), 0, seed),
        losses=kd.losses.SoftTargets(temperature=4.0),
    )
    distiller.compile(**compile_arguments(5e-3, epochs * len(views)))
    print(f"Student: {epochs} epochs", flush=True)
    distiller.fit(views, epochs=epochs, verbose=0)
    return distiller.student


def export(
    student: Any, train: Examples, path: pathlib.Path, quantization: str
) -> Any:
    import keras_distill as kd

    return kd.export_litert(
        student,
        path,
        quantization,
        calibration_data=train.images[:500],
        metadata=kd.Metadata(
            labels=tuple("0123456789"),
            normalization={"image": "ink's grey values, 0 to 255"},
            description="Reads handwritten digits that are centred as MNIST's.",
        ),
    )


def accuracy_of(model: Any, test: Examples) -> float:
    """Of a Keras model or of a LiteRT file."""
    logits = (
        model.predict(test.images, verbose=0, batch_size=500)
        if hasattr(model, "count_params")
        else model.predict(test.images)
    )
    return float(np.mean(logits.argmax(-1) == test.digits))


def parameters(model: Any) -> str:
    return f"{model.count_params():,} parameters"


def make_folder(output: pathlib.Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    # Of what is here, all can be made again.
    (output / ".gitignore").write_text("*\n")


def make_page(output: pathlib.Path, npm: str, *options: str) -> None:
    """Copy the page into the folder, and LiteRT's runtime with npm."""
    for file in PAGE.iterdir():
        if file.is_file():
            shutil.copy(file, output)
    subprocess.run(
        # `ci` takes just what package-lock.json says, or fails.
        [
            *(npm, "ci", "--prefer-offline", "--no-audit", "--no-fund"),
            *("--ignore-scripts", "--loglevel=error", *options),
        ],
        cwd=output,
        check=True,
    )


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of one folder, in a page of its own."""

    # What the system says of these types may be wrong, on Windows above all.
    extensions_map: ClassVar[dict[str, str]] = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        """Add what every answer has."""
        # A page that is isolated from all others gets a clock of 5 µs instead
        # of 100, which is as long as an inference.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        # The next run makes another model; asked whether a file is newer, the
        # server would look at whole seconds only.
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Say nothing: a page has a dozen files."""


def make_server(
    folder: pathlib.Path, port: int
) -> http.server.ThreadingHTTPServer:
    handler = functools.partial(Handler, directory=str(folder))
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        sys.exit(f"Can't use port {port}: {error}. Pass --port 0.")


if __name__ == "__main__":
    main()
