"""Pipelines of all kinds get the records of the examples that they carry."""

import importlib

import keras
import numpy as np
import pytest
from support import only_on

import keras_distill as kd

SIZE = 50


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The teacher says four times the number of the example."""
    numbers = np.arange(SIZE, dtype="float32")
    teacher = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")]
    )
    return kd.TeacherCache.write(
        tmp_path_factory.mktemp("attach"),
        teacher,
        np.repeat(numbers[:, None], 4, axis=1),
        storage="float32",
        batch_size=8,
        shard_rows=16,
        verbose=0,
    )


class Examples:
    """Random access to examples that carry their numbers."""

    def __len__(self):
        return SIZE

    def __getitem__(self, i):
        x = np.full(4, i, "float32")
        return kd.TransferBatch(x, sample_ids=np.int64(i)), np.float32(4 * i)


class Batches(keras.utils.PyDataset):
    """A data set of Keras with an order of its own."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.order = np.arange(SIZE)
        self.epochs = 0

    def __len__(self):
        return 5

    def __getitem__(self, index):
        ids = self.order[index * 12 : (index + 1) * 12]
        x = np.repeat(ids[:, None], 4, axis=1).astype("float32")
        return kd.TransferBatch(x, sample_ids=ids), 4.0 * ids

    def on_epoch_end(self):
        self.epochs += 1
        self.order = np.random.default_rng(self.epochs).permutation(SIZE)


def tf_dataset():
    import tensorflow as tf

    def batch(ids):
        x = tf.repeat(tf.cast(ids, "float32")[:, None], 4, axis=1)
        return kd.TransferBatch(x, sample_ids=ids), 4 * x[:, 0]

    numbers = tf.data.Dataset.range(SIZE).shuffle(SIZE)
    return numbers.batch(12).map(batch)


def loader(workers=0):
    import torch

    return torch.utils.data.DataLoader(
        Examples(),
        batch_size=12,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )


def grain_dataset():
    grain = pytest.importorskip(
        "grain", reason="grain is one of the test extra"
    )
    data = grain.MapDataset.source(Examples()).shuffle(seed=1)

    def stacked(rows):
        batches, labels = zip(*rows, strict=True)
        x, ids = zip(
            *((batch.inputs, batch.sample_ids) for batch in batches),
            strict=True,
        )
        return (
            kd.TransferBatch(np.stack(x), sample_ids=np.stack(ids)),
            np.stack(labels),
        )

    return data.batch(12, batch_fn=stacked)


PIPELINES = {
    "PyDataset": Batches,
    "PyDataset, 3 threads": lambda: Batches(workers=3),
    "tf.data": tf_dataset,
    "DataLoader": loader,
    "Grain": grain_dataset,
    "Grain iterator": lambda: grain_dataset().to_iter_dataset(),
}


def check(batches):
    """Each example once, with its own record."""
    seen = []
    for batch, y in batches:
        ids = np.asarray(batch.sample_ids)
        np.testing.assert_array_equal(np.asarray(batch.inputs)[:, 0], ids)
        np.testing.assert_array_equal(np.asarray(y), 4 * ids)
        said = np.asarray(batch.teacher_output)
        np.testing.assert_allclose(said[:, 0], 4.0 * ids, rtol=1e-6)
        seen += ids.tolist()
    assert sorted(seen) == list(range(SIZE))
    return seen


def once(data):
    if isinstance(data, keras.utils.PyDataset):
        return [data[i] for i in range(data.num_batches)]
    return list(data)


@pytest.mark.parametrize("name", PIPELINES)
def test_each_example_gets_its_own_record(cache, name):
    data = cache.attach(PIPELINES[name]())
    check(once(data))


@only_on("torch")
def test_worker_processes_read_the_cache_themselves(cache):
    data = cache.attach(loader(workers=2))
    assert check(data) != check(data)


class _Same(keras.losses.Loss):
    """Zero if inputs and labels are of one example."""

    def call(self, y_true, y_pred):
        return keras.ops.abs(keras.ops.reshape(y_true, (-1,)) - y_pred[:, 0])


@pytest.mark.parametrize("name", [n for n in PIPELINES if "iter" not in n])
def test_fit_takes_what_is_attached(cache, name):
    """Zero loss: student, teacher and labels speak of the same example."""
    student = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")]
    )
    distiller = kd.Distiller(
        cache.teacher, student, losses=kd.losses.LogitMatching()
    )
    distiller.compile(optimizer=keras.optimizers.SGD(0.0), loss=_Same())
    data = cache.attach(PIPELINES[name]())
    steps = None
    if name == "Grain":  # which Keras goes through once
        data, steps = data.repeat(None), 5
    history = distiller.fit(
        data, epochs=2, steps_per_epoch=steps, shuffle=False, verbose=0
    )
    np.testing.assert_allclose(history.history["loss"], [0, 0], atol=1e-5)
    np.testing.assert_allclose(
        history.history["hard_label_loss"], [0, 0], atol=1e-5
    )


def test_the_order_of_a_dataset_of_keras_goes_on(cache):
    data = cache.attach(Batches())
    first = check(once(data))
    data.on_epoch_end()
    assert check(once(data)) != first


def test_ids_beyond_the_range_are_refused(cache):
    class More(Batches):
        def __getitem__(self, index):
            batch, y = super().__getitem__(index)
            return batch._replace(sample_ids=batch.sample_ids + 40), y

    with pytest.raises(ValueError, match="knows examples 0 to 49"):
        once(cache.attach(More()))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((np.zeros((2, 4)), np.zeros(2)), "first part is a ndarray"),
        ((kd.TransferBatch(np.zeros((2, 4))),), "without sample_ids"),
    ],
    ids=["arrays", "no ids"],
)
def test_batches_must_say_which_examples_they_hold(cache, batch, message):
    class Wrong(Batches):
        def __getitem__(self, index):
            return batch

    with pytest.raises(TypeError, match=message):
        cache.attach(Wrong())[0]


@pytest.mark.parametrize(
    "data", [np.zeros((2, 4)), [1], iter([])], ids=["array", "list", "iterator"]
)
def test_other_pipelines_are_refused(cache, data):
    with pytest.raises(TypeError, match=r"tf\.data\.Dataset, a torch"):
        cache.attach(data)


# A transfer set that can only be run through.


def stream(count=45, batch=7):
    """Batches of a size that isn't the teacher's, through tf.data."""
    tf = importlib.import_module("tensorflow")
    x = np.random.default_rng(0).normal(size=(count, 4)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, np.arange(count))).batch(
        batch
    ), x


def dense():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def test_a_stream_is_labelled_in_its_order(tmp_path):
    teacher = dense()
    data, x = stream()
    arguments = {"batch_size": 8, "shard_rows": 16, "verbose": 0}
    cache = kd.TeacherCache.write(tmp_path / "a", teacher, data, **arguments)
    arrays = kd.TeacherCache.write(tmp_path / "b", teacher, x, **arguments)
    assert cache.size == 45
    for shard in range(3):
        name = f"shards/00000{shard}/output_0.npy"
        assert (tmp_path / "a" / name).read_bytes() == (
            tmp_path / "b" / name
        ).read_bytes()
    cache.verify(data)
    cache.verify(x)
    opened = kd.TeacherCache.open(tmp_path / "a", x)
    np.testing.assert_array_equal(opened.batches(9)[1][0].inputs, x[9:18])
    for other in (x[::-1], x[:44]):
        with pytest.raises(kd.cache.StaleCacheError, match="stream's order"):
            kd.TeacherCache.open(tmp_path / "a", other)
    arrays.verify(data)
    with pytest.raises(kd.cache.StaleCacheError):
        cache.verify(stream(44)[0])


def test_an_interrupted_stream_goes_on(tmp_path):
    teacher = dense()
    data, x = stream()
    arguments = {"batch_size": 8, "shard_rows": 16}
    kd.cache.Labelling(tmp_path, teacher, data, **arguments).label_shard(1)
    before = (tmp_path / "shards/000001").stat().st_mtime_ns
    cache = kd.TeacherCache.write(
        tmp_path, teacher, data, **arguments, verbose=0
    )
    assert (tmp_path / "shards/000001").stat().st_mtime_ns == before
    cache.verify(x)


def test_a_stream_in_another_order_is_noticed(tmp_path):
    teacher = dense()
    tf = importlib.import_module("tensorflow")
    _, x = stream()
    other = x.copy()
    other[[20, 21]] = x[[21, 20]]
    arguments = {"batch_size": 8, "shard_rows": 16}
    kd.cache.Labelling(tmp_path, teacher, stream()[0], **arguments).label_shard(
        1
    )
    with pytest.raises(kd.cache.StaleCacheError, match="another order"):
        kd.TeacherCache.write(
            tmp_path,
            teacher,
            tf.data.Dataset.from_tensor_slices(other).batch(7),
            **arguments,
            verbose=0,
        )


def test_a_stream_that_is_shuffled_is_noticed(tmp_path):
    data, _ = stream()
    shuffled = data.unbatch().shuffle(45, seed=1).batch(7)
    with pytest.raises(kd.cache.StaleCacheError, match="Don't shuffle"):
        kd.TeacherCache.write(tmp_path, dense(), shuffled, verbose=0)


def test_what_is_used_up_by_reading_is_refused(tmp_path):
    batches = (np.zeros((2, 4)) for _ in range(3))
    with pytest.raises(TypeError, match="can be run through once"):
        kd.TeacherCache.write(tmp_path, dense(), batches)
