"""Pearson correlation, against NumPy and published code."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from keras import ops
from support import (
    evaluate,
    follows_from_the_formula,
)

from keras_distill.losses import PearsonCorrelation

GOLDEN = 0.9960232138208397

quick = hypothesis.settings(max_examples=10, deadline=None, database=None)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def formula(teacher, student):
    def standardized(x):
        axes = tuple(range(x.ndim - 1))
        deviation = x.std(axis=axes, ddof=1, keepdims=True)
        return (x - x.mean(axis=axes, keepdims=True)) / (deviation + 1e-6)

    squares = (standardized(teacher) - standardized(student)) ** 2
    return squares.reshape(len(squares), -1).mean(axis=-1) / 2


@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden_inputs):
    teacher = golden_inputs["teacher_maps"]
    student = golden_inputs["student_maps"]
    loss = PearsonCorrelation(reduction=None, dtype="float64")
    values = evaluate(loss, teacher, student)
    assert values.mean() == pytest.approx(GOLDEN, rel=1e-6)
    np.testing.assert_allclose(values, formula(teacher, student), rtol=1e-6)


def test_golden_value_in_float32(golden_inputs):
    teacher = golden_inputs["teacher_maps"]
    student = golden_inputs["student_maps"]
    value = evaluate(PearsonCorrelation(), teacher, student)
    assert value == pytest.approx(GOLDEN, rel=1e-5)


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(3, 2, 2, 3), random(3, 2, 2, 3, seed=1)
    loss = PearsonCorrelation(dtype="float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(lambda x: formula(teacher, x).mean(), student),
        rtol=1e-5,
        atol=1e-9,
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_is_finite_at_extreme_features(gradient, dtype):
    signs = [random(4, 3, 2, 5, seed=i).clip(-1, 1).round() for i in range(2)]
    teacher, student = (ops.cast(1e4 * x, dtype) for x in signs)
    value = evaluate(PearsonCorrelation(), teacher, student)
    assert 0 < value < np.inf
    slope = gradient(lambda x: PearsonCorrelation()(teacher, x), student)
    assert np.all(np.isfinite(slope))
    assert dtype == "float16" or np.any(slope != 0)


@pytest.mark.parametrize("zeros", ["teacher", "student", "both"])
def test_gradient_is_finite_where_a_layer_is_silent(gradient, zeros):
    teacher, student = random(4, 3, 2, 5), random(4, 3, 2, 5, seed=1)
    teacher = teacher * (zeros == "student")
    student = student * (zeros == "teacher")
    assert np.isfinite(evaluate(PearsonCorrelation(), teacher, student))
    slope = gradient(
        lambda x: PearsonCorrelation()(ops.cast(teacher, "float32"), x),
        student.astype("float32"),
    )
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("shape", [(6, 3), (3, 4, 3)])
def test_compares_vectors_and_tokens(shape):
    teacher, student = random(*shape), random(*shape, seed=1)
    loss = PearsonCorrelation(reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher, student),
        formula(teacher, student),
        rtol=1e-5,
    )


@follows_from_the_formula
@quick
@hypothesis.given(st.integers(0, 1000))
def test_neither_scale_nor_shift_of_a_channel_matters(seed):
    numbers = np.random.default_rng(seed)
    teacher = random(4, 5, 3, seed=seed)
    student = random(4, 5, 3, seed=seed + 1)
    scale, shift = numbers.uniform(0.5, 2, 3), numbers.normal(size=3)
    loss = PearsonCorrelation(reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher, scale * student + shift),
        evaluate(loss, teacher, student),
        rtol=1e-4,
    )


@pytest.mark.usefixtures("float64")
def test_is_one_less_the_correlation():
    teacher, student = random(50, 1), random(50, 1, seed=1)
    loss = PearsonCorrelation(reduction=None, dtype="float64")
    correlation = np.corrcoef(teacher[:, 0], student[:, 0])[0, 1]
    value = evaluate(loss, teacher, student).mean()
    assert value == pytest.approx((1 - correlation) * 49 / 50, rel=1e-4)


def test_the_automatic_projector_resizes_bilinearly():
    loss = PearsonCorrelation(projector="auto")
    projector = loss.make_projector((None, 4, 4, 3), (None, 2, 2, 3))
    student = random(2, 2, 2, 3).astype("float32")
    resized = ops.image.resize(
        student, (4, 4), "bilinear", data_format="channels_last"
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(projector(student)),
        ops.convert_to_numpy(resized),
        rtol=1e-5,
        atol=1e-6,
    )


def test_refuses_other_sizes():
    with pytest.raises(ValueError, match="projector='auto'"):
        PearsonCorrelation()(random(2, 4, 4, 3), random(2, 2, 2, 3))
