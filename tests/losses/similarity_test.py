"""Similarity preserving, against NumPy and published code."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from keras import ops
from support import (
    evaluate,
    follows_from_the_formula,
)

from keras_distill.losses import SimilarityPreserving

GOLDEN = 0.0030136352866952064

quick = hypothesis.settings(max_examples=10, deadline=None, database=None)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def formula(teacher, student):
    def similarities(x):
        x = x.reshape(len(x), -1)
        products = x @ x.T
        return products / np.linalg.norm(products, axis=-1, keepdims=True)

    difference = similarities(teacher) - similarities(student)
    return (difference**2).sum(axis=-1) / len(teacher)


@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden_inputs):
    teacher = golden_inputs["teacher_maps_7_channels"]
    student = golden_inputs["student_maps"]
    loss = SimilarityPreserving(reduction=None, dtype="float64")
    values = evaluate(loss, teacher, student)
    assert values.mean() == pytest.approx(GOLDEN, rel=1e-6)
    np.testing.assert_allclose(values, formula(teacher, student), rtol=1e-6)


def test_golden_value_in_float32(golden_inputs):
    teacher = golden_inputs["teacher_maps_7_channels"]
    student = golden_inputs["student_maps"]
    value = evaluate(SimilarityPreserving(), teacher, student)
    assert value == pytest.approx(GOLDEN, rel=1e-5)


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(3, 2, 4), random(3, 3, 2, seed=1)
    loss = SimilarityPreserving(dtype="float64")
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
    value = evaluate(SimilarityPreserving(), teacher, student)
    assert 0 < value < np.inf
    slope = gradient(lambda x: SimilarityPreserving()(teacher, x), student)
    assert np.all(np.isfinite(slope))
    assert dtype == "float16" or np.any(slope != 0)


@pytest.mark.parametrize("zeros", ["teacher", "student", "both"])
def test_gradient_is_finite_where_a_layer_is_silent(gradient, zeros):
    teacher, student = random(4, 3, 2, 5), random(4, 3, 2, 5, seed=1)
    teacher = teacher * (zeros == "student")
    student = student * (zeros == "teacher")
    assert np.isfinite(evaluate(SimilarityPreserving(), teacher, student))
    slope = gradient(
        lambda x: SimilarityPreserving()(ops.cast(teacher, "float32"), x),
        student.astype("float32"),
    )
    assert np.all(np.isfinite(slope))


@follows_from_the_formula
@quick
@hypothesis.given(st.integers(0, 1000), st.floats(0.25, 4))
def test_neither_rotation_nor_scale_matter(seed, scale):
    """Rotations and scales of the features change no similarity."""
    teacher, student = random(5, 6, seed=seed), random(5, 4, seed=seed + 1)
    rotation, _ = np.linalg.qr(random(4, 4, seed=seed + 2))
    loss = SimilarityPreserving(reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher, scale * student @ rotation),
        evaluate(loss, teacher, student),
        rtol=1e-3,
        atol=1e-6,
    )


def test_compares_vectors_and_tokens_of_any_size():
    loss = SimilarityPreserving(reduction=None)
    for shapes in (((4, 3), (4, 7)), ((4, 3, 2), (4, 5, 6))):
        teacher, student = random(*shapes[0]), random(*shapes[1], seed=1)
        np.testing.assert_allclose(
            evaluate(loss, teacher, student),
            formula(teacher, student),
            rtol=1e-5,
        )
