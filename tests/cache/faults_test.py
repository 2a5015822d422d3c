"""A cache survives what kills its writers."""

import errno
import pathlib
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from support import cnn, images, only_on

import keras_distill as kd
from keras_distill.cache import folders

HERE = pathlib.Path(__file__).parent


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@only_on("torch")
def test_killed_writers_lose_nothing_and_double_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, HERE / "killed_writers.py", tmp_path, "30"],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parent.parent,
    )
    assert done.returncode == 0, done.stderr
    killed = int(re.match(r"(\d+) writers", done.stdout)[1])
    assert killed >= 30


@only_on("torch")
def test_a_full_disk_leaves_what_was_finished(tmp_path, monkeypatch):
    teacher, data = cnn(4), images(45)
    write = folders._write
    written = []

    def full(path, content):
        written.append(path)
        if len(written) == 6:
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(folders, "_write", full)
    arguments = {"batch_size": 8, "shard_rows": 16, "verbose": 0}
    with pytest.raises(OSError, match="No space left on device"):
        kd.TeacherCache.write(tmp_path, teacher, data, **arguments)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert "shards/000000/shard.json" in left
    assert "shards/000002" not in left
    assert not any(".partial" in name for name in left)
    monkeypatch.undo()
    kd.TeacherCache.write(tmp_path, teacher, data, **arguments).verify(data)


@only_on("torch")
def test_two_writers_at_once_write_one_cache(tmp_path):
    teacher, data = cnn(4), images(45)
    arguments = {"batch_size": 8, "shard_rows": 8, "verbose": 0}
    errors = []

    def write():
        try:
            kd.TeacherCache.write(tmp_path, teacher, data, **arguments)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    kd.TeacherCache.open(tmp_path, data).verify(data)
    assert not list(tmp_path.glob(".partial*"))


@only_on("torch")
def test_opening_many_shards_needs_no_handles(tmp_path):
    """A process has few file handles; this cache has more files."""
    import resource

    x = np.arange(700, dtype="float32")[:, None]

    def teacher(inputs):
        return np.concatenate([inputs, -inputs], axis=-1)

    cache = kd.TeacherCache.write(
        tmp_path,
        kd.teachers.NumpyTeacher(teacher, "1"),
        x,
        batch_size=1,
        shard_rows=1,
        verbose=0,
        storage="float32",
        probabilities="none",
    )
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, limit[1]))
    try:
        found = cache.read(np.arange(700)[::-1]).teacher_output
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    np.testing.assert_array_equal(found[:, 0], x[::-1, 0])
