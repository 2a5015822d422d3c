"""Knowledge review, against its formula and published code."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops
from support import (
    CLASSES,
    evaluate,
    follows_from_the_formula,
    images,
    values,
)

import keras_distill as kd
from keras_distill.losses import KnowledgeReview
from keras_distill.losses.review import hierarchical_context, resize_nearest


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def resize(x, size):
    rows, columns = (
        np.arange(length) * before // length
        for length, before in zip(size, x.shape[1:3], strict=True)
    )
    return x[:, rows][:, :, columns]


def pool(x, size):
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


def context(teacher, student):
    maps = [teacher - student]
    sizes = [s for s in (4, 2, 1) if s < min(student.shape[1:3])]
    maps += [pool(maps[0], size) for size in sizes]
    weights = 0.5 ** np.arange(len(maps))
    means = [(m**2).mean(axis=(1, 2, 3)) for m in maps]
    return np.average(means, axis=0, weights=weights)


def convolve(x, kernel):
    """A convolution of 1x1 or 3x3, with zeros around."""
    size = len(kernel)
    height, width = x.shape[1:3]
    edge = (size - 1) // 2
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )


def through(layer, x):
    x = convolve(x, np.asarray(layer.layers[0].get_weights()[0], "float64"))
    return (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + 1e-5)


def formula(loss, teachers, students):
    total, deeper = 0.0, None
    for i in reversed(range(len(students))):
        fused = through(loss.reducers[i], students[i])
        if deeper is not None:
            deeper = resize(deeper, fused.shape[1:3])
            kernel, bias = loss.attentions[i].get_weights()
            scores = convolve(np.concatenate([fused, deeper], -1), kernel)
            share = 1 / (1 + np.exp(-scores - bias))
            fused = share[..., :1] * fused + share[..., 1:] * deeper
        deeper = fused
        translated = through(
            loss.translators[i], resize(fused, teachers[i].shape[1:3])
        )
        total = total + context(teachers[i], translated)
    return total


@pytest.mark.usefixtures("float64")
def test_context_is_that_of_the_authors(golden_inputs):
    golden = 0.0
    for suffix in ("", "_2"):
        teacher, student = (
            ops.convert_to_tensor(golden_inputs[f"{who}_maps{suffix}"])
            for who in ("teacher", "student")
        )
        golden += ops.convert_to_numpy(
            hierarchical_context(teacher, student)
        ).mean()
    np.testing.assert_allclose(golden, 2.4879800135266827, rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (5, 3), (7, 9)])
def test_context_is_the_formula(size):
    teacher, student = random(2, *size, 3), random(2, *size, 3, seed=1)
    value = hierarchical_context(
        *(
            ops.convert_to_tensor(x.astype("float32"))
            for x in (teacher, student)
        )
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(value), context(teacher, student), rtol=1e-5
    )


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_resizes_to_the_nearest(before, height, width):
    x = random(1, before, before + 1, 2).astype("float32")
    np.testing.assert_array_equal(
        ops.convert_to_numpy(resize_nearest(x, (height, width))),
        resize(x, (height, width)),
    )


TEACHERS = [(2, 4, 4, 4), (2, 3, 4, 5), (2, 2, 2, 2)]
STUDENTS = [(2, 5, 4, 2), (2, 3, 2, 3), (2, 2, 2, 4)]
NAMES = ["a", "b", "c"]


@pytest.mark.usefixtures("float64")
def test_values_and_gradients_are_the_formulas(gradient, numeric_gradient):
    keras.utils.set_random_seed(0)
    loss = KnowledgeReview(NAMES, NAMES, 3, reduction=None, dtype="float64")
    loss.build(TEACHERS, STUDENTS)
    teachers = [random(*s, seed=i) for i, s in enumerate(TEACHERS)]
    students = [random(*s, seed=9 + i) for i, s in enumerate(STUDENTS)]
    np.testing.assert_allclose(
        evaluate(loss, teachers, students),
        formula(loss, teachers, students),
        rtol=1e-6,
    )
    deepest = students[2]
    np.testing.assert_allclose(
        gradient(
            lambda x: ops.sum(loss(teachers, [*students[:2], x])), deepest
        ),
        numeric_gradient(
            lambda x: formula(loss, teachers, [*students[:2], x]).sum(),
            deepest,
        ),
        rtol=1e-5,
        atol=1e-5,
    )


@follows_from_the_formula
def test_a_vector_is_a_map_of_one_place():
    keras.utils.set_random_seed(0)
    loss = KnowledgeReview(NAMES[:2], NAMES[:2], 3, reduction=None)
    loss.build([(3, 4, 4, 2), (3, 5)], [(3, 4, 4, 2), (3, 3)])
    teachers = [random(3, 4, 4, 2), random(3, 5)]
    students = [random(3, 4, 4, 2, seed=1), random(3, 3, seed=2)]
    expected = formula(
        loss,
        [teachers[0], teachers[1][:, None, None]],
        [students[0], students[1][:, None, None]],
    )
    given = (
        [ops.convert_to_tensor(x.astype("float32")) for x in side]
        for side in (teachers, students)
    )
    np.testing.assert_allclose(evaluate(loss, *given), expected, rtol=1e-3)


def network(width):
    keras.utils.set_random_seed(width)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(width, 3, activation="relu", name="one"),
            layers.Conv2D(width + 1, 3, strides=2, name="two"),
            layers.GlobalAveragePooling2D(name="pooled"),
            layers.Dense(CLASSES),
        ]
    )


@pytest.mark.usefixtures("differentiable")
def test_trains_all_its_parts_in_a_distiller():
    stages = ["one", "two", "pooled"]
    loss = KnowledgeReview(stages, stages)
    distiller = kd.Distiller(network(6), network(4), loss)
    assert loss.reducers[0].output_shape[-1] == 5  # the student's deepest
    parts = [*loss.reducers, *loss.translators, *loss.attentions]
    assert len(parts) == 8
    variables = [v for part in parts for v in part.trainable_variables]
    before = values(variables)
    x, y = images(16)
    distiller.compile(optimizer="sgd")
    distiller.fit(x, y, batch_size=8, epochs=2, verbose=0)
    for variable, old in zip(variables, before, strict=True):
        assert np.any(values([variable])[0] != old), variable.path


def test_fuses_in_at_most_512_channels():
    loss = KnowledgeReview()
    loss.build((None, 2, 2, 3), (None, 2, 2, 600))
    assert loss.reducers[0].output_shape[-1] == 512


@pytest.mark.parametrize("channels", [0, 1.5])
def test_refuses_other_channels(channels):
    with pytest.raises(ValueError, match=r"mid_channels=.*Pass an integer"):
        KnowledgeReview(mid_channels=channels)


def test_refuses_tokens():
    with pytest.raises(ValueError, match="2 or 4 axes"):
        KnowledgeReview().check_shapes((None, 5, 3), (None, 5, 3))
