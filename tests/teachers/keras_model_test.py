"""Keras models as teachers: what they say, and that they stay as they are."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from support import (
    assert_same_values,
    cnn,
    crossentropy,
    images,
    mlp,
    only_on,
    teacher,
    values,
)

import keras_distill as kd

as_teacher = kd.teachers.as_teacher


def test_says_what_predict_says():
    model, (x, _) = teacher(), images()
    labeller = as_teacher(model)
    output, features = labeller.label(x)
    assert features == {}
    assert labeller.runtime == "keras"
    np.testing.assert_allclose(output, model.predict(x, verbose=0), atol=1e-6)


def test_hidden_layers_are_what_the_layers_return():
    model, (x, _) = teacher(), images()
    backbone = keras.Sequential([keras.Input((8, 8, 1)), model], name="outer")
    hidden = keras.Model(model.inputs, model.get_layer("relu").output)
    labeller = as_teacher(backbone, layers=("teacher/relu",))
    output, features = labeller.label(x)
    expected = hidden.predict(x, verbose=0)
    np.testing.assert_allclose(features["teacher/relu"], expected, atol=1e-6)
    np.testing.assert_allclose(output, model.predict(x, verbose=0), atol=1e-6)


def test_the_model_is_left_as_it_was():
    model, (x, y) = cnn(dropout=0.5), images()
    model.get_layer("conv").trainable = False
    model.compile("sgd", crossentropy())
    model.fit(x, y, verbose=0)
    before = values(model.variables), values(model.optimizer.variables)
    flags = [layer.trainable for layer in model.layers]
    attributes = {name: set(vars(model.get_layer(name))) for name in ["conv"]}
    labeller = as_teacher(model, layers=("conv",))
    first, _ = labeller.label(x)
    second, _ = labeller.label(x)
    np.testing.assert_array_equal(first, second)
    assert_same_values(values(model.variables), before[0])
    assert_same_values(values(model.optimizer.variables), before[1])
    assert [layer.trainable for layer in model.layers] == flags
    assert {"conv": set(vars(model.get_layer("conv")))} == attributes
    assert model.compiled
    model.fit(x, y, verbose=0)
    third, _ = labeller.label(x)
    np.testing.assert_allclose(third, model.predict(x, verbose=0), atol=1e-6)


def test_wrapped_modes_of_pytorch_come_back():
    if keras.backend.backend() != "torch":
        pytest.skip("A module of PyTorch inside a Keras model.")
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))
    model = keras.Sequential(
        [keras.Input((4,)), layers.TorchModuleWrapper(module)]
    )
    module.train()
    module[1].eval()
    as_teacher(model).label(np.ones((2, 4), "float32"))
    assert [part.training for part in module.modules()] == [True, True, False]


def test_structures_of_inputs_and_outputs():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    c = layers.Dense(2, name="c")(a + 2 * b)
    model = keras.Model({"a": a, "b": b}, {"c": c, "d": [c * 2]})
    x = {n: np.ones((2, 3)) * i for i, n in enumerate(("a", "b", "unused"))}
    output, _ = as_teacher(model).label(x)
    np.testing.assert_allclose(output["d"][0], 2 * output["c"], rtol=1e-6)
    assert output["c"].dtype == "float32"


@pytest.mark.parametrize("dtype", ["float64", "uint8", "bool"])
def test_inputs_of_other_dtypes_and_memory_that_may_not_be_written(dtype):
    model, (x, _) = mlp(), images()
    x = (x * 2).astype(dtype)
    x.flags.writeable = False
    output, _ = as_teacher(model).label(x)
    expected = model.predict(x, verbose=0)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(output / scale, expected / scale, atol=1e-6)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = cnn()
    finally:
        keras.config.set_dtype_policy("float32")
    x, _ = images()
    output, features = as_teacher(model, layers=("relu",)).label(x)
    assert output.dtype == features["relu"].dtype == "float16"


class Subclassed(keras.Model):
    def __init__(self, units=3):
        super().__init__()
        self.units = units
        self.dense = layers.Dense(units, name="dense")

    def call(self, x, training=None):
        assert not training
        return self.dense(x)


def test_a_subclassed_model():
    model = Subclassed()
    with pytest.raises(ValueError, match="isn't built"):
        as_teacher(model)
    model(np.zeros((1, 4), "float32"))
    labeller = as_teacher(model, layers=("dense",))
    output, features = labeller.label(np.ones((2, 4), "float32"))
    np.testing.assert_array_equal(output, features["dense"])
    assert labeller.probabilities is None


def test_run_eagerly_is_kept():
    model, (x, _) = mlp(), images()
    model.compile(run_eagerly=True)
    output, _ = as_teacher(model).label(x)
    np.testing.assert_allclose(output, model.predict(x, verbose=0), atol=1e-6)


@pytest.mark.parametrize(
    ("last", "known"),
    [
        (layers.Dense(3), False),
        (layers.Dense(3, activation="softmax"), True),
        (layers.Softmax(), True),
        (layers.Dense(1, activation="sigmoid"), True),
        (layers.LayerNormalization(), None),
    ],
)
def test_whether_the_output_is_probabilities(last, known):
    model = keras.Sequential([keras.Input((3,)), last])
    assert as_teacher(model).probabilities is known
    outer = keras.Sequential([keras.Input((3,)), model])
    assert as_teacher(outer).probabilities is known


def test_several_outputs_are_probabilities_if_all_are():
    x = keras.Input((3,))
    logits = layers.Dense(2)(x)
    soft = layers.Softmax()(logits)
    assert as_teacher(keras.Model(x, [soft, soft])).probabilities is True
    assert as_teacher(keras.Model(x, [soft, logits])).probabilities is None


def test_fingerprint_knows_weights_and_configuration():
    first = as_teacher(mlp(seed=1)).fingerprint
    assert first == as_teacher(mlp(seed=1)).fingerprint
    assert first != as_teacher(mlp(seed=2)).fingerprint
    changed = mlp(seed=1)
    changed.get_layer("hidden").activation = keras.activations.tanh
    assert first != as_teacher(changed).fingerprint
    assert first["kind"] == "keras"


def test_fingerprint_forgets_what_makes_no_difference(tmp_path):
    model = mlp(dropout=0.5)
    first = as_teacher(model).fingerprint
    model.compile("sgd", "mse")
    model.trainable = False
    assert as_teacher(model).fingerprint == first
    model.save(tmp_path / "teacher.keras")
    loaded = keras.saving.load_model(tmp_path / "teacher.keras")
    assert as_teacher(loaded).fingerprint == first


# It prints the fingerprint of a model whose names were counted further.
_SCRIPT = """
import keras, numpy as np
import keras_distill as kd
def network():
    x = keras.Input((4, 4, 1))
    h = keras.layers.Conv2D(2, 3)(x) * 2 + 1
    h = keras.layers.BatchNormalization()(h)
    body = keras.Sequential([keras.Input((2, 2, 2)), keras.layers.Flatten(),
        keras.layers.Dropout(0.5), keras.layers.Dense(3)])
    return keras.Model(x, body(keras.ops.relu(h)))
for _ in range(others): network()
model = network()
random = np.random.default_rng(0)
model.set_weights([random.normal(size=w.shape) for w in model.weights])
result = kd.teachers.as_teacher(model).fingerprint
"""


@only_on("torch")
def test_fingerprint_is_the_same_in_other_processes():
    here = {"others": 3}
    exec(_SCRIPT, here)
    printed = subprocess.run(
        [sys.executable, "-c", f"others = 0\n{_SCRIPT}\nprint(result)"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "KERAS_BACKEND": "jax"},
    ).stdout
    assert printed.strip().splitlines()[-1] == str(here["result"])


def test_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match=r"no layer 'relo'.*Did you mean"):
        as_teacher(cnn(), layers=("relo",))
