"""Relational distances and angles, against NumPy and published code."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from keras import ops
from support import evaluate, follows_from_the_formula

from keras_distill.losses import RelationalAngle, RelationalDistance

GOLDEN = {
    RelationalDistance: 0.018122123367558755,
    RelationalAngle: 0.013604637743714478,
}

quick = hypothesis.settings(max_examples=10, deadline=None, database=None)
both = pytest.mark.parametrize("loss_class", list(GOLDEN))


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def huber(x):
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def distances(x):
    lengths = np.linalg.norm(x[:, None] - x[None], axis=-1)
    return lengths / lengths[lengths > 0].mean()


def cosines(x):
    x = x[None] - x[:, None]
    lengths = np.linalg.norm(x, axis=-1, keepdims=True)
    x = x / np.where(lengths > 0, lengths, 1)
    return np.einsum("ijd,ikd->ijk", x, x)


def formula(loss_class, teacher, student):
    relations = {RelationalDistance: distances, RelationalAngle: cosines}
    of = relations[loss_class]
    teacher, student = (x.reshape(len(x), -1) for x in (teacher, student))
    values = huber(of(teacher) - of(student))
    return values.reshape(len(values), -1).mean(axis=-1)


@both
@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden_inputs, loss_class):
    pair = golden_inputs["teacher_vectors"], golden_inputs["student_vectors"]
    values = evaluate(loss_class(reduction=None, dtype="float64"), *pair)
    assert values.mean() == pytest.approx(GOLDEN[loss_class], rel=1e-6)
    np.testing.assert_allclose(values, formula(loss_class, *pair), rtol=1e-6)


@both
def test_golden_value_in_float32(golden_inputs, loss_class):
    pair = golden_inputs["teacher_vectors"], golden_inputs["student_vectors"]
    value = evaluate(loss_class(), *pair)
    assert value == pytest.approx(GOLDEN[loss_class], rel=1e-4)


@both
@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(
    gradient, numeric_gradient, loss_class
):
    teacher, student = random(4, 2, 3), random(4, 2, 2, seed=1)
    loss = loss_class(dtype="float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(
            lambda x: formula(loss_class, teacher, x).mean(), student
        ),
        rtol=1e-4,
        atol=1e-8,
    )


@pytest.mark.parametrize("batch", [1, 2, 15, 16, 17, 33])
def test_batches_that_groups_do_not_divide(batch):
    teacher, student = random(batch, 3), random(batch, 4, seed=1)
    np.testing.assert_allclose(
        evaluate(RelationalAngle(reduction=None), teacher, student),
        formula(RelationalAngle, teacher, student),
        rtol=1e-3,
        atol=1e-6,
    )


@both
def test_equal_examples_have_a_finite_gradient(gradient, loss_class):
    teacher, student = random(4, 3), random(4, 3, seed=1)
    student[1] = student[0]
    loss = loss_class()
    slope = gradient(
        lambda x: loss(ops.cast(teacher, "float32"), x),
        student.astype("float32"),
    )
    assert np.all(np.isfinite(slope))
    assert np.isfinite(evaluate(loss, teacher[:1], student[:1]))


@follows_from_the_formula
@both
@quick
@hypothesis.given(st.integers(0, 1000), st.floats(0.25, 4))
def test_neither_place_nor_rotation_nor_scale_matter(loss_class, seed, scale):
    teacher, student = random(5, 6, seed=seed), random(5, 4, seed=seed + 1)
    rotation, _ = np.linalg.qr(random(4, 4, seed=seed + 2))
    moved = scale * student @ rotation + random(4, seed=seed + 3)
    loss = loss_class(reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher, moved),
        evaluate(loss, teacher, student),
        rtol=1e-2,
        atol=1e-5,
    )
