"""Curriculum temperature: soft targets, and how the temperature moves."""

import keras
import numpy as np
import pytest
from keras import ops
from support import images, mlp, teacher

import keras_distill as kd
from keras_distill.losses import CurriculumTemperature, SoftTargets

SIGMOID = 1 / (1 + np.exp(-1.0))
START = 1 + 20 * SIGMOID


def number(x):
    return float(ops.convert_to_numpy(ops.convert_to_tensor(x)))


def test_starts_where_the_paper_does():
    loss = CurriculumTemperature()
    assert number(loss.temperature) == pytest.approx(START, rel=1e-6)
    assert loss.theta.trainable
    assert not loss.reversal.trainable


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("reversal", [-1.0, 0.0])
def test_is_soft_targets_at_its_temperature(golden, gradient, reversal):
    """In value and in the student's gradient, whatever the reversal."""
    logits, student = golden
    ours = CurriculumTemperature(
        reversal=reversal, reduction="sum", dtype="float64"
    )
    theirs = SoftTargets(
        number(ours.temperature), reduction="sum", dtype="float64"
    )
    assert number(ours(logits, student)) == pytest.approx(
        number(theirs(logits, student)), rel=1e-6
    )
    np.testing.assert_allclose(
        gradient(lambda x: ours(logits, x), student),
        gradient(lambda x: theirs(logits, x), student),
        rtol=1e-8,
        atol=1e-12,
    )


def slope_of_theta(loss, x, student, step=1e-2):
    """Central difference of the loss in theta."""
    logits = teacher()(x), student(x)
    values = []
    for theta in (1 + step, 1 - step):
        temperature = 1 + 20 / (1 + np.exp(-theta))
        values.append(number(SoftTargets(temperature)(*logits)))
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.usefixtures("differentiable")
@pytest.mark.parametrize("reversal", [-1.0, -0.5, 0.0, 1.0])
def test_theta_is_trained_up_the_loss(reversal):
    """By `-reversal` times a step of gradient descent."""
    x, y = images(12)
    student = mlp()
    loss = CurriculumTemperature(reversal=reversal)
    # Far from each other, so that float32 can tell the difference.
    student.layers[-1].kernel.assign(10 * student.layers[-1].kernel)
    slope = slope_of_theta(loss, x, student)
    assert abs(slope) > 1e-3
    distiller = kd.Distiller(teacher(), student, losses=loss, loss_weights=2.0)
    distiller.compile(
        optimizer=keras.optimizers.SGD(0.5), loss=None, metrics=None
    )
    distiller.fit(x, y, batch_size=12, verbose=0)
    moved = number(loss.theta) - 1
    assert moved == pytest.approx(
        -reversal * 0.5 * 2.0 * slope, rel=2e-2, abs=1e-7
    )


@pytest.mark.usefixtures("differentiable")
def test_theta_is_saved_with_the_distiller(tmp_path):
    x, y = images(12)
    loss = CurriculumTemperature()
    distiller = kd.Distiller(teacher(), mlp(), losses=loss)
    distiller.fit(x, y, epochs=2, verbose=0)
    assert number(loss.theta) != 1.0
    loss.reversal = -0.25
    distiller.save(tmp_path / "distiller.keras")
    copy = keras.saving.load_model(tmp_path / "distiller.keras")
    (loaded,) = copy.distillation_losses.values()
    assert number(loaded.theta) == number(loss.theta)
    assert number(loaded.reversal) == -0.25
    assert loaded.get_config()["reversal"] == -0.25


@pytest.mark.usefixtures("differentiable")
def test_a_callback_sets_the_reversal():
    x, y = images(12)
    loss = CurriculumTemperature(reversal=0.0)
    distiller = kd.Distiller(teacher(), mlp(), losses=loss)
    thetas = []

    def start(epoch, logs=None):
        loss.reversal = 0.0 if epoch == 0 else -1.0

    def end(epoch, logs=None):
        thetas.append(number(loss.theta))

    callback = keras.callbacks.LambdaCallback(
        on_epoch_begin=start, on_epoch_end=end
    )
    distiller.fit(x, y, epochs=2, verbose=0, callbacks=[callback])
    assert thetas[0] == 1.0
    assert thetas[1] != 1.0


@pytest.mark.parametrize("argument", ["minimum", "span"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_temperatures_that_are_not_positive(argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value}"):
        CurriculumTemperature(**{argument: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_a_reversal_that_is_not_finite(value):
    with pytest.raises(ValueError, match=f"reversal={value}"):
        CurriculumTemperature(reversal=value)


def test_refuses_one_class():
    with pytest.raises(ValueError, match="single logit"):
        CurriculumTemperature()(np.zeros((2, 1)), np.zeros((2, 1)))
