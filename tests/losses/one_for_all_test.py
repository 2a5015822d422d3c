"""One for all, against an official value."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support import (
    CLASSES,
    cnn,
    images,
)
from support import evaluate_with_labels as evaluate
from support import teacher as make_teacher
from support import values as copies

import keras_distill as kd
from keras_distill.losses import OneForAll, SoftTargets


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def formula(teacher, student, labels, modulation=1.0, temperature=1.0):
    p = np.exp(log_softmax(teacher / temperature))
    log_q = log_softmax(student / temperature)
    label = np.arange(p.shape[-1]) == labels[:, None]
    weights = (p + label) ** modulation - label
    return -(weights * log_q).sum(axis=-1)


@pytest.fixture
def inputs(golden_inputs):
    names = ("teacher_logits", "student_logits", "labels")
    return [golden_inputs[name] for name in names]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("arguments", "golden"), [({"modulation": 1.5}, 2.847666741858406)]
)
def test_golden_value_in_float64(inputs, arguments, golden):
    loss = OneForAll(**arguments, reduction=None, dtype="float64")
    values = evaluate(loss, *inputs)
    assert values.dtype == "float64"
    assert values.mean() == pytest.approx(golden, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "golden"), [({"modulation": 1.5}, 2.847666741858406)]
)
def test_golden_value_in_float32(inputs, arguments, golden):
    value = evaluate(OneForAll(**arguments), *inputs)
    assert value == pytest.approx(golden, rel=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "arguments", [{}, {"modulation": 1.5, "temperature": 2.0}]
)
def test_values_and_gradient_are_the_formulas(
    inputs, arguments, gradient, numeric_gradient
):
    teacher, student, labels = inputs
    loss = OneForAll(**arguments, reduction=None, dtype="float64")
    np.testing.assert_allclose(
        evaluate(loss, *inputs),
        formula(*inputs, **arguments),
        rtol=1e-10,
    )
    side = {"teacher": teacher, "labels": labels}
    np.testing.assert_allclose(
        gradient(lambda x: ops.sum(loss(side, x)), student),
        numeric_gradient(
            lambda x: formula(teacher, x, labels, **arguments).sum(),
            student,
        ),
        rtol=1e-6,
        atol=1e-8,
    )


def test_takes_one_hot_labels_and_sequences(inputs):
    loss = OneForAll(reduction=None)
    values = evaluate(loss, *inputs)
    teacher, student, labels = inputs
    one_hot = np.eye(10, dtype="float32")[labels]
    np.testing.assert_allclose(
        evaluate(loss, teacher, student, one_hot), values, rtol=1e-6
    )
    sequences = [x.reshape(2, 3, *x.shape[1:]) for x in inputs]
    np.testing.assert_allclose(
        evaluate(loss, *sequences), values.reshape(2, 3), rtol=1e-6
    )


def test_an_example_without_a_label_counts_for_nothing(inputs):
    teacher, student, labels = inputs
    rest = evaluate(OneForAll(), teacher[1:], student[1:], labels[1:])
    labels = np.concatenate([[-1], labels[1:]])
    value = evaluate(OneForAll(), teacher, student, labels)
    assert value == pytest.approx(rest, rel=1e-6)


def test_refuses_one_class():
    one = np.zeros((2, 1), "float32")
    with pytest.raises(ValueError, match="single logit"):
        evaluate(OneForAll(), one, one, np.zeros(2))


def test_modulation_of_one_ignores_the_label(inputs):
    """The gradient, too, is that of soft targets."""
    teacher, student, labels = inputs
    loss = OneForAll(reduction=None)
    values = evaluate(loss, *inputs)
    p = np.exp(log_softmax(teacher))
    entropy = -(p * np.log(p)).sum(axis=-1)
    soft = SoftTargets(1.0, reduction=None)(teacher, student)
    np.testing.assert_allclose(
        values, ops.convert_to_numpy(soft) + entropy, rtol=1e-5
    )
    np.testing.assert_allclose(
        evaluate(loss, teacher, student, 9 - labels),
        values,
        rtol=1e-5,
    )


@pytest.mark.usefixtures("differentiable")
def test_teaches_a_hidden_layer_through_a_projector():
    x, y = images(12)
    student = cnn()
    projector = keras.Sequential(
        [layers.GlobalAveragePooling2D(), layers.Dense(CLASSES)]
    )
    losses = [
        OneForAll(1.5, student_layer_name="relu", projector=projector),
        OneForAll(),
    ]
    distiller = kd.Distiller(make_teacher(), student, losses=losses)
    distiller.compile(optimizer="sgd", loss=None, metrics=None)
    kernels = [projector.layers[-1].kernel, student.get_layer("conv").kernel]
    before = copies(kernels)
    distiller.fit(x, y, verbose=0)
    for old, new in zip(before, copies(kernels), strict=True):
        assert np.any(old != new)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_a_modulation_that_is_not_positive(value):
    with pytest.raises(ValueError, match=f"modulation={value}"):
        OneForAll(value)
