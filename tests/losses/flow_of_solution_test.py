"""Flow of solution, against NumPy and published code."""

import keras
import numpy as np
import pytest
import support
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
    return support.evaluate(loss, *sides)


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


def formula(teacher, student):
    """Of two layers of maps of one size."""
    return ((flow(*teacher) - flow(*student)) ** 2).mean(axis=(1, 2))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("layer", [0, 1])
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient, layer):
    teacher, student = (
        [random(2, 2, 3, c, seed=seed + c) for c in (3, 2)] for seed in (0, 9)
    )
    loss = FlowOfSolution(*NAMES, dtype="float64")
    given = [ops.convert_to_tensor(x, "float64") for x in teacher]

    def both(x):
        return [*student[:layer], x, *student[layer + 1 :]]

    def ours(x):
        sides = [ops.convert_to_tensor(part, "float64") for part in both(x)]
        return loss(given, sides)

    np.testing.assert_allclose(
        gradient(ours, student[layer]),
        numeric_gradient(
            lambda x: formula(teacher, both(x)).mean(), student[layer]
        ),
        rtol=1e-5,
        atol=1e-9,
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_is_finite_at_extreme_features(gradient, dtype):
    shape = (4, 3, 2, 5)
    signs = np.where(np.arange(np.prod(shape)).reshape(shape) % 2, 1.0, -1.0)
    teacher = [ops.cast(1e4 * signs, dtype), ops.cast(1e4 * signs, dtype)]
    student = [ops.cast(-1e4 * signs, dtype), ops.cast(1e4 * signs, dtype)]
    loss = FlowOfSolution(*NAMES)
    assert 0 < ops.convert_to_numpy(loss(teacher, student)) < np.inf
    slope = gradient(lambda x: loss(teacher, [x, student[1]]), student[0])
    # In float16 a gradient that large is infinite, which loss scaling sees.
    assert not np.any(np.isnan(slope))
    assert dtype == "float16" or np.all(np.isfinite(slope))
    assert np.any(slope != 0)


def test_weights_and_one_value_for_each_example():
    teacher, student = (
        [random(4, 2, 2, c, seed=seed + c) for c in (3, 2)] for seed in (0, 9)
    )
    expected = formula(teacher, student)
    loss = FlowOfSolution(*NAMES, reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher, student), expected, rtol=1e-5
    )
    weights = np.array([3.0, 0.0, 1.0, 0.5])
    weighed = FlowOfSolution(*NAMES)(
        *[
            [ops.convert_to_tensor(x, "float32") for x in side]
            for side in (teacher, student)
        ],
        weights,
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(weighed), weights @ expected / 4, rtol=1e-5
    )


@pytest.mark.parametrize("layer", [0, 1])
def test_refuses_to_broadcast(layer):
    teacher, student = ([random(2, 3, 3, 4)] * 2 for _ in range(2))
    student[layer] = student[layer][..., :1]
    with pytest.raises(ValueError, match="channels don't fit"):
        evaluate(FlowOfSolution(*NAMES), teacher, student)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="Elsewhere, shapes are known when a function is traced.",
)
def test_takes_unknown_sizes():
    import tensorflow as tf

    teacher, student = (
        [random(2, 4, 4, 3, seed=i), random(2, 2, 2, 5, seed=i + 1)]
        for i in (0, 7)
    )
    loss = FlowOfSolution(*NAMES, reduction=None)
    specs = [tf.TensorSpec((None, None, None, c), "float32") for c in (3, 5)]

    def unweighted(teacher, student):
        return loss(teacher, student)

    traced = tf.function(unweighted).get_concrete_function(specs, specs)
    sides = [
        [tf.convert_to_tensor(x, "float32") for x in side]
        for side in (teacher, student)
    ]
    np.testing.assert_allclose(
        traced(*sides).numpy(), evaluate(loss, teacher, student), rtol=1e-5
    )


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
