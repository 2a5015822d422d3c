"""A cache gives back what the teacher said, or refuses."""

import json
import os
import pathlib
import pickle

import keras
import numpy as np
import pytest
from keras import ops
from support import cnn, images, mlp, values

import keras_distill as kd
from keras_distill.cache import DamagedCacheError, StaleCacheError, TransferSet


def said(model, x):
    return ops.convert_to_numpy(model(x, training=False))


def write(folder, teacher, data, **arguments):
    arguments = {"batch_size": 8, "shard_rows": 16, "verbose": 0, **arguments}
    return kd.TeacherCache.write(folder, teacher, data, **arguments)


def files(folder):
    """Each file's bytes by name."""
    folder = pathlib.Path(folder)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def teacher():
    return cnn(8, name="teacher")


@pytest.fixture(scope="module")
def data():
    return images(45)


@pytest.fixture(scope="module")
def written(tmp_path_factory, teacher, data):
    folder = tmp_path_factory.mktemp("cache") / "cache"
    write(folder, teacher, data, layers=["relu"], storage="float32")
    return folder


def test_it_gives_back_what_the_teacher_said(written, teacher, data):
    cache = kd.TeacherCache.open(written, data, teacher)
    ids = np.array([44, 3, 16, 3, 15])
    batch = cache.read(ids)
    np.testing.assert_allclose(
        batch.teacher_output, said(teacher, data[0][ids]), atol=1e-5
    )
    relu = keras.Model(teacher.inputs[0], teacher.get_layer("relu").output)
    np.testing.assert_allclose(
        batch.teacher_features["relu"], said(relu, data[0][ids]), atol=1e-5
    )
    np.testing.assert_array_equal(batch.sample_ids, ids)
    assert cache.layers == ["relu"]
    assert "45 examples" in repr(cache)
    assert "3 shards" in repr(cache)
    cache.verify(data)


def test_the_teacher_stays_as_it_was(tmp_path, data):
    teacher = cnn(4)
    before = values(teacher.variables), teacher.trainable, teacher.compiled
    write(tmp_path, teacher, data)
    for one, other in zip(before[0], values(teacher.variables), strict=True):
        np.testing.assert_array_equal(one, other)
    assert before[1:] == (teacher.trainable, teacher.compiled)


@pytest.mark.traced
def test_training_from_it_is_training_with_the_teacher(written, teacher, data):
    """The same weights, live and from the cache."""

    def trained(first, distil):
        student = mlp(seed=3)
        losses = [
            kd.losses.SoftTargets(),
            kd.losses.Hint("relu", "hidden", projector=projector()),
        ]
        distiller = kd.Distiller(first, student, losses=losses)
        distiller.compile(optimizer=keras.optimizers.SGD(0.05))
        history = distil(distiller)
        return history.history, values(student.trainable_variables)

    def projector():
        keras.utils.set_random_seed(5)
        return keras.Sequential(
            [
                keras.layers.Dense(512, kernel_initializer="glorot_uniform"),
                keras.layers.Reshape((8, 8, 8)),
            ]
        )

    x, y = data
    ids = np.arange(45)
    live, live_weights = trained(
        teacher,
        lambda d: d.fit(x, y, 9, epochs=3, shuffle=False, verbose=0),
    )
    cache = kd.TeacherCache.open(written, data)
    for holder in (cache.teacher, teacher):
        stored, weights = trained(
            holder,
            lambda d: d.fit(
                cache.batches(9), epochs=3, shuffle=False, verbose=0
            ),
        )
        for name, numbers in live.items():
            np.testing.assert_allclose(stored[name], numbers, rtol=1e-4)
        for one, other in zip(live_weights, weights, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    assert ids.size == cache.size


def test_projectors_and_mistakes_are_seen_without_the_teacher(written, data):
    cache = kd.TeacherCache.open(written, data)
    loss = kd.losses.Hint("relu", "conv", projector="auto")
    distiller = kd.Distiller(cache.teacher, cnn(2), losses=loss)
    assert distiller.teacher is None
    assert distiller.teacher_layers == ["relu"]
    distiller.fit(cache.batches(15), verbose=0)
    with pytest.raises(ValueError, match="lacks what teacher layer 'pool'"):
        kd.Distiller(
            cache.teacher, cnn(2), losses=kd.losses.Hint("pool", "conv")
        )
    with pytest.raises(ValueError, match="classes"):
        kd.Distiller(cache.teacher, cnn(2, classes=5))


def test_a_distiller_of_stored_outputs_is_saved_and_loaded(
    written, data, tmp_path
):
    cache = kd.TeacherCache.open(written, data)
    loss = kd.losses.Hint("relu", "conv", projector="auto")
    distiller = kd.Distiller(cache.teacher, cnn(2), losses=loss)
    distiller.fit(cache.batches(15), verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    loaded.fit(cache.batches(15), verbose=0)


def test_teacher_layers_are_those_that_losses_look_at(teacher):
    losses = [
        kd.losses.SoftTargets(),
        kd.losses.Hint("relu", "conv", projector="auto"),
        kd.losses.Hint("conv", "conv", projector="auto"),
    ]
    distiller = kd.Distiller(teacher, cnn(2), losses=losses)
    assert distiller.teacher_layers == ["conv", "relu"]
    assert kd.Distiller(teacher, cnn(2)).teacher_layers == []


@pytest.mark.parametrize("workers", [1, 3])
def test_every_example_keeps_its_record_in_any_order(tmp_path_factory, workers):
    """Ids are planted in the inputs, the labels and what the teacher says."""
    numbers = np.arange(50, dtype="float32")
    x = np.repeat(numbers[:, None], 4, axis=1)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(2, kernel_initializer="ones")]
    )
    cache = write(
        tmp_path_factory.mktemp("planted"),
        model,
        (x, numbers),
        storage="float32",
    )
    orders = []
    batches = cache.batches(12, shuffle=True, seed=1, workers=workers)
    for _ in range(3):
        seen = []
        for i in range(len(batches)):
            batch, y = batches[i]
            np.testing.assert_array_equal(batch.inputs[:, 0], batch.sample_ids)
            np.testing.assert_array_equal(y, batch.sample_ids)
            np.testing.assert_allclose(
                batch.teacher_output[:, 0], 4.0 * batch.sample_ids, rtol=1e-6
            )
            seen += batch.sample_ids.tolist()
        assert len(batches[len(batches) - 1][1]) == 2  # the ragged last one
        assert sorted(seen) == list(range(50))
        orders.append(seen)
        batches.on_epoch_end()
    assert orders[0] != orders[1] != orders[2]
    again = cache.batches(12, shuffle=True, seed=1, epoch=2)
    resumed = [i for b in range(5) for i in again[b][0].sample_ids.tolist()]
    assert resumed == orders[2]


def test_a_resumed_training_sees_the_same_orders(tmp_path):
    """Whatever Keras looks at before the first epoch."""
    x = np.arange(24, dtype="float32")[:, None]
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    cache = write(tmp_path, model, x)

    def losses(epoch, epochs):
        student = mlp_of_one()
        student.layers[0].kernel.assign([[0.5]])
        distiller = kd.Distiller(
            cache.teacher, student, losses=kd.losses.LogitMatching()
        )
        distiller.compile(keras.optimizers.SGD(0.0))
        seen = []
        watch = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda i, logs: seen.append(logs["loss"])
        )
        distiller.fit(
            cache.batches(4, shuffle=True, epoch=epoch),
            initial_epoch=epoch,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=[watch],
        )
        return seen

    whole = losses(0, 4)
    assert len(set(whole)) > 20
    np.testing.assert_allclose(losses(2, 4), whole[12:], rtol=1e-6)


def mlp_of_one():
    return keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])


class _Ids(keras.losses.Loss):
    """Zero if inputs, labels and teacher speak of the same example."""

    def call(self, y_true, y_pred):
        return ops.abs(y_true - y_pred[:, 0])


def test_no_record_is_mismatched_within_fit(tmp_path):
    numbers = np.arange(50, dtype="float32")
    x = np.repeat(numbers[:, None], 4, axis=1)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")]
    )
    cache = write(tmp_path, model, (x, 4 * numbers), storage="float32")
    student = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")]
    )
    loss = kd.losses.LogitMatching()
    distiller = kd.Distiller(cache.teacher, student, losses=loss)
    distiller.compile(optimizer=keras.optimizers.SGD(0.0), loss=_Ids())
    for workers in (1, 3):
        batches = cache.batches(12, shuffle=True, workers=workers)
        history = distiller.fit(batches, epochs=3, verbose=0).history
        np.testing.assert_array_equal(history["hard_label_loss"], [0.0] * 3)
        np.testing.assert_array_equal(history["loss"], [0.0] * 3)


def test_batches_can_be_sent_to_another_process(written, data):
    batches = kd.TeacherCache.open(written, data).batches(10, shuffle=True)
    sent = pickle.loads(pickle.dumps(batches))
    for one, other in zip(
        keras.tree.flatten(batches[1]), keras.tree.flatten(sent[1]), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_labels_and_weights_are_optional(tmp_path, teacher, data):
    x, y = data
    assert len(write(tmp_path / "x", teacher, x).batches(9)[0]) == 1
    weight = np.linspace(0, 1, 45)
    batches = write(tmp_path / "xyw", teacher, (x, y, weight)).batches(9)
    np.testing.assert_array_equal(batches[1][2], weight[9:18])


def test_the_teacher_may_need_other_inputs(tmp_path, teacher, data):
    x, y = data
    pixels = np.rint(x * 50).astype("int64")

    def cache(teacher_inputs):
        return write(
            tmp_path,
            teacher,
            (pixels, y),
            teacher_inputs=teacher_inputs,
            storage="float32",
        )

    said_of_pixels = cache(keras.layers.Rescaling(1 / 50))
    np.testing.assert_allclose(
        said_of_pixels.read(np.arange(45)).teacher_output,
        said(teacher, pixels.astype("float32") / 50),
        atol=1e-5,
    )
    np.testing.assert_array_equal(
        said_of_pixels.batches(9)[0][0].inputs, pixels[:9]
    )
    cache(keras.layers.Rescaling(1 / 50))
    with pytest.raises(StaleCacheError, match="of other teacher_inputs"):
        cache(keras.layers.Rescaling(1 / 40))


def test_a_complete_cache_is_opened_without_writing(
    tmp_path, teacher, data, monkeypatch
):
    write(tmp_path, teacher, data)

    def refuse(*arguments):
        raise PermissionError(arguments)

    monkeypatch.setattr("keras_distill.cache.folders._write", refuse)
    write(tmp_path, teacher, data).verify(data)
    with pytest.raises(PermissionError):
        write(tmp_path / "other", teacher, data)


def test_outputs_of_any_structure(tmp_path):
    inputs = {
        "a": keras.Input((3,), name="a"),
        "b": keras.Input((2,), name="b"),
    }
    both = keras.layers.Concatenate()(list(inputs.values()))
    model = keras.Model(
        inputs,
        {
            "one": keras.layers.Dense(2)(both),
            "two": [keras.layers.Dense(4)(both), keras.layers.Dense(1)(both)],
        },
    )
    random = np.random.default_rng(0)
    x = {"a": random.random((20, 3)), "b": random.random((20, 2))}
    cache = write(tmp_path, model, x, storage="float32")
    ids = np.array([19, 4])
    expected = model({k: v[ids] for k, v in x.items()})
    found = cache.read(ids).teacher_output
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(
            a, ops.convert_to_numpy(b), atol=1e-5
        ),
        found,
        expected,
    )
    batch = cache.batches(5)[1][0]
    np.testing.assert_array_equal(batch.inputs["b"], x["b"][5:10])


def test_probabilities_are_stored_as_logits(tmp_path, data):
    model = cnn(4)
    ends = keras.Sequential(
        [keras.Input((8, 8, 1)), *model.layers, keras.layers.Softmax()]
    )
    x, _ = data
    cache = write(tmp_path, ends, data, storage="float32")
    assert cache.plan.probabilities == "softmax"
    ids = np.arange(45)
    logits = cache.read(ids, as_logits=True).teacher_output
    expected = said(model, x)
    expected -= np.log(np.exp(expected).sum(-1, keepdims=True))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    probabilities = cache.read(ids, as_logits=False).teacher_output
    np.testing.assert_allclose(probabilities, said(ends, x), atol=1e-6)
    with pytest.raises(ValueError, match=r"ends in a softmax.*as_logits=None"):
        cache.batches(5)
    # A distiller that holds the teacher, and one that doesn't, learn the same.
    losses = [
        kd.Distiller(first, mlp()).fit(
            cache.batches(45, as_logits=logits), verbose=0, shuffle=False
        )
        for first, logits in (
            (ends, False),
            (None, True),
            (cache.teacher, False),
        )
    ]
    for other in losses[1:]:
        np.testing.assert_allclose(
            losses[0].history["loss"], other.history["loss"], rtol=1e-4
        )
    with pytest.raises(ValueError, match="from_logits=False"):
        kd.Distiller(
            cache.teacher, mlp(), kd.losses.SoftTargets(from_logits=True)
        )


@pytest.mark.parametrize(
    ("storage", "temperature"),
    [
        ("float16", 4.0),
        ("top-2", 0.5),
        ("top-2", None),
        ("sampled-5", 2.0),
        ("sampled-5", None),
    ],
)
def test_a_temperature_that_is_not_stored_is_refused_at_once(
    tmp_path, teacher, data, storage, temperature
):
    cache = write(tmp_path, teacher, data, storage=storage)
    for ask in (cache.batches, cache.read):
        with pytest.raises(ValueError, match="Received: temperature="):
            ask(
                np.array([1]) if ask == cache.read else 5,
                temperature=temperature,
            )


def test_sparse_targets_reach_the_loss(tmp_path, teacher, data):
    x, _ = data
    loss = kd.losses.SparseSoftTargets(k=2, temperature=2.0)
    cache = write(tmp_path, teacher, data, storage="top-2")
    histories = [
        kd.Distiller(first, mlp(), losses=loss.from_config(loss.get_config()))
        .fit(batches, shuffle=False, verbose=0)
        .history
        for first, batches in (
            (cache.teacher, cache.batches(45, temperature=2.0)),
            (
                teacher,
                TransferBatches(x, data[1]),
            ),
        )
    ]
    np.testing.assert_allclose(
        histories[0]["sparse_soft_targets_loss"],
        histories[1]["sparse_soft_targets_loss"],
        # The stored logits are float16.
        rtol=1e-3,
    )


class TransferBatches(keras.utils.PyDataset):
    """One batch of all."""

    def __init__(self, x, y):
        super().__init__()
        self.batch = x, y

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch


# What is refused.


def test_an_interrupted_cache_is_not_opened_and_goes_on(
    tmp_path, teacher, data
):
    whole = write(tmp_path / "whole", teacher, data)
    job = kd.cache.Labelling(
        tmp_path / "part", teacher, data, batch_size=8, shard_rows=16
    )
    job.label_shard(1)
    assert job.missing() == [0, 2]
    with pytest.raises(FileNotFoundError, match="isn't complete"):
        kd.TeacherCache.open(tmp_path / "part")
    with pytest.raises(ValueError, match="2 of 3 shards missing"):
        job.finish()
    shard = tmp_path / "part/shards/000001"
    before = shard.stat().st_mtime_ns, shard.stat().st_ino
    write(tmp_path / "part", teacher, data)
    assert before == (shard.stat().st_mtime_ns, shard.stat().st_ino)
    assert files(tmp_path / "part") == files(tmp_path / "whole")
    assert whole.size == 45


def test_other_versions_are_told(tmp_path, teacher, data, monkeypatch):
    write(tmp_path, teacher, data)
    monkeypatch.setattr(
        "keras_distill.cache.labelling.library_versions",
        lambda: {"keras": "2.0"},
    )
    with pytest.warns(UserWarning, match=r"other versions.*'keras': '2\.0'"):
        write(tmp_path, teacher, data)


def test_processes_share_the_shards(tmp_path, teacher, data):
    write(tmp_path / "one", teacher, data)
    jobs = [
        kd.cache.Labelling(
            tmp_path / "two", teacher, data, batch_size=8, shard_rows=16
        )
        for _ in range(2)
    ]
    for rank, job in enumerate(jobs):
        job.run(rank, 2, verbose=0)
    jobs[1].finish()
    assert files(tmp_path / "one") == files(tmp_path / "two")
    with pytest.raises(ValueError, match="rank=2, world=2"):
        jobs[0].run(2, 2)


def test_no_cache_is_not_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no cache in .*nowhere"):
        kd.TeacherCache.open(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["teacher", "transfer_set", "storage"])
def test_another_cache_in_the_folder_is_refused(written, teacher, data, name):
    x, y = data
    given = {
        "teacher": (cnn(8, seed=9, name="teacher"), data, "float32"),
        "transfer_set": (teacher, (x[::-1], y), "float32"),
        "storage": (teacher, data, "float16"),
    }[name]
    words = {
        "teacher": "of another teacher",
        "transfer_set": "of another transfer set",
        "storage": r"storage\. Received: output as float16",
    }
    with pytest.raises(StaleCacheError, match=words[name]):
        write(written, given[0], given[1], layers=["relu"], storage=given[2])


def test_opening_with_something_else_is_refused(written, teacher, data):
    x, _ = data
    other = cnn(8, seed=9, name="teacher")
    with pytest.raises(StaleCacheError, match="another teacher"):
        kd.TeacherCache.open(written, data, other)
    for wrong in (x[::-1], x[:-1], x.astype("float64"), x + 1):
        with pytest.raises(StaleCacheError, match="another transfer set"):
            kd.TeacherCache.open(written, wrong)
    with pytest.raises(StaleCacheError, match="of the examples themselves"):
        kd.TeacherCache.open(written, data, views=kd.Views(epochs=2))
    swapped = x.copy()
    swapped[[20, 21]] = x[[21, 20]]
    cache = kd.TeacherCache.open(written)
    with pytest.raises(StaleCacheError, match="in shard 1"):
        cache.verify(swapped)


@pytest.mark.parametrize("ids", [[45], [-1], [0, 99]])
def test_an_id_beyond_the_range_is_refused(written, ids):
    with pytest.raises(ValueError, match="knows examples 0 to 44"):
        kd.TeacherCache.open(written).read(np.array(ids))


@pytest.mark.parametrize("ids", [[0.5], [[1]], 3])
def test_what_is_no_id_is_refused(written, ids):
    with pytest.raises(ValueError, match="whole numbers"):
        kd.TeacherCache.open(written).read(np.array(ids))


def test_every_flipped_byte_is_found(tmp_path, teacher, data):
    write(tmp_path, teacher, data, layers=["relu"])
    cache = kd.TeacherCache.open(tmp_path)
    random = np.random.default_rng(0)
    for name, content in files(tmp_path).items():
        path = tmp_path / name
        for place in random.integers(len(content), size=5):
            changed = bytearray(content)
            changed[place] ^= 1 << random.integers(8)
            path.write_bytes(changed)
            with pytest.raises(DamagedCacheError, match=f"'{name}'"):
                kd.TeacherCache.open(tmp_path).verify()
        path.write_bytes(content)
    cache.verify()


def test_missing_and_cut_files_are_found_on_opening(tmp_path, teacher, data):
    write(tmp_path, teacher, data)
    path = tmp_path / "shards/000001/output_0.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(
        DamagedCacheError,
        match=r"missing or cut off.*000001",
    ):
        kd.TeacherCache.open(tmp_path)
    path.unlink()
    with pytest.raises(DamagedCacheError, match="of 0 bytes"):
        kd.TeacherCache.open(tmp_path)


def test_a_damaged_shard_is_mended_as_the_error_says(tmp_path, teacher, data):
    write(tmp_path, teacher, data)
    before = files(tmp_path)
    (tmp_path / "shards/000001/output_0.npy").write_bytes(b"")
    with pytest.raises(DamagedCacheError, match=r"Remove 'manifest\.json'"):
        kd.TeacherCache.open(tmp_path)
    (tmp_path / "manifest.json").unlink()
    for path in (tmp_path / "shards/000001").iterdir():
        path.unlink()
    (tmp_path / "shards/000001").rmdir()
    write(tmp_path, teacher, data)
    assert files(tmp_path) == before


def test_a_manifest_of_another_format_is_refused(tmp_path, teacher, data):
    write(tmp_path, teacher, data)
    from keras_distill.cache.plan import to_bytes

    path = tmp_path / "manifest.json"
    facts = json.loads(path.read_bytes())
    del facts["sha256"]
    facts["plan"]["format"] = 99
    path.write_bytes(to_bytes(facts))
    with pytest.raises(ValueError, match="format=99"):
        kd.TeacherCache.open(tmp_path)


def test_pickles_are_not_loaded(tmp_path, teacher, data):
    write(tmp_path, teacher, data)
    path = tmp_path / "shards/000000/output_0.npy"
    size = path.stat().st_size
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    path.write_bytes(path.read_bytes().ljust(size, b"\0")[:size])
    with pytest.raises(DamagedCacheError):
        kd.TeacherCache.open(tmp_path).read(np.array([0]))


class Shuffled(keras.utils.PyDataset):
    """Batches that number their examples in another order."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        ids = np.array([3, 0, 5, 1, 4, 2])[3 * index :][:3]
        return kd.TransferBatch(np.eye(6)[ids], sample_ids=ids), ids


@pytest.mark.parametrize(
    ("says", "given", "message"),
    [
        (lambda x: x, {"transfer_set": Shuffled()}, "sample_ids .3, 0, 5"),
        (lambda x: np.repeat(x, 2, axis=0), {}, r"\(12, 6\) for 6 examples"),
        (lambda x: x - 1, {"probabilities": "softmax"}, "from -1 to 0, whose"),
        (lambda x: x / 2, {"probabilities": "softmax"}, "rows are none"),
        (lambda x: x * 2, {"probabilities": "sigmoid"}, "from 0 to 2, whose"),
    ],
)
def test_what_belongs_to_no_example_is_refused(tmp_path, says, given, message):
    arguments = {"transfer_set": np.eye(6), "probabilities": "none", **given}
    with pytest.raises(ValueError, match=message):
        kd.TeacherCache.write(tmp_path, says, verbose=0, **arguments)


def test_outputs_in_an_order_of_their_own(tmp_path):
    cache = kd.TeacherCache.write(
        tmp_path,
        lambda x: {"logits": x, "aux": -x},
        np.eye(6),
        probabilities="none",
        verbose=0,
    )
    found = cache.read(np.arange(6)).teacher_output
    np.testing.assert_array_equal(found["logits"], np.eye(6))
    np.testing.assert_array_equal(found["aux"], -np.eye(6))


def test_nan_is_refused(tmp_path, data):
    model = cnn(4)
    model.layers[-1].bias.assign([np.nan, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"finite number.*output.*\[0, 1"):
        write(tmp_path, model, data)
    assert not list(tmp_path.glob("shards/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"storage": "int3"}, "no such storage"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"shard_rows": 12}, "multiple of the batch size"),
        ({"layers": ["relo"]}, "Did you mean"),
        ({"layers": "relu"}, r"Pass \['relu'\]"),
        ({"probabilities": "yes"}, "probabilities='yes'"),
    ],
)
def test_wrong_arguments_leave_nothing_behind(
    tmp_path, teacher, data, arguments, message
):
    with pytest.raises((TypeError, ValueError), match=message):
        write(tmp_path / "cache", teacher, data, **arguments)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "a tuple of 0"),
        ((1, 2, 3, 4), "a tuple of 4"),
        ((np.zeros((3, 2)), np.zeros(4)), r"\[3, 4\] rows"),
        (np.zeros((0, 2)), "at least one"),
        (7, "of type int"),
    ],
)
def test_what_is_no_transfer_set_is_refused(tmp_path, given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        write(tmp_path, cnn(4), given)


def test_a_cache_without_examples_says_how_to_get_batches(written):
    with pytest.raises(ValueError, match=r"cache\.attach"):
        kd.TeacherCache.open(written).batches(4)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path, teacher, data):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=str(tmp_path)):
        write(tmp_path / "cache", teacher, data)


def test_a_transfer_set_gives_rows_by_number():
    data = TransferSet({"a": np.arange(5)}, None, np.arange(5) / 5)
    inputs, labels, weights = data.take(np.array([3, 0]))
    np.testing.assert_array_equal(inputs["a"], [3, 0])
    np.testing.assert_array_equal(weights, [0.6, 0.0])
    assert labels is None


def test_inputs_and_labels_in_a_list_are_refused(tmp_path, teacher, data):
    with pytest.raises(ValueError, match=r"as a tuple \(inputs, labels\)"):
        write(tmp_path, teacher, list(data))


def test_batches_say_what_they_are(written, data):
    cache = kd.TeacherCache.open(written, data)
    said = repr(cache.batches(4, shuffle=True))
    assert said.startswith("CachedBatches(")
    assert "epoch 0, shuffled" in said


@pytest.mark.parametrize("storage", ["float16", "uint8", "top-2"])
def test_large_caches_are_read_and_not_mapped(
    tmp_path, teacher, data, monkeypatch, storage
):
    temperature = 2.0 if storage == "top-2" else None
    cache = write(tmp_path, teacher, data, storage=storage, shard_rows=16)
    ids = np.array([44, 3, 16, 3, 15])
    mapped = cache.read(ids, temperature=temperature)
    monkeypatch.setattr("keras_distill.cache.reader._MOST_MAPPED", 0)
    large = kd.TeacherCache.open(tmp_path)
    read = large.read(ids, temperature=temperature)
    for one, other in zip(
        keras.tree.flatten(mapped), keras.tree.flatten(read), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    (file,) = (tmp_path / "shards" / "000000").glob("*.npy")
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(kd.cache.DamagedCacheError, match="cut off"):
        large.read(np.array([0, 15]), temperature=temperature)
