"""Sorted probabilities, against NumPy and a value of the formula."""

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis.extra.numpy import arrays
from keras import layers
from support import (
    evaluate,
    follows_from_the_formula,
)

import keras_distill as kd
from keras_distill.losses import SortedProbabilities

# Of the formula, worked out by other code; there are 15 classes to 12.
GOLDEN = 0.24537250222219725

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
    p, q = (-np.sort(-softmax(side), axis=-1) for side in (teacher, student))
    total = 0
    for c in range(max(p.shape[-1], q.shape[-1])):
        left = p[..., c] if c < p.shape[-1] else 0
        right = q[..., c] if c < q.shape[-1] else 0
        total = total + np.abs(left - right)
    return total


@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden_inputs):
    pair = golden_inputs["teacher_tokens"], golden_inputs["student_tokens"]
    loss = SortedProbabilities(reduction=None, dtype="float64")
    values = evaluate(loss, *pair)
    assert values.mean() == pytest.approx(GOLDEN, rel=1e-12)
    np.testing.assert_allclose(values, formula(*pair), rtol=1e-12)
    # The student may have more classes too.
    np.testing.assert_allclose(
        evaluate(loss, *pair[::-1]), formula(*pair), rtol=1e-12
    )


def test_golden_value_in_float32(golden_inputs):
    pair = golden_inputs["teacher_tokens"], golden_inputs["student_tokens"]
    value = evaluate(SortedProbabilities(), *pair)
    assert value == pytest.approx(GOLDEN, rel=1e-6)


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(3, 6), random(3, 4, seed=1)
    loss = SortedProbabilities(dtype="float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(lambda x: formula(teacher, x).mean(), student),
        rtol=1e-5,
        atol=1e-9,
    )


@follows_from_the_formula
@quick
@hypothesis.given(logits, logits, st.permutations(range(5)))
def test_which_class_is_which_means_nothing(teacher, student, order):
    loss = SortedProbabilities(reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher[:, order], student),
        evaluate(loss, teacher, student),
        atol=1e-6,
    )


@follows_from_the_formula
@quick
@hypothesis.given(logits, logits)
def test_is_at_most_the_distance_in_any_other_order(teacher, student):
    """Sorting is the cheapest way to pair the classes."""
    values = evaluate(SortedProbabilities(reduction=None), teacher, student)
    unsorted = np.abs(softmax(teacher) - softmax(student)).sum(axis=-1)
    assert np.all(values <= unsorted + 1e-6)


def test_sequences():
    teacher, student = random(2, 3, 7), random(2, 3, 5, seed=1)
    np.testing.assert_allclose(
        evaluate(SortedProbabilities(reduction=None), teacher, student),
        formula(teacher, student),
        rtol=1e-5,
    )


def test_class_map_picks_the_teachers_classes():
    teacher, student = random(4, 7), random(4, 3, seed=1)
    value = evaluate(SortedProbabilities(class_map=[6, 0, 2]), teacher, student)
    expected = formula(teacher[:, [6, 0, 2]], student).mean()
    assert value == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"classes \[7\]"):
        evaluate(SortedProbabilities(class_map=[7, 0, 1]), teacher, student)


def test_refuses_sequences_of_other_lengths():
    loss = SortedProbabilities()
    with pytest.raises(ValueError, match="cut sequences to the same length"):
        loss(random(2, 4, 7), random(2, 3, 7))


@pytest.mark.usefixtures("differentiable")
def test_distils_from_a_teacher_of_other_classes():
    x = random(16, 4).astype("float32")
    teacher, student = (
        keras.Sequential([keras.Input((4,)), layers.Dense(classes)])
        for classes in (6, 3)
    )
    distiller = kd.Distiller(teacher, student, SortedProbabilities())
    distiller.compile(optimizer=keras.optimizers.SGD(0.5), loss=None)
    history = distiller.fit(x, epochs=5, verbose=0).history["loss"]
    assert history[-1] < history[0]
