"""What outputs decide, and which labels can be right."""

import keras
import numpy as np
import pytest
from support import only_on

from keras_distill.export.decisions import (
    accuracy,
    class_numbers,
    decisions,
    thresholds_of,
)
from keras_distill.quantization_aware import quantization_aware

layers = keras.layers
pytestmark = only_on("torch")
FIVE = np.zeros((4, 5))
ONE = np.zeros((4, 1))


def ends_in(*last):
    return keras.Sequential([keras.Input((6,)), *last])


def twice(x):
    return 2 * x


class Hidden(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1, activation="sigmoid")

    def call(self, x):
        return self.dense(x)


def hidden():
    student = Hidden()
    student(np.zeros((1, 6)))
    return student


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: ends_in(layers.Dense(1, activation="sigmoid")), 0.5),
        (lambda: ends_in(layers.Dense(1), layers.Activation("sigmoid")), 0.5),
        (lambda: ends_in(layers.Dense(1)), 0.0),
        (lambda: ends_in(layers.Dense(1), layers.Reshape(())), 0.0),
        (lambda: ends_in(ends_in(layers.Dense(1))), 0.0),
        (lambda: ends_in(layers.Dense(1, activation="tanh")), 0.0),
        (lambda: ends_in(layers.Dense(1, activation="relu")), None),
        (lambda: ends_in(layers.Dense(1, activation=twice)), None),
        (hidden, None),
        (lambda: ends_in(hidden(), layers.Activation("sigmoid")), 0.5),
    ],
)
def test_threshold_is_that_of_the_last_activation(make, expected):
    student = make()
    assert thresholds_of(student, ["y"], None) == {"y": expected}
    assert thresholds_of(student, ["y"], 0.3) == {"y": 0.3}


def test_rounding_hides_no_activation():
    student = ends_in(layers.Dense(1, activation="sigmoid"))
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    ready = quantization_aware(student, "int8", calibration_data=x)
    assert thresholds_of(ready, ["y"], None) == {"y": 0.5}


def test_decisions():
    values = np.array([[0.1, 0.9], [0.8, 0.2]])
    np.testing.assert_array_equal(decisions(values, None), [1, 0])
    # Logits that all lie between 0 and 1 are logits still.
    for column in (values[:, 0], values[:, :1]):
        np.testing.assert_array_equal(decisions(column, 0.0), [1, 1])
        np.testing.assert_array_equal(decisions(column, 0.5), [0, 1])
        assert decisions(column, None) is None


def test_accuracy_leaves_out_what_has_no_label():
    decided = np.array([0, 1, 1])
    assert accuracy(decided, np.array([0, 0, -1])) == 0.5
    assert accuracy(decided, np.array([-1, -1, -1])) is None
    assert accuracy(None, decided) is accuracy(decided, None) is None


def test_labels_of_each_kind():
    numbers = np.array([4, 0, -1, 2])
    for labels in (numbers, numbers[:, None], numbers.astype("float32")):
        found = class_numbers("y", labels, FIVE, None)
        np.testing.assert_array_equal(found, numbers)
    one_hot = np.eye(5)[[4, 0, 1, 2]]
    found = class_numbers("y", one_hot, FIVE, None)
    np.testing.assert_array_equal(found, [4, 0, 1, 2])
    assert class_numbers("y", one_hot / 2, FIVE, None) is None
    one_hot[1] = -1
    found = class_numbers("y", one_hot, FIVE, None)
    np.testing.assert_array_equal(found, [4, -1, 1, 2])
    # Several labels of an example, of which some aren't known.
    partly = np.array([[0, 1, 0, 0, 0], [1, -1, 0, 1, 0]])
    assert class_numbers("y", partly, FIVE[:2], None) is None
    assert class_numbers("y", np.full((4, 5), -1), FIVE, None) is None
    pixels = np.zeros((2, 3, 3, 5))
    labels = np.ones((2, 3, 3, 1), "int64")
    assert class_numbers("y", labels, pixels, None).shape == (2, 3, 3)


def test_one_value_is_a_class_or_a_quantity():
    for outputs in (ONE, ONE[:, 0]):
        shape = outputs.shape[:1]
        yes = np.array([0, 1, 0, 0])
        assert class_numbers("y", yes, outputs, 0.0).shape == shape
        assert class_numbers("y", yes + 30, outputs, 0.0) is None
        assert class_numbers("y", yes / 2, outputs, 0.5) is None
        with pytest.raises(ValueError, match=r"labels from 1 to 2\."):
            class_numbers("y", yes + 1, outputs, 0.5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 3, 5], r"from 0 to 4.*labels from 1 to 5\."),
        ([1, 2, 3, -2], r"labels from -2 to 3\."),
        ([0.5, 1, 2, 3], r"from 0.5 to 3.0, not all of them whole"),
        (["a", "b", "c", "d"], "labels of <U1"),
        (np.eye(7)[[0, 1, 2, 3]], r"\(4,\), or one-hot.*shape \(4, 7\)"),
        ([[0, 1], [1, 0], [0, 1], [1, 0]], r"labels of shape \(4, 2\)"),
    ],
)
def test_labels_that_no_class_has_are_an_error(labels, message):
    with pytest.raises(ValueError, match=message):
        class_numbers("y", np.array(labels), FIVE, None)
