"""Divergences from a mixture, against NumPy and published code."""

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis.extra.numpy import arrays
from keras import layers, ops
from support import evaluate, evaluate_eagerly, follows_from_the_formula

from keras_distill.losses import JensenShannon, SkewedDivergence

# Values of a well-known library's trainer, by beta and temperature.
JENSEN_SHANNON = {
    (0.0, 1.0): 3.3536258760499886,
    (0.1, 1.0): 0.19739910628104868,
    (0.5, 1.0): 0.4408733707160267,
    (0.5, 2.0): 0.19662748954283707,
    (1.0, 1.0): 2.779048487327214,
}
# The formulas' in float64, which the authors' code, in float32, has too. In
# one direction it leaves out the teacher's entropy.
SKEWED_CROSS_ENTROPY = 3.740811027499981
SKEWED_REVERSE = 1.4655270824120274

quick = hypothesis.settings(max_examples=15, deadline=None, database=None)
logits = arrays(
    np.float32, (3, 5), elements=st.integers(-128, 128).map(lambda i: i / 8)
)


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def random(*shape, seed=0, scale=2.0):
    return np.random.default_rng(seed).normal(0, scale, shape)


def divergence(p, q):
    return (p * np.log(p / q)).sum(axis=-1)


def jensen_shannon(teacher, student, beta, temperature=1.0):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    if beta in (0, 1):
        return divergence(p, q) if beta == 0 else divergence(q, p)
    m = beta * p + (1 - beta) * q
    return beta * divergence(p, m) + (1 - beta) * divergence(q, m)


def skewed(teacher, student, skew, reverse=False):
    p, q = softmax(teacher), softmax(student)
    if reverse:
        p, q = q, p
    return divergence(p, skew * p + (1 - skew) * q)


@pytest.fixture
def sequences(golden_inputs):
    """Sequences of tokens, and the mean over those that count."""
    teacher, student, mask = (
        golden_inputs[name]
        for name in ("teacher_sequences", "student_sequences", "mask")
    )
    return teacher, student, lambda values: values[mask].sum() / mask.sum()


@pytest.mark.parametrize(("beta", "temperature"), JENSEN_SHANNON)
@pytest.mark.usefixtures("float64")
def test_golden_value_of_jensen_shannon(sequences, beta, temperature):
    *pair, mean = sequences
    loss = JensenShannon(beta, temperature, reduction=None, dtype="float64")
    values = evaluate(loss, *pair)
    expected = JENSEN_SHANNON[beta, temperature]
    assert mean(values) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(
        values, jensen_shannon(*pair, beta, temperature), rtol=1e-10
    )


@pytest.mark.parametrize(("beta", "temperature"), JENSEN_SHANNON)
def test_golden_value_of_jensen_shannon_in_float32(
    sequences, beta, temperature
):
    *pair, mean = sequences
    loss = JensenShannon(beta, temperature, reduction=None)
    expected = JENSEN_SHANNON[beta, temperature]
    assert mean(evaluate(loss, *pair)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("float64")
def test_golden_values_of_skewed_divergences(sequences):
    teacher, student, mean = sequences
    ahead = SkewedDivergence(reduction=None, dtype="float64")
    back = SkewedDivergence(reverse=True, reduction=None, dtype="float64")
    p = softmax(teacher)
    entropy = mean(-(p * np.log(p)).sum(axis=-1))
    assert mean(evaluate(ahead, teacher, student)) == pytest.approx(
        SKEWED_CROSS_ENTROPY - entropy, rel=1e-12
    )
    assert mean(evaluate(back, teacher, student)) == pytest.approx(
        SKEWED_REVERSE, rel=1e-12
    )


@pytest.mark.parametrize("skew", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("reverse", [False, True])
def test_skewed_values_are_the_formulas(golden, skew, reverse):
    loss = SkewedDivergence(skew, reverse, reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, *golden),
        skewed(*golden, skew, reverse),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.usefixtures("differentiable")
def test_masked_tokens_count_for_nothing(sequences):
    teacher, student, _ = sequences
    student = student.astype("float32")
    student[0, 3:], student[1, 4:] = 0.0, 0.0
    masked = layers.Masking()(ops.convert_to_tensor(student))
    value = evaluate_eagerly(JensenShannon(), teacher, masked)
    assert value == pytest.approx(JENSEN_SHANNON[0.5, 1.0], rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.usefixtures("float64")
def test_gradient_of_jensen_shannon(gradient, numeric_gradient, beta):
    teacher, student = random(3, 4), random(3, 4, seed=1)
    loss = JensenShannon(beta, 2.0, dtype="float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(
            lambda x: jensen_shannon(teacher, x, beta, 2.0).mean(), student
        ),
        rtol=1e-5,
        atol=1e-9,
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.usefixtures("float64")
def test_gradient_of_skewed_divergences(gradient, numeric_gradient, reverse):
    teacher, student = random(3, 4), random(3, 4, seed=1)
    loss = SkewedDivergence(0.2, reverse, dtype="float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(
            lambda x: skewed(teacher, x, 0.2, reverse).mean(), student
        ),
        rtol=1e-5,
        atol=1e-9,
    )


@follows_from_the_formula
@quick
@hypothesis.given(logits, logits, st.floats(0.01, 0.99))
def test_exchanging_both_sides_exchanges_their_shares(teacher, student, beta):
    np.testing.assert_allclose(
        evaluate(JensenShannon(beta, reduction=None), teacher, student),
        evaluate(JensenShannon(1 - beta, reduction=None), student, teacher),
        rtol=1e-4,
        atol=1e-6,
    )


@follows_from_the_formula
@quick
@hypothesis.given(logits, logits, st.floats(0.01, 0.99))
def test_is_bounded(teacher, student, share):
    values = evaluate(JensenShannon(share, reduction=None), teacher, student)
    most = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert -1e-6 <= values.min() <= values.max() <= most + 1e-5
    for reverse in (False, True):
        loss = SkewedDivergence(share, reverse, reduction=None)
        values = evaluate(loss, teacher, student)
        assert -1e-6 <= values.min() <= values.max() <= -np.log(share) + 1e-5


@follows_from_the_formula
@quick
@hypothesis.given(logits, logits, st.booleans())
def test_is_the_jensen_shannon_divergence_in_halves(teacher, student, reverse):
    skewed = [
        evaluate(SkewedDivergence(0.5, which), teacher, student)
        for which in (reverse, not reverse)
    ]
    whole = evaluate(JensenShannon(), teacher, student)
    assert whole == pytest.approx(np.mean(skewed), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        *(JensenShannon(beta, reduction=None) for beta in (0.0, 0.5, 1.0)),
        *(SkewedDivergence(0.1, r, reduction=None) for r in (False, True)),
        SkewedDivergence(0.0, reduction=None),
    ],
    ids=lambda loss: loss.name,
)
def test_masked_classes_count_for_nothing(loss, gradient):
    """A logit of -inf is a token that is ruled out on both sides."""
    teacher = np.array([[1.0, -np.inf, 2.0], [0.0, 3.0, -np.inf]], "float32")
    student = np.array([[2.0, -np.inf, 0.0], [1.0, 1.0, -np.inf]], "float32")
    kept = [[[1.0, 2.0], [0.0, 3.0]], [[2.0, 0.0], [1.0, 1.0]]]
    np.testing.assert_allclose(
        evaluate(loss, teacher, student), evaluate(loss, *kept), rtol=1e-6
    )
    slope = gradient(lambda x: ops.sum(loss(teacher, x)), student)
    assert np.all(slope[np.isinf(student)] == 0)
    assert np.all(slope[np.isfinite(student)] != 0)


def test_temperature_can_be_set(golden):
    loss = JensenShannon()
    assert isinstance(loss.temperature, keras.Variable)
    loss.temperature = 2.0
    expected = jensen_shannon(*golden, 0.5, 2.0).mean()
    assert evaluate(loss, *golden) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_refuses_a_share_that_is_none(beta):
    with pytest.raises(ValueError, match=f"Received: beta={beta}"):
        JensenShannon(beta)


@pytest.mark.parametrize("skew", [-0.1, 1.0, float("nan")])
def test_refuses_a_skew_that_is_none(skew):
    with pytest.raises(ValueError, match=f"Received: skew={skew}"):
        SkewedDivergence(skew)


def test_refuses_a_temperature_of_zero():
    with pytest.raises(ValueError, match="temperature=0"):
        JensenShannon(temperature=0)
