"""Standardized logits, against NumPy and published code."""

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis.extra.numpy import arrays
from keras import layers, ops
from support import (
    assert_same_values,
    evaluate,
    follows_from_the_formula,
    values,
)

import keras_distill as kd
from keras_distill.losses import (
    DecoupledSoftTargets,
    Hint,
    LogitMatching,
    SoftTargets,
    StandardizedLogits,
)

# Value of the authors' code, at temperature 2.
GOLDEN = 1.0210726046215497

quick = hypothesis.settings(max_examples=15, deadline=None, database=None)
logits = arrays(
    np.float32, (3, 5), elements=st.integers(-32, 32).map(lambda i: i / 8)
)


def standardized(logits):
    centred = logits - logits.mean(axis=-1, keepdims=True)
    return centred / (1e-7 + logits.std(axis=-1, ddof=1, keepdims=True))


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def formula(teacher, student, temperature=2.0):
    p, q = (
        softmax(standardized(side) / temperature) for side in (teacher, student)
    )
    return temperature**2 * (p * np.log(p / q)).sum(axis=-1)


def random(*shape, seed=0, scale=2.0):
    return np.random.default_rng(seed).normal(0, scale, shape)


def models(activation=None):
    """Teacher and student of three classes."""
    keras.utils.set_random_seed(0)
    return [
        keras.Sequential(
            [keras.Input((4,)), layers.Dense(3, activation, name="logits")],
            name=name,
        )
        for name in ("teacher", "student")
    ]


@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden):
    inside = SoftTargets(2.0, dtype="float64")
    values = evaluate(StandardizedLogits(inside, reduction=None), *golden)
    assert values.dtype == "float64"
    assert values.mean() == pytest.approx(GOLDEN, rel=1e-12)
    np.testing.assert_allclose(values, formula(*golden), rtol=1e-10)


def test_golden_value_in_float32(golden):
    value = evaluate(StandardizedLogits(SoftTargets(2.0)), *golden)
    assert value == pytest.approx(GOLDEN, rel=1e-5)


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(3, 4), random(3, 4, seed=1)
    loss = StandardizedLogits(SoftTargets(2.0, dtype="float64"))
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(lambda x: formula(teacher, x).mean(), student),
        rtol=1e-5,
        atol=1e-9,
    )


def test_hands_standardized_logits_to_the_loss(golden):
    inside = LogitMatching(reduction=None)
    np.testing.assert_allclose(
        evaluate(StandardizedLogits(inside, reduction=None), *golden),
        evaluate(inside, *map(standardized, golden)),
        rtol=1e-5,
    )


def test_hands_labels_to_the_loss(golden):
    teacher, student = golden
    inside = DecoupledSoftTargets(temperature=2.0, reduction=None)
    loss = StandardizedLogits(inside, reduction=None)
    assert loss.uses_labels
    labels = np.array([0, 3, -1, 9, 2, 2])
    np.testing.assert_allclose(
        evaluate(loss, {"teacher": teacher, "labels": labels}, student),
        evaluate(
            inside,
            {"teacher": standardized(teacher), "labels": labels},
            standardized(student),
        ),
        rtol=1e-4,
    )


@follows_from_the_formula
@quick
@hypothesis.given(logits, logits, st.floats(0.25, 8), st.floats(-4, 4))
def test_scale_and_shift_mean_nothing(teacher, student, scale, shift):
    hypothesis.assume(student.std(axis=-1).min() > 0.1)
    loss = StandardizedLogits(SoftTargets(2.0), reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher, scale * student + shift),
        evaluate(loss, teacher, student),
        rtol=1e-3,
        atol=1e-5,
    )


@pytest.mark.parametrize("level", [0.0, 3.0])
def test_constant_logits_have_a_moderate_gradient(gradient, level):
    """As of a student whose last layer starts with zeros."""
    loss = StandardizedLogits(SoftTargets(2.0), reduction="sum")
    flat = np.full((1, 4), level, "float32")
    teacher = random(1, 4).astype("float32")
    slope = gradient(lambda x: loss(teacher, x), flat)
    assert 0.01 < np.linalg.norm(slope) < 10
    assert np.all(np.isfinite(gradient(lambda x: loss(x, teacher), flat)))
    value = evaluate(loss, flat, flat)
    assert value == pytest.approx(0, abs=1e-6)


@pytest.mark.usefixtures("float64")
def test_takes_after_the_loss_inside():
    inside = SoftTargets(
        2.0, "deep", "shallow", "auto", False, [2, 0], dtype="float64"
    )
    loss = StandardizedLogits(inside)
    for name in (
        "teacher_layer_name",
        "student_layer_name",
        "projector",
        "from_logits",
        "class_map",
        "dtype",
    ):
        assert getattr(loss, name) == getattr(inside, name)
    other = StandardizedLogits(inside, "a", "b", class_map=[1, 0])
    assert (other.teacher_layer_name, other.student_layer_name) == ("a", "b")
    assert other.class_map == [1, 0]


@pytest.mark.parametrize("name", ["relates_examples", "uses_labels"])
def test_asks_for_what_the_loss_inside_needs(name):
    for inside in (SoftTargets(), DecoupledSoftTargets(), Related()):
        loss = StandardizedLogits(inside)
        assert getattr(loss, name) == getattr(inside, name)


class Related(SoftTargets):
    relates_examples = True


@pytest.mark.usefixtures("differentiable")
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_temperature_is_set_and_saved(tmp_path, activation):
    teacher, student = models(activation)
    loss = StandardizedLogits(SoftTargets(2.0))
    distiller = kd.Distiller(teacher, student, loss, save_teacher=False)
    assert distiller.loss_weights[0] == 9.0
    loss.loss.temperature = 3.0
    x = random(8, 4).astype("float32")
    distiller.fit(x, np.arange(8) % 3, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    copy = loaded.distillation_losses["standardized_logits"]
    assert float(copy.loss.temperature.value) == 3.0
    # Without the teacher, its softmax can't be seen.
    assert copy.from_logits == (None if activation is None else False)
    batch = kd.TransferBatch(x, ops.convert_to_numpy(teacher(x)))
    for one in (distiller, loaded):
        one.train_on_batch(batch, np.arange(8) % 3)
    assert_same_values(
        values(loaded.student.variables), values(student.variables), 1e-6
    )


@pytest.mark.usefixtures("differentiable")
def test_trains_on_labels():
    teacher, student = models()
    loss = StandardizedLogits(DecoupledSoftTargets())
    distiller = kd.Distiller(teacher, student, loss)
    before = values(student.variables)
    distiller.fit(random(8, 4), np.arange(8) % 3, verbose=0)
    assert np.any(before[0] != values(student.variables)[0])


def test_refuses_what_is_no_loss_on_logits():
    for wrong in (Hint(), "soft_targets", None):
        with pytest.raises(TypeError, match="Received: loss="):
            StandardizedLogits(wrong)


def test_refuses_a_single_logit():
    with pytest.raises(ValueError, match="no spread"):
        StandardizedLogits(LogitMatching())(random(3, 1), random(3, 1))


def test_refuses_another_dtype():
    with pytest.raises(ValueError, match="dtype='float64', and a loss"):
        StandardizedLogits(SoftTargets(2.0), dtype="float64")
