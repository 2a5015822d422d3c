"""Total variation, against NumPy and published code."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.extra.numpy import arrays
from support import (
    evaluate,
    follows_from_the_formula,
)

from keras_distill.losses import TotalVariation

# The formula's in float64; the authors' code, in float32, gives .78325838.
GOLDEN = 0.7832583132058978

quick = hypothesis.settings(max_examples=15, deadline=None, database=None)
logits = arrays(
    np.float32, (3, 5), elements=st.integers(-128, 128).map(lambda i: i / 8)
)


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def random(*shape, seed=0, scale=2.0):
    return np.random.default_rng(seed).normal(0, scale, shape)


def formula(teacher, student):
    return np.abs(softmax(teacher) - softmax(student)).sum(axis=-1) / 2


@pytest.fixture
def sequences(golden_inputs):
    """Sequences of tokens, and the mean over those that count."""
    teacher, student, mask = (
        golden_inputs[name]
        for name in ("teacher_sequences", "student_sequences", "mask")
    )
    return teacher, student, lambda values: values[mask].sum() / mask.sum()


@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(sequences):
    *pair, mean = sequences
    values = evaluate(TotalVariation(reduction=None, dtype="float64"), *pair)
    assert mean(values) == pytest.approx(GOLDEN, rel=1e-12)
    np.testing.assert_allclose(values, formula(*pair), rtol=1e-12)


def test_golden_value_in_float32(sequences):
    *pair, mean = sequences
    values = evaluate(TotalVariation(reduction=None), *pair)
    assert mean(values) == pytest.approx(GOLDEN, rel=1e-6)


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(3, 4), random(3, 4, seed=1)
    loss = TotalVariation(dtype="float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(lambda x: formula(teacher, x).mean(), student),
        rtol=1e-5,
        atol=1e-9,
    )


@follows_from_the_formula
@quick
@hypothesis.given(logits, logits)
def test_is_symmetric_and_at_most_one(teacher, student):
    loss = TotalVariation(reduction=None)
    values = evaluate(loss, teacher, student)
    assert 0 <= values.min() <= values.max() <= 1 + 1e-6
    np.testing.assert_allclose(
        values, evaluate(loss, student, teacher), rtol=1e-6
    )


def test_is_one_where_they_share_no_class():
    value = evaluate(TotalVariation(), [[1e4, 0.0]], [[0.0, 1e4]])
    assert value == 1
