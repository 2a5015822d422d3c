"""A cache on a file system that isn't this machine's."""

import sys

import numpy as np
import pytest
from support import cnn, images, only_on

import keras_distill as kd
from keras_distill.cache import DamagedCacheError

fsspec = pytest.importorskip("fsspec", reason="fsspec is one of the test extra")
pytestmark = only_on("torch")
ARGUMENTS = {"batch_size": 8, "shard_rows": 16}


@pytest.fixture
def url():
    files = fsspec.filesystem("memory")
    yield "memory://bucket/cache"
    files.rm("/bucket", recursive=True)


def test_it_is_written_opened_and_read(url, tmp_path):
    teacher, data = cnn(4), images(45)
    remote = kd.TeacherCache.write(url, teacher, data, **ARGUMENTS, verbose=0)
    local = kd.TeacherCache.write(
        tmp_path / "local", teacher, data, **ARGUMENTS, verbose=0
    )
    remote.verify(data)
    ids = np.array([44, 0, 17])
    for cache in (remote, kd.TeacherCache.open(url, copy=tmp_path / "copy")):
        np.testing.assert_array_equal(
            cache.read(ids).teacher_output, local.read(ids).teacher_output
        )
    assert [*tmp_path.glob("copy/*/shards/000002/output_0.npy")]
    assert not [*tmp_path.glob("copy/**/.partial*")]


def test_copies_are_of_the_cache_that_is_read(url, tmp_path):
    x = np.arange(12.0).reshape(6, 2).astype("float32")
    for sign in (1, -1):
        teacher = kd.teachers.as_teacher(lambda x, sign=sign: sign * x)
        place = f"{url}/{sign}"
        kd.TeacherCache.write(
            place, teacher, x, storage="float32", probabilities="none"
        )
        cache = kd.TeacherCache.open(place, copy=tmp_path / "copy")
        found = cache.read(np.arange(6)).teacher_output
        np.testing.assert_array_equal(found, sign * x)


def test_what_was_interrupted_goes_on(url):
    teacher, data = cnn(4), images(45)
    job = kd.cache.Labelling(url, teacher, data, **ARGUMENTS)
    job.label_shard(1)
    # A writer that died within a shard: its files are there, not the last.
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/cache/shards/000000/output_0.npy", b"half")
    files.pipe_file("/bucket/cache/.partial-1", b"half")
    assert job.missing() == [0, 2]
    with pytest.raises(FileNotFoundError, match="isn't complete"):
        kd.TeacherCache.open(url)
    cache = kd.TeacherCache.write(url, teacher, data, **ARGUMENTS, verbose=0)
    cache.verify(data)
    assert not files.glob("/bucket/cache/.partial*")


def test_damage_is_found(url):
    teacher, data = cnn(4), images(45)
    kd.TeacherCache.write(url, teacher, data, **ARGUMENTS, verbose=0)
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/cache/shards/000000/output_0.npy", b"half")
    with pytest.raises(DamagedCacheError, match="missing or cut off"):
        kd.TeacherCache.open(url)


def test_a_missing_fsspec_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match="pip install fsspec"):
        kd.TeacherCache.open("memory://bucket/cache")
