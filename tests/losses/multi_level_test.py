"""Multi-level logits, against NumPy and published code."""

import numpy as np
import pytest
from keras import ops
from support import (
    evaluate,
    follows_from_the_formula,
)

from keras_distill.losses import MultiLevelLogits
from keras_distill.losses.multi_level import (
    batch_correlation,
    class_correlation,
)

# Values of the authors' code for the parts at temperature 4.
DIVERGENCE = 5.004764872996098
CLASSES = 0.012268984343388186
BATCH = 0.004601371473378055


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def random(*shape, seed=0, scale=2.0):
    return np.random.default_rng(seed).normal(0, scale, shape)


def parts(teacher, student, temperature):
    """The three parts: of each example, of the classes, of each example."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return (
        temperature**2 * (p * np.log(p / q)).sum(axis=-1),
        ((p.T @ p - q.T @ q) ** 2).sum() / p.shape[-1],
        ((p @ p.T - q @ q.T) ** 2).sum(axis=-1),
    )


def formula(teacher, student, temperatures=(4, 3, 5, 2, 6)):
    return sum(sum(parts(teacher, student, t)) for t in temperatures)


@pytest.mark.usefixtures("float64")
def test_golden_values_of_the_correlations(golden):
    p, q = (ops.convert_to_tensor(softmax(side / 4)) for side in golden)
    classes = float(class_correlation(p, q))
    batch = ops.convert_to_numpy(batch_correlation(p, q)).astype("float64")
    assert classes == pytest.approx(CLASSES, rel=1e-12)
    assert batch.mean() == pytest.approx(BATCH, rel=1e-12)


@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden):
    loss = MultiLevelLogits([4.0], reduction=None, dtype="float64")
    assert evaluate(loss, *golden).mean() == pytest.approx(
        DIVERGENCE + CLASSES + BATCH, rel=1e-12
    )


def test_golden_value_in_float32(golden):
    assert evaluate(MultiLevelLogits([4.0]), *golden) == pytest.approx(
        DIVERGENCE + CLASSES + BATCH, rel=1e-6
    )


@pytest.mark.usefixtures("float64")
def test_values_are_the_formulas(golden):
    loss = MultiLevelLogits(reduction=None, dtype="float64")
    np.testing.assert_allclose(
        evaluate(loss, *golden), formula(*golden), rtol=1e-10
    )


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(4, 3), random(4, 3, seed=1)
    loss = MultiLevelLogits(dtype="float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(lambda x: formula(teacher, x).mean(), student),
        rtol=1e-5,
        atol=1e-9,
    )


def test_places_of_a_sequence_are_examples():
    teacher, student = random(2, 3, 4), random(2, 3, 4, seed=1)
    rows = [side.reshape(6, 4) for side in (teacher, student)]
    np.testing.assert_allclose(
        evaluate(MultiLevelLogits(reduction=None), teacher, student),
        formula(*rows).reshape(2, 3),
        rtol=1e-5,
    )


@follows_from_the_formula
def test_a_constant_in_a_row_means_nothing(golden):
    teacher, student = golden
    shift = np.arange(6.0)[:, None]
    np.testing.assert_allclose(
        evaluate(MultiLevelLogits(reduction=None), teacher + shift, student),
        evaluate(MultiLevelLogits(reduction=None), teacher, student - shift),
        rtol=1e-5,
    )


@pytest.mark.parametrize("wrong", [[], [4.0, 0.0], [-1.0], [float("nan")]])
def test_refuses_temperatures_that_are_not_positive(wrong):
    with pytest.raises(ValueError, match=r"Received: temperatures=\["):
        MultiLevelLogits(wrong)
