"""Normalised soft targets, against official values."""

import numpy as np
import pytest
from keras import ops
from support import (
    evaluate_with_labels as evaluate,
)

from keras_distill.losses import NormalizedSoftTargets


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def formula(teacher, student, labels, non_target_weight=1.5, temperature=1.0):
    rows = np.arange(len(labels))
    label = np.arange(teacher.shape[-1]) == labels[:, None]
    log_p, log_q = log_softmax(teacher), log_softmax(student)
    target = np.exp(log_p[rows, labels]) * log_q[rows, labels]
    p, q = (
        log_softmax(x[~label].reshape(len(x), -1) / temperature)
        for x in (teacher, student)
    )
    rest = (np.exp(p) * q).sum(axis=-1)
    return -target - non_target_weight * temperature**2 * rest


@pytest.fixture
def inputs(golden_inputs):
    names = ("teacher_logits", "student_logits", "labels")
    return [golden_inputs[name] for name in names]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("arguments", "golden"),
    [({}, 5.475731496341434), ({"temperature": 2.0}, 15.523908661702894)],
)
def test_golden_value_in_float64(inputs, arguments, golden):
    loss = NormalizedSoftTargets(**arguments, reduction=None, dtype="float64")
    values = evaluate(loss, *inputs)
    assert values.dtype == "float64"
    assert values.mean() == pytest.approx(golden, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "golden"),
    [({}, 5.475731496341434), ({"temperature": 2.0}, 15.523908661702894)],
)
def test_golden_value_in_float32(inputs, arguments, golden):
    value = evaluate(NormalizedSoftTargets(**arguments), *inputs)
    assert value == pytest.approx(golden, rel=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "arguments", [{}, {"non_target_weight": 0.5, "temperature": 3.0}]
)
def test_values_and_gradient_are_the_formulas(
    inputs, arguments, gradient, numeric_gradient
):
    teacher, student, labels = inputs
    loss = NormalizedSoftTargets(**arguments, reduction=None, dtype="float64")
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
    loss = NormalizedSoftTargets(reduction=None)
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
    rest = evaluate(
        NormalizedSoftTargets(), teacher[1:], student[1:], labels[1:]
    )
    labels = np.concatenate([[-1], labels[1:]])
    value = evaluate(NormalizedSoftTargets(), teacher, student, labels)
    assert value == pytest.approx(rest, rel=1e-6)


def test_refuses_one_class():
    one = np.zeros((2, 1), "float32")
    with pytest.raises(ValueError, match="single logit"):
        evaluate(NormalizedSoftTargets(), one, one, np.zeros(2))


def test_the_rest_is_best_where_the_student_equals_the_teacher(
    inputs, gradient
):
    """Whatever the label's logit is."""
    teacher, student, labels = inputs
    label = np.arange(10) == labels[:, None]
    loss = NormalizedSoftTargets(1.0, temperature=3.0)
    without = NormalizedSoftTargets(0.0, temperature=3.0)
    side = {"teacher": teacher, "labels": labels}
    student = np.where(label, student, teacher).astype("float32")
    slope = gradient(lambda x: loss(side, x) - without(side, x), student)
    np.testing.assert_allclose(slope, 0, atol=1e-6)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_refuses_a_negative_weight(value):
    with pytest.raises(ValueError, match=f"non_target_weight={value}"):
        NormalizedSoftTargets(value)
