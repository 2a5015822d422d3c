"""What does a stored teacher save, and does the student learn as well?

    KERAS_BACKEND=jax python examples/cached_teacher.py

First, time. A ResNet32x4 teaches a ResNet8x4 on images of CIFAR's size, in
turns (A B, B A, ...): the student alone, distilled with the teacher running in
each step, distilled from a cache, distilled by Keras' own `keras.distillation`
and, where PyTorch is installed, by a loop in plain PyTorch as mdistiller's is.
All see the same batches. The teacher's time over the transfer set is measured
too; from it follows after how many epochs writing a cache has paid off.

Then, accuracy. On scikit-learn's digits, students are distilled live and from
caches of float16 and of uint8, over several seeds, and tested after their last
step.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import figures
import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")

BATCH = 64
CLASSES = 100
TEMPERATURE = 4.0
SOFT, HARD = 0.9, 0.1
RESULTS = figures.RESULTS / "cached_teacher.json"
JOBS = [
    "student alone",
    "cached",
    "live",
    "teacher.predict",
    "keras.distillation",
    "plain PyTorch, live",
]


def main() -> None:
    args = arguments()
    if args.table:
        figures.show(args.json or RESULTS, table)
        return
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401  (before TensorFlow, which it crashes after)
    facts = {"time": compare_times(args), "accuracy": compare_accuracy(args)}
    print(figures.describe())
    if args.json:
        figures.keep(args.json, facts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of an epoch")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--jobs", nargs="+", choices=JOBS, default=JOBS, help="to be timed"
    )
    figures.add_arguments(parser)
    return parser.parse_args()


# Networks


def resnet(blocks: int, seed: int) -> Any:
    """A ResNet of CIFAR's kind, four times as wide: 32x4 has 5 blocks."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    inputs = keras.Input((32, 32, 3))
    x = convolution(32)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for stage, width in enumerate((64, 128, 256)):
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            y = convolution(width, strides=strides)(x)
            y = layers.ReLU()(layers.BatchNormalization()(y))
            y = layers.BatchNormalization()(convolution(width)(y))
            if x.shape != y.shape:
                x = convolution(width, 1, strides)(x)
                x = layers.BatchNormalization()(x)
            x = layers.ReLU()(x + y)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def convolution(width: int, size: int = 3, strides: int = 1) -> Any:
    from keras import layers

    return layers.Conv2D(width, size, strides, "same", use_bias=False)


# Time


def compare_times(args: argparse.Namespace) -> dict[str, Any]:
    import keras

    import keras_distill as kd

    rng = np.random.default_rng(0)
    size = args.steps * BATCH
    x = rng.normal(size=(size, 32, 32, 3)).astype("float32")
    y = rng.integers(0, CLASSES, size)
    teacher = resnet(5, seed=1)
    folder = pathlib.Path(tempfile.mkdtemp())
    cache = kd.TeacherCache.write(
        folder, teacher, (x, y), batch_size=BATCH, verbose=0
    )
    jobs = {
        "student alone": fitted(compiled(resnet(1, seed=2)), shuffled(x, y)),
        "cached": fitted(
            distiller(cache.teacher), cache.batches(BATCH, shuffle=True)
        ),
        "live": fitted(distiller(teacher), shuffled(x, y)),
        "teacher.predict": lambda: teacher.predict(x, BATCH, verbose=0),
    }
    if (theirs := built_in(teacher)) is not None:
        jobs["keras.distillation"] = fitted(theirs, shuffled(x, y))
    if (loop := in_plain_torch(x, y)) is not None:
        jobs["plain PyTorch, live"] = loop
    chosen = {"student alone", *args.jobs}
    jobs = {name: job for name, job in jobs.items() if name in chosen}
    seconds, processor = interleave(jobs, args.rounds)
    alone = seconds["student alone"]
    print(
        f"ResNet32x4 ({teacher.count_params() / 1e6:.1f} M parameters) teaches "
        f"ResNet8x4, {keras.backend.backend()}, batch {BATCH}"
    )
    ratios = {}
    for name, taken in seconds.items():
        low, middle, high = np.percentile(taken / alone, [25, 50, 75])
        step = np.median(taken) / args.steps * 1e3
        work = np.median(processor[name] / processor["student alone"])
        print(
            f"  {name:22} {step:7.0f} ms a step, {middle:.3f} "
            f"({low:.3f}-{high:.3f}) of the student alone; processor {work:.3f}"
        )
        ratios[name] = [step, low, middle, high, work]
    if {"live", "cached", "teacher.predict"} <= chosen:
        print(f"  writing the cache has paid off after {paid_off(ratios)}")
    return {"ms, quartiles, processor": ratios}


def compiled(student: Any) -> Any:
    import keras

    student.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return student


def distiller(teacher: Any) -> Any:
    import keras_distill as kd

    return kd.Distiller(
        teacher,
        compiled(resnet(1, seed=2)),
        kd.losses.SoftTargets(TEMPERATURE),
        SOFT,
        HARD,
    )


def built_in(teacher: Any) -> Any:
    """Keras' own distiller, where this Keras has one."""
    import keras

    if "distillation" not in dir(keras):
        return None
    made = keras.distillation.Distiller(
        teacher,
        resnet(1, seed=2),
        keras.distillation.LogitsDistillation(TEMPERATURE),
        student_loss_weight=HARD,
    )
    made.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return made


def shuffled(x: Any, y: Any, batch: int = BATCH, seed: int = 0) -> Any:
    """A data set in the order that `cache.batches` of that seed has."""
    import keras_distill as kd

    return kd.distribution.batches((x, y), batch, shuffle=True, seed=seed)


def fitted(model: Any, batches: Any) -> Callable[[], Any]:
    import keras

    def job() -> None:
        model.fit(batches, epochs=1, verbose=0)
        # Wait for what JAX still computes.
        keras.ops.convert_to_numpy(model.trainable_variables[0])

    return job


def in_plain_torch(x: Any, y: Any) -> Callable[[], Any] | None:
    """A loop as mdistiller has it: PyTorch's own layers, channels first."""
    try:
        import torch
    except ImportError:
        return None
    from torch.nn import functional

    torch.manual_seed(0)
    teacher, student = torch_resnet(5).eval(), torch_resnet(1)
    optimizer = torch.optim.SGD(student.parameters(), 0.01, momentum=0.9)
    images = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    labels = torch.from_numpy(y)

    def job() -> None:
        student.train()
        for ids in torch.randperm(len(x)).split(BATCH):
            with torch.no_grad():
                taught = teacher(images[ids]) / TEMPERATURE
            logits = student(images[ids])
            soft = functional.kl_div(
                functional.log_softmax(logits / TEMPERATURE, dim=1),
                functional.softmax(taught, dim=1),
                reduction="batchmean",
            )
            hard = functional.cross_entropy(logits, labels[ids])
            loss = SOFT * TEMPERATURE**2 * soft + HARD * hard
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return job


def torch_resnet(blocks: int) -> Any:
    """The same network as `resnet`, in PyTorch."""
    from torch import nn

    class Block(nn.Module):
        """Two convolutions and what goes past them."""

        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()

            def layer(size: int, channels: int, step: int) -> Any:
                return nn.Sequential(
                    nn.Conv2d(
                        channels, width, size, step, size // 2, bias=False
                    ),
                    nn.BatchNorm2d(width),
                )

            self.inner = nn.Sequential(
                layer(3, before, stride), nn.ReLU(), layer(3, width, 1)
            )
            changes = stride > 1 or before != width
            self.past = layer(1, before, stride) if changes else nn.Identity()

        def forward(self, x: Any) -> Any:
            return nn.functional.relu(self.inner(x) + self.past(x))

    parts = [
        nn.Conv2d(3, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
    ]
    before = 32
    for stage, width in enumerate((64, 128, 256)):
        for block in range(blocks):
            parts.append(Block(before, width, 2 if stage and not block else 1))
            before = width
    return nn.Sequential(
        *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, CLASSES)
    )


def interleave(jobs: dict[str, Any], rounds: int) -> tuple[Any, Any]:
    """Seconds of each job in each round, in alternating order.

    On the clock, and of the processor, which other programs don't add to.
    """
    for job in [*jobs.values()] * 2:  # compile, and warm up
        job()
    clock: dict[str, list[float]] = {name: [] for name in jobs}
    processor: dict[str, list[float]] = {name: [] for name in jobs}
    for i in range(rounds):
        for name in list(jobs)[:: 1 if i % 2 else -1]:
            started = time.perf_counter(), time.process_time()
            jobs[name]()
            clock[name].append(time.perf_counter() - started[0])
            processor[name].append(time.process_time() - started[1])
    return tuple(
        {name: np.array(taken) for name, taken in seconds.items()}
        for seconds in (clock, processor)
    )


# Accuracy


def compare_accuracy(args: argparse.Namespace) -> dict[str, Any]:
    from sklearn.datasets import load_digits

    import keras_distill as kd

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:1200], order[1200:]
    teacher = network(256, seed=0)
    teacher.fit(x[train], y[train], epochs=40, verbose=0)
    print(f"scikit-learn's digits: teacher {score(teacher, x, y, test):.1f} %")
    found: dict[str, list[float]] = {}
    for seed in range(1, args.seeds + 1):
        for way in ("live", "float16", "uint8"):
            student = network(12, seed)
            if way == "live":
                made = kd.Distiller(teacher, student)
                data: Any = shuffled(x[train], y[train], 32, seed)
            else:
                cache = kd.TeacherCache.write(
                    tempfile.mkdtemp(),
                    teacher,
                    (x[train], y[train]),
                    storage=way,
                    verbose=0,
                )
                made = kd.Distiller(cache.teacher, student)
                data = cache.batches(32, shuffle=True, seed=seed)
            made.fit(data, epochs=20, verbose=0)
            found.setdefault(way, []).append(score(student, x, y, test))
    for way, scores in found.items():
        print(f"  {way:8} {figures.spread(scores)} %")
    return found


def network(width: int, seed: int) -> Any:
    import keras

    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(width, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.Adam(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def score(model: Any, x: Any, y: Any, test: Any) -> float:
    guessed = model.predict(x[test], verbose=0).argmax(-1)
    return float(100 * np.mean(guessed == y[test]))


# Figures


def table(kept: dict[str, Any]) -> str:
    """A step's time on each backend, and what the students have learned."""
    times = [facts["time"] for facts in kept.values()]
    rows = []
    for name in JOBS[1:]:
        if name == "teacher.predict":
            continue
        found = [each["ms, quartiles, processor"].get(name) for each in times]
        rows.append((name, *(ratio(each) if each else "–" for each in found)))
    paid = [paid_off(each["ms, quartiles, processor"]) for each in times]
    rows.append(("writing the cache has paid off after", *paid))
    for way in ("live", "float16", "uint8"):
        scores = [facts["accuracy"][way] for facts in kept.values()]
        rows.append(
            (
                f"digits, {'cached as ' if way != 'live' else ''}{way}",
                *(f"{figures.spread(each)} %" for each in scores),
            )
        )
    return figures.markdown(("", *kept), rows)


def paid_off(found: dict[str, list[float]]) -> str:
    """Epochs until what a cache saves is what it took, in processor time."""
    work = {name: ratios[-1] for name, ratios in found.items()}
    saved = work["live"] - work["cached"]
    return f"{work['teacher.predict'] / saved:.1f} epochs"


def ratio(found: list[float]) -> str:
    _, low, middle, high, work = found
    return f"{middle:.2f} ({low:.2f}–{high:.2f}); processor {work:.2f}"


if __name__ == "__main__":
    main()
