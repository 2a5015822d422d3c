"""Semantic calibration, against its formula."""

import keras
import numpy as np
import pytest
from keras import ops
from support import cnn, evaluate, follows_from_the_formula, images, values
from support import teacher as make_teacher

import keras_distill as kd
from keras_distill.losses import SemanticCalibration

TEACHERS = [(3, 6, 6, 2), (3, 3, 3, 4), (3, 1, 1, 3)]
STUDENTS = [(3, 6, 6, 3), (3, 2, 2, 2)]


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def built(teachers=TEACHERS, students=STUDENTS, **arguments):
    keras.utils.set_random_seed(0)
    loss = SemanticCalibration(
        [f"t{i}" for i in range(len(teachers))],
        [f"s{i}" for i in range(len(students))],
        attention=4,
        reduction=None,
        **arguments,
    )
    loss.build(teachers, students)
    return loss


def sides():
    return (
        [random(*s, seed=i) for i, s in enumerate(TEACHERS)],
        [random(*s, seed=9 + i) for i, s in enumerate(STUDENTS)],
    )


def unit(x):
    length = np.sqrt((x**2).sum(axis=-1, keepdims=True))
    return x / np.where(length > 0, length, 1.0)


def pool(x, size):
    for axis, count in zip((1, 2), size, strict=True):
        length = x.shape[axis]
        windows = [
            range(i * length // count, -((i + 1) * length // -count))
            for i in range(count)
        ]
        x = np.stack(
            [x.take(window, axis).mean(axis) for window in windows], axis
        )
    return x


def convolve(x, kernel):
    size = len(kernel)
    height, width = x.shape[1:3]
    edge = (size - 1) // 2
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    return sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )


def project(model, x):
    first, _, _, second, _, _, third = model.layers
    for layer in (first, second):
        x = convolve(x, layer.get_weights()[0])
        mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        x = np.maximum((x - mean) / np.sqrt(variance + 1e-5), 0)
    return convolve(x, third.get_weights()[0])


def embed(model, x):
    kernel, bias, other, other_bias = model.get_weights()
    x = np.maximum(unit(x.mean(axis=(1, 2))) @ kernel + bias, 0)
    return unit(x @ other + other_bias)


def attention(loss, teachers, students):
    keys = [embed(m, x) for m, x in zip(loss.keys, teachers, strict=True)]
    queries = [embed(m, x) for m, x in zip(loss.queries, students, strict=True)]
    scores = np.array([[(q * k).sum(-1) for k in keys] for q in queries])
    powers = np.exp(scores)
    return powers / powers.sum(axis=1, keepdims=True)


def formula(loss, teachers, students):
    weights = attention(loss, teachers, students)
    total = 0.0
    for i, s in enumerate(students):
        for j, t in enumerate(teachers):
            size = np.minimum(s.shape[1:3], t.shape[1:3])
            projector = loss.projectors[i * len(teachers) + j]
            difference = pool(t, size) - project(projector, pool(s, size))
            squares = (difference**2).mean(axis=(1, 2, 3))
            total = total + weights[i, j] * squares
    return total / len(students)


@pytest.mark.usefixtures("float64")
def test_values_and_gradient_are_the_formulas(gradient, numeric_gradient):
    loss = built(dtype="float64")
    teachers, students = sides()
    np.testing.assert_allclose(
        evaluate(loss, teachers, students),
        formula(loss, teachers, students),
        rtol=1e-6,
    )
    first, second = students
    np.testing.assert_allclose(
        gradient(lambda x: ops.sum(loss(teachers, [first, x])), second),
        numeric_gradient(
            lambda x: formula(loss, teachers, [first, x]).sum(), second
        ),
        rtol=1e-5,
        atol=1e-5,
    )


@follows_from_the_formula
def test_weights_sum_to_one_for_each_example_and_layer():
    loss = built()
    teachers, students = sides()
    weights = ops.convert_to_numpy(
        loss.weights(
            *(
                [ops.cast(x, "float32") for x in side]
                for side in (teachers, students)
            )
        )
    )
    assert weights.shape == (3, 2, 3)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    assert np.any(weights[0] != weights[1])


def test_takes_batches_of_any_size():
    loss = built()
    for count in (2, 3):
        cut = (
            [ops.cast(x[:count], "float32") for x in side] for side in sides()
        )
        assert evaluate(loss, *cut).shape == (count,)


def test_one_layer_of_the_teacher_has_all_the_weight():
    loss = built(TEACHERS[:1], STUDENTS)
    assert loss.keys == []
    assert loss.queries == []
    teachers, students = sides()
    assert evaluate(loss, teachers[:1], students).shape == (3,)


@pytest.mark.usefixtures("differentiable")
def test_one_layer_may_be_named_next_to_several():
    loss = SemanticCalibration("pool", ["conv", "pool"])
    distiller = kd.Distiller(make_teacher(), cnn(), loss)
    logs = distiller.train_on_batch(*images(8), return_dict=True)
    assert len(loss.projectors) == 2
    assert np.isfinite(logs["semantic_calibration_loss"])


@pytest.mark.usefixtures("differentiable")
def test_trains_queries_keys_and_projectors():
    loss = SemanticCalibration(
        teacher_layer_name=["conv", "pool"], student_layer_name="pool"
    )
    distiller = kd.Distiller(make_teacher(), cnn(), loss, loss_weights=1.0)
    parts = [*loss.projectors, *loss.queries, *loss.keys]
    assert len(parts) == 2 + 1 + 2
    variables = [v for part in parts for v in part.trainable_variables]
    before = values(variables)
    x, y = images(16)
    distiller.fit(x, y, batch_size=8, epochs=2, verbose=0)
    for variable, old in zip(variables, before, strict=True):
        assert np.any(values([variable])[0] != old), variable.path


def test_refuses_what_is_no_map():
    with pytest.raises(ValueError, match="4 axes"):
        SemanticCalibration().build((None, 4), (None, 4))


@pytest.mark.parametrize("size", [0, 2.0])
def test_refuses_another_size_of_attention(size):
    with pytest.raises(ValueError, match=r"attention=.*Pass an integer"):
        SemanticCalibration(attention=size)


@pytest.mark.usefixtures("differentiable")
def test_refuses_a_projector():
    loss = SemanticCalibration(
        teacher_layer_name="pool", student_layer_name="pool", projector="auto"
    )
    with pytest.raises(ValueError, match="makes its own projectors"):
        kd.Distiller(make_teacher(), cnn(), loss)
