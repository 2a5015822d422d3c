"""Probabilistic transfer, against NumPy and published code."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from keras import ops
from support import (
    evaluate,
    follows_from_the_formula,
)

from keras_distill.losses import ProbabilisticTransfer

GOLDEN = 0.002531151478103911

quick = hypothesis.settings(max_examples=10, deadline=None, database=None)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def formula(teacher, student):
    def probabilities(x):
        x = x.reshape(len(x), -1)
        x = x / np.linalg.norm(x, axis=-1, keepdims=True)
        near = (x @ x.T + 1) / 2
        return near / near.sum(axis=-1, keepdims=True)

    p, q = probabilities(teacher), probabilities(student)
    return (p * np.log((p + 1e-7) / (q + 1e-7))).mean(axis=-1)


@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden_inputs):
    teacher = golden_inputs["teacher_vectors"]
    student = golden_inputs["student_vectors"]
    loss = ProbabilisticTransfer(reduction=None, dtype="float64")
    values = evaluate(loss, teacher, student)
    assert values.mean() == pytest.approx(GOLDEN, rel=1e-6)
    np.testing.assert_allclose(values, formula(teacher, student), rtol=1e-6)


def test_golden_value_in_float32(golden_inputs):
    teacher = golden_inputs["teacher_vectors"]
    student = golden_inputs["student_vectors"]
    value = evaluate(ProbabilisticTransfer(), teacher, student)
    assert value == pytest.approx(GOLDEN, rel=1e-4)


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(3, 2, 4), random(3, 3, 2, seed=1)
    loss = ProbabilisticTransfer(dtype="float64")
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
    value = evaluate(ProbabilisticTransfer(), teacher, student)
    assert 0 < value < np.inf
    slope = gradient(lambda x: ProbabilisticTransfer()(teacher, x), student)
    assert np.all(np.isfinite(slope))
    assert dtype == "float16" or np.any(slope != 0)


@pytest.mark.parametrize("zeros", ["teacher", "student", "both"])
def test_gradient_is_finite_where_a_layer_is_silent(gradient, zeros):
    teacher, student = random(4, 3, 2, 5), random(4, 3, 2, 5, seed=1)
    teacher = teacher * (zeros == "student")
    student = student * (zeros == "teacher")
    assert np.isfinite(evaluate(ProbabilisticTransfer(), teacher, student))
    slope = gradient(
        lambda x: ProbabilisticTransfer()(ops.cast(teacher, "float32"), x),
        student.astype("float32"),
    )
    assert np.all(np.isfinite(slope))


@follows_from_the_formula
@quick
@hypothesis.given(st.integers(0, 1000), st.floats(0.25, 4))
def test_neither_rotation_nor_scale_matter(seed, scale):
    """Cosines are the same after a rotation, and for any length."""
    teacher, student = random(5, 6, seed=seed), random(5, 4, seed=seed + 1)
    rotation, _ = np.linalg.qr(random(4, 4, seed=seed + 2))
    loss = ProbabilisticTransfer(reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher, scale * student @ rotation),
        evaluate(loss, teacher, student),
        rtol=1e-3,
        atol=1e-6,
    )


def test_opposite_vectors_give_finite_values(gradient):
    student = np.array([[1.0, 2.0], [-1.0, -2.0], [0.5, 1.0]], "float32")
    teacher = random(3, 2).astype("float32")
    loss = ProbabilisticTransfer()
    assert np.isfinite(evaluate(loss, teacher, student))
    assert np.all(np.isfinite(gradient(lambda x: loss(teacher, x), student)))
