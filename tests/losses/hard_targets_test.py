"""Hard targets, against an official value and Keras' cross-entropy."""

import keras
import numpy as np
import pytest
from keras import ops
from support import evaluate

from keras_distill.losses import HardTargets

GOLDEN = 3.603052260497496


@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden):
    values = evaluate(HardTargets(reduction=None, dtype="float64"), *golden)
    assert values.dtype == "float64"
    assert values.mean() == pytest.approx(GOLDEN, rel=1e-12)


def test_golden_value_in_float32(golden):
    assert evaluate(HardTargets(), *golden) == pytest.approx(GOLDEN, rel=1e-6)


def test_values_are_the_cross_entropy_with_the_decision(golden):
    teacher, student = golden
    expected = keras.losses.sparse_categorical_crossentropy(
        teacher.argmax(axis=-1), student, from_logits=True
    )
    np.testing.assert_allclose(
        evaluate(HardTargets(reduction=None), teacher, student),
        ops.convert_to_numpy(expected),
        rtol=1e-5,
    )


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_cross_entropy(golden, gradient):
    teacher, student = golden
    loss = HardTargets(reduction="sum", dtype="float64")
    q = np.exp(student) / np.exp(student).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        q - np.eye(10)[teacher.argmax(axis=-1)],
        rtol=1e-9,
    )


def test_only_the_decision_counts(golden):
    teacher, student = golden
    value = evaluate(HardTargets(), teacher, student)
    assert evaluate(HardTargets(), 2 * teacher - 1, student) == value
    assert evaluate(HardTargets(), teacher**3, student) == value


def test_refuses_one_class():
    with pytest.raises(ValueError, match="single logit"):
        evaluate(HardTargets(), np.zeros((2, 1)), np.zeros((2, 1)))
