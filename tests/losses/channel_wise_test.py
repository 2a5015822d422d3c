"""Channel-wise distillation, against NumPy and published code."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from support import (
    evaluate,
    follows_from_the_formula,
)

from keras_distill.losses import ChannelWise

GOLDEN = 0.9335584402454576
GOLDEN_AT_4 = 0.9673927583373173

quick = hypothesis.settings(max_examples=10, deadline=None, database=None)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def formula(teacher, student, temperature=1.0):
    def softmax(x):
        x = x.reshape(len(x), -1, x.shape[-1]) / temperature
        exp = np.exp(x - x.max(axis=1, keepdims=True))
        return exp / exp.sum(axis=1, keepdims=True)

    p, q = softmax(teacher), softmax(student)
    entropy = (p * np.log(p / q)).sum(axis=1)
    return temperature**2 * entropy.mean(axis=-1)


@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden_inputs):
    teacher = golden_inputs["teacher_maps"]
    student = golden_inputs["student_maps"]
    loss = ChannelWise(reduction=None, dtype="float64")
    values = evaluate(loss, teacher, student)
    assert values.mean() == pytest.approx(GOLDEN, rel=1e-6)
    np.testing.assert_allclose(values, formula(teacher, student), rtol=1e-6)


def test_golden_value_in_float32(golden_inputs):
    teacher = golden_inputs["teacher_maps"]
    student = golden_inputs["student_maps"]
    value = evaluate(ChannelWise(), teacher, student)
    assert value == pytest.approx(GOLDEN, rel=1e-5)


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(2, 3, 2, 4), random(2, 3, 2, 4, seed=1)
    loss = ChannelWise(dtype="float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(lambda x: formula(teacher, x).mean(), student),
        rtol=1e-5,
        atol=1e-9,
    )


@pytest.mark.usefixtures("float64")
def test_golden_value_at_temperature_4(golden_inputs):
    pair = golden_inputs["teacher_maps"], golden_inputs["student_maps"]
    loss = ChannelWise(temperature=4.0, reduction=None, dtype="float64")
    values = evaluate(loss, *pair)
    assert values.mean() == pytest.approx(GOLDEN_AT_4, rel=1e-6)
    np.testing.assert_allclose(values, formula(*pair, 4.0), rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 2, 2, 3, 4)])
def test_compares_tokens_and_volumes(shape):
    teacher, student = random(*shape), random(*shape, seed=1)
    np.testing.assert_allclose(
        evaluate(ChannelWise(reduction=None), teacher, student),
        formula(teacher, student),
        rtol=1e-5,
    )


@follows_from_the_formula
@quick
@hypothesis.given(st.integers(0, 1000))
def test_neither_shift_nor_order_of_the_channels_matters(seed):
    """A number that is added to a whole channel, and orders in both."""
    numbers = np.random.default_rng(seed)
    teacher = random(2, 5, 3, seed=seed)
    student = random(2, 5, 3, seed=seed + 1)
    order = numbers.permutation(3)
    loss = ChannelWise(reduction=None)
    np.testing.assert_allclose(
        evaluate(
            loss, teacher[..., order], student[..., order] + numbers.normal()
        ),
        evaluate(loss, teacher, student),
        rtol=1e-4,
    )


@pytest.mark.parametrize("temperature", [0, -1.0, np.inf, np.nan])
def test_refuses_temperatures_that_are_not_positive(temperature):
    with pytest.raises(ValueError, match="Received: temperature="):
        ChannelWise(temperature=temperature)


def test_refuses_vectors():
    with pytest.raises(ValueError, match="Received: 2"):
        ChannelWise()(random(2, 3), random(2, 3))
