"""Attention transfer, against NumPy and published code."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from keras import ops
from support import (
    evaluate,
    follows_from_the_formula,
)

from keras_distill.losses import AttentionTransfer

GOLDEN = 0.008303762202843422
GOLDEN_POOLED = 0.03510872291316191
GOLDEN_DISTANCE = 0.7364742694557287

quick = hypothesis.settings(max_examples=10, deadline=None, database=None)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def attention(x, power=2):
    x = (np.abs(x) ** power).sum(axis=-1).reshape(len(x), -1)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def formula(teacher, student, power=2):
    difference = attention(teacher, power) - attention(student, power)
    return (difference**2).mean(axis=-1)


@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden_inputs):
    teacher = golden_inputs["teacher_maps_7_channels"]
    student = golden_inputs["student_maps"]
    loss = AttentionTransfer(reduction=None, dtype="float64")
    values = evaluate(loss, teacher, student)
    assert values.mean() == pytest.approx(GOLDEN, rel=1e-6)
    np.testing.assert_allclose(values, formula(teacher, student), rtol=1e-6)


def test_golden_value_in_float32(golden_inputs):
    teacher = golden_inputs["teacher_maps_7_channels"]
    student = golden_inputs["student_maps"]
    value = evaluate(AttentionTransfer(), teacher, student)
    assert value == pytest.approx(GOLDEN, rel=1e-5)


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(2, 3, 2, 4), random(2, 3, 2, 2, seed=1)
    loss = AttentionTransfer(dtype="float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(lambda x: formula(teacher, x).mean(), student),
        rtol=1e-5,
        atol=1e-9,
    )


@pytest.mark.usefixtures("float64")
def test_golden_value_of_pooled_maps(golden_inputs):
    loss = AttentionTransfer(reduction=None, dtype="float64")
    student = golden_inputs["student_maps"]
    values = evaluate(loss, golden_inputs["teacher_maps_small"], student)
    assert values.mean() == pytest.approx(GOLDEN_POOLED, rel=1e-6)


@pytest.mark.usefixtures("float64")
def test_golden_value_of_distances(golden_inputs):
    loss = AttentionTransfer(form="distance", reduction=None, dtype="float64")
    pair = golden_inputs["teacher_maps"], golden_inputs["student_maps"]
    values = evaluate(loss, *pair)
    assert values.mean() == pytest.approx(GOLDEN_DISTANCE, rel=1e-6)
    difference = attention(pair[0]) - attention(pair[1])
    expected = np.linalg.norm(difference, axis=-1)
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_distance_has_a_gradient_at_a_match(gradient):
    loss = AttentionTransfer(form="distance")
    x = random(2, 3, 2, 4).astype("float32")
    assert np.all(np.isfinite(gradient(lambda y: loss(x, y), x)))


@pytest.mark.parametrize("power", [1, 1.5, 4])
@pytest.mark.parametrize("shape", [(3, 6), (3, 2, 6), (3, 2, 2, 6)])
def test_values_of_other_powers_and_axes(power, shape):
    teacher, student = random(*shape, 4), random(*shape, 2, seed=1)
    loss = AttentionTransfer(power=power, reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher, student),
        formula(teacher, student, power),
        rtol=1e-4,
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_is_finite_at_extreme_features(gradient, dtype):
    signs = [random(4, 3, 2, 5, seed=i).clip(-1, 1).round() for i in range(2)]
    teacher, student = (ops.cast(1e4 * x, dtype) for x in signs)
    value = evaluate(AttentionTransfer(), teacher, student)
    assert 0 < value < np.inf
    slope = gradient(lambda x: AttentionTransfer()(teacher, x), student)
    assert np.all(np.isfinite(slope))
    assert dtype == "float16" or np.any(slope != 0)


@pytest.mark.parametrize("zeros", ["teacher", "student", "both"])
def test_gradient_is_finite_where_a_layer_is_silent(gradient, zeros):
    teacher, student = random(4, 3, 2, 5), random(4, 3, 2, 5, seed=1)
    teacher = teacher * (zeros == "student")
    student = student * (zeros == "teacher")
    assert np.isfinite(evaluate(AttentionTransfer(), teacher, student))
    slope = gradient(
        lambda x: AttentionTransfer()(ops.cast(teacher, "float32"), x),
        student.astype("float32"),
    )
    assert np.all(np.isfinite(slope))


@follows_from_the_formula
@quick
@hypothesis.given(st.integers(0, 1000), st.floats(0.25, 4))
def test_neither_scale_nor_the_order_of_channels_matter(seed, scale):
    teacher = random(2, 3, 5, seed=seed)
    student = random(2, 3, 4, seed=seed + 1)
    order = np.random.default_rng(seed).permutation(4)
    loss = AttentionTransfer(reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher, -scale * student[..., order]),
        evaluate(loss, teacher, student),
        rtol=1e-3,
        atol=1e-7,
    )


@pytest.mark.parametrize("power", [0.5, np.inf, np.nan])
def test_refuses_powers_without_a_gradient(power):
    with pytest.raises(ValueError, match="Received: power="):
        AttentionTransfer(power=power)


def test_refuses_another_form():
    with pytest.raises(ValueError, match="Received: form='paper'"):
        AttentionTransfer(form="paper")


def test_refuses_vectors():
    with pytest.raises(ValueError, match="Received: 2"):
        AttentionTransfer()(random(2, 3), random(2, 3))
