"""Distil a ResNet on CIFAR-10, and run it as a LiteRT file.

    KERAS_BACKEND=jax python examples/cifar.py --quick
    KERAS_BACKEND=jax python examples/cifar.py --cpu
    KERAS_BACKEND=jax python examples/cifar.py

Trains a teacher; a student at least ten times smaller, alone; and the same
student, from the same weights, distilled in two ways: with soft targets, and
with the teacher's own classifier (SimKD), the best of `compare_methods.py`,
which makes the student larger. Each distilled student becomes an int8 file for
LiteRT. The defaults are for an accelerator; --cpu, with all images, takes an
hour on a CPU, and --quick minutes. The data comes from tensorflow_datasets,
which downloads it once.

A run that was interrupted, in whatever way, goes on when the same command is
given again, and ends with the same weights as one that wasn't.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import figures
import keras
import numpy as np
from keras import layers

import keras_distill as kd

RESULTS = figures.RESULTS / "cifar.json"
PADDING = 4
# How many times smaller than the teacher a student is, at the least.
SMALLER = 10
VALIDATION_BATCH_SIZE = 500
CALIBRATION_SIZE = 500
# Of the layer before the mean over places.
FEATURES = "features"


class Plan(NamedTuple):
    """What a run does where the command line doesn't say otherwise."""

    train_size: int
    validation_size: int
    teacher_epochs: int
    epochs: int
    teacher_blocks: int
    teacher_width: int
    student_blocks: int
    student_width: int
    # Of the first convolution: with 2, everything behind it costs a quarter.
    strides: int


# ResNet-20, four times as wide as its paper's, for ResNet-20.
REAL = Plan(45_000, 5_000, 150, 150, 3, 64, 3, 16, 1)
# ResNet-8 for ResNet-8.
CPU = Plan(45_000, 5_000, 15, 12, 1, 32, 1, 8, 2)
QUICK = Plan(2_000, 500, 8, 8, 1, 32, 1, 8, 2)


class Examples(NamedTuple):
    """Images and their classes."""

    images: np.ndarray
    classes: np.ndarray


class Views(keras.utils.PyDataset):
    """Shuffled, cropped and flipped images, other ones in each epoch.

    A batch depends on the seed, the epoch and its index alone. So a run that
    resumes sees what it would have seen; and since Keras runs teacher and
    student on the same batch, both see the same view of an image.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        super().__init__()
        edge = (PADDING, PADDING)
        self.padded = np.pad(examples.images, ((0, 0), edge, edge, (0, 0)))
        self.classes = examples.classes
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.classes) // self.batch_size

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(
            len(self.classes)
        )
        chosen = order[index * self.batch_size :][: self.batch_size]
        # One more: to NumPy, seeds (3, 5) and (3, 5, 0) are the same.
        random = np.random.default_rng((self.seed, self.epoch, index + 1))
        return self._views(chosen, random), self.classes[chosen]

    def _views(
        self, chosen: np.ndarray, random: np.random.Generator
    ) -> np.ndarray:
        size = self.padded.shape[1] - 2 * PADDING
        tops, lefts = random.integers(0, 2 * PADDING + 1, (2, len(chosen), 1))
        rows = tops + np.arange(size)
        flips = random.integers(0, 2, (len(chosen), 1), dtype=bool)
        columns = lefts + np.where(
            flips, np.arange(size)[::-1], np.arange(size)
        )
        views = self.padded[
            chosen[:, None, None], rows[:, :, None], columns[:, None, :]
        ]
        return views.astype("float32")


class Progress(keras.callbacks.Callback):
    """Tells the views which epoch it is, and saves each finished epoch.

    Weights, optimizer and number of steps are one file, put in place at once:
    whenever the process is killed, what is there is one whole epoch's. (The
    files of `keras.callbacks.BackupAndRestore` are two, written in place; a
    kill between them leaves weights of one epoch with the number of another.)
    """

    def __init__(self, views: Views, path: pathlib.Path) -> None:
        super().__init__()
        self.views = views
        self.path = path

    def finished_epochs(self, model: keras.Model) -> int:
        """Epochs that the model has behind it, with its weights restored."""
        model.optimizer.build(model.trainable_variables)
        if self.path.exists():
            model.load_weights(self.path)
        steps = keras.ops.convert_to_numpy(model.optimizer.iterations)
        return int(steps) // len(self.views)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Before Keras asks for the epoch's first batch."""
        self.views.epoch = epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """After the epoch's validation."""
        put(self.path, self.model.save_weights)


def main() -> None:
    arguments = parse_arguments()
    if arguments.table:
        figures.show(arguments.json or RESULTS, table)
        return
    try:
        run(arguments)
    except KeyboardInterrupt:
        sys.exit(
            "\nInterrupted. The same command goes on from the last finished "
            "epoch."
        )


def run(arguments: argparse.Namespace) -> None:
    output: pathlib.Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    check_settings(arguments)
    train, validation, test = load_data(arguments)
    views = Views(train, arguments.batch_size, arguments.seed)
    validation = (validation.images.astype("float32"), validation.classes)

    def trained(model: keras.Model, name: str, epochs: int) -> keras.Model:
        """The model of that name, from its file if it is finished."""
        path = output / f"{name}.keras"
        if not path.exists():
            print(f"\nTraining {name}", flush=True)
            model.compile(**training(arguments, epochs * len(views)))
            progress = Progress(views, output / f"{name}.weights.h5")
            model.fit(
                views,
                initial_epoch=progress.finished_epochs(model),
                epochs=epochs,
                # The views have their order; Keras would shuffle the batches
                # by a random state that isn't saved.
                shuffle=False,
                validation_data=validation,
                validation_batch_size=VALIDATION_BATCH_SIZE,
                callbacks=[progress],
            )
            distilled = isinstance(model, kd.Distiller)
            put(path, (model.student if distilled else model).save)
            progress.path.unlink(missing_ok=True)
        # Read back in any case, so that what follows is the same in a run that
        # found the file.
        return keras.saving.load_model(path, compile=False)

    tell_sizes(make_teacher(arguments), make_student(arguments))
    if arguments.teacher:
        teacher = keras.saving.load_model(arguments.teacher, compile=False)
    else:
        teacher = trained(
            make_teacher(arguments), "teacher", arguments.teacher_epochs
        )
    models = {
        "teacher": teacher,
        "student alone": trained(
            make_student(arguments), "student_alone", arguments.epochs
        ),
    }
    for method, make in METHODS.items():
        distiller = make(teacher, make_student(arguments), arguments)
        name = method.replace(" ", "_")
        models[method] = trained(distiller, name, arguments.epochs)
    report(models, train, test, arguments)


def soft_targets(
    teacher: keras.Model, student: keras.Model, arguments: argparse.Namespace
) -> kd.Distiller:
    """What Hinton et al. (2015) do."""
    return kd.Distiller(
        teacher,
        student,
        losses=kd.losses.SoftTargets(temperature=arguments.temperature),
        hard_label_weight=arguments.hard_label_weight,
        # It has a file of its own.
        save_teacher=False,
    )


def reused_classifier(
    teacher: keras.Model, student: keras.Model, arguments: argparse.Namespace
) -> kd.Distiller:
    """The best in `compare_methods.py`: the student gets the teacher's head."""
    student = kd.reuse_classifier(teacher, student, FEATURES, FEATURES)
    return kd.Distiller(
        teacher,
        student,
        losses=kd.losses.Hint(FEATURES, student.get_layer("projector").name),
        loss_weights=[1.0],
        hard_label_weight=0.0,
        save_teacher=False,
    )


METHODS = {
    "student distilled": soft_targets,
    "student by SimKD": reused_classifier,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--quick",
        action="store_true",
        help="few images, few epochs and smaller models",
    )
    sizes.add_argument(
        "--cpu",
        action="store_true",
        help="all images, few epochs and smaller models",
    )
    for option, meaning in (
        ("train-size", "training images"),
        ("teacher-epochs", "epochs of the teacher"),
        ("epochs", "epochs of each student"),
    ):
        name = option.replace("-", "_")
        parser.add_argument(
            f"--{option}",
            type=int,
            help=f"{meaning} (default: {getattr(REAL, name)}, --cpu: "
            f"{getattr(CPU, name)}, --quick: {getattr(QUICK, name)})",
        )
    for option, default, meaning in (
        ("batch-size", 128, "images in a step"),
        ("learning-rate", 0.1, "rate at the beginning of the cosine"),
        ("temperature", 4.0, "temperature of the soft targets"),
        ("hard-label-weight", 0.1, "weight of the labels beside the teacher"),
    ):
        parser.add_argument(
            f"--{option}",
            type=type(default),
            default=default,
            help=f"{meaning} (default: {default})",
        )
    parser.add_argument(
        "--teacher",
        type=pathlib.Path,
        help="a teacher.keras of another run, instead of training one",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of first weights, order and views (default: %(default)s)",
    )
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("TFDS_DATA_DIR"),
        help="where tensorflow_datasets keeps its data (default: "
        "TFDS_DATA_DIR, or else its own default)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        help="folder for models, progress and results (default: "
        "cifar-output/BACKEND, and -cpu or -quick behind it)",
    )
    figures.add_arguments(parser)
    arguments = parser.parse_args()
    plan, ending = REAL, ""
    if arguments.cpu:
        plan, ending = CPU, "-cpu"
    if arguments.quick:
        plan, ending = QUICK, "-quick"
    for name, value in plan._asdict().items():
        if getattr(arguments, name, None) is None:
            setattr(arguments, name, value)
    if arguments.train_size < arguments.batch_size:
        parser.error("--train-size is less than one batch")
    if arguments.output is None:
        arguments.output = pathlib.Path(
            "cifar-output", keras.backend.backend() + ending
        )
    return arguments


def check_settings(arguments: argparse.Namespace) -> None:
    """Stop where the folder has models of a run with other settings."""
    settings = described(arguments)
    path = arguments.output / "settings.json"
    if not path.exists():
        put_json(path, settings)
    found = json.loads(path.read_text())
    if found != settings:
        changed = [
            f"{name} {found.get(name)} -> {value}"
            for name, value in settings.items()
            if found.get(name) != value
        ]
        sys.exit(
            f"{arguments.output} has a run with other settings: "
            f"{', '.join(changed)}. Pass another --output, or delete it."
        )


def described(arguments: argparse.Namespace) -> dict[str, Any]:
    """All that the trained weights depend on."""
    settings = {**vars(arguments), "backend": keras.backend.backend()}
    for name in ("output", "data_dir", "quick", "cpu", "json", "table"):
        del settings[name]
    # Where a teacher lies means nothing elsewhere.
    if path := settings.pop("teacher"):
        content = path.read_bytes()
        settings["teacher"] = hashlib.sha256(content).hexdigest()
    return settings


def load_data(
    arguments: argparse.Namespace,
) -> tuple[Examples, Examples, Examples]:
    """Training, validation and test images.

    The validation images are the last of the official training set: whatever
    is chosen is chosen by them, and the test set is used once.
    """
    # Here, since it takes long, and TensorFlow may come only after PyTorch,
    # which Keras imports on that backend.
    import tensorflow_datasets as tfds

    train, test = (
        Examples(arrays["image"], arrays["label"].astype("int32"))
        for arrays in tfds.as_numpy(
            tfds.load(
                "cifar10",
                split=["train", "test"],
                batch_size=-1,
                data_dir=arguments.data_dir,
            )
        )
    )
    held_out = len(train.classes) - arguments.validation_size
    if arguments.train_size > held_out:
        sys.exit(
            f"There are {held_out} images to train on, besides those for "
            f"validation. Received: --train-size {arguments.train_size}."
        )
    return (
        Examples(*(part[: arguments.train_size] for part in train)),
        Examples(*(part[held_out:] for part in train)),
        test,
    )


def make_teacher(arguments: argparse.Namespace) -> keras.Model:
    return make_resnet(
        arguments.teacher_blocks,
        arguments.teacher_width,
        arguments.strides,
        "teacher",
        arguments.seed,
    )


def make_student(arguments: argparse.Namespace) -> keras.Model:
    """The same weights each time."""
    return make_resnet(
        arguments.student_blocks,
        arguments.student_width,
        arguments.strides,
        "student",
        arguments.seed,
    )


def make_resnet(
    blocks: int, width: int, strides: int, name: str, seed: int
) -> keras.Model:
    """A CIFAR ResNet of `6 * blocks + 2` layers (He et al., 2016)."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = layers.ReLU()(convolution(x, width, strides=strides))
    for stage in range(3):
        for block in range(blocks):
            shrink = 2 if stage > 0 and block == 0 else 1
            last = stage == 2 and block == blocks - 1
            x = residual(
                x,
                width * 2**stage,
                strides=shrink,
                name=FEATURES if last else None,
            )
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10)(x), name=name)


def residual(x: Any, width: int, strides: int, name: str | None) -> Any:
    y = layers.ReLU()(convolution(x, width, strides=strides))
    y = convolution(y, width)
    if x.shape != y.shape:
        x = convolution(x, width, size=1, strides=strides)
    return layers.ReLU(name=name)(layers.Add()([x, y]))


def convolution(x: Any, width: int, size: int = 3, strides: int = 1) -> Any:
    x = layers.Conv2D(
        width,
        size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)
    return layers.BatchNormalization(momentum=0.9)(x)


def training(arguments: argparse.Namespace, steps: int) -> dict[str, Any]:
    """What a model is compiled with: the same for all three."""
    return {
        "optimizer": keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(
                arguments.learning_rate, decay_steps=steps
            ),
            momentum=0.9,
            nesterov=True,
            # Keras' decay isn't gathered by the momentum, so this is what
            # other libraries call 5e-4.
            weight_decay=5e-3,
        ),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": ["accuracy"],
    }


def tell_sizes(teacher: keras.Model, student: keras.Model) -> None:
    ratio = teacher.count_params() / student.count_params()
    if ratio < SMALLER:
        raise ValueError(
            f"The student must be at least {SMALLER} times smaller than the "
            f"teacher. Received: {teacher.count_params():,} parameters for the "
            f"teacher, {student.count_params():,} for the student."
        )
    print(
        f"Teacher {teacher.count_params():,} parameters, student "
        f"{student.count_params():,}: {ratio:.1f} times smaller."
    )


def report(
    models: dict[str, keras.Model],
    train: Examples,
    test: Examples,
    arguments: argparse.Namespace,
) -> None:
    """Use the test set, once, and write what came of it."""
    images = test.images.astype("float32")

    def predict(model: keras.Model) -> np.ndarray:
        return model.predict(
            images, batch_size=VALIDATION_BATCH_SIZE, verbose=0
        )

    taught = predict(models["teacher"]).argmax(-1)
    rows = []
    for name, model in models.items():
        classes = predict(model).argmax(-1)
        parameters = {"model": name, "parameters": model.count_params()}
        rows.append(parameters | compare(classes, test, taught))
        if name not in METHODS:
            continue
        artifact = kd.export_litert(
            model,
            arguments.output / f"{name.replace(' ', '_')}.tflite",
            "int8",
            calibration_data=train.images[:CALIBRATION_SIZE].astype("float32"),
        )
        classes = artifact.predict(images).argmax(-1)
        rows.append(
            parameters
            | {"model": f"{name}, int8 on LiteRT", "bytes": artifact.size}
            | compare(classes, test, taught)
        )
    print_table(rows)
    facts = {
        "settings": described(arguments),
        "test_images": len(test.classes),
        "versions": versions(),
        "results": rows,
    }
    put_json(arguments.output / "results.json", facts)
    if arguments.json:
        figures.append(arguments.json, facts)
    print(
        f"{len(test.classes)} test images, {arguments.train_size} to train on, "
        f"seed {arguments.seed}. One seed proves little:\nrun others, with "
        "--seed and --output, before you believe a gain.\n"
        f"Models, LiteRT files and results.json are in {arguments.output}."
    )


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, and what distilling gained."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for row in run["results"]:
            found.setdefault(row["model"], []).append(row)
    alone = [seed["accuracy"] for seed in found["student alone"]]
    rows = []
    for name, seeds in found.items():
        accuracy = [seed["accuracy"] for seed in seeds]
        agreement = [seed["agreement"] for seed in seeds]
        gains = 100 * (np.array(accuracy) - alone)
        size = f"{seeds[0]['parameters']:,}"
        if "bytes" in seeds[0]:
            size = f"{seeds[0]['bytes'] / 1024:.0f} KiB"
        taught, isolated = name == "teacher", name == "student alone"
        rows.append(
            [
                name,
                size,
                # It may be one teacher for all.
                figures.percent(sorted(set(accuracy)) if taught else accuracy),
                "–" if taught else figures.percent(agreement),
                "–"
                if taught or isolated
                else ", ".join(f"{gain:.1f}" for gain in gains),
            ]
        )
    head = (
        "",
        "parameters, or file",
        "accuracy",
        "agreement with the teacher",
        "points gained by seed",
    )
    return figures.markdown(head, rows)


def compare(
    classes: np.ndarray, test: Examples, teacher_classes: np.ndarray
) -> dict[str, float]:
    return {
        "accuracy": float(np.mean(classes == test.classes)),
        "agreement": float(np.mean(classes == teacher_classes)),
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    line = "{:<40}  {:>10}  {:>8}  {:>9}  {:>9}".format
    print()
    print(line("", "parameters", "accuracy", "agreement", "file"))
    for row in rows:
        print(
            line(
                row["model"],
                f"{row['parameters']:,}",
                f"{row['accuracy']:.2%}",
                f"{row['agreement']:.2%}",
                f"{row['bytes'] / 1024:.0f} KiB" if "bytes" in row else "—",
            )
        )
    print()


def versions() -> dict[str, str]:
    backend = keras.backend.backend()
    return {
        "keras": keras.version(),
        backend: importlib.import_module(backend).__version__,
        "ai-edge-litert": importlib.metadata.version("ai-edge-litert"),
    }


def put(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    """Write a file so that at no time there is a part of it."""
    partial = path.with_name(f"partial.{path.name}")
    write(partial)
    os.replace(partial, path)


def put_json(path: pathlib.Path, content: Any) -> None:
    text = json.dumps(content, indent=2) + "\n"
    put(path, lambda partial: partial.write_text(text))


if __name__ == "__main__":
    main()
