"""Variational information, against NumPy and published code."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_distill.losses import VariationalInformation

GOLDEN = 1.002685796116876


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def formula(teacher, student, variance=5.0):
    values = (student - teacher) ** 2 / variance + np.log(variance)
    return values.reshape(len(values), -1).mean(axis=-1) / 2


def built(*shapes, **arguments):
    loss = VariationalInformation(**arguments)
    loss.build(*shapes)
    return loss


def still(loss, *pair):
    return ops.convert_to_numpy(
        ops.stop_gradient(
            loss(*(ops.convert_to_tensor(x, loss.dtype) for x in pair))
        )
    )


@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden_inputs):
    pair = golden_inputs["teacher_maps"], golden_inputs["student_maps"]
    shape = pair[0].shape
    loss = built(shape, shape, depth=0, reduction=None, dtype="float64")
    values = still(loss, *pair)
    assert values.mean() == pytest.approx(GOLDEN, rel=1e-6)
    np.testing.assert_allclose(values, formula(*pair), rtol=1e-6)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 2)])
def test_values_behind_the_regressor(shape):
    teacher, student = random(*shape, 4), random(*shape, 3, seed=1)
    loss = built(teacher.shape, student.shape, reduction=None)
    prediction = student
    for i, layer in enumerate(loss.regressors):
        prediction = prediction @ ops.convert_to_numpy(layer.kernel)
        if i < 2:
            prediction = np.maximum(prediction, 0)
    assert len(loss.regressors) == 3
    np.testing.assert_allclose(
        still(loss, teacher, student),
        formula(teacher, prediction),
        rtol=1e-4,
    )


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(2, 2, 3, 4), random(2, 2, 3, 3, seed=1)
    loss = built(teacher.shape, student.shape, depth=1, dtype="float64")
    (regressor,) = loss.regressors
    kernel = ops.convert_to_numpy(regressor.kernel)
    teacher_tensor = ops.convert_to_tensor(teacher, "float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher_tensor, x), student),
        numeric_gradient(
            lambda x: formula(teacher, x @ kernel).mean(), student
        ),
        rtol=1e-5,
        atol=1e-9,
    )


def test_each_pair_of_layers_has_parts_of_its_own():
    shapes = [(None, 2, 4), (None, 3, 5)], [(None, 2, 3), (None, 3, 2)]
    names = ["a", "b"]
    loss = built(*shapes, teacher_layer_name=names, student_layer_name=names)
    assert [layer.kernel.shape[-1] for layer in loss.regressors] == [4] * 3 + [
        5
    ] * 3
    teacher, student = (
        [ops.convert_to_tensor(random(2, *s[1:]), "float32") for s in side]
        for side in shapes
    )
    assert np.isfinite(
        ops.convert_to_numpy(ops.stop_gradient(loss(teacher, student)))
    )


@pytest.mark.usefixtures("differentiable")
def test_variance_is_least_where_it_equals_the_error(gradient):
    teacher, student = random(6, 3), random(6, 3, seed=1)
    error = ((teacher - student) ** 2).mean(axis=0)
    loss = built((None, 3), (None, 3), depth=0)
    raw = np.log(np.expm1(error - 1e-5)).astype("float32")
    loss.raw_variances = [keras.ops.convert_to_tensor(raw)]

    def value(x):
        loss.raw_variances = [x]
        return loss(ops.cast(teacher, "float32"), ops.cast(student, "float32"))

    np.testing.assert_allclose(gradient(value, raw), 0, atol=1e-6)


@pytest.mark.parametrize("depth", [-1, 1.5])
def test_refuses_other_depths(depth):
    with pytest.raises(ValueError, match="Received: depth="):
        VariationalInformation(depth=depth)


@pytest.mark.parametrize("variances", [(1e-6, 1e-5), (1, 0), (np.inf, 1)])
def test_refuses_variances_that_cannot_be(variances):
    with pytest.raises(ValueError, match="Received: initial_variance="):
        VariationalInformation(None, None, 3, *variances)


def test_without_a_regressor_the_channels_must_be_the_teachers():
    loss = VariationalInformation(depth=0)
    with pytest.raises(ValueError, match="projector='auto'"):
        loss.check_shapes((None, 3), (None, 4))
