"""Data in all forms that Keras takes, and what is said of the rest."""

import functools
import warnings

import keras
import numpy as np
import pytest
from support import mlp, only_on

from keras_distill.export.examples import as_examples, read_examples
from keras_distill.export.signature import TensorInfo

pytestmark = only_on("torch")
ONE = ("image", (TensorInfo("image", (1, 3, 2), "float32"),))
TWO = (
    {"a": "a", "b": "b"},
    (
        TensorInfo("a", (None, 2), "float32"),
        TensorInfo("b", (None, 3), "int32"),
    ),
)
X = np.arange(60, dtype="float32").reshape(10, 3, 2)
Y = np.arange(10)


def batches():
    for start in range(0, 10, 4):
        yield X[start : start + 4], Y[start : start + 4]


def representative_dataset():
    for i in range(10):
        yield [X[i : i + 1]]


def torch_loader():
    import torch

    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    return torch.utils.data.DataLoader(data, batch_size=4)


@pytest.mark.parametrize(
    ("make", "labelled"),
    [
        (lambda: X, False),
        (lambda: (X,), False),
        (lambda: (X, Y), True),
        (lambda: (X, Y, np.ones(10)), True),
        (lambda: (X, Y.tolist()), True),
        (lambda: [X], False),
        (lambda: [X[:4], X[4:]], False),
        (lambda: [(X[:4], Y[:4]), (X[4:], Y[4:])], True),
        (lambda: list(torch_loader()), True),
        (torch_loader, True),
        (batches, True),
        (lambda: batches, True),
        (lambda: representative_dataset, False),
        (lambda: functools.partial(representative_dataset), False),
    ],
)
def test_same_data_in_each_form(make, labelled):
    arrays, x, y, _ = read_examples(make(), *ONE)
    np.testing.assert_array_equal(arrays["image"], X)
    np.testing.assert_array_equal(x, X)
    if labelled:
        np.testing.assert_array_equal(y, Y)
    else:
        assert y is None


def test_several_inputs_with_and_without_labels():
    x = {"a": np.ones((4, 2)), "b": np.ones((4, 3), "int64")}
    for data in (x, (x, Y[:4]), [x], [(x, Y[:4])], iter([x])):
        arrays = as_examples(data, *TWO)
        assert [*arrays] == ["a", "b"]
        assert [v.dtype.name for v in arrays.values()] == ["float32", "int32"]
    # Two inputs in a tuple are no labels, in whatever they come.
    names = ("a", "b")
    pair = (x["a"], x["b"])
    for data in (pair, [pair], iter([pair]), (pair, Y[:4])):
        assert [*as_examples(data, names, TWO[1])] == ["a", "b"]


def test_weights_are_told_from_labels():
    assert read_examples((X, Y, Y), *ONE).weighted
    parts = [(X, Y, np.ones(10)), (X, Y, np.full(10, 2.0))]
    assert read_examples(parts, *ONE).weighted
    for alike in ((X, Y), (X, Y, None), (X, Y, np.ones(10)), parts[:1]):
        assert not read_examples(alike, *ONE).weighted


def test_inputs_in_the_structure_that_keras_makes_of_them():
    inputs = (TensorInfo("a", (None, 2), "float32"),)
    a, b = np.ones((4, 2), "float32"), np.zeros((4, 3), "int32")
    # `keras.Model([a], outputs)` takes an array, and a Sequential `[array]`.
    for names, data in (
        (["a"], a),
        (["a"], (a, Y[:4])),
        ("a", ([a], Y[:4])),
        ("a", ((a,), Y[:4])),
        ("a", ({"a": a}, Y[:4])),
        ("a", {"a": a}),
    ):
        examples = read_examples(data, names, inputs)
        np.testing.assert_array_equal(examples.arrays["a"], a)
        assert isinstance(examples.x, list) == isinstance(names, list)
    by_name = read_examples(({"b": b, "a": a}, Y[:4]), ["a", "b"], TWO[1])
    np.testing.assert_array_equal(by_name.x[0], a)
    np.testing.assert_array_equal(by_name.x[1], b)
    np.testing.assert_array_equal(by_name.y, Y[:4])


def test_data_without_an_end_is_refused():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    np.testing.assert_array_equal(as_examples(data, *ONE)["image"], X)
    with pytest.raises(ValueError, match=r"repeats for ever.*data\.take"):
        as_examples(data.repeat(), *ONE)


@pytest.mark.parametrize(
    ("data", "named", "message"),
    [
        (
            {"a": np.ones((4, 2))},
            TWO,
            r"Received: \{'a': float64 \(4, 2\)\} for inputs \{a: a, b: b\}",
        ),
        (np.ones((4, 2)), TWO, r"Received: float64 \(4, 2\) for inputs"),
        ([np.ones((1, 2))] * 5, TWO, r"float64 \(1, 2\), \.\.\. 5 in all\]"),
        ("x.npz", ONE, "Received: str"),
        (3, ONE, "Received: int"),
        (X[0], ONE, r"single example of shape \(3, 2\).*batch\(32\)"),
        (iter(X), ONE, r"single example of shape \(3, 2\)"),
        (iter([(X[0], Y[0])]), ONE, "single example"),
        ([*X], ONE, "single example"),
        (X[:, :2], ONE, r"examples of shape \(3, 2\).*\(10, 2, 2\)"),
        (iter([]), ONE, "an empty data set"),
        (X[:0], ONE, "an empty data set"),
        (
            {"a": np.ones((4, 2)), "b": np.ones((3, 3), "int32")},
            TWO,
            r"\{'a': 4, 'b': 3\} examples",
        ),
        (
            {"a": np.ones((4, 2)), "b": np.full((4, 3), 2**31)},
            TWO,
            "int64 values from 2147483648 to 2147483648",
        ),
        (
            {"a": np.ones((4, 2)), "b": np.ones((4, 3))},
            TWO,
            "array of float64, which would lose",
        ),
        (np.full((4, 3, 2), "1"), ONE, "array of <U1"),
        ((X, Y, Y, Y), ONE, "4 in all"),
    ],
)
def test_data_of_another_kind_is_described_in_short(data, named, message):
    with pytest.raises((ValueError, TypeError), match=message) as info:
        as_examples(data, *named)
    assert len(str(info.value)) < 300


def test_integers_for_floats_are_worth_a_warning():
    pixels = np.full((4, 3, 2), 200, "uint8")
    student = mlp()
    with pytest.warns(UserWarning, match="uint8 from 200 to 200"):
        as_examples(pixels, *ONE, student)
    scaling = keras.Sequential(
        [
            keras.Input((3, 2)),
            keras.layers.Rescaling(1 / 255),
            student.layers[0],
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_examples(pixels, *ONE, scaling)
        as_examples(pixels, *ONE)
        as_examples(pixels.astype("float32"), *ONE, student)
        # Flags.
        as_examples(pixels // 200, *ONE, student)
        # Words, though the student takes floats, as Keras' inputs do.
        words = keras.Sequential(
            [keras.Input((3, 2)), keras.layers.Embedding(300, 2)]
        )
        as_examples(pixels, *ONE, words)
