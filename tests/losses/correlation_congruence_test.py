"""Correlation congruence in both forms, against NumPy and published code."""

from math import exp, factorial

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from keras import ops
from support import (
    evaluate,
    follows_from_the_formula,
)

from keras_distill.losses import CorrelationCongruence, KernelCongruence

GOLDEN = 16.227073479162833
GOLDEN_DISTANCE = 1.833671384745452

quick = hypothesis.settings(max_examples=10, deadline=None, database=None)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def embeddings(inputs):
    return inputs["teacher_embeddings"], inputs["student_embeddings"]


def consecutive(teacher, student):
    difference = np.abs(teacher - student)
    return (difference[:-1] * difference[1:]).sum(axis=-1).mean()


def kernel(x, normalize=True, gamma=0.4, order=2):
    x = x.reshape(len(x), -1)
    if normalize:
        x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return sum(
        exp(-2 * gamma) * (2 * gamma) ** p / factorial(p) * (x @ x.T) ** p
        for p in range(order + 1)
    )


def formula(teacher, student, order=2):
    difference = kernel(teacher, order=order) - kernel(student, order=order)
    return (difference**2).mean(axis=-1)


@pytest.mark.usefixtures("float64")
def test_golden_value_of_consecutive_examples(golden_inputs):
    loss = CorrelationCongruence(
        embedding=None, reduction=None, dtype="float64"
    )
    values = evaluate(loss, *embeddings(golden_inputs))
    assert values.mean() == pytest.approx(GOLDEN, rel=1e-12)


@pytest.mark.usefixtures("float64")
def test_golden_value_of_the_kernels_distance(golden_inputs):
    loss = KernelCongruence(form="distance", reduction=None, dtype="float64")
    values = evaluate(loss, *embeddings(golden_inputs))
    assert values.mean() == pytest.approx(GOLDEN_DISTANCE, rel=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("order", [1, 2, 3])
def test_kernels_values_are_the_formulas(order):
    teacher, student = random(5, 2, 4), random(5, 3, 2, seed=1)
    loss = KernelCongruence(order=order, reduction=None, dtype="float64")
    np.testing.assert_allclose(
        evaluate(loss, teacher, student),
        formula(teacher, student, order),
        rtol=1e-6,
    )


@pytest.mark.usefixtures("float64")
def test_gradients_are_those_of_the_formulas(gradient, numeric_gradient):
    teacher, student = random(3, 4), random(3, 4, seed=1)
    for loss, of in (
        (CorrelationCongruence(embedding=None, dtype="float64"), consecutive),
        (KernelCongruence(dtype="float64"), lambda *x: formula(*x).mean()),
    ):
        np.testing.assert_allclose(
            gradient(lambda x, loss=loss: loss(teacher, x), student),
            numeric_gradient(lambda x, of=of: of(teacher, x), student),
            rtol=1e-5,
            atol=1e-8,
        )


def test_order_of_a_large_series_is_the_gaussian_kernel():
    """Of unit vectors."""
    x = random(4, 3)
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    y = np.eye(4, 3) + 0.5
    y = y / np.linalg.norm(y, axis=-1, keepdims=True)

    def gaussian(x):
        squares = ((x[:, None] - x[None]) ** 2).sum(axis=-1)
        return np.exp(-0.4 * squares)

    loss = KernelCongruence(order=12, reduction=None)
    expected = ((gaussian(x) - gaussian(y)) ** 2).mean(axis=-1)
    np.testing.assert_allclose(evaluate(loss, x, y), expected, rtol=1e-4)


def test_embeds_both_sides_of_any_size():
    loss = CorrelationCongruence(embedding=8, reduction=None)
    teacher, student = random(4, 2, 3), random(4, 3, 5, seed=1)
    loss.build(teacher.shape, student.shape)
    embedded = [
        x.reshape(4, -1) @ ops.convert_to_numpy(layers[0].kernel)
        for x, layers in (
            (teacher, loss.teacher_embeddings),
            (student, loss.student_embeddings),
        )
    ]
    pair = (ops.convert_to_tensor(x, "float32") for x in (teacher, student))
    values = ops.convert_to_numpy(ops.stop_gradient(loss(*pair)))
    assert values.mean() == pytest.approx(consecutive(*embedded), rel=1e-4)


def test_one_example_has_no_next():
    loss = CorrelationCongruence(embedding=None)
    assert evaluate(loss, random(1, 3), random(1, 3, seed=1)) == 0


@follows_from_the_formula
@quick
@hypothesis.given(st.integers(0, 1000), st.floats(0.25, 4))
def test_neither_rotation_nor_scale_matter_to_the_kernel(seed, scale):
    teacher, student = random(5, 6, seed=seed), random(5, 4, seed=seed + 1)
    rotation, _ = np.linalg.qr(random(4, 4, seed=seed + 2))
    loss = KernelCongruence(reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher, scale * student @ rotation),
        evaluate(loss, teacher, student),
        rtol=1e-3,
        atol=1e-6,
    )


@pytest.mark.parametrize("embedding", [0, -1, 2.5])
def test_refuses_an_embedding_that_is_no_width(embedding):
    with pytest.raises(ValueError, match="Received: embedding="):
        CorrelationCongruence(embedding=embedding)


def test_refuses_to_embed_an_unknown_size():
    with pytest.raises(ValueError, match="GlobalAveragePooling2D"):
        CorrelationCongruence().build((None, None, 3), (None, 2, 3))


@pytest.mark.parametrize(
    "arguments", [{"gamma": 0}, {"order": 0}, {"order": 1.5}, {"form": "x"}]
)
def test_refuses_other_kernels(arguments):
    with pytest.raises(ValueError, match=f"Received: {next(iter(arguments))}="):
        KernelCongruence(**arguments)
