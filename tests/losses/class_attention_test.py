"""Class activation maps, against their formula and published code."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from support import (
    evaluate,
    follows_from_the_formula,
)

from keras_distill.losses import ClassAttention


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def pool(x, size):
    """Averages over windows that nearly don't overlap."""
    for axis in (1, 2):
        length = x.shape[axis]
        windows = [
            range(i * length // size, -((i + 1) * length // -size))
            for i in range(size)
        ]
        x = np.stack(
            [x.take(window, axis).mean(axis) for window in windows], axis
        )
    return x


def formula(teacher, student, size=2, normalize=True):
    maps = [pool(x, size) for x in (teacher, student)]
    if normalize:
        maps = [
            x / np.sqrt((x**2).sum(axis=(1, 2), keepdims=True)) for x in maps
        ]
    return ((maps[0] - maps[1]) ** 2).mean(axis=(1, 2, 3))


@pytest.mark.parametrize(
    ("normalize", "golden"),
    [(True, 0.5211447739851238), (False, 0.14408212543191776)],
)
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-6), (None, 2e-6)])
@pytest.mark.usefixtures("float64")
def test_is_that_of_the_authors(golden_inputs, normalize, golden, dtype, rtol):
    loss = ClassAttention(normalize=normalize, reduction=None, dtype=dtype)
    teacher = golden_inputs["teacher_maps"]
    values = evaluate(loss, teacher, golden_inputs["student_maps"])
    np.testing.assert_allclose(
        values.astype("float64").mean(), golden, rtol=rtol
    )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.usefixtures("float64")
def test_values_and_gradient_are_the_formulas(
    gradient, numeric_gradient, size, normalize
):
    teacher, student = random(2, 6, 4, 3), random(2, 3, 5, 3, seed=1)
    loss = ClassAttention(
        size=size, normalize=normalize, reduction=None, dtype="float64"
    )
    np.testing.assert_allclose(
        evaluate(loss, teacher, student),
        formula(teacher, student, size, normalize),
        rtol=1e-6,
        atol=1e-12,
    )
    if size == 1 and normalize:
        return  # a unit map of one place is 1 or -1
    np.testing.assert_allclose(
        gradient(lambda x: ops.sum(loss(teacher, x)), student),
        numeric_gradient(
            lambda x: formula(teacher, x, size, normalize).sum(), student
        ),
        rtol=1e-6,
        atol=1e-7,  # Keras' mean rounds to float32 on PyTorch
    )


@follows_from_the_formula
@given(factor=st.floats(0.1, 100.0), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_only_the_shape_of_a_map_counts(factor, seed):
    teacher, student = random(2, 4, 4, 3), random(2, 4, 4, 3, seed=seed)
    loss = ClassAttention(reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher, factor * student),
        evaluate(loss, teacher, student),
        rtol=1e-4,
        atol=1e-6,
    )


def test_gradient_is_finite_at_a_map_of_zeros(gradient):
    loss = ClassAttention()
    slope = gradient(
        lambda x: loss(random(2, 4, 4, 3).astype("float32"), x),
        np.zeros((2, 4, 4, 3), "float32"),
    )
    assert np.all(slope == 0)


def test_convolution_before_pooling_gives_the_same_logits():
    """What the docstring says of models that end in a dense layer."""
    x, kernel = random(2, 4, 4, 5), random(5, 3, seed=1)
    maps = ops.convert_to_numpy(ops.conv(x, kernel[None, None]))
    np.testing.assert_allclose(
        maps.mean(axis=(1, 2)), x.mean(axis=(1, 2)) @ kernel, atol=1e-6
    )


@pytest.mark.parametrize("size", [0, -1, 2.0, None])
def test_refuses_another_size(size):
    with pytest.raises(ValueError, match=r"Received: size=.*Pass an integer"):
        ClassAttention(size=size)


def test_refuses_vectors_and_other_classes():
    with pytest.raises(ValueError, match="4 axes"):
        ClassAttention()(random(2, 3), random(2, 3))
    with pytest.raises(ValueError, match="channels"):
        ClassAttention().check_shapes((None, 4, 4, 3), (None, 4, 4, 2))


def test_comes_back_from_its_config():
    config = keras.saving.serialize_keras_object(
        ClassAttention(size=3, normalize=False)
    )
    copy = keras.saving.deserialize_keras_object(config)
    assert (copy.size, copy.normalize) == (3, False)
