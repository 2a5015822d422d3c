"""Overhauled feature distillation, against published code and NumPy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from support import (
    cnn,
    evaluate,
    follows_from_the_formula,
    images,
    teacher,
    values,
)

import keras_distill as kd
from keras_distill.losses import FeatureOverhaul, relu_margin


def formula(teacher, student, margin):
    target = np.maximum(teacher, margin)
    counts = (student > target) | (target > 0)
    squares = np.where(counts, (student - target) ** 2, 0.0)
    return squares.reshape(len(squares), -1).sum(axis=-1)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def batch_norm(beta, gamma, dtype="float32"):
    layer = layers.BatchNormalization(dtype=dtype)
    layer.build((None, len(beta)))
    layer.beta.assign(beta)
    layer.gamma.assign(gamma)
    return layer


@pytest.fixture
def margin(golden_inputs, float64):
    return relu_margin(
        batch_norm(golden_inputs["beta"], golden_inputs["gamma"], "float64")
    )


@pytest.mark.usefixtures("float64")
def test_margin_equals_published_code(margin):
    assert margin[0] == pytest.approx(-0.9371935620836991, rel=1e-12)


@pytest.mark.usefixtures("float64")
def test_equals_published_code(golden_inputs, margin):
    teacher = golden_inputs["teacher_maps"]
    student = golden_inputs["student_maps"]
    loss = FeatureOverhaul(margin, reduction=None, dtype="float64")
    values = evaluate(loss, teacher, student)
    # mdistiller's value is the mean over the batch; the official code's, by
    # which it divides later, the sum.
    assert values.mean() == pytest.approx(513.9644292478508, rel=1e-8)
    assert values.sum() == pytest.approx(3083.7865754871045, rel=1e-8)


def test_float32_is_near_published_code(golden_inputs):
    teacher = golden_inputs["teacher_maps"]
    student = golden_inputs["student_maps"]
    margin = relu_margin(
        batch_norm(golden_inputs["beta"], golden_inputs["gamma"])
    )
    value = evaluate(FeatureOverhaul(margin), teacher, student)
    assert value == pytest.approx(513.9644292478508, rel=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3), (4, 2, 5, 3)])
def test_values_are_the_formulas(shape):
    teacher, student = random(*shape), random(*shape, seed=1)
    for margin in ([-0.5, -1.0, 0.0], -0.7):
        np.testing.assert_allclose(
            evaluate(FeatureOverhaul(margin, reduction=None), teacher, student),
            formula(teacher, student, margin),
            rtol=1e-5,
        )


def test_later_layers_weigh_more():
    teachers = [random(2, 3), random(2, 4)]
    students = [random(2, 3, seed=1), random(2, 4, seed=1)]
    margins = [[-0.5, -1.0, 0.0], [-1.0, -0.2, -0.3, -0.4]]
    parts = [
        formula(*arguments)
        for arguments in zip(teachers, students, margins, strict=True)
    ]
    loss = FeatureOverhaul(margins, ["a", "b"], ["a", "b"], reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teachers, students), parts[0] / 2 + parts[1], rtol=1e-5
    )
    loss = FeatureOverhaul(-1.0, ["a", "b"], ["a", "b"], reduction=None)
    parts = [
        formula(t, s, -1.0) for t, s in zip(teachers, students, strict=True)
    ]
    np.testing.assert_allclose(
        evaluate(loss, teachers, students), parts[0] / 2 + parts[1], rtol=1e-5
    )


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(2, 3, 4), random(2, 3, 4, seed=1)
    margin = [-0.5, -1.0, 0.0, -0.1]
    loss = FeatureOverhaul(margin, dtype="float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(lambda x: formula(teacher, x, margin).mean(), student),
        rtol=1e-6,
        atol=1e-8,
    )


@follows_from_the_formula
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.0, 10.0))
def test_how_silent_the_student_is_does_not_matter(seed, further):
    teacher = -np.abs(random(3, 5, seed=seed))
    student = np.maximum(teacher, -0.5) - further
    loss = FeatureOverhaul(-0.5, reduction=None)
    np.testing.assert_allclose(evaluate(loss, teacher, student), 0, atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(st.floats(-2.0, 2.0), st.floats(0.1, 2.0))
def test_margin_is_a_mean_below_zero(mean, deviation):
    (margin,) = relu_margin(batch_norm([mean], [-deviation]))
    share = math.erfc(mean / deviation / math.sqrt(2)) / 2
    if abs(share - 0.001) < 1e-4:
        return
    if share < 0.001:
        assert margin == pytest.approx(-3 * deviation)
        return
    x = np.linspace(
        mean - 12 * deviation, min(0.0, mean + 12 * deviation), 100001
    )
    density = np.exp(-(((x - mean) / deviation) ** 2) / 2)
    expected = (x * density).sum() / density.sum()
    assert margin == pytest.approx(expected, rel=1e-2, abs=1e-3)


def test_margin_of_a_channel_that_never_varies():
    assert relu_margin(batch_norm([-2.0, 3.0], [0.0, 0.0])) == [-2.0, 0.0]


def test_margin_of_a_layer_without_scale_or_center():
    layer = layers.BatchNormalization(center=False, scale=False)
    layer.build((None, 2))
    expected = -math.sqrt(2 / math.pi)
    assert relu_margin(layer) == pytest.approx([expected] * 2)


@pytest.mark.parametrize(
    "layer", [layers.BatchNormalization(), layers.Dense(2), None]
)
def test_refuses_margins_of_other_layers(layer):
    with pytest.raises(ValueError, match="built batch normalization"):
        relu_margin(layer)


@pytest.mark.usefixtures("differentiable")
def test_trains_the_student_and_its_connector():
    x, y = images(16)
    model = teacher()
    loss = FeatureOverhaul(
        relu_margin(model.get_layer("norm")), "norm", "norm", projector="auto"
    )
    distiller = kd.Distiller(model, cnn(3), loss, hard_label_weight=0.0)
    connector = [
        v for v in distiller.trainable_variables if "projector" in v.path
    ]
    before = values(connector)
    assert before
    losses = distiller.fit(x, y, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all(
        np.any(old != new)
        for old, new in zip(before, values(connector), strict=True)
    )


@pytest.mark.parametrize("margin", [0.5, [-1.0, 0.1], [], [[-1.0], [math.nan]]])
def test_refuses_margins_that_are_not_below_zero(margin):
    with pytest.raises(ValueError, match="Received: margin="):
        FeatureOverhaul(margin)


def test_refuses_margins_of_another_number_of_layers():
    with pytest.raises(ValueError, match="compares 2 layers"):
        FeatureOverhaul([-1.0, -1.0], ["a", "b"], ["a", "b"])


def test_refuses_margins_of_another_number_of_channels():
    loss = FeatureOverhaul([-1.0] * 3)
    with pytest.raises(ValueError, match="has 5 channels"):
        loss.check_shapes((None, 4, 4, 5), (None, 4, 4, 5))
