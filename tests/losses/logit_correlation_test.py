"""Logit correlation, against NumPy and published code."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.extra.numpy import arrays
from support import (
    evaluate,
    follows_from_the_formula,
)

from keras_distill.losses import LogitCorrelation

# Values of the authors' code, by temperature.
GOLDEN = {1.0: 2.0650825292679325, 4.0: 33.48382756280791}

quick = hypothesis.settings(max_examples=15, deadline=None, database=None)
logits = arrays(
    np.float32, (4, 5), elements=st.integers(-32, 32).map(lambda i: i / 8)
)


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def random(*shape, seed=0, scale=2.0):
    return np.random.default_rng(seed).normal(0, scale, shape)


def correlation(x, y):
    x, y = x - x.mean(), y - y.mean()
    # The small number is the authors'.
    return x @ y / (np.linalg.norm(x) * np.linalg.norm(y) + 1e-8)


def formula(teacher, student, row_weight=1, column_weight=1, temperature=1):
    p, q = softmax(teacher / temperature), softmax(student / temperature)

    def far(a, b):
        return np.array(
            [1 - correlation(x, y) for x, y in zip(a, b, strict=True)]
        )

    values = row_weight * far(p, q) + column_weight * far(p.T, q.T).mean()
    return temperature**2 * values


@pytest.mark.parametrize("temperature", GOLDEN)
@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden, temperature):
    loss = LogitCorrelation(
        temperature=temperature, reduction=None, dtype="float64"
    )
    values = evaluate(loss, *golden)
    assert values.mean() == pytest.approx(GOLDEN[temperature], rel=1e-12)


@pytest.mark.parametrize("temperature", GOLDEN)
def test_golden_value_in_float32(golden, temperature):
    value = evaluate(LogitCorrelation(temperature=temperature), *golden)
    assert value == pytest.approx(GOLDEN[temperature], rel=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)])
@pytest.mark.usefixtures("float64")
def test_values_are_the_formulas(golden, weights):
    loss = LogitCorrelation(*weights, 2.0, reduction=None, dtype="float64")
    np.testing.assert_allclose(
        evaluate(loss, *golden),
        formula(*golden, *weights, 2.0),
        rtol=1e-10,
    )


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(4, 3), random(4, 3, seed=1)
    loss = LogitCorrelation(2.0, 0.5, 3.0, dtype="float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(
            lambda x: formula(teacher, x, 2.0, 0.5, 3.0).mean(), student
        ),
        rtol=1e-5,
        atol=1e-9,
    )


@follows_from_the_formula
@quick
@hypothesis.given(logits, st.floats(0.125, 1), st.floats(0, 0.5))
def test_a_linear_change_of_probabilities_means_nothing(teacher, scale, shift):
    """Ranking is kept, and how far apart the classes are in proportion."""
    p = softmax(teacher.astype("float64"))
    hypothesis.assume(p.std(axis=0).min() > 1e-2)
    hypothesis.assume(p.std(axis=1).min() > 1e-2)
    q = (scale * p + shift) / (scale + shift * 5)
    value = evaluate(LogitCorrelation(), teacher, np.log(q))
    assert value == pytest.approx(0, abs=1e-3)


@follows_from_the_formula
@quick
@hypothesis.given(logits, logits)
def test_is_from_zero_to_four(teacher, student):
    values = evaluate(LogitCorrelation(reduction=None), teacher, student)
    assert -1e-5 < values.min() <= values.max() < 4 + 1e-5


def test_places_of_a_sequence_are_rows():
    teacher, student = random(2, 3, 4), random(2, 3, 4, seed=1)
    rows = [side.reshape(6, 4) for side in (teacher, student)]
    np.testing.assert_allclose(
        evaluate(LogitCorrelation(reduction=None), teacher, student),
        formula(*rows).reshape(2, 3),
        rtol=1e-5,
    )


def test_constant_logits_have_a_finite_gradient(gradient):
    loss = LogitCorrelation(reduction="sum")
    flat = np.zeros((3, 4), "float32")
    for teacher in (flat, random(3, 4).astype("float32")):
        slope = gradient(lambda x, t=teacher: loss(t, x), flat)
        assert np.all(np.isfinite(slope))
        assert evaluate(loss, teacher, flat) == pytest.approx(6, rel=1e-6)


def test_one_example_has_no_columns():
    teacher, student = random(1, 4), random(1, 4, seed=1)
    value = evaluate(LogitCorrelation(column_weight=0.0), teacher, student)
    both = evaluate(LogitCorrelation(), teacher, student)
    assert both == pytest.approx(value + 1, rel=1e-5)


@pytest.mark.parametrize("argument", ["row_weight", "column_weight"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_refuses_a_negative_weight(argument, value):
    with pytest.raises(ValueError, match=f"Received: {argument}={value}"):
        LogitCorrelation(**{argument: value})


def test_refuses_a_temperature_of_zero():
    with pytest.raises(ValueError, match="temperature=0"):
        LogitCorrelation(temperature=0)
