"""Teacher-free soft targets, against their formula."""

import keras
import numpy as np
import pytest
from keras import ops
from support import evaluate_with_labels as evaluate

from keras_distill.losses import TeacherFree


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def formula(
    teacher, student, labels, correct_probability=0.99, temperature=20.0
):
    classes = student.shape[-1]
    virtual = np.full(
        (len(labels), classes), (1 - correct_probability) / (classes - 1)
    )
    virtual[np.arange(len(labels)), labels] = correct_probability
    log_p = log_softmax(np.log(virtual) / temperature)
    log_q = log_softmax(student / temperature)
    return temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


@pytest.fixture
def inputs(golden_inputs):
    names = ("teacher_logits", "student_logits", "labels")
    return [golden_inputs[name] for name in names]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "arguments", [{}, {"correct_probability": 0.8, "temperature": 2.0}]
)
def test_values_and_gradient_are_the_formulas(
    inputs, arguments, gradient, numeric_gradient
):
    teacher, student, labels = inputs
    loss = TeacherFree(**arguments, reduction=None, dtype="float64")
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
    loss = TeacherFree(reduction=None)
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
    rest = evaluate(TeacherFree(), teacher[1:], student[1:], labels[1:])
    labels = np.concatenate([[-1], labels[1:]])
    value = evaluate(TeacherFree(), teacher, student, labels)
    assert value == pytest.approx(rest, rel=1e-6)


def test_refuses_one_class():
    one = np.zeros((2, 1), "float32")
    with pytest.raises(ValueError, match="single logit"):
        evaluate(TeacherFree(), one, one, np.zeros(2))


def test_what_the_teacher_says_makes_no_difference(inputs):
    teacher, student, labels = inputs
    loss = TeacherFree(reduction=None)
    np.testing.assert_array_equal(
        evaluate(loss, teacher, student, labels),
        evaluate(loss, 0 * teacher, student, labels),
    )


def test_is_label_smoothing_at_temperature_one(inputs):
    """But for the entropy of the smoothed labels, which is constant."""
    _, student, labels = inputs
    loss = TeacherFree(0.91, temperature=1.0, reduction=None)
    smoothed = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.1, reduction=None
    )
    both = (
        evaluate(loss, student, student, labels),
        ops.convert_to_numpy(smoothed(np.eye(10)[labels], student)),
    )
    p = np.array([0.91] + 9 * [0.01])
    entropy = -(p * np.log(p)).sum()
    np.testing.assert_allclose(both[0] + entropy, both[1], rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_refuses_what_is_no_probability(value):
    with pytest.raises(ValueError, match=f"correct_probability={value}"):
        TeacherFree(value)


def test_refuses_a_virtual_teacher_that_is_wrong(inputs):
    with pytest.raises(ValueError, match="for 10 classes"):
        evaluate(TeacherFree(0.05), *inputs)
