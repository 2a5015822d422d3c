"""Losses that bring parts of their own, or ask which examples they see."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support import cnn, images, mlp, teacher, values

import keras_distill as kd


@keras.saving.register_keras_serializable("parts_test")
class Learned(kd.losses.FeatureLoss):
    """A layer of its own, a number that is trained, and one that counts."""

    has_parts = True
    same_channels = False

    def make_parts(self, teacher_shape, student_shape):
        self.widen = layers.Dense(self.shape_last(teacher_shape)[-1])
        self.widen.build(self.shape_last(student_shape))
        self.scale = keras.Variable(1.0, name="scale")
        self.calls = keras.Variable(0.0, trainable=False, name="calls")

    def compare(self, teacher, student):
        self.calls.assign(self.calls + 1.0)
        gap = teacher - self.scale * self.widen(student)
        return ops.mean(ops.square(gap), axis=(1, 2, 3))


@keras.saving.register_keras_serializable("parts_test")
class Remembering(kd.losses.DistillationLoss):
    """Keeps a number for each example of the transfer set."""

    uses_sample_ids = True
    has_parts = True

    def make_parts(self, teacher_shape, student_shape):
        self.seen = keras.Variable(np.zeros(40, "float32"), trainable=False)

    def call(self, teacher, student):
        ids = ops.cast(teacher["sample_ids"], "int32")
        marks = ops.cast(ids, "float32") + 1.0
        self.seen.assign(ops.scatter_update(self.seen, ids[:, None], marks))
        return ops.mean(ops.square(teacher["teacher"] - student), axis=-1)


def distiller(loss, student=None):
    made = kd.Distiller(teacher(), student or cnn(), losses=loss)
    made.compile(optimizer=keras.optimizers.SGD(0.1))
    return made


def test_parts_are_built_trained_and_saved_outside_of_the_student(tmp_path):
    x, y = images()
    loss = Learned("relu", "relu")
    student = cnn()
    count = len(student.variables)
    made = distiller(loss, student)
    before = values([loss.widen.kernel, loss.scale])
    made.fit(x, y, batch_size=10, epochs=2, verbose=0)
    after = values([loss.widen.kernel, loss.scale])
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))
    assert float(ops.convert_to_numpy(loss.calls.value)) >= 8
    assert len(student.variables) == count
    made.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    copy = loaded.distillation_losses["learned"]
    assert [name for name, _ in copy.parts()] == ["widen", "scale", "calls"]
    for name in ("scale", "calls"):
        np.testing.assert_array_equal(
            *values([getattr(loss, name), getattr(copy, name)])
        )
    np.testing.assert_array_equal(
        *values([loss.widen.kernel, copy.widen.kernel])
    )


def test_parts_come_back_without_the_teacher(tmp_path):
    loss = Learned("relu", "relu")
    made = kd.Distiller(teacher(), cnn(), losses=loss, save_teacher=False)
    made.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    copy = loaded.distillation_losses["learned"]
    np.testing.assert_array_equal(
        *values([loss.widen.kernel, copy.widen.kernel])
    )


def test_parts_of_stored_outputs_are_built_by_hand():
    loss = Learned("relu", "relu")
    with pytest.raises(ValueError, match=r"or loss\.build\("):
        kd.Distiller(None, cnn(), losses=loss)
    loss.build((None, 8, 8, 16), (None, 8, 8, 4))
    x, _ = images(8)
    batch = kd.TransferBatch(
        x, np.zeros((8, 3)), {"relu": np.zeros((8, 8, 8, 16))}
    )
    losses = [loss, kd.losses.SoftTargets()]
    made = kd.Distiller(None, cnn(), losses=losses)
    made.compile(optimizer="sgd", loss=None, metrics=None)
    assert np.isfinite(made.fit(batch, verbose=0).history["loss"][0])


def test_a_loss_goes_on_in_a_second_distiller_of_the_same_shapes():
    loss = Learned("relu", "relu")
    distiller(loss)
    kernel = loss.widen.kernel
    distiller(loss)
    assert loss.widen.kernel is kernel
    with pytest.raises(ValueError, match="Make a new loss for other models"):
        distiller(loss, cnn(5))


def test_a_loss_needs_its_parts():
    with pytest.raises(ValueError, match="before `build`"):
        Learned()(np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 3)))


def test_a_loss_may_ask_which_examples_it_sees():
    x, y = images()
    loss = Remembering()
    made = distiller(loss, mlp())
    ids = np.array([3, 39, 5, 7])
    batch = kd.TransferBatch(x[ids], sample_ids=ids)
    made.fit(batch, y[ids], batch_size=2, verbose=0)
    expected = np.zeros(40)
    expected[ids] = ids + 1
    np.testing.assert_array_equal(values([loss.seen])[0], expected)


@pytest.mark.traced
def test_ids_come_with_a_teacher_that_runs():
    x, y = images(8)
    student = mlp()
    plain = kd.Distiller(teacher(), student)
    start = student.get_weights()
    expected = plain.fit(x, y, shuffle=False, verbose=0).history["loss"]
    student.set_weights(start)
    batch = kd.TransferBatch(x, sample_ids=np.arange(8))
    made = kd.Distiller(teacher(), student)
    history = made.fit(batch, y, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-6)


def test_missing_ids_say_how_to_pass_them():
    x, y = images(4)
    with pytest.raises(ValueError, match=r"sample_ids=numpy\.arange"):
        distiller(Remembering(), mlp()).train_on_batch(x, y)


def test_a_bare_batch_of_a_data_set_is_refused():
    class Bare(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return kd.TransferBatch(*images(4))

    with pytest.raises(ValueError, match="must be"):
        kd.Distiller(teacher(), mlp()).fit(Bare(), verbose=0)
