"""Layers that no process on TensorFlow can run, and what is said of them."""

import importlib

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.export.processes import WorkerError

BACKEND = keras.backend.backend()
LAYERS = """
import keras

@keras.saving.register_keras_serializable("foreign")
class Wave(keras.layers.Layer):
    def call(self, x):
        return {call}

@keras.saving.register_keras_serializable("foreign")
class Forgetful(keras.layers.Layer):
    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return super().get_config()
"""
CALLS = {
    "torch": "__import__('torch').sin(x)",
    "jax": "__import__('jax').numpy.sin(x)",
}


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    text = LAYERS.format(call=CALLS[BACKEND])
    (tmp_path / "foreign_layers.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.reload(importlib.import_module("foreign_layers"))


@pytest.mark.skipif(BACKEND not in CALLS, reason="It is TensorFlow itself.")
@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda module: module.Wave(name="wave"), "use `keras.ops` instead"),
        (lambda module: module.Forgetful(2), "Mend the class's `get_config`"),
    ],
)
def test_error_says_what_to_do_in_plain_text(make, advice, foreign, tmp_path):
    student = keras.Sequential([make(foreign), keras.layers.Dense(2)])
    student(np.zeros((1, 4), "float32"))
    with pytest.raises(RuntimeError, match=advice) as caught:
        kd.export_litert(student, tmp_path / "student.tflite")
    assert isinstance(caught.value.__cause__, WorkerError)
    message = str(caught.value)
    assert "\x1b" not in message
    assert "Arguments received" not in message
    assert "free memory" not in message.lower()
