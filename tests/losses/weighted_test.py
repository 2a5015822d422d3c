"""Weighted soft targets, against official values."""

import numpy as np
import pytest
from keras import ops
from support import (
    evaluate_with_labels as evaluate,
)

from keras_distill.losses import WeightedSoftTargets


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def formula(teacher, student, labels, temperature=4.0, weighted_by=None):
    rows = np.arange(len(labels))
    behind = -log_softmax(student if weighted_by is None else weighted_by)[
        rows, labels
    ]
    ahead = -log_softmax(teacher)[rows, labels]
    weight = 1 - np.exp(-behind / (ahead + 1e-7))
    p = np.exp(log_softmax(teacher / temperature))
    log_q = log_softmax(student / temperature)
    return -(temperature**2) * weight * (p * log_q).sum(axis=-1)


@pytest.fixture
def inputs(golden_inputs):
    names = ("teacher_logits", "student_logits", "labels")
    return [golden_inputs[name] for name in names]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("arguments", "golden"),
    [
        ({}, 39.676985670933774 / 2.25),
        ({"temperature": 2.0}, 11.908728918763483 / 2.5),
    ],
)
def test_golden_value_in_float64(inputs, arguments, golden):
    loss = WeightedSoftTargets(**arguments, reduction=None, dtype="float64")
    values = evaluate(loss, *inputs)
    assert values.dtype == "float64"
    assert values.mean() == pytest.approx(golden, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "golden"),
    [
        ({}, 39.676985670933774 / 2.25),
        ({"temperature": 2.0}, 11.908728918763483 / 2.5),
    ],
)
def test_golden_value_in_float32(inputs, arguments, golden):
    value = evaluate(WeightedSoftTargets(**arguments), *inputs)
    assert value == pytest.approx(golden, rel=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("arguments", [{}, {"temperature": 1.0}])
def test_values_and_gradient_are_the_formulas(
    inputs, arguments, gradient, numeric_gradient
):
    teacher, student, labels = inputs
    loss = WeightedSoftTargets(**arguments, reduction=None, dtype="float64")
    np.testing.assert_allclose(
        evaluate(loss, *inputs),
        formula(*inputs, **arguments),
        rtol=1e-10,
    )
    side = {"teacher": teacher, "labels": labels}
    np.testing.assert_allclose(
        gradient(lambda x: ops.sum(loss(side, x)), student),
        numeric_gradient(
            lambda x: formula(
                teacher, x, labels, **arguments, weighted_by=student
            ).sum(),
            student,
        ),
        rtol=1e-6,
        atol=1e-8,
    )


def test_takes_one_hot_labels_and_sequences(inputs):
    loss = WeightedSoftTargets(reduction=None)
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
    rest = evaluate(WeightedSoftTargets(), teacher[1:], student[1:], labels[1:])
    labels = np.concatenate([[-1], labels[1:]])
    value = evaluate(WeightedSoftTargets(), teacher, student, labels)
    assert value == pytest.approx(rest, rel=1e-6)


def test_refuses_one_class():
    one = np.zeros((2, 1), "float32")
    with pytest.raises(ValueError, match="single logit"):
        evaluate(WeightedSoftTargets(), one, one, np.zeros(2))


def test_a_student_that_knows_better_counts_less(inputs):
    teacher, student, labels = inputs
    sure = student.copy()
    sure[np.arange(6), labels] = 40.0
    loss = WeightedSoftTargets(reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher, sure, labels), 0, atol=1e-5
    )


def test_default_weight_is_the_papers():
    assert WeightedSoftTargets.default_weight == 2.25
