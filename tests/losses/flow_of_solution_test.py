"""Flow of solution, against NumPy and published code."""

import keras
import numpy as np
import pytest
from keras import ops
from support import cnn, crossentropy, images, values

import keras_distill as kd
from keras_distill.losses import FlowOfSolution

GOLDEN = 0.031208349080726318
NAMES = (["a", "b"], ["c", "d"])


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def evaluate(loss, teacher, student):
    sides = [
        [ops.convert_to_tensor(x, loss.dtype) for x in side]
        for side in (teacher, student)
    ]
    return ops.convert_to_numpy(loss(*sides))


def flow(first, second):
    """Of maps of one size."""
    places = first.shape[1] * first.shape[2]
    return np.einsum("nhwa,nhwb->nab", first, second) / places


@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden_inputs):
    sides = [
        [golden_inputs[f"{side}_maps"], golden_inputs[f"{side}_maps_2"]]
        for side in ("teacher", "student")
    ]
    loss = FlowOfSolution(*NAMES, reduction=None, dtype="float64")
    assert evaluate(loss, *sides).mean() == pytest.approx(GOLDEN, rel=1e-6)
    loss = FlowOfSolution(*NAMES)
    assert evaluate(loss, *sides) == pytest.approx(GOLDEN, rel=1e-5)


def test_values_are_the_sum_over_the_steps():
    teacher = [random(2, 3, 2, c, seed=c) for c in (4, 5, 6)]
    student = [random(2, 3, 2, c, seed=10 + c) for c in (4, 5, 6)]
    expected = sum(
        ((flow(*t) - flow(*s)) ** 2).mean(axis=(1, 2))
        for t, s in (
            (teacher[:2], student[:2]),
            (teacher[1:], student[1:]),
        )
    )
    names = list("abc")
    loss = FlowOfSolution(names, names, reduction=None)
    actual = evaluate(loss, teacher, student)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    first = FlowOfSolution(
        names, names, data_format="channels_first", reduction=None
    )
    moved = [[np.moveaxis(x, -1, 1) for x in y] for y in (teacher, student)]
    np.testing.assert_allclose(evaluate(first, *moved), expected, rtol=1e-5)


@pytest.mark.parametrize("names", [(None, None), ("a", "b"), (["a"], ["b"])])
def test_refuses_fewer_than_two_layers(names):
    with pytest.raises(ValueError, match="lists of two layers or more"):
        FlowOfSolution(*names)


def test_comes_back_from_its_config():
    loss = FlowOfSolution(*NAMES, name="mine")
    config = loss.get_config()
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert copy.get_config() == config


# The first stage leaves the last layers alone, of which Keras warns.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.usefixtures("differentiable")
def test_gives_the_student_a_start_in_a_first_stage():
    x, y = images()
    teacher, student = cnn(seed=3), cnn(seed=4)
    names = ["conv", "pool"]
    first = kd.Distiller(
        teacher,
        student,
        losses=FlowOfSolution(names, names),
        hard_label_weight=0,
    )
    first.compile(optimizer=keras.optimizers.SGD(1e-3), loss=None)
    before, head = values(student.variables), student.layers[-1]
    weights = head.get_weights()
    history = first.fit(x, y, epochs=3, shuffle=False, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    # What comes after the last of the layers isn't trained.
    np.testing.assert_array_equal(weights[0], head.get_weights()[0])
    assert np.any(before[0] != values(student.variables)[0])
    second = kd.Distiller(teacher, student, losses=kd.losses.SoftTargets())
    second.compile(optimizer="sgd", loss=crossentropy())
    second.fit(x, y, epochs=1, verbose=0)
    assert np.any(weights[0] != head.get_weights()[0])
