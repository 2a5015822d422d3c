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


def killed(base, kills):
    """Kill writers at work, in one folder after the other is complete."""
    moments = random.Random(1)
    done, folder, shards, turn = 0, base / "0", set(), 0
    while done < kills:
        if (folder / "manifest.json").exists():
            folder, shards = base / str(turn), set()
        turn += 1
        # Two writers of the same shards, or two that share them.
        sharing = [(0, 2), (1, 2)] if turn % 2 else [(), ()]
        writers = [forked(folder, *arguments) for arguments in sharing]
        time.sleep(moments.uniform(0.0, 0.05))
        for writer in writers:
            os.kill(writer, signal.SIGKILL)
            done += os.waitpid(writer, 0)[1] != 0
        found = {path.name for path in folder.glob("shards/*")}
        assert shards <= found, "a finished shard is gone"
        shards = found
    return done


def main():
    base, kills = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    write(base / "undisturbed")
    expected = content(base / "undisturbed")
    done = killed(base / "killed", kills)
    for folder in (base / "killed").iterdir():
        write(folder)
        assert content(folder) == expected, folder
    print(f"{done} writers were killed at work")


if __name__ == "__main__":
    main()
