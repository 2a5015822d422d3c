"""A view is made again exactly, from the numbers of epoch and example."""

import types

import keras
import numpy as np
import pytest
from keras import layers, ops
from support import cnn, images, mlp

import keras_distill as kd
from keras_distill.cache import CutMix, MixUp, StaleCacheError, TransferSet


def crop_and_flip(image, seed):
    """A user's own augmentation."""
    random = np.random.default_rng(seed)
    top, left = random.integers(3, size=2)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    view = padded[top : top + 8, left : left + 8]
    return view[:, ::-1] if random.random() < 0.5 else view


def keras_layers():
    return keras.Sequential(
        [
            layers.RandomFlip("horizontal"),
            layers.RandomTranslation(0.2, 0.2),
            layers.RandomContrast(0.3),
        ]
    )


AUGMENTS = {"function": lambda: crop_and_flip, "layers": keras_layers}


@pytest.mark.parametrize(
    ("augment", "mix"),
    [
        ("function", None),
        ("function", MixUp(0.4)),
        ("layers", CutMix()),
    ],
    ids=["function", "function-MixUp", "layers-CutMix"],
)
def test_the_stored_output_is_that_of_the_replayed_view(tmp_path, augment, mix):
    """Whatever the order, the epoch and the batch that it comes in."""
    # Keras' layers take JAX long.
    teacher, (x, y) = cnn(8), images(12 if augment == "function" else 6)
    views = kd.Views(AUGMENTS[augment](), epochs=2, seed=3, mix=mix)
    kd.TeacherCache.write(
        tmp_path,
        teacher,
        (x, y),
        views=views,
        storage="float32",
        batch_size=5,
        shard_rows=5,
        verbose=0,
    ).verify(x)
    # Another process would make them anew.
    again = kd.Views(AUGMENTS[augment](), epochs=2, seed=3, mix=mix)
    cache = kd.TeacherCache.open(tmp_path, (x, y), views=again)
    batches = cache.batches(5, shuffle=True)
    seen = []
    for _ in range(3):
        inputs = []
        for i in range(len(batches)):
            batch, *_ = batches[i]
            now = teacher(batch.inputs, training=False)
            np.testing.assert_allclose(
                batch.teacher_output, ops.convert_to_numpy(now), atol=1e-5
            )
            inputs.append((batch.sample_ids, batch.inputs))
        ids, pictures = map(np.concatenate, zip(*inputs, strict=True))
        seen.append(pictures[np.argsort(ids)])
        batches.on_epoch_end()
    assert not np.array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])  # two views, then anew


def test_a_student_is_trained_on_views(tmp_path):
    teacher, data = cnn(8), images(12)
    views = kd.Views(crop_and_flip, epochs=2, mix=MixUp())
    cache = kd.TeacherCache.write(
        tmp_path, teacher, data, views=views, verbose=0
    )
    distiller = kd.Distiller(cache.teacher, mlp())
    history = distiller.fit(cache.batches(4, shuffle=True), epochs=3, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_views_leave_the_layer_as_it_was():
    augment = keras_layers()
    data = TransferSet(images(4)[0])
    keras.utils.set_random_seed(0)
    before = [ops.convert_to_numpy(v.value) for v in augment.variables]
    kd.Views(augment).make(data, np.arange(4), 0)
    after = [ops.convert_to_numpy(v.value) for v in augment.variables]
    assert len(before) == 3
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_mixed_bytes_are_rounded():
    x = np.random.default_rng(0).integers(0, 256, (9, 2, 2, 1), "uint8")
    views = kd.Views(mix=MixUp(1.0))
    found, exact = (
        views.make(TransferSet(images), np.arange(9), 0)[0]
        for images in (x, x.astype("float64"))
    )
    np.testing.assert_array_equal(found, np.rint(exact))


@pytest.mark.parametrize("mix", [MixUp(), CutMix()], ids=["mixup", "cutmix"])
def test_labels_are_mixed_as_the_images_are(tmp_path, mix):
    """Images of one number each: a mean says which share of each is in it."""
    x = np.zeros((9, 8, 8, 1), "float32")
    x[5:] = 1.0
    y = (np.arange(9) >= 5).astype("int64")
    teacher = cnn(4, classes=2)
    cache = kd.TeacherCache.write(
        tmp_path, teacher, (x, y), views=kd.Views(mix=mix, epochs=4), verbose=0
    )
    batches = cache.batches(9)
    shares = []
    for _ in range(4):
        batch, labels = batches[0]
        np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-6)
        np.testing.assert_allclose(
            labels[:, 1], batch.inputs.mean((1, 2, 3)), atol=1e-6
        )
        shares += labels[:, 1].tolist()
        batches.on_epoch_end()
    assert any(0.02 < share < 0.98 for share in shares)


def test_shares_of_mixup_follow_the_distribution():
    data = TransferSet(np.arange(4000.0)[:, None])
    _, partners, shares = kd.Views(mix=MixUp(0.5)).make(
        data, np.arange(4000), 0
    )
    # Mean and variance of Beta(a, a) are 1/2 and 1 / (4 (2 a + 1)).
    # Five standard errors of 4,000 draws.
    np.testing.assert_allclose(shares.mean(), 0.5, atol=0.028)
    np.testing.assert_allclose(shares.var(), 1 / 8, atol=0.01)
    # Any example may be the partner of any.
    assert len(np.unique(partners)) > 2400
    np.testing.assert_allclose(partners.mean(), 2000, atol=100)


def test_seeds_differ_between_examples_epochs_and_seeds():
    data = TransferSet(np.zeros((500, 1)))

    def seeds(epoch, seed):
        found = []
        views = kd.Views(lambda x, s: found.append(s) or x, seed=seed)
        views.make(data, np.arange(500), epoch)
        return found

    everything = seeds(0, 0) + seeds(1, 0) + seeds(0, 1)
    assert len(set(everything)) == 1500
    # Six standard errors of 1,500 draws, since there are 63 bits.
    bits = np.array([list(f"{s:063b}") for s in everything], int)
    np.testing.assert_allclose(bits.mean(0), 0.5, atol=0.08)


def test_other_views_are_refused(tmp_path):
    teacher, data = cnn(4), images(12)

    def write(views):
        return kd.TeacherCache.write(
            tmp_path, teacher, data, views=views, verbose=0
        )

    write(kd.Views(crop_and_flip, epochs=2))
    for other in (
        kd.Views(crop_and_flip, epochs=3),
        kd.Views(crop_and_flip, epochs=2, seed=1),
        kd.Views(crop_and_flip, epochs=2, mix=MixUp()),
        kd.Views(lambda image, seed: image, epochs=2),
    ):
        with pytest.raises(StaleCacheError, match=r"other views"):
            write(other)
        with pytest.raises(StaleCacheError, match="of other views"):
            kd.TeacherCache.open(tmp_path, data, views=other)
    with pytest.raises(StaleCacheError, match="have to be made again"):
        kd.TeacherCache.open(tmp_path, data)


def test_a_function_typed_into_a_console_is_known(tmp_path):
    teacher, data = cnn(4), images(12)

    def typed(text):
        made = {"np": np}
        exec(compile(text, "<stdin>", "exec"), made)
        return made["view"]

    def write(text):
        return kd.TeacherCache.write(
            tmp_path, teacher, data, views=kd.Views(typed(text)), verbose=0
        )

    write("def view(image, seed): return np.flip(image)")
    write("def view(image, seed): return np.flip(image)")
    with pytest.raises(StaleCacheError, match="of other views"):
        write("def view(image, seed): return image + 1")


def test_views_with_another_source_of_chance_are_refused(tmp_path):
    settings = types.ModuleType("settings")
    settings.shift = 0.0

    def secretly(image, seed):
        return image + settings.shift

    teacher, data = cnn(4), images(12)
    views = kd.Views(secretly)
    kd.TeacherCache.write(tmp_path, teacher, data, views=views, verbose=0)
    settings.shift = 0.5
    with pytest.raises(StaleCacheError, match="aren't those that the teacher"):
        kd.TeacherCache.open(tmp_path, data, views=views)


def test_views_that_cannot_be_made_again_are_refused_at_once(tmp_path):
    random = types.ModuleType("random")
    random.generator = np.random.default_rng()

    def by_chance(image, seed):
        return image + random.generator.normal()

    with pytest.raises(ValueError, match="can't be made again"):
        kd.TeacherCache.write(
            tmp_path / "cache", cnn(4), images(12), views=kd.Views(by_chance)
        )
    assert not (tmp_path / "cache").exists()


def test_what_a_function_uses_tells_it_from_others(tmp_path):
    def shifted(by):
        return lambda image, seed: image + by

    teacher, data = cnn(4), images(12)
    kd.TeacherCache.write(
        tmp_path, teacher, data, views=kd.Views(shifted(0.0)), verbose=0
    )
    with pytest.raises(StaleCacheError, match="of other views"):
        kd.TeacherCache.open(tmp_path, data, views=kd.Views(shifted(1e-3)))
    thing = object()
    views = kd.Views(lambda image, seed: image if thing else -image)
    with pytest.raises(ValueError, match="can't be told apart"):
        views.facts(TransferSet(np.zeros((3, 2))))


@pytest.mark.parametrize(
    "labels", [np.zeros((12, 2)), np.array(["a"] * 12), np.full(12, 3)]
)
def test_labels_that_cannot_be_mixed_are_refused(tmp_path, labels):
    x, _ = images(12)
    cache = kd.TeacherCache.write(
        tmp_path, cnn(4), (x, labels), views=kd.Views(mix=MixUp()), verbose=0
    )
    with pytest.raises(ValueError, match="Labels are mixed as one-hot rows"):
        cache.batches(4)[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kd.Views(epochs=0), "epochs=0"),
        (lambda: kd.Views(augment=3), "augment=3"),
        (lambda: kd.Views(mix="mixup"), r"MixUp\(\)"),
        (lambda: MixUp(0.0), r"alpha=0\.0"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
