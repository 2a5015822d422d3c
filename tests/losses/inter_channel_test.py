"""Inter-channel correlation, against NumPy and published code."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from keras import ops
from support import (
    evaluate,
    follows_from_the_formula,
)

from keras_distill.losses import InterChannelCorrelation

# Published code divides once more by the batch of 6.
GOLDEN = 6 * 0.02182517840489271

quick = hypothesis.settings(max_examples=10, deadline=None, database=None)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def formula(teacher, student):
    def correlations(x):
        x = x.reshape(len(x), -1, x.shape[-1])
        products = np.einsum("npa,npb->nab", x, x)
        return products / np.linalg.norm(products, axis=-1, keepdims=True)

    squares = (correlations(teacher) - correlations(student)) ** 2
    return squares.sum(axis=(1, 2)) / teacher.shape[-1]


@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden_inputs):
    teacher = golden_inputs["teacher_maps"]
    student = golden_inputs["student_maps"]
    loss = InterChannelCorrelation(reduction=None, dtype="float64")
    values = evaluate(loss, teacher, student)
    assert values.mean() == pytest.approx(GOLDEN, rel=1e-6)
    np.testing.assert_allclose(values, formula(teacher, student), rtol=1e-6)


def test_golden_value_in_float32(golden_inputs):
    teacher = golden_inputs["teacher_maps"]
    student = golden_inputs["student_maps"]
    value = evaluate(InterChannelCorrelation(), teacher, student)
    assert value == pytest.approx(GOLDEN, rel=1e-5)


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(2, 3, 2, 3), random(2, 2, 2, 3, seed=1)
    loss = InterChannelCorrelation(dtype="float64")
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
    value = evaluate(InterChannelCorrelation(), teacher, student)
    assert 0 < value < np.inf
    slope = gradient(lambda x: InterChannelCorrelation()(teacher, x), student)
    assert np.all(np.isfinite(slope))
    assert dtype == "float16" or np.any(slope != 0)


@pytest.mark.parametrize("zeros", ["teacher", "student", "both"])
def test_gradient_is_finite_where_a_layer_is_silent(gradient, zeros):
    teacher, student = random(4, 3, 2, 5), random(4, 3, 2, 5, seed=1)
    teacher = teacher * (zeros == "student")
    student = student * (zeros == "teacher")
    assert np.isfinite(evaluate(InterChannelCorrelation(), teacher, student))
    slope = gradient(
        lambda x: InterChannelCorrelation()(ops.cast(teacher, "float32"), x),
        student.astype("float32"),
    )
    assert np.all(np.isfinite(slope))


@follows_from_the_formula
@quick
@hypothesis.given(st.integers(0, 1000), st.floats(0.25, 4))
def test_neither_scale_nor_the_order_of_places_matters(seed, scale):
    teacher = random(2, 6, 3, seed=seed)
    student = random(2, 5, 3, seed=seed + 1)
    order = np.random.default_rng(seed).permutation(5)
    loss = InterChannelCorrelation(reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher, scale * student[:, order]),
        evaluate(loss, teacher, student),
        rtol=1e-3,
        atol=1e-6,
    )


def test_does_not_depend_on_the_batch():
    teacher, student = random(2, 4, 3), random(2, 4, 3, seed=1)
    loss = InterChannelCorrelation()
    twice = [np.concatenate([x, x]) for x in (teacher, student)]
    value = evaluate(loss, teacher, student)
    assert evaluate(loss, *twice) == pytest.approx(value, rel=1e-6)


def test_refuses_other_channels():
    with pytest.raises(ValueError, match="projector='auto'"):
        InterChannelCorrelation()(random(2, 4, 3), random(2, 4, 5))


def test_refuses_vectors():
    with pytest.raises(ValueError, match="Received: 2"):
        InterChannelCorrelation()(random(2, 3), random(2, 3))
