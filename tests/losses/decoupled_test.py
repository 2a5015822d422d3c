"""Decoupled soft targets, against official values and their identity."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.extra.numpy import arrays
from keras import ops
from support import evaluate_with_labels as evaluate
from support import follows_from_the_formula

from keras_distill.losses import DecoupledSoftTargets, SoftTargets


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def formula(
    teacher,
    student,
    labels,
    target_weight=1.0,
    non_target_weight=8.0,
    temperature=4.0,
):
    parts = []
    for logits in (teacher, student):
        p = np.exp(log_softmax(logits / temperature))
        label = np.arange(p.shape[-1]) == labels[:, None]
        p_y = (p * label).sum(axis=-1)
        others = p[~label].reshape(len(p), -1)
        parts.append(
            (
                np.stack([p_y, others.sum(axis=-1)], axis=-1),
                others / others.sum(axis=-1, keepdims=True),
            )
        )
    target, rest = (
        (p * np.log(p / q)).sum(axis=-1) for p, q in zip(*parts, strict=True)
    )
    return temperature**2 * (target_weight * target + non_target_weight * rest)


@pytest.fixture
def inputs(golden_inputs):
    names = ("teacher_logits", "student_logits", "labels")
    return [golden_inputs[name] for name in names]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("arguments", "golden"),
    [
        ({}, 42.206898784859604),
        ({"non_target_weight": 0.0}, 0.10545261669566712),
        ({"target_weight": 0.0, "non_target_weight": 1.0}, 5.262680771020492),
    ],
)
def test_golden_value_in_float64(inputs, arguments, golden):
    loss = DecoupledSoftTargets(**arguments, reduction=None, dtype="float64")
    values = evaluate(loss, *inputs)
    assert values.dtype == "float64"
    assert values.mean() == pytest.approx(golden, rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "golden"),
    [
        ({}, 42.206898784859604),
        ({"non_target_weight": 0.0}, 0.10545261669566712),
        ({"target_weight": 0.0, "non_target_weight": 1.0}, 5.262680771020492),
    ],
)
def test_golden_value_in_float32(inputs, arguments, golden):
    value = evaluate(DecoupledSoftTargets(**arguments), *inputs)
    assert value == pytest.approx(golden, rel=3e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "arguments", [{}, {"target_weight": 2.0, "temperature": 1.0}]
)
def test_values_and_gradient_are_the_formulas(
    inputs, arguments, gradient, numeric_gradient
):
    teacher, student, labels = inputs
    loss = DecoupledSoftTargets(**arguments, reduction=None, dtype="float64")
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
    loss = DecoupledSoftTargets(reduction=None)
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
        DecoupledSoftTargets(), teacher[1:], student[1:], labels[1:]
    )
    labels = np.concatenate([[-1], labels[1:]])
    value = evaluate(DecoupledSoftTargets(), teacher, student, labels)
    assert value == pytest.approx(rest, rel=1e-6)


def test_refuses_one_class():
    one = np.zeros((2, 1), "float32")
    with pytest.raises(ValueError, match="single logit"):
        evaluate(DecoupledSoftTargets(), one, one, np.zeros(2))


eighths = st.integers(-64, 64).map(lambda i: i / 8)


@follows_from_the_formula
@hypothesis.settings(max_examples=15, deadline=None, database=None)
@hypothesis.given(
    arrays(np.float32, (3, 5), elements=eighths),
    arrays(np.float32, (3, 5), elements=eighths),
    arrays(np.int32, 3, elements=st.integers(0, 4)),
    st.sampled_from([1.0, 4.0]),
)
def test_soft_targets_are_the_sum_of_the_parts(
    teacher, student, labels, temperature
):
    """The second part times what the teacher leaves to it."""
    target, rest = (
        evaluate(
            DecoupledSoftTargets(*weights, temperature, reduction=None),
            teacher,
            student,
            labels,
        )
        for weights in ((1.0, 0.0), (0.0, 1.0))
    )
    p = np.exp(log_softmax(teacher.astype("float64") / temperature))
    left = 1 - p[np.arange(3), labels]
    together = SoftTargets(temperature, reduction=None)(teacher, student)
    np.testing.assert_allclose(
        ops.convert_to_numpy(together),
        target + left * rest,
        rtol=1e-4,
        atol=1e-4,
    )


def test_two_classes_leave_nothing_to_rank(inputs):
    teacher, student = (x[:, :2] for x in inputs[:2])
    labels = inputs[2] % 2
    value = evaluate(DecoupledSoftTargets(0.0, 8.0), teacher, student, labels)
    assert value == 0


def test_a_sure_teacher_still_ranks():
    """Beyond where the other classes' probabilities round to zero."""
    teacher = np.array([[200.0, 3.0, 0.0]], "float32")
    student = np.array([[200.0, 0.0, 0.0]], "float32")
    loss = DecoupledSoftTargets(0.0, 1.0, temperature=1.0)
    p = 1 / (1 + np.exp(-3.0))
    expected = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))
    value = evaluate(loss, teacher, student, np.array([0]))
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("argument", ["target_weight", "non_target_weight"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_refuses_a_negative_weight(argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value}"):
        DecoupledSoftTargets(**{argument: value})
