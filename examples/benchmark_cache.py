"""How fast is a cache written, opened and read, and what does it keep?

    KERAS_BACKEND=jax python examples/benchmark_cache.py

- For each storage, of a thousand classes: bytes of an example, rows a second
  in shuffled batches of 256, and how far the soft targets at T=4 are from the
  exact ones (total variation).
- Writing against `teacher.predict`, in turns.
- Labelling by onnxruntime against `teacher.predict`, in turns.
- Opening a cache of 1,000 shards.
- Memory that reading a large cache adds to the process (`--gigabytes 2.5`).
- On paper: ImageNet-22k, 90 epochs of augmented views, from these figures.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import tempfile
import time
from typing import Any

import figures
import numpy as np

os.environ.setdefault("KERAS_BACKEND", "jax")

CLASSES = 1000
BATCH = 256
RESULTS = figures.RESULTS / "benchmark_cache.json"
STORAGES = ("float32", "float16", "bfloat16", "uint8", "top-10", "top-100")


def main() -> None:
    args = arguments()
    if args.table:
        figures.show(args.json or RESULTS, table)
        return
    rounds = args.rounds
    folder = pathlib.Path(tempfile.mkdtemp(dir=args.folder))
    try:
        facts = {
            "storage": storages(folder, args.examples, rounds),
            "writing, fast teacher": writing(folder, rounds, small(), 2048),
            "writing, ResNet-20": writing(folder, rounds, resnet(), 128),
            "onnxruntime": labelling(rounds),
            "opened, s": opening(folder, rounds),
            "gigabytes": args.gigabytes,
            "memory, MB": memory(folder, args.gigabytes),
        }
    finally:
        shutil.rmtree(folder)
    facts["on paper"] = on_paper(
        facts["storage"], facts["onnxruntime"]["images/s"]
    )
    print(figures.describe())
    if args.json:
        figures.keep(args.json, facts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--examples", type=int, default=40_960)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=2.5)
    parser.add_argument("--folder", help="where there is room")
    figures.add_arguments(parser)
    return parser.parse_args()


def stored(folder: pathlib.Path, logits: Any, **arguments: Any) -> Any:
    """A cache of given logits."""
    import keras_distill as kd

    teacher = kd.teachers.NumpyTeacher(lambda ids: logits[ids], "1")
    return kd.TeacherCache.write(
        folder,
        teacher,
        np.arange(len(logits)),
        probabilities="none",
        verbose=0,
        **arguments,
    )


def storages(folder: pathlib.Path, count: int, rounds: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    # As of an ImageNet classifier: a few great ones, the others about alike.
    logits = random.normal(size=(count, CLASSES)).astype("float32")
    places = random.integers(CLASSES, size=(count, 5))
    np.put_along_axis(
        logits, places, random.uniform(4, 12, (count, 5)).astype("f4"), -1
    )
    caches = {
        name: stored(folder / name, logits, storage=name) for name in STORAGES
    }
    speeds: dict[str, list[float]] = {name: [] for name in STORAGES}
    for i in range(rounds + 1):
        for name in list(STORAGES)[:: 1 if i % 2 else -1]:
            order = random.permutation(count)
            started = time.perf_counter()
            for first in range(0, count, BATCH):
                caches[name].read(
                    order[first : first + BATCH],
                    temperature=4.0 if name.startswith("top") else None,
                )
            if i:  # the first round fills the system's cache
                speeds[name].append(count / (time.perf_counter() - started))
    found = {}
    for name, cache in caches.items():
        size = sum(field.record.itemsize for field in cache.plan.fields)
        apart = total_variation(cache, logits[:2000])
        speed = np.percentile(speeds[name], [25, 50, 75])
        found[name] = {
            "bytes": size,
            "rows/s": speed.tolist(),
            "total variation at T=4": apart,
        }
        print(
            f"{name:9} {size:5} bytes, {speed[1]:9,.0f} rows/s "
            f"({speed[0]:,.0f}-{speed[2]:,.0f}), total variation {apart:.4f}"
        )
    return found


def total_variation(cache: Any, logits: Any) -> float:
    """Mean distance of the soft targets at T=4 from the exact ones.

    Of few classes, what is left is spread over all others evenly.
    """
    ids = np.arange(len(logits))
    few = cache.plan.fields[0].storage.startswith("top")
    said = cache.read(ids, temperature=4.0 if few else None).teacher_output
    exact = softmax(logits / 4)
    if isinstance(said, np.ndarray):
        mine = softmax(said.astype("float64") / 4)
    else:
        kept = np.exp(said.logits.astype("float64") / 4)
        rest = np.exp(said.log_rest.astype("float64"))[:, None]
        total = kept.sum(-1, keepdims=True) + rest
        others = CLASSES - kept.shape[-1]
        mine = np.repeat(rest / total / others, CLASSES, axis=-1)
        np.put_along_axis(mine, said.indices, kept / total, -1)
    return float(np.abs(mine - exact).sum(-1).mean() / 2)


def softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def small() -> Any:
    """A teacher that takes hardly more than its outputs take to store."""
    import keras

    teacher = keras.Sequential([keras.Input((32, 32, 3))])
    for width in (32, 64, 128):
        teacher.add(keras.layers.Conv2D(width, 3, 2, activation="relu"))
    teacher.add(keras.layers.GlobalAveragePooling2D())
    teacher.add(keras.layers.Dense(CLASSES))
    return teacher


def writing(
    folder: pathlib.Path, rounds: int, teacher: Any, few: int
) -> dict[str, list[float]]:
    """Throughput of writing, as a share of that of `predict`.

    Both begin with what doesn't grow with the examples: they compile, and a
    cache takes fingerprints and tries a batch. So both do a few examples and
    many, and what counts is the time that the others add. What a cache begins
    with is told apart.
    """
    import keras_distill as kd

    size = min(BATCH, few)
    x = np.random.default_rng(0).normal(size=(9 * few, 32, 32, 3))
    x = x.astype("float32")

    def write(count: int) -> float:
        where = tempfile.mkdtemp(dir=folder)
        started = time.perf_counter()
        kd.TeacherCache.write(
            where, teacher, x[:count], batch_size=size, verbose=0
        )
        return time.perf_counter() - started

    def predict(count: int) -> float:
        started = time.perf_counter()
        teacher.predict(x[:count], size, verbose=0)
        return time.perf_counter() - started

    found: dict[str, list[float]] = {"ratios": [], "before, s": []}
    for i in range(rounds + 1):
        least, before = write(few), predict(few)
        most, after = write(9 * few), predict(9 * few)
        if i:
            found["ratios"].append((after - before) / (most - least))
            found["before, s"].append(least - (most - least) / 8)
    print(
        f"writing: {figures.quartiles(found['ratios'], '.0%')} of predict's "
        f"speed, after {figures.quartiles(found['before, s'], '.1f')} s"
    )
    return found


def labelling(rounds: int) -> dict[str, Any]:
    """Throughput of onnxruntime, and as a multiple of that of `predict`."""
    import keras

    import keras_distill as kd

    teacher = resnet()
    x = np.random.default_rng(0).normal(size=(512, 32, 32, 3)).astype("float32")
    labeller = kd.teachers.as_teacher(
        teacher, runtime="onnxruntime", example=x[:64]
    )
    ratios, speeds = [], []
    for i in range(rounds + 1):

        def label() -> float:
            started = time.perf_counter()
            for first in range(0, len(x), 64):
                labeller.label(x[first : first + 64])
            return time.perf_counter() - started

        def predict() -> float:
            started = time.perf_counter()
            teacher.predict(x, 64, verbose=0)
            return time.perf_counter() - started

        if i % 2:
            labelled, predicted = label(), predict()
        else:
            predicted, labelled = predict(), label()
        if i:
            ratios.append(predicted / labelled)
            speeds.append(len(x) / labelled)
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    print(
        f"a ResNet-20 by onnxruntime: {middle:.2f} ({low:.2f}-{high:.2f}) "
        f"times as fast as predict on {keras.backend.backend()}, "
        f"{np.median(speeds):,.0f} images/s"
    )
    return {"ratios": ratios, "images/s": float(np.median(speeds))}


def resnet() -> Any:
    """A ResNet-20 for images of CIFAR's size."""
    import keras
    from keras import layers

    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, padding="same", activation="relu")(inputs)
    for width in (16, 32, 64):
        for block in range(3):
            strides = 2 if width > 16 and block == 0 else 1
            y = layers.Conv2D(width, 3, strides, "same", use_bias=False)(x)
            y = layers.ReLU()(layers.BatchNormalization()(y))
            y = layers.Conv2D(width, 3, padding="same", use_bias=False)(y)
            y = layers.BatchNormalization()(y)
            if x.shape != y.shape:
                x = layers.Conv2D(width, 1, strides)(x)
            x = layers.ReLU()(x + y)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def opening(folder: pathlib.Path, rounds: int) -> list[float]:
    import keras_distill as kd

    logits = np.zeros((1000, 10), "float32")
    stored(folder / "many", logits, batch_size=1, shard_rows=1)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        kd.TeacherCache.open(folder / "many")
        seconds.append(time.perf_counter() - started)
    print(f"opening 1,000 shards: {np.median(seconds):.3f} s")
    return seconds


def memory(folder: pathlib.Path, gigabytes: float) -> float:
    """Megabytes that reading all of a large cache adds."""
    count = int(gigabytes * 1e9 / (4 * CLASSES))
    logits = np.broadcast_to(np.zeros(CLASSES, "float32"), (count, CLASSES))
    cache = stored(folder / "large", logits, storage="float32")
    order = np.random.default_rng(0).permutation(count)
    cache.read(order[:BATCH])
    before, most = resident(), 0.0
    for first in range(0, count, BATCH):
        cache.read(order[first : first + BATCH])
        most = max(most, resident() - before)
    print(f"memory for reading {gigabytes} GB: {most:.0f} MB more")
    return most


def resident() -> float:
    """Resident memory of this process, in MB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def on_paper(facts: Any, speed: float) -> dict[str, Any]:
    """ImageNet-22k, 90 epochs of views: bytes, shards and hours."""
    rows = 14_197_122 * 90
    found: dict[str, Any] = {}
    for machines in (8, 64, 512):
        hours = rows / speed / machines / 3600
        found[f"hours on {machines} machines"] = hours
        print(
            f"ImageNet-22k, 90 epochs, a teacher as fast as this ResNet-20: "
            f"{hours:,.0f} hours on {machines} machines like this one"
        )
    for name in ("uint8", "top-10", "top-100"):
        size = facts[name]["bytes"]
        if name == "uint8":
            size = 21_841 + 8
        shards = -(-rows // 2**20)
        found[name] = {"TB": rows * size / 1e12, "shards": shards}
        print(
            f"ImageNet-22k, 90 epochs, {name}: {rows * size / 1e12:.2f} TB in "
            f"{shards} shards of 2**20 rows"
        )
    return found


def table(kept: dict[str, Any]) -> str:
    """What is stored, which no backend has a part in; and all else."""
    head = ("storage", "bytes", "thousand rows a second", "total variation")
    stored = [
        (
            f"`{name}`",
            str(found["bytes"]),
            f"{found['rows/s'][1] / 1e3:,.0f}",
            f"{found['total variation at T=4']:.4f}",
        )
        for name, found in next(iter(kept.values()))["storage"].items()
    ]
    columns = [(name, *column(facts).values()) for name, facts in kept.items()]
    names = ("", *column(next(iter(kept.values()))))
    rest = zip(names, *columns, strict=True)
    return "\n\n".join(
        (figures.markdown(head, stored), figures.markdown(next(rest), rest))
    )


def column(facts: dict[str, Any]) -> dict[str, str]:
    """What was measured on one backend."""
    opened = facts["opened, s"]
    fast, slow = facts["writing, fast teacher"], facts["writing, ResNet-20"]
    return {
        "writing, a ResNet-20, of `predict`'s speed": (
            figures.quartiles(slow["ratios"], ".0%")
        ),
        "writing, three layers, of `predict`'s speed": (
            figures.quartiles(fast["ratios"], ".0%")
        ),
        "before the first example, seconds": (
            figures.quartiles(slow["before, s"], ".1f")
        ),
        "a ResNet-20 labels by onnxruntime, times `predict`": (
            figures.quartiles(facts["onnxruntime"]["ratios"], ".2f")
        ),
        "opening 1,000 shards, seconds": figures.quartiles(opened, ".2f"),
        f"memory that reading {facts['gigabytes']} GB adds": (
            f"{facts['memory, MB']:.0f} MB"
        ),
    }


if __name__ == "__main__":
    main()
