"""A distiller is saved, loaded, interrupted and resumed without loss."""

import keras
import numpy as np
import pytest
from support import (
    assert_same_values,
    cnn,
    crossentropy,
    images,
    mlp,
    only_on,
    teacher,
    values,
)

import keras_distill as kd


def distiller(save_teacher=True, guide=None):
    """One with everything that has state: projector, dropout, schedules."""
    hint = kd.losses.Hint("relu", "relu", projector="auto")
    made = kd.Distiller(
        guide or teacher(),
        cnn(dropout=0.5),
        losses=[kd.losses.SoftTargets(), hint],
        save_teacher=save_teacher,
    )
    made.compile(keras.optimizers.Adam(0.01), crossentropy(), metrics=["acc"])
    return made


def fit(model, first=0, last=1, callbacks=()):
    return model.fit(
        *images(),
        batch_size=16,
        shuffle=False,
        initial_epoch=first,
        epochs=last,
        verbose=0,
        callbacks=list(callbacks),
    ).history


def test_the_student_is_saved_clean(tmp_path):
    made = distiller()
    fit(made)
    made.student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    assert type(loaded) is keras.Sequential
    assert [layer.name for layer in loaded.layers] == [
        layer.name for layer in made.student.layers
    ]
    assert loaded.count_params() == cnn().count_params()
    x, _ = images()
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), made.predict(x, verbose=0)
    )


def test_a_loaded_distiller_goes_on_where_it_was(tmp_path):
    made = distiller()
    soft = made.distillation_losses["soft_targets"]
    soft.temperature.assign(2.5)
    made.loss_weights[0].assign(0.3)
    fit(made)
    made.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    assert_same_values(
        values(loaded.optimizer.variables), values(made.optimizer.variables)
    )
    assert_same_values(
        values(loaded.teacher.variables), values(made.teacher.variables)
    )
    temperature = loaded.distillation_losses["soft_targets"].temperature
    assert float(temperature.value) == 2.5
    assert fit(loaded) == fit(made)
    assert_same_values(values(loaded.variables), values(made.variables))


def test_a_teacher_can_be_left_out(tmp_path):
    guide = teacher()
    made = distiller(save_teacher=False, guide=guide)
    fit(made)
    path = tmp_path / "lean.keras"
    made.save(path)
    with_teacher = distiller(guide=guide)
    with_teacher.save(tmp_path / "full.keras")
    saved = guide.count_params() * 4
    sizes = (tmp_path / "full.keras").stat().st_size - path.stat().st_size
    assert sizes > saved
    # As whoever saves by Keras' function, and not by the model's method.
    keras.saving.save_model(made, tmp_path / "function.keras")
    size = (tmp_path / "function.keras").stat().st_size
    assert size - path.stat().st_size < saved / 10
    loaded = keras.models.load_model(path)
    assert loaded.teacher is None
    x, y = images()
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), made.predict(x, verbose=0)
    )
    with pytest.raises(ValueError, match="no teacher to ask"):
        loaded.fit(x, y, verbose=0)
    made.save_weights(tmp_path / "lean.weights.h5")
    again = distiller(save_teacher=False, guide=guide)
    fit(again)
    again.load_weights(tmp_path / "lean.weights.h5")
    assert_same_values(values(again.variables), values(made.variables))
    assert made.teacher is guide


class Interrupt(keras.callbacks.Callback):
    """A power cut in the second epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 1 and batch == 1:
            raise KeyboardInterrupt

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch


@pytest.mark.traced
@pytest.mark.parametrize(
    "save_teacher", [True, pytest.param(False, marks=only_on("torch"))]
)
def test_an_interrupted_run_resumes_exactly(tmp_path, save_teacher):
    whole = distiller(save_teacher)
    fit(whole, last=3)

    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))

    first = distiller(save_teacher)
    with pytest.raises(KeyboardInterrupt):
        fit(first, last=3, callbacks=[backup(), Interrupt()])
    resumed = distiller(save_teacher)
    history = fit(resumed, last=3, callbacks=[backup()])
    assert len(history["loss"]) == 2
    assert_same_values(values(resumed.variables), values(whole.variables))
    assert_same_values(
        values(resumed.optimizer.variables), values(whole.optimizer.variables)
    )


def test_the_old_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.keras"):
        distiller().save(tmp_path / "d.h5")


def test_checkpoints_of_the_best_epoch(tmp_path):
    made = distiller()
    path = str(tmp_path / "best.keras")
    best = keras.callbacks.ModelCheckpoint(path, "loss", save_best_only=True)
    fit(made, last=2, callbacks=[best])
    loaded = keras.models.load_model(path)
    assert isinstance(loaded, kd.Distiller)
    assert isinstance(loaded.loss, keras.losses.SparseCategoricalCrossentropy)


def test_defaults_survive_saving(tmp_path):
    made = kd.Distiller(teacher(), mlp())
    made.fit(*images(), verbose=0)
    made.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    ours, theirs = (
        m.evaluate(*images(), verbose=0, return_dict=True)
        for m in (made, loaded)
    )
    assert ours == theirs


def test_weights_of_other_losses_are_refused(tmp_path):
    distiller().save_weights(tmp_path / "two.weights.h5")
    other = kd.Distiller(teacher(), cnn(dropout=0.5))
    with pytest.raises(ValueError, match="other losses"):
        other.load_weights(tmp_path / "two.weights.h5")
