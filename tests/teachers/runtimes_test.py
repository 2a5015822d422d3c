"""Keras models on onnxruntime: the same, or not at all."""

import keras
import numpy as np
import pytest
from keras import layers
from support import images, mlp, only_on, teacher

import keras_distill as kd

as_teacher = kd.teachers.as_teacher


def test_onnxruntime_says_what_keras_says():
    model, (x, _) = teacher(), images()
    expected, hidden = as_teacher(model, layers=("relu", "pool")).label(x)
    labeller = as_teacher(
        model, layers=("relu", "pool"), runtime="onnxruntime", example=x[:8]
    )
    output, features = labeller.label(x)
    assert labeller.runtime == "onnxruntime"
    assert labeller.probabilities is False
    assert labeller.fingerprint == as_teacher(model).fingerprint
    assert list(features) == ["relu", "pool"]
    for ours, theirs in (
        (output, expected),
        (features["relu"], hidden["relu"]),
        (features["pool"], hidden["pool"]),
    ):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-5)
    # The model stayed as it was.
    again, _ = as_teacher(model, layers=("relu", "pool")).label(x)
    np.testing.assert_array_equal(again, expected)


@only_on("jax")
def test_structures_come_back():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    c = layers.Dense(2, name="c")(a + 2 * b)
    model = keras.Model({"a": a, "b": b}, {"c": c, "d": [c * 2]})
    x = {name: np.ones((2, 3)) for name in ("b", "unused", "a")}
    labeller = as_teacher(model, ["c"], "onnxruntime", example=x)
    output, features = labeller.label(x)
    expected, _ = as_teacher(model).label(x)
    keras.tree.map_structure(
        lambda o, e: np.testing.assert_allclose(o, e, rtol=1e-5),
        output,
        expected,
    )
    np.testing.assert_array_equal(features["c"], output["c"])


@only_on("jax")
def test_the_fastest_is_taken(monkeypatch):
    model, (x, _) = mlp(), images()
    seconds = {"keras": 2.0, "onnxruntime": 1.0}
    monkeypatch.setattr(
        "keras_distill.teachers.runtimes._seconds",
        lambda labeller, example: seconds[labeller.runtime],
    )
    labeller = as_teacher(model, runtime="auto", example=x)
    assert labeller.runtime == "onnxruntime"
    seconds["keras"] = 0.5
    assert as_teacher(model, runtime="auto", example=x).runtime == "keras"


@only_on("jax")
def test_what_is_not_the_same_stays_with_keras(monkeypatch):
    model, (x, _) = mlp(), images()
    monkeypatch.setattr("keras_distill.teachers.runtimes._TOLERANCE", -1.0)
    with pytest.warns(UserWarning, match="stays with Keras.*largest value"):
        assert as_teacher(model, (), "auto", x).runtime == "keras"
    with pytest.raises(RuntimeError, match="doesn't compute what Keras does"):
        as_teacher(model, (), "onnxruntime", x)


@only_on("jax")
def test_layers_of_a_sub_model_stay_with_keras():
    model, (x, _) = teacher(), images()
    outer = keras.Sequential([keras.Input((8, 8, 1)), model])
    names = ["teacher/relu"]
    with pytest.warns(UserWarning, match="'teacher/relu' of 'seq.*sub-model"):
        labeller = as_teacher(outer, names, "auto", x)
    assert labeller.runtime == "keras"
    assert labeller.label(x)[1]["teacher/relu"].shape == (40, 8, 8, 16)
    with pytest.raises(ValueError, match="runtime='keras'"):
        as_teacher(outer, names, "onnxruntime", x)


@only_on("jax")
def test_packages_that_are_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    # No warning either: pytest makes an error of one.
    labeller = as_teacher(mlp(), runtime="auto", example=images()[0])
    assert labeller.runtime == "keras"
    with pytest.raises(ImportError, match=r"keras-distill\[onnx\]"):
        as_teacher(mlp(), runtime="onnxruntime", example=images()[0])


@only_on("jax")
def test_mistakes():
    with pytest.raises(ValueError, match="runtime='tensorrt'"):
        as_teacher(mlp(), runtime="tensorrt")
    with pytest.raises(ValueError, match="example=None"):
        as_teacher(mlp(), runtime="auto")
