"""Neuron selectivity, against NumPy and published code."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from keras import ops
from support import (
    evaluate,
    follows_from_the_formula,
)

from keras_distill.losses import NeuronSelectivity

GOLDEN = 0.3371712464176926
GOLDEN_POOLED = 0.3117579078496129

quick = hypothesis.settings(max_examples=10, deadline=None, database=None)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def formula(teacher, student):
    def channels(x):
        x = x.reshape(len(x), -1, x.shape[-1])
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def kernel(x, y):
        return (np.einsum("npa,npb->nab", x, y) ** 2).mean(axis=(1, 2))

    t, s = channels(teacher), channels(student)
    return kernel(t, t) + kernel(s, s) - 2 * kernel(t, s)


@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden_inputs):
    teacher = golden_inputs["teacher_maps_7_channels"]
    student = golden_inputs["student_maps"]
    loss = NeuronSelectivity(reduction=None, dtype="float64")
    values = evaluate(loss, teacher, student)
    assert values.mean() == pytest.approx(GOLDEN, rel=1e-6)
    np.testing.assert_allclose(values, formula(teacher, student), rtol=1e-6)


def test_golden_value_in_float32(golden_inputs):
    teacher = golden_inputs["teacher_maps_7_channels"]
    student = golden_inputs["student_maps"]
    value = evaluate(NeuronSelectivity(), teacher, student)
    assert value == pytest.approx(GOLDEN, rel=1e-5)


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(2, 3, 2, 4), random(2, 3, 2, 7, seed=1)
    loss = NeuronSelectivity(dtype="float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(lambda x: formula(teacher, x).mean(), student),
        rtol=1e-5,
        atol=1e-9,
    )


@pytest.mark.usefixtures("float64")
def test_golden_value_of_pooled_maps(golden_inputs):
    loss = NeuronSelectivity(reduction=None, dtype="float64")
    student = golden_inputs["student_maps"]
    values = evaluate(loss, golden_inputs["teacher_maps_small"], student)
    assert values.mean() == pytest.approx(GOLDEN_POOLED, rel=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shape", [(3, 9), (3, 4), (3, 2, 3), (3, 4, 4)])
def test_few_places_and_few_channels_give_the_formulas_values(shape):
    """Products of places or of channels, whichever are fewer."""
    teacher, student = random(*shape, 6), random(*shape, 4, seed=1)
    loss = NeuronSelectivity(reduction=None, dtype="float64")
    np.testing.assert_allclose(
        evaluate(loss, teacher, student),
        formula(teacher, student),
        rtol=1e-6,
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_is_finite_at_extreme_features(gradient, dtype):
    signs = [random(4, 3, 2, 5, seed=i).clip(-1, 1).round() for i in range(2)]
    teacher, student = (ops.cast(1e4 * x, dtype) for x in signs)
    value = evaluate(NeuronSelectivity(), teacher, student)
    assert 0 < value < np.inf
    slope = gradient(lambda x: NeuronSelectivity()(teacher, x), student)
    assert np.all(np.isfinite(slope))
    assert dtype == "float16" or np.any(slope != 0)


@pytest.mark.parametrize("zeros", ["teacher", "student", "both"])
def test_gradient_is_finite_where_a_layer_is_silent(gradient, zeros):
    teacher, student = random(4, 3, 2, 5), random(4, 3, 2, 5, seed=1)
    teacher = teacher * (zeros == "student")
    student = student * (zeros == "teacher")
    assert np.isfinite(evaluate(NeuronSelectivity(), teacher, student))
    slope = gradient(
        lambda x: NeuronSelectivity()(ops.cast(teacher, "float32"), x),
        student.astype("float32"),
    )
    assert np.all(np.isfinite(slope))


@follows_from_the_formula
@quick
@hypothesis.given(st.integers(0, 1000))
def test_neither_channels_scales_nor_any_order_matter(seed):
    """Of channels, and of places that move in both alike."""
    numbers = np.random.default_rng(seed)
    teacher = random(2, 5, 6, seed=seed)
    student = random(2, 5, 4, seed=seed + 1)
    scales = numbers.uniform(0.5, 2, 4) * numbers.choice([-1, 1], 4)
    channels, places = numbers.permutation(4), numbers.permutation(5)
    changed = (scales * student)[:, places][..., channels]
    loss = NeuronSelectivity(reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher[:, places], changed),
        evaluate(loss, teacher, student),
        rtol=1e-4,
        atol=1e-6,
    )


def test_refuses_vectors():
    with pytest.raises(ValueError, match="Received: 2"):
        NeuronSelectivity()(random(2, 3), random(2, 3))
