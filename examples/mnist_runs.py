"""What `hinton_mnist.py` and `claims.py` share: MNIST, networks, and results.

A run is a dict of all settings that its outcome depends on, such as seed,
epochs and learning rate. `Results` keeps what came of each run, in a file that
is written whole after each, so that an interrupted program goes on with the
next one; a run with any other setting is another run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import figures
import keras
import numpy as np
from keras import layers

CLASSES = 10
# Of the official training images: the last ones, for whatever is chosen.
HELD_OUT = 10_000
# By how many pixels the teacher's images are shifted, at the most.
JITTER = 2
# Of a teacher with dropout; that of its hidden layers is a setting.
INPUT_DROPOUT = 0.2
PREDICT_BATCH = 1000
NOTHING = "No runs with these settings, on this backend."


class Images(NamedTuple):
    """Images `(examples, 28, 28)` of 0 to 255, and their classes."""

    x: np.ndarray
    y: np.ndarray

    def take(self, chosen: Any) -> Images:
        """Some of the images."""
        return Images(self.x[chosen], self.y[chosen])


class Mnist(NamedTuple):
    """All training images, and the test images."""

    train: Images
    test: Images

    def split(self, held_out: bool) -> tuple[Images, Images]:
        """What a run trains on, and what it is measured on.

        The official sets; or, for a run by which something is chosen, a part
        of the training images and the rest of them.
        """
        if not held_out:
            return self.train, self.test
        count = min(HELD_OUT, len(self.train.y) // 6)
        return (
            self.train.take(slice(None, -count)),
            self.train.take(slice(-count, None)),
        )


def load(path: str | None, data_dir: str | None = None) -> Mnist:
    """From a file as Keras has it, or else from tensorflow_datasets."""
    if path:
        with np.load(path) as file:
            return Mnist(
                *(
                    Images(file[f"x_{part}"], file[f"y_{part}"].astype("int32"))
                    for part in ("train", "test")
                )
            )
    # Here, since it takes long, and TensorFlow may come only after PyTorch,
    # which Keras imports on that backend.
    import tensorflow_datasets as tfds

    parts = tfds.load(
        "mnist", split=["train", "test"], batch_size=-1, data_dir=data_dir
    )
    return Mnist(
        *(
            Images(part["image"][..., 0], part["label"].astype("int32"))
            for part in tfds.as_numpy(parts)
        )
    )


class Results:
    """What came of each run, in a JSON file."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def all(self) -> list[dict[str, Any]]:
        """Each run with its outcome, in the order in which they ended."""
        if not self.path.exists():
            return []
        found: list[dict[str, Any]] = json.loads(self.path.read_text())
        return found

    def outcome(self, run: dict[str, Any]) -> dict[str, Any] | None:
        """What came of a run, if it has been made."""
        for record in self.all():
            if record["run"] == run:
                outcome: dict[str, Any] = record["outcome"]
                return outcome
        return None

    def make(
        self, run: dict[str, Any], measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """What came of a run, which is made unless it has been."""
        outcome = self.outcome(run)
        if outcome is None:
            print(f"{now()} {run}", flush=True)
            outcome = measure()
            self.put(run, outcome)
            print(f"{now()}     {short(outcome)}", flush=True)
        return outcome

    def put(self, run: dict[str, Any], outcome: dict[str, Any]) -> None:
        """Add a run, in place of what came of the same one before."""
        records = [x for x in self.all() if x["run"] != run]
        about = figures.describe()
        records.append({"run": run, "outcome": outcome, "about": about})
        lines = ",\n".join(json.dumps(record) for record in records)
        write(self.path, lambda part: part.write_text(f"[\n{lines}\n]\n"))


def short(outcome: dict[str, Any]) -> dict[str, Any]:
    """Without the long lists."""
    return {k: v for k, v in outcome.items() if not isinstance(v, list)}


def write(path: pathlib.Path, save: Callable[[pathlib.Path], Any]) -> None:
    """A file that is there whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part-{os.getpid()}-{path.name}")
    save(part)
    os.replace(part, path)


def network(width: int, seed: int, name: str, run: Any = None) -> keras.Model:
    """Two hidden layers; with a teacher's run, regularised as it says."""
    keras.utils.set_random_seed(seed)
    run = run or {"dropout": 0.0, "max_norm": 0.0}
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
        ],
        name=name,
    )
    dropped = INPUT_DROPOUT
    for _ in range(2):
        if run["dropout"]:
            model.add(layers.Dropout(dropped))
        limit = run["max_norm"]
        constraint = keras.constraints.MaxNorm(limit) if limit else None
        model.add(
            layers.Dense(width, activation="relu", kernel_constraint=constraint)
        )
        dropped = run["dropout"]
    if run["dropout"]:
        model.add(layers.Dropout(dropped))
    model.add(layers.Dense(CLASSES))
    return model


def compile_arguments(run: dict[str, Any], images: int) -> dict[str, Any]:
    """An optimizer whose rate falls to zero along a cosine."""
    steps = run["epochs"] * math.ceil(images / run["batch"])
    rate = keras.optimizers.schedules.CosineDecay(run["rate"], steps)
    make = {
        "adam": lambda: keras.optimizers.Adam(rate),
        "momentum": lambda: keras.optimizers.SGD(
            rate, momentum=0.9, nesterov=True
        ),
        "sgd": lambda: keras.optimizers.SGD(rate),
    }
    return {
        "optimizer": make[run["optimizer"]](),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }


def shifted(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each image shifted by up to two pixels, along both axes."""
    edge = (JITTER, JITTER)
    padded = np.pad(images, ((0, 0), edge, edge))
    tops, lefts = random.integers(0, 2 * JITTER + 1, (2, len(images), 1))
    size = np.arange(images.shape[1])
    return padded[
        np.arange(len(images))[:, None, None],
        (tops + size)[:, :, None],
        (lefts + size)[:, None, :],
    ]


def jitter(image: np.ndarray, seed: int) -> np.ndarray:
    """The same for one image, for `kd.Views`."""
    return shifted(image[None], np.random.default_rng(seed))[0]


class Shuffled(keras.utils.PyDataset):
    """Batches in a new order in each epoch, shifted anew or as they are."""

    def __init__(
        self, images: Images, batch: int, seed: int, jittered: bool = False
    ) -> None:
        super().__init__()
        self.images = images
        self.batch = batch
        self.seed = seed
        self.jittered = jittered
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(len(self.images.y) / self.batch)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng((self.seed, self.epoch))
        chosen = order.permutation(len(self.images.y))
        batch = self.images.take(chosen[index * self.batch :][: self.batch])
        if not self.jittered:
            return batch
        # One more: to NumPy, seeds (3, 5) and (3, 5, 0) are the same.
        random = np.random.default_rng((self.seed, self.epoch, index + 1))
        return shifted(batch.x, random), batch.y

    def on_epoch_end(self) -> None:
        """Go on to another order, and other shifts."""
        self.epoch += 1


def logits(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """What a model says about images."""
    said: np.ndarray = model.predict(x, batch_size=PREDICT_BATCH, verbose=0)
    return said


def errors(said: np.ndarray, y: np.ndarray) -> int:
    """How many are wrong."""
    return int((said.argmax(-1) != y).sum())


def stem(run: dict[str, Any]) -> str:
    """A file's name for a teacher, without its ending."""
    return "-".join(str(value) for value in run.values())


def teacher(
    run: dict[str, Any], data: Mnist, results: Results, folder: pathlib.Path
) -> keras.Model:
    """The teacher of a run, from its file if it is finished."""
    path = folder / f"{stem(run)}.keras"
    train, test = data.split(run["held_out"])
    new = not path.exists()
    if new:
        print(f"{now()} {run}", flush=True)
        model = network(run["width"], run["seed"], "teacher", run)
        model.compile(**compile_arguments(run, len(train.y)))
        batches = Shuffled(train, run["batch"], run["seed"], run["jitter"])
        # The batches have their order.
        model.fit(batches, epochs=run["epochs"], shuffle=False, verbose=0)
        write(path, model.save)
    model = keras.models.load_model(path, compile=False)
    if new or results.outcome(run) is None:
        found = {
            "errors": errors(logits(model, test.x), test.y),
            "train_errors": errors(logits(model, train.x), train.y),
        }
        results.put(run, found)
        print(f"{now()}     {found}", flush=True)
    return model


def now() -> str:
    """The time, to see how long runs take."""
    return f"{datetime.datetime.now():%H:%M:%S}"


def outcomes(
    records: list[dict[str, Any]], runs: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What came of those of some runs that have been made."""
    return [
        record["outcome"]
        for run in runs
        for record in records
        if record["run"] == run
    ]


def spread(found: list[Any], digits: int = 0) -> str:
    """Mean and standard deviation."""
    if not found:
        return "–"
    mean = f"{np.mean(found):.{digits}f}"
    if len(found) == 1:
        return mean
    return f"{mean} ± {np.std(found, ddof=1):.{digits}f}"


def markdown(
    head: Sequence[str], rows: Iterable[Sequence[str]], first: int = 1
) -> str:
    """A table, without rows that have nothing measured from a column on."""
    kept = [row for row in rows if not {*row[first:]} <= {"0", "–"}]
    return figures.markdown(head, kept) if kept else ""


def parse_arguments(
    meaning: str, name: str, experiments: Iterable[str]
) -> argparse.Namespace:
    """The command line of both scripts."""
    parser = argparse.ArgumentParser(
        description=meaning,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--experiments",
        nargs="+",
        choices=list(experiments),
        metavar="NAME",
        help=f"some of: {', '.join(experiments)} (default: all, in this order)",
    )
    parser.add_argument(
        "--data", metavar="NPZ", help="file to read instead of downloading"
    )
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("TFDS_DATA_DIR"),
        help="where tensorflow_datasets keeps its data",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        help="folder for teachers, what they said, and plots (default: "
        "mnist-output/BACKEND, --quick: mnist-output/BACKEND-quick)",
    )
    parser.add_argument(
        "--json",
        type=pathlib.Path,
        help=f"file of all runs (default: examples/results/{name}.json, "
        "--quick: in the folder of --output)",
    )
    parser.add_argument(
        "--seeds", type=int, default=5, help="of each run (default: 5)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one epoch of tiny networks"
    )
    parser.add_argument(
        "--table", action="store_true", help="print what is there, run nothing"
    )
    options = parser.parse_args()
    if options.output is None:
        ending = "-quick" if options.quick else ""
        options.output = pathlib.Path(
            "mnist-output", keras.backend.backend() + ending
        )
    if options.json is None:
        results = pathlib.Path(__file__).parent / "results"
        folder = options.output if options.quick else results
        options.json = folder / f"{name}.json"
    return options
