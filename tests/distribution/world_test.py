"""What a launcher said, and how batches are shared."""

import contextlib
import functools
import sys
import types
import warnings

import keras
import numpy as np
import pytest
from distribution.scenarios import data, distiller
from support import only_on

import keras_distill as kd
from keras_distill.distribution.callbacks import AsOne, quiet
from keras_distill.distribution.model import _share_arrays
from keras_distill.distribution.shares import Share, real_rows
from keras_distill.distribution.world import (
    World,
    _agree_on_seed,
    _place_on_this_machine,
)


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


@pytest.mark.parametrize("steps", [1, 3])
def test_parts_of_shuffled_epochs_are_refused(steps):
    batches = kd.distribution.batches(data(16), 8, shuffle=True)
    with pytest.raises(ValueError, match=f"={steps} for 2 batches"):
        distiller().fit(batches, steps_per_epoch=steps, verbose=0)


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
        replicas.check(None)
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(ValueError, match="TF_CONFIG"):
        kd.distribution.initialize()


@only_on("torch")
def test_keras_that_averages_by_itself_is_refused(monkeypatch):
    from keras_distill.distribution.torch_engine import TorchProcesses

    monkeypatch.setattr(keras, "__version__", "3.16.0")
    with pytest.raises(ValueError, match=r"keras<3\.16"):
        TorchProcesses(0, 2).check(None)


@pytest.fixture
def several(monkeypatch):
    """A distiller that thinks it is trained on several devices."""
    made = distiller()
    fake = types.SimpleNamespace(
        share=Share(0, 2, 2, marked=True), splits_arrays=True, replicas=2
    )
    fake.prepare = lambda model: None
    fake.each = lambda number: [number]
    fake.callbacks = lambda user: []
    fake.note_labels = lambda labels: None
    fake.training = lambda model: contextlib.nullcontext()
    monkeypatch.setattr(
        "keras_distill.distribution.model.engine_of", lambda model: fake
    )
    return made


def test_predictions_of_several_processes_are_refused(several):
    with pytest.raises(ValueError, match="several processes"):
        several.predict(data(4)[0], verbose=0)


def test_tables_are_refused_by_several_processes(several, monkeypatch):
    class DataFrame:
        """Of pandas, which needn't be there."""

    pandas = types.SimpleNamespace(DataFrame=DataFrame)
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    with pytest.raises(TypeError, match=r"Pass x\.to_numpy\(\)"):
        several.fit(DataFrame(), data(4)[1], verbose=0)


@only_on("torch")
def test_all_ask_whether_to_stop_if_one_may(several):
    class Engine:
        """Of a process whose neighbour has a callback that may stop."""

        wants_stop = False

        def start(self, model, steps, epoch):
            pass

        def require_alike(self, model):
            pass

        def any(self, flag):
            asked.append(flag)
            return True

    asked = []
    as_one = AsOne(Engine(), [])
    as_one.set_model(several)
    as_one.set_params({"steps": 2})
    # Until all have read a backup, none may go on and remove it.
    as_one.on_train_begin()
    assert asked == [False]
    as_one.on_epoch_begin(0)
    assert asked == [False] * 3
    as_one.on_train_batch_end(0)
    assert len(asked) == 4
    assert several.stop_training


@only_on("torch")
@pytest.mark.parametrize("hook", ["begin", "end"])
def test_callbacks_that_may_stop_within_an_epoch_are_known(hook):
    engine, name = types.SimpleNamespace(), f"on_train_batch_{hook}"
    kind = type("Mine", (keras.callbacks.Callback,), {name: lambda *_: None})
    simple = keras.callbacks.LambdaCallback(**{name: lambda *_: None})
    for callback in (kind(), simple):
        assert AsOne(engine, [callback]).within_epochs
    plain = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: None)
    assert not AsOne(engine, [plain, keras.callbacks.History()]).within_epochs


class Largest(keras.metrics.Metric):
    """What sums over devices can't tell."""

    def __init__(self):
        super().__init__()
        self.largest = self.add_variable((), "zeros", name="largest")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.largest.assign(keras.ops.max(y_pred))

    def result(self):
        return self.largest


@pytest.mark.parametrize("sums", [True, False])
def test_metrics_that_may_keep_no_sums_are_named(sums):
    engine = types.SimpleNamespace(sums_metrics=sums)
    made = distiller()
    for metrics in (["accuracy"], {"logits": [Largest()]}):
        made.compile(loss=None, metrics=metrics)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            made.warn_of_sums(engine)
        named = ["Largest" in str(one.message) for one in said]
        assert named == ([True] if sums and "logits" in metrics else [])


@only_on("torch")
def test_callbacks_print_in_the_first_process_alone(monkeypatch):
    stopping = keras.callbacks.EarlyStopping(verbose=1)
    for rank in (0, 1):
        monkeypatch.setattr(
            "keras_distill.distribution.callbacks.world",
            lambda rank=rank: World(rank, 2),
        )
        with quiet([stopping]):
            assert stopping.verbose == 1 - rank
        assert stopping.verbose == 1


@only_on("torch")
def test_which_gpu_is_a_processs(monkeypatch):
    gpus = types.SimpleNamespace(device_count=lambda: 4)
    torch = types.SimpleNamespace(cuda=gpus)
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="neither LOCAL_RANK nor"):
        _place_on_this_machine(torch)
    for name, place in (("SLURM_LOCALID", 2), ("LOCAL_RANK", 1)):
        monkeypatch.setenv(name, str(place))
        assert _place_on_this_machine(torch) == place


@only_on("jax")
def test_a_seed_that_was_set_decides():
    drawn = []
    for seed in (3, 3, 4):
        keras.utils.set_random_seed(seed)
        _agree_on_seed()
        drawn.append(np.random.randint(2**31))
    assert drawn[0] == drawn[1] != drawn[2]


@only_on("torch")
def test_arrays_begin_with_the_order_of_the_first_epoch():
    x, y = data(8)
    given = {"x": x, "y": y, "sample_weight": None}
    _share_arrays(given, 8, shuffle=True, seed=5, epoch=3)
    order = kd.distribution.batches((x, y), 8, shuffle=True, seed=5, epoch=3)
    np.testing.assert_array_equal(given["x"][0][0], order[0][0])


@only_on("torch")
def test_each_fit_of_arrays_has_orders_of_its_own(several, monkeypatch):
    @functools.wraps(keras.Model.fit)
    def fit(self, x, **_):
        orders.append(x.order(0).tolist())

    monkeypatch.setattr(keras.Model, "fit", fit)
    found = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        orders = []
        for _ in range(2):
            several.fit(*data(8), verbose=0)
        found.append(orders)
    assert found[0] == found[1]
    assert found[0][0] != found[0][1]
    assert found[0][0] != found[2][0]
