"""Nobody's cache is believed: shards, plans and manifests are looked at."""

import json
import shutil

import numpy as np
import pytest
from support import only_on

import keras_distill as kd
from keras_distill.cache import DamagedCacheError, StaleCacheError
from keras_distill.cache.plan import to_bytes

pytestmark = only_on("torch")
X = np.arange(24, dtype="float32").reshape(12, 2)


def teacher(factor=1.0):
    return kd.teachers.NumpyTeacher(lambda x: x * factor, str(factor))


def write(folder, factor=1.0, x=X, **arguments):
    return kd.TeacherCache.write(
        folder,
        teacher(factor),
        x,
        **{"batch_size": 4, "shard_rows": 4, "verbose": 0, **arguments},
    )


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "cache")
    return tmp_path / "cache"


def test_shards_of_another_plan_are_refused(folder, tmp_path):
    write(tmp_path / "other", 100.0)
    (folder / "manifest.json").unlink()
    (folder / "plan.json").unlink()
    with pytest.raises(DamagedCacheError, match="isn't of this cache"):
        write(folder, 100.0)
    shutil.rmtree(tmp_path / "other/shards")
    shutil.copytree(folder / "shards", tmp_path / "other/shards")
    with pytest.raises(DamagedCacheError, match="000000"):
        kd.TeacherCache.open(tmp_path / "other")


def test_shards_at_another_place_are_refused(folder):
    shards = folder / "shards"
    (shards / "000000").rename(folder / "aside")
    (shards / "000001").rename(shards / "000000")
    (folder / "aside").rename(shards / "000001")
    with pytest.raises(DamagedCacheError, match="000000"):
        kd.TeacherCache.open(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(DamagedCacheError, match="at another place"):
        write(folder)


def test_what_a_file_browser_leaves_does_no_harm(folder):
    (folder / "shards/.DS_Store").write_bytes(b"x")
    shutil.copytree(folder / "shards/000000", folder / "shards/copy")
    kd.TeacherCache.open(folder).verify(X)
    (folder / "manifest.json").unlink()
    write(folder).verify(X)


def test_a_shard_without_its_last_file_says_what_to_do(folder):
    (folder / "manifest.json").unlink()
    (folder / "shards/000001/shard.json").unlink()
    with pytest.raises(OSError, match="Remove the folder"):
        write(folder)
    shutil.rmtree(folder / "shards/000001")
    write(folder).verify(X)


def forged(folder, change):
    """A manifest with a right checksum and other content."""
    path = folder / "manifest.json"
    facts = json.loads(path.read_bytes())
    del facts["sha256"]
    change(facts)
    path.write_bytes(to_bytes(facts))


def field(**values):
    return lambda facts: facts["plan"]["fields"][0].update(values)


def plan(**values):
    return lambda facts: facts["plan"].update(values)


def shard(**values):
    return lambda facts: facts["shards"][0].update(values)


NONSENSE = {
    "path": field(file="../../../secret.npy"),
    "shape": field(shape=[-1]),
    "shape of bools": field(shape=[True]),
    "storage": field(storage="float3"),
    "size": plan(size=11),
    "size as text": plan(size="12"),
    "no rows": plan(shard_rows=0),
    "half an epoch": plan(epochs=2.0),
    "output": plan(output=5),
    "negative output": plan(output=-1),
    "kind of output": plan(output={"evil": [0]}),
    "deep output": plan(output=json.loads('{"list": [' * 80 + "]}" * 80)),
    "no fields": plan(fields=[]),
    "probabilities": plan(probabilities="evil"),
    "views": plan(views=3),
    "transfer set": plan(transfer_set=None),
    "versions": plan(versions=3),
    "unknown entry": plan(more=1),
    "device": shard(files={"../../../../dev/zero": {"bytes": None}}),
    "files": shard(files=[]),
    "number": shard(shard=1),
    "rows": shard(rows=9),
    "no plan": lambda facts: facts.pop("plan"),
    "no shards": lambda facts: facts.update(shards=3),
    "few shards": lambda facts: facts["shards"].pop(),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused(folder, name):
    forged(folder, NONSENSE[name])
    with pytest.raises(DamagedCacheError):
        kd.TeacherCache.open(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"[" * 100_000, b'{"sha256": 1}', b"\xff"]
)
def test_what_is_no_manifest_is_refused(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedCacheError, match=r"manifest\.json"):
        kd.TeacherCache.open(folder)


@pytest.mark.parametrize("header", [b"((((", b"{'descr': '<f4'}", b""])
def test_what_is_no_array_is_refused(folder, header):
    path = folder / "shards/000001/output_0.npy"
    content = path.read_bytes()
    changed = content[:10] + header.ljust(118)[:117] + b"\n" + content[128:]
    path.write_bytes(changed)
    cache = kd.TeacherCache.open(folder)
    with pytest.raises(DamagedCacheError, match="000001"):
        cache.read(np.array([5]))


def test_another_preprocessing_is_refused(tmp_path):
    def less(by):
        return lambda x: x - by

    write(tmp_path, teacher_inputs=less(0.0))
    with pytest.raises(StaleCacheError, match="other teacher_inputs"):
        write(tmp_path, teacher_inputs=less(1.0))


def said(values, **arguments):
    """Write a cache of a teacher that says these values."""
    values = np.asarray(values)
    return lambda folder: kd.TeacherCache.write(
        folder,
        kd.teachers.NumpyTeacher(lambda ids: values[ids], "1"),
        np.arange(len(values)),
        probabilities="none",
        verbose=0,
        **arguments,
    )


HUGE = float(np.finfo("float32").max)


@pytest.mark.parametrize(
    ("writes", "message"),
    [
        (said([[0.0, HUGE]], storage="bfloat16"), "too large for bfloat16"),
        (said([[-HUGE, HUGE]], storage="uint8"), "too far apart"),
        (said([[0.0, 1e300]], storage="float32"), "finite number"),
        (said([[0.0, np.nan]], storage="top-1"), "finite number"),
        (said([[0, 2**24 + 1]], storage="float32"), "16,777,216"),
        (said([[1j, 0]]), "complex128"),
        (said(np.zeros((3, 0)), storage="uint8"), "says nothing"),
        (said([1.0, 2.0], storage="uint8"), "no axis"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, writes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        writes(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("shards/*"))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "bool", "uint32"])
def test_whole_numbers_are_ranked_as_numbers(tmp_path, dtype):
    values = np.array([[0, 1, 0], [100, 0, 1]]).astype(dtype)
    batch = said(values, storage="top-1")(tmp_path).read(
        np.array([0, 1]), temperature=1.0
    )
    np.testing.assert_array_equal(batch.teacher_output.indices[:, 0], [1, 0])


def test_no_ids_are_no_records(folder):
    batch = kd.TeacherCache.open(folder).read(np.zeros(0, int))
    assert batch.teacher_output.shape == (0, 2)
