"""Corrected teacher, against its formula and what it promises."""

import numpy as np
import pytest
from keras import ops
from support import evaluate_with_labels as evaluate

from keras_distill.losses import CorrectedTeacher


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def corrected(teacher, labels, threshold=0.2, temperature=1.0):
    p = np.exp(log_softmax(teacher / temperature))
    result = np.empty_like(p)
    for i, y in enumerate(labels):
        top, p_y = p[i].max(), p[i, y]
        if p[i].argmax() == y:
            mix = (min(1, p_y + threshold) - top) / (1 - top + 1e-7)
        else:
            mix = (top - p_y + threshold) / (1 + top - p_y + 1e-7)
        result[i] = (1 - mix) * p[i] + mix * np.eye(p.shape[-1])[y]
    return result


def formula(teacher, student, labels, threshold=0.2, temperature=1.0):
    c = corrected(teacher, labels, threshold, temperature)
    log_q = log_softmax(student / temperature)
    return temperature**2 * (c * (np.log(c) - log_q)).sum(axis=-1)


@pytest.fixture
def inputs(golden_inputs):
    names = ("teacher_logits", "student_logits", "labels")
    teacher, student, labels = (golden_inputs[name] for name in names)
    labels = labels.copy()
    labels[:3] = teacher[:3].argmax(axis=-1)
    return teacher, student, labels


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "arguments", [{}, {"threshold": 0.5, "temperature": 3.0}]
)
def test_values_and_gradient_are_the_formulas(
    inputs, arguments, gradient, numeric_gradient
):
    teacher, student, labels = inputs
    loss = CorrectedTeacher(**arguments, reduction=None, dtype="float64")
    np.testing.assert_allclose(
        evaluate(loss, *inputs),
        formula(*inputs, **arguments),
        rtol=1e-8,
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
    loss = CorrectedTeacher(reduction=None)
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
    rest = evaluate(CorrectedTeacher(), teacher[1:], student[1:], labels[1:])
    labels = np.concatenate([[-1], labels[1:]])
    value = evaluate(CorrectedTeacher(), teacher, student, labels)
    assert value == pytest.approx(rest, rel=1e-6)


def test_refuses_one_class():
    one = np.zeros((2, 1), "float32")
    with pytest.raises(ValueError, match="single logit"):
        evaluate(CorrectedTeacher(), one, one, np.zeros(2))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_is_zero_at_a_teacher_whose_label_leads(inputs, threshold):
    """By the threshold, or by all there is."""
    teacher, _, labels = inputs
    rows = np.arange(len(labels))
    loss = CorrectedTeacher(threshold, reduction=None, dtype="float64")
    right = teacher.argmax(axis=-1) == labels
    assert set(right) == {True, False}
    target = corrected(teacher, labels, threshold)
    np.testing.assert_allclose(
        evaluate(loss, teacher, np.log(target), labels),
        0,
        atol=1e-8,
    )
    p = np.exp(log_softmax(teacher))
    lead = target[rows, labels] - np.where(
        right, p[rows, labels], target[rows, teacher.argmax(axis=-1)]
    )
    most = np.where(
        right, np.minimum(threshold, 1 - p[rows, labels]), threshold
    )
    np.testing.assert_allclose(lead, most, rtol=2e-6)


def test_a_sure_teacher_is_left_alone():
    teacher = np.array([[200.0, 0.0, 1.0]], "float32")
    value = evaluate(CorrectedTeacher(), teacher, teacher, np.array([0]))
    assert value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_refuses_a_threshold_that_is_none(value):
    with pytest.raises(ValueError, match=f"threshold={value}"):
        CorrectedTeacher(value)
