"""What every exported loss keeps to. It is found by itself: nothing to add."""

import doctest
import inspect
import re

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_distill as kd

BASES = (kd.losses.DistillationLoss, kd.losses.LogitLoss)
LOSSES = [
    exported
    for exported in (getattr(kd.losses, name) for name in kd.losses.__all__)
    if inspect.isclass(exported)
    and issubclass(exported, kd.losses.DistillationLoss)
    and exported not in BASES
]
SECTIONS = ["Formula", "Args", "Shapes", "Raises", "Example", "Reference"]


@pytest.fixture(params=LOSSES, ids=lambda loss: loss.__name__)
def loss_class(request):
    return request.param


@pytest.fixture
def shape(loss_class):
    """Logits for the losses between logits, and feature maps for others."""
    is_logit_loss = issubclass(loss_class, kd.losses.LogitLoss)
    return (4, 6) if is_logit_loss else (4, 3, 2, 5)


@pytest.fixture
def pair(shape):
    """A teacher's and a student's tensor."""
    random = np.random.default_rng(0)
    return [random.normal(0, 3, shape).astype("float32") for _ in range(2)]


def teacher_side(loss, teacher):
    """The first argument of a loss: with labels, where it uses them."""
    if not loss.uses_labels:
        return teacher
    return {"teacher": teacher, "labels": np.arange(len(teacher)) % 3}


def evaluate(loss, teacher, student, *weights):
    value = loss(teacher_side(loss, teacher), student, *weights)
    return ops.convert_to_numpy(value)


def test_finds_the_losses():
    assert {
        kd.losses.BinarySoftTargets,
        kd.losses.Hint,
        kd.losses.LogitMatching,
        kd.losses.SoftTargets,
    } <= set(LOSSES)


def test_gives_one_value_for_each_example(loss_class, pair):
    values = evaluate(loss_class(reduction=None), *pair)
    assert values.shape == (4,)
    mean = evaluate(loss_class(), *pair)
    np.testing.assert_allclose(mean, values.mean(), rtol=1e-6)


def test_gives_the_same_value_twice(loss_class, pair):
    loss = loss_class(reduction=None)
    np.testing.assert_array_equal(evaluate(loss, *pair), evaluate(loss, *pair))


def test_treats_examples_alike(loss_class, pair):
    loss = loss_class(reduction=None)
    order = [2, 0, 3, 1]
    values = evaluate(loss, *(side[order] for side in pair))
    np.testing.assert_allclose(values, evaluate(loss, *pair)[order], rtol=1e-6)


def test_is_zero_where_the_student_equals_the_teacher(loss_class, pair):
    loss = loss_class(reduction=None)
    assert evaluate(loss, *pair).min() > 0
    np.testing.assert_allclose(evaluate(loss, pair[0], pair[0]), 0, atol=1e-6)


def test_weight_of_zero_takes_value_and_gradient(loss_class, pair, gradient):
    loss = loss_class()
    teacher, student = pair
    weights = np.array([0.0, 1.0, 0.0, 0.0], "float32")
    slope = gradient(
        lambda x: loss(teacher_side(loss, teacher), x, weights), student
    )
    assert np.all(slope[[0, 2, 3]] == 0)
    assert np.any(slope[1] != 0)
    assert evaluate(loss, teacher, student, np.zeros(4)) == 0


def test_weights_each_example(loss_class, pair):
    weights = np.array([3.0, 0.0, 1.0, 0.5], "float32")
    expected = weights @ evaluate(loss_class(reduction=None), *pair) / 4
    value = evaluate(loss_class(), *pair, weights)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_is_finite_at_extreme_outputs(loss_class, shape, gradient, dtype):
    loss = loss_class()
    signs = np.where(np.arange(np.prod(shape)).reshape(shape) % 2, 1.0, -1.0)
    teacher = ops.cast(1e4 * signs, dtype)
    student = ops.cast(-1e4 * signs, dtype)
    assert 0 < evaluate(loss, teacher, student) < np.inf
    slope = gradient(lambda x: loss(teacher_side(loss, teacher), x), student)
    assert np.all(np.isfinite(slope))
    assert np.any(slope != 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_computes_in_float32(loss_class, pair, dtype):
    loss = loss_class(reduction=None)
    low = [ops.cast(side, dtype) for side in pair]
    values = loss(teacher_side(loss, low[0]), low[1])
    assert keras.backend.standardize_dtype(values.dtype) == "float32"
    same = [ops.cast(side, "float32") for side in low]
    np.testing.assert_array_equal(
        ops.convert_to_numpy(values), evaluate(loss, *same)
    )


def test_computes_in_float32_under_float16(loss_class):
    floatx = keras.config.floatx()
    keras.config.set_floatx("float16")
    try:
        assert loss_class().dtype == "float32"
    finally:
        keras.config.set_floatx(floatx)


def compiled(function):
    """The backend's way to run a function other than step by step."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import torch

    # torch.compile takes minutes; that gradients are recorded is a difference
    # of its own.
    return torch.inference_mode()(function)


@pytest.mark.usefixtures("differentiable")
def test_compiled_equals_eager(loss_class, pair):
    loss = loss_class(reduction=None)
    teacher = teacher_side(loss, ops.convert_to_tensor(pair[0]))
    student = ops.convert_to_tensor(pair[1])
    values = ops.convert_to_numpy(compiled(loss)(teacher, student))
    np.testing.assert_allclose(values, evaluate(loss, *pair), rtol=2e-6)


def test_comes_back_from_its_config(loss_class, pair):
    loss = loss_class(
        teacher_layer_name="deep",
        student_layer_name="shallow",
        projector="auto",
        reduction="sum",
        name="mine",
        dtype="float32",
    )
    config = loss.get_config()
    arguments = inspect.signature(loss_class).parameters
    assert set(config) == set(arguments)
    serialized = keras.saving.serialize_keras_object(loss)
    for copy in (
        loss_class.from_config(config),
        keras.saving.deserialize_keras_object(serialized),
    ):
        assert type(copy) is loss_class
        assert copy.get_config() == config
        assert evaluate(copy, *pair) == evaluate(loss, *pair)


def test_keeps_its_projector_in_its_config(loss_class):
    loss = loss_class(projector=layers.Dense(7, name="wider"))
    copy = loss_class.from_config(loss.get_config())
    assert copy.projector.get_config() == loss.projector.get_config()
    assert copy.projector is not loss.projector


def test_is_registered(loss_class):
    name = keras.saving.get_registered_name(loss_class)
    assert name == f"keras_distill>{loss_class.__name__}"
    assert keras.saving.get_registered_object(name) is loss_class


@pytest.mark.usefixtures("differentiable")
def test_works_in_compile_on_stored_outputs(loss_class, pair):
    loss = loss_class()
    if loss.uses_labels:
        pytest.skip("model.compile has no place for a teacher and labels.")
    teacher, x = pair
    model = keras.Sequential(
        [keras.Input(x.shape[1:]), layers.Dense(x.shape[-1])]
    )
    model.compile(optimizer=keras.optimizers.SGD(1e-3), loss=loss)
    before = model.evaluate(x, teacher, verbose=0)
    expected = evaluate(loss, teacher, model(x))
    np.testing.assert_allclose(before, expected, rtol=1e-5)
    model.fit(x, teacher, epochs=3, verbose=0)
    assert evaluate(loss, teacher, model(x)) < before


@pytest.mark.usefixtures("differentiable")
def test_trains_the_student_and_not_the_teacher(loss_class, pair):
    loss = loss_class()
    x = pair[0]
    teacher, student = (
        keras.Sequential([keras.Input(x.shape[1:]), layers.Dense(5)])
        for _ in range(2)
    )
    weights = [model.get_weights() for model in (teacher, student)]
    distiller = kd.Distiller(teacher, student, losses=loss)
    distiller.compile(optimizer="sgd", loss=None, metrics=None)
    distiller.fit(x, np.zeros(x.shape[:-1]), epochs=1, verbose=0)
    for before, after in zip(weights[0], teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert np.any(weights[1][0] != student.get_weights()[0])


def test_refuses_to_broadcast(loss_class, pair):
    teacher, student = pair
    loss = loss_class()
    for wrong in (teacher[:1], teacher[..., :1], teacher[:, None]):
        with pytest.raises(ValueError, match="Received"):
            loss(teacher_side(loss, wrong), student)


def test_refuses_weights_with_too_many_axes(loss_class, pair):
    with pytest.raises(ValueError, match=r"sample_weight of shape \(4, 2, 2\)"):
        evaluate(loss_class(), *pair, np.ones((4, 2, 2)))


def test_refuses_a_projector_that_is_no_layer(loss_class):
    with pytest.raises(TypeError, match=r"Pass a keras\.Layer"):
        loss_class(projector="automatic")


def test_refuses_one_layer_against_two(loss_class):
    with pytest.raises(ValueError, match="pair by pair"):
        loss_class(teacher_layer_name=["a", "b"], student_layer_name="c")


def test_takes_the_teacher_first(loss_class):
    names = list(inspect.signature(loss_class).parameters)
    place = names.index("teacher_layer_name")
    assert names[place + 1] == "student_layer_name"
    assert list(inspect.signature(loss_class.call).parameters)[1:] == [
        "teacher",
        "student",
    ]


def test_is_documented(loss_class):
    text = inspect.getdoc(loss_class)
    headers = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert headers == SECTIONS
    described = re.search(r"^Args:\n(.*?)^Shapes:", text, re.M | re.S)[1]
    names = re.findall(r"^    (\w+):", described, re.MULTILINE)
    assert names == list(inspect.signature(loss_class).parameters)


def test_example_is_right(loss_class):
    (example,) = doctest.DocTestFinder(recurse=False).find(
        loss_class, loss_class.__name__
    )
    assert example.examples
    output = []
    failures = doctest.DocTestRunner().run(example, out=output.append).failed
    assert not failures, "".join(output)
