"""Activation boundaries, against published code and their formula."""

import keras
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
)

import keras_distill as kd
from keras_distill.losses import ActivationBoundary


def cases(teacher, student, margin):
    """By the cases of the paper, rather than by a hinge."""
    silent = (student > -margin) & (teacher <= 0)
    active = (student <= margin) & (teacher > 0)
    values = (student + margin) ** 2 * silent + (student - margin) ** 2 * active
    return values.reshape(len(values), -1).sum(axis=-1)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.usefixtures("float64")
def test_equals_published_code(golden_inputs):
    names = [
        ["teacher_maps", "teacher_maps_2"],
        ["student_maps", "student_maps_2"],
    ]
    teachers, students = ([golden_inputs[n] for n in side] for side in names)
    loss = ActivationBoundary(
        teacher_layer_name=["a", "b"],
        student_layer_name=["a", "b"],
        reduction=None,
        dtype="float64",
    )
    value = 0.003 * evaluate(loss, teachers, students).mean()
    stages = [0.9370449605860319, 0.5669735467122382]
    assert value == pytest.approx(sum(stages), rel=1e-12)
    last = ActivationBoundary(reduction=None, dtype="float64")
    value = 0.003 * evaluate(last, teachers[1], students[1]).mean()
    assert value == pytest.approx(stages[1], rel=1e-12)


def test_float32_is_near_published_code(golden_inputs):
    sides = golden_inputs["teacher_maps_2"], golden_inputs["student_maps_2"]
    value = 0.003 * evaluate(ActivationBoundary(), *sides)
    assert value == pytest.approx(0.5669735467122382, rel=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3), (4, 2, 5, 3)])
def test_values_are_those_of_the_cases(shape):
    teacher, student = random(*shape), 2 * random(*shape, seed=1)
    loss = ActivationBoundary(margin=0.7, reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher, student),
        cases(teacher, student, 0.7),
        rtol=1e-5,
    )


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(2, 3, 4), random(2, 3, 4, seed=1)
    loss = ActivationBoundary(dtype="float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(lambda x: cases(teacher, x, 1.0).mean(), student),
        rtol=1e-6,
        atol=1e-8,
    )


@follows_from_the_formula
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100.0))
def test_only_the_teachers_signs_matter(seed, scale):
    teacher, student = random(3, 5, seed=seed), random(3, 5, seed=seed + 1)
    loss = ActivationBoundary(reduction=None)
    np.testing.assert_array_equal(
        evaluate(loss, scale * teacher, student),
        evaluate(loss, teacher, student),
    )


def test_is_zero_where_the_student_keeps_the_margin():
    teacher = random(3, 5)
    student = np.where(teacher > 0, 1.0, -1.0)
    np.testing.assert_array_equal(
        evaluate(ActivationBoundary(reduction=None), teacher, student), 0
    )


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((None, 4, 4, 6), layers.Conv2D), ((None, 6), layers.Dense)],
)
def test_connector_is_the_papers(shape, kind):
    connector = ActivationBoundary().make_projector(shape, shape)
    linear, normalization = connector.layers
    assert type(linear) is kind
    assert not linear.use_bias
    assert isinstance(normalization, layers.BatchNormalization)
    assert tuple(connector(keras.KerasTensor(shape)).shape) == shape


def test_connector_normalizes_channels_wherever_they_are():
    loss = ActivationBoundary(data_format="channels_first")
    connector = loss.make_projector((None, 6, 4, 4), (None, 3, 8, 8))
    assert connector.layers[1].axis == 1
    assert tuple(connector(keras.KerasTensor((None, 3, 8, 8))).shape) == (
        *(None, 6, 4, 4),
    )


@pytest.mark.usefixtures("differentiable")
def test_trains_the_student_before_its_labels():
    x, y = images(16)
    student = cnn(3)
    loss = ActivationBoundary(
        teacher_layer_name="norm", student_layer_name="norm", projector="auto"
    )
    first = kd.Distiller(teacher(), student, loss, hard_label_weight=0.0)
    losses = first.fit(x, y, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert kd.Distiller(teacher(), student).student is student


@pytest.mark.parametrize("margin", [0.0, -1.0, float("inf"), float("nan")])
def test_refuses_a_margin_that_is_none(margin):
    with pytest.raises(ValueError, match="Received: margin="):
        ActivationBoundary(margin=margin)
