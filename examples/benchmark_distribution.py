"""What does a distiller's own code cost on many devices, over plain Keras?

    KERAS_BACKEND=jax python examples/benchmark_distribution.py

Two workers train a convolutional student on the same batches, in turns (A B,
B A, ...): plain Keras, with the student compiled by itself, and a `Distiller`
whose batches hold what the teacher said, with the weight of the hard labels at
1. Both do the student's step; the distiller's has a soft target's loss besides,
and what keeps the devices together.

On JAX the workers are two devices of this machine, on TensorFlow two logical
CPUs with MirroredStrategy. On PyTorch they are two processes, and plain Keras,
which has no such thing, averages gradients with one exchange, as a hand-written
loop would. Gives the median time of a step, and the overhead's median
and quartiles over the rounds. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
if os.environ["KERAS_BACKEND"] == "jax":
    flag = "--xla_force_host_platform_device_count=2"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"

import figures
import keras
import numpy as np

import keras_distill as kd

BATCH, CLASSES = 64, 100
RESULTS = figures.RESULTS / "benchmark_distribution.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60, help="of an epoch")
    figures.add_arguments(parser)
    args = parser.parse_args()
    if args.table:
        figures.show(args.json or RESULTS, table)
        return
    if keras.backend.backend() == "torch" and "RANK" not in os.environ:
        start_two()
        return
    facts = compare(args.rounds, args.steps)
    if args.json and facts:
        figures.keep(args.json, facts)


def start_two() -> None:
    """Run this script in two processes, as torchrun would."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, *sys.argv],
            env=os.environ | shared | {"RANK": str(rank)},
        )
        for rank in range(2)
    ]
    for worker in workers:
        worker.wait()


def network(width: int) -> keras.Model:
    model = keras.Sequential([keras.Input((32, 32, 3))])
    for i in range(4):
        model.add(
            keras.layers.Conv2D(
                width * 2 ** (i // 2),
                3,
                strides=1 + i % 2,
                padding="same",
                activation="relu",
            )
        )
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(CLASSES))
    return model


def compare(rounds: int, steps: int) -> dict[str, Any] | None:
    """Times of both, on the first worker."""
    world = kd.distribution.initialize()
    random = np.random.default_rng(0)
    count = BATCH * steps
    x = random.normal(size=(count, 32, 32, 3)).astype("float32")
    y = random.integers(CLASSES, size=count)
    logits = random.normal(size=(count, CLASSES)).astype("float32")
    with scope():
        plain = network(32)
        plain.compile("adam", kd.HardLabels(), metrics=["accuracy"])
        distiller = kd.Distiller(None, network(32), hard_label_weight=1.0)
        distiller.compile("adam", kd.HardLabels(), metrics=["accuracy"])
    jobs = {
        "plain Keras": job(plain, x, y),
        "Distiller": job(distiller, kd.TransferBatch(x, logits), y),
    }
    if keras.backend.backend() == "torch":
        average_gradients(plain)
        own = slice(world.rank, None, world.size)
        jobs["plain Keras"] = job(plain, x[own], y[own], BATCH // world.size)
    times = measure(jobs, rounds, steps)
    if not world.is_first:
        return None
    for name, seconds in times.items():
        print(f"{name}: {1e3 * statistics.median(seconds):.2f} ms a step")
    overheads = more(*times.values())
    print(
        f"overhead: {figures.quartiles(overheads, '.1f')} % over {rounds} "
        "rounds, "
        f"{keras.backend.backend()}, keras {keras.__version__}, "
        f"{os.cpu_count()} cores"
    )
    return {"seconds a step": times}


def table(kept: dict[str, Any]) -> str:
    """Milliseconds of a step, and the overhead in each round."""
    rows = []
    for backend, facts in kept.items():
        plain, ours = facts["seconds a step"].values()
        rows.append(
            (
                backend,
                f"{1e3 * statistics.median(plain):.1f} ms",
                f"{1e3 * statistics.median(ours):.1f} ms",
                f"{figures.quartiles(more(plain, ours), '.1f')} %",
            )
        )
    head = ("two workers on", "plain Keras", "`Distiller`", "overhead")
    return figures.markdown(head, rows)


def more(plain: list[float], ours: list[float]) -> list[float]:
    """The overhead of each round, in percent."""
    return [100 * (b / a - 1) for a, b in zip(plain, ours, strict=True)]


def scope() -> contextlib.AbstractContextManager[Any]:
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()


def job(model: Any, x: Any, y: Any, size: int = BATCH) -> Callable[[], None]:
    def run() -> None:
        model.fit(x, y, batch_size=size, shuffle=False, verbose=0)

    return run


def average_gradients(model: Any) -> None:
    """What a hand-written loop does: one exchange of all gradients."""
    import torch
    import torch.distributed as dist

    apply = model.optimizer.apply

    def averaged(grads: Any, variables: Any) -> Any:
        flat = torch.cat([g.flatten() for g in grads]) / dist.get_world_size()
        dist.all_reduce(flat)
        parts = torch.split(flat, [g.numel() for g in grads])
        means = [p.view(g.shape) for p, g in zip(parts, grads, strict=True)]
        return apply(means, variables)

    model.optimizer.apply = averaged


def measure(
    jobs: dict[str, Callable[[], None]], rounds: int, steps: int
) -> dict[str, list[float]]:
    """Seconds for a step of each job in each round, after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for i in range(rounds + 1):
        names = list(jobs) if i % 2 else list(reversed(jobs))
        for name in names:
            start = time.perf_counter()
            jobs[name]()
            if i:
                times[name].append((time.perf_counter() - start) / steps)
    return times


if __name__ == "__main__":
    main()
