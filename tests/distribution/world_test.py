"""What a launcher said, and how batches are shared."""

import types

import keras
import numpy as np
import pytest
from distribution.scenarios import data, distiller
from support import only_on

import keras_distill as kd
from keras_distill.distribution.shares import Share, real_rows


def loaded(share, count, size):
    """Real labels of each batch that a process loads."""
    x = np.arange(count)[:, None]
    batches = kd.distribution.batches((x, np.arange(count)), size)
    batches.share = share
    found = []
    for i in range(len(batches)):
        (inputs, labels, _), real = real_rows(batches[i])
        assert len(inputs) == max(real if share.pieces == 1 else 1, 1)
        found.append(labels[:real] if share.pieces == 1 else batches[i][1])
    return found


@pytest.mark.parametrize("count", [16, 17, 21])
@pytest.mark.parametrize("processes", [2, 3])
def test_shares_are_the_global_batch_in_order(count, processes):
    shares = [
        loaded(Share(i, processes, marked=True), count, 8)
        for i in range(processes)
    ]
    whole = np.concatenate(
        [np.concatenate(x) for x in zip(*shares, strict=True)]
    )
    np.testing.assert_array_equal(whole, np.arange(count))


def test_shares_for_devices_are_filled_up_and_cut_again():
    shares = [
        kd.distribution.batches((np.arange(5)[:, None], np.arange(5)), 5)
        for _ in range(2)
    ]
    for i, batches in enumerate(shares):
        batches.share = Share(i, 2, pieces=4, marked=True)
    rows = [batches[0] for batches in shares]
    assert [len(y) for _, y in rows] == [4, 4]
    markers = np.concatenate([x.marker for x, _ in rows])
    labels = np.concatenate([y for _, y in rows])
    assert markers.shape == (4, 5)
    both = (type(rows[0][0])(labels[:, None], markers), labels)
    (inputs, y, _), count = real_rows(both)
    assert count == 5
    np.testing.assert_array_equal(y, np.arange(5))
    np.testing.assert_array_equal(inputs[:, 0], np.arange(5))


def test_a_cache_reads_the_rows_of_its_process(tmp_path, monkeypatch):
    teacher = kd.teachers.as_teacher(lambda x: x.reshape(len(x), -1)[:, :3])
    x, y = data(16)
    cache = kd.TeacherCache.write(tmp_path / "c", teacher, (x, y), verbose=0)
    read = []
    monkeypatch.setattr(
        kd.TeacherCache,
        "read",
        lambda self, ids, *_, **__: (
            read.extend(ids) or kd.TransferBatch({}, np.zeros((len(ids), 3)))
        ),
    )
    batches = cache.batches(8)
    batches.share = Share(1, 2, marked=True)
    for i in range(len(batches)):
        batches[i]
    assert read == [4, 5, 6, 7, 12, 13, 14, 15]


def test_epochs_that_a_backup_has_are_skipped(tmp_path):
    """Also on one device: an order of its own in each epoch."""
    seen = []

    class Batches(kd.distribution.ShardedBatches):
        def examples(self, ids, epoch):
            seen.append(epoch)
            return super().examples(ids, epoch)

    class Fails(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def train(*more):
        arrays = kd.distribution.batches(data(8), 8).data
        batches = Batches(arrays, 8, True, 0, 0, 1)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        distiller().fit(batches, epochs=3, verbose=0, callbacks=[backup, *more])

    with pytest.raises(KeyboardInterrupt):
        train(Fails())
    assert set(seen) == {0, 1}
    seen.clear()
    train()
    assert seen[-1] == 2
    assert 1 not in seen  # Keras looks at a batch before, for its shapes


def test_one_process_is_the_first():
    assert kd.distribution.initialize() == (0, 1)
    assert kd.distribution.world().is_first


@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        ("torch", {"WORLD_SIZE": "2", "RANK": "0"}),
        ("jax", {"KERAS_DISTRIBUTION_NUM_PROCESSES": "2"}),
    ],
)
def test_incomplete_settings_are_refused(backend, settings, monkeypatch):
    if keras.backend.backend() != backend:
        pytest.skip(f"of {backend}")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="aren't complete"):
        kd.distribution.initialize()


@only_on("tensorflow")
def test_clusters_of_tensorflow_are_refused(monkeypatch):
    import tensorflow as tf

    from keras_distill.distribution.tensorflow_engine import (
        TensorFlowReplicas,
    )

    # To make one, TensorFlow has to know its cluster from the start.
    cls = tf.distribute.MultiWorkerMirroredStrategy
    strategy = cls.__new__(cls)
    replicas = TensorFlowReplicas.__new__(TensorFlowReplicas)
    replicas.strategy = strategy
    with pytest.raises(ValueError, match="MultiWorkerMirroredStrategy"):
        replicas.prepare(None)
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(ValueError, match="TF_CONFIG"):
        kd.distribution.initialize()


@only_on("torch")
def test_keras_that_averages_by_itself_is_refused(monkeypatch):
    from keras_distill.distribution.torch_engine import TorchProcesses

    monkeypatch.setattr(keras, "__version__", "3.16.0")
    with pytest.raises(ValueError, match=r"keras<3\.16"):
        TorchProcesses(0, 2).prepare(None)


@pytest.fixture
def several(monkeypatch):
    """A distiller that thinks it is trained on several devices."""
    made = distiller()
    fake = types.SimpleNamespace(
        share=Share(0, 2, 2, marked=True), splits_arrays=True, replicas=2
    )
    fake.prepare = lambda model: None
    monkeypatch.setattr(
        "keras_distill.distribution.model.engine_of", lambda model: fake
    )
    return made


def test_predictions_of_several_processes_are_refused(several):
    with pytest.raises(ValueError, match="several processes"):
        several.predict(data(4)[0], verbose=0)


def test_tables_are_refused_by_several_processes(several):
    pandas = pytest.importorskip("pandas", reason="makes the table")
    x, y = data(4)
    table = pandas.DataFrame(x.reshape(4, -1))
    with pytest.raises(TypeError, match=r"Pass x\.to_numpy\(\)"):
        several.fit(table, y, verbose=0)
