"""Kills writers of a cache at random moments; run by `faults_test`.

    python killed_writers.py FOLDER KILLS

One process imports the library, on Keras' NumPy backend, and forks a writer
for each kill. At the end the folder must be that of an undisturbed writer.
"""

import os
import pathlib
import random
import signal
import sys
import time

os.environ["KERAS_BACKEND"] = "numpy"

import numpy as np

import keras_distill as kd

DATA = np.random.default_rng(0).normal(size=(400, 8)).astype("float32")


def slow(x):
    time.sleep(0.002)
    return np.cumsum(x, axis=-1)


TEACHER = kd.teachers.NumpyTeacher(slow, "1")


def write(folder, rank=0, world=1):
    job = kd.cache.Labelling(
        folder, TEACHER, DATA, batch_size=10, shard_rows=20
    )
    job.run(rank, world, verbose=0)
    if not job.missing():
        job.finish()


def forked(*arguments):
    child = os.fork()
    if child == 0:
        try:
            write(*arguments)
        finally:
            os._exit(0)
    return child


def content(folder):
    folder = pathlib.Path(folder)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def killed(folder, kills):
    """Kill writers; how many of them hadn't finished."""
    moments = random.Random(1)
    shards, unfinished = set(), 0
    for kill in range(kills):
        # One writer, or two on the same folder, or two that share the work.
        writers = [forked(folder, *sharing(kill, i)) for i in range(2)]
        time.sleep(moments.uniform(0.0, 0.05))
        for writer in writers:
            os.kill(writer, signal.SIGKILL)
            unfinished += os.waitpid(writer, 0)[1] != 0
        found = {p.name for p in folder.glob("shards/*")}
        assert shards <= found, "a finished shard is gone"
        shards = found
    return unfinished


def sharing(kill, i):
    return (i, 2) if kill % 2 else ()


def main():
    base, kills = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    write(base / "undisturbed")
    unfinished = killed(base / "killed", kills)
    write(base / "killed")
    assert content(base / "killed") == content(base / "undisturbed")
    print(f"{unfinished} writers were killed at work")


if __name__ == "__main__":
    main()
