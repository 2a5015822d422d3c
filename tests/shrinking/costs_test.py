"""What a model costs, against known numbers, NumPy and real files."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers
from shrinking.families import resnet
from support import only_on

import keras_distill as kd


def resnet20():
    """The network of He et al. 2016 for CIFAR-10, with free shortcuts."""
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, padding="same")(image)
    for width in (16, 32, 64):
        for i in range(3):
            strides = 2 if i == 0 and width > 16 else 1
            y = layers.Conv2D(width, 3, strides, padding="same")(x)
            y = layers.Conv2D(width, 3, padding="same")(y)
            if strides == 2:
                x = layers.AveragePooling2D(2)(x)
                x = layers.Concatenate()([x, x])
            x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10)(x))


def test_a_known_network():
    cost = kd.model_cost(resnet20())
    # He et al. 2016 say 0.27 M; 41 M are usually given.
    assert cost.parameters == 269_034
    assert cost.macs == 40_551_040


def _of(*parts, shape=(6, 4)):
    return keras.Sequential([keras.Input(shape), *parts])


# Each with its own sum: places, and what each of them multiplies.
LAYERS = {
    "dense": (lambda: _of(layers.Dense(5)), 6 * 4 * 5),
    "conv1d": (lambda: _of(layers.Conv1D(8, 3, groups=2)), 4 * 3 * 2 * 8),
    "strided": (
        lambda: _of(layers.Conv2D(5, 3, 2, padding="same"), shape=(4, 4, 2)),
        2 * 2 * 3 * 3 * 2 * 5,
    ),
    "depthwise": (
        lambda: _of(layers.DepthwiseConv1D(3, depth_multiplier=2)),
        4 * 3 * 4 * 2,
    ),
    "separable": (
        lambda: _of(layers.SeparableConv1D(5, 3)),
        4 * (3 * 4 + 4 * 5),
    ),
    "transposed": (
        lambda: _of(layers.Conv1DTranspose(5, 3, strides=2)),
        6 * 4 * 3 * 5,
    ),
    "lstm": (lambda: _of(layers.LSTM(5)), 6 * 4 * 5 * (4 + 5)),
    "gru": (
        lambda: _of(layers.Bidirectional(layers.GRU(5))),
        2 * 6 * 3 * 5 * (4 + 5),
    ),
    "each step": (
        lambda: _of(layers.TimeDistributed(_of(layers.Dense(5), shape=(4,)))),
        6 * 4 * 5,
    ),
    "no kernel": (
        lambda: _of(
            layers.Embedding(9, 5), layers.LayerNormalization(), shape=(6,)
        ),
        0,
    ),
    "einsum": (
        lambda: _of(layers.EinsumDense("abc,cde->abde", (None, 2, 3))),
        6 * 4 * 2 * 3,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    make, macs = LAYERS[name]
    assert kd.model_cost(make()).macs == macs


@pytest.mark.parametrize("kind", ["multi", "grouped"])
def test_attention(kind):
    if kind == "multi":
        attend = layers.MultiHeadAttention(2, 3)
        kernels = 6 * 4 * 2 * (3 + 3 + 3) + 6 * 2 * 3 * 4
        products = 6 * 6 * 2 * (3 + 3)
    else:
        attend = layers.GroupQueryAttention(3, 4, 2)
        kernels = 6 * 4 * 3 * (4 + 2 + 2) + 6 * 4 * 3 * 4
        products = 6 * 6 * 4 * (3 + 3)
    x = keras.Input((6, 4))
    model = keras.Model(x, attend(x, x))
    assert kd.model_cost(model).macs == kernels + products


class Scaled(layers.Layer):
    """A layer that nothing is known of, in a model that shows no graph."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],))

    def call(self, x):
        return x * self.scale


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.scaled, self.dense = Scaled(name="scaled"), layers.Dense(5)

    def call(self, x):
        return self.dense(self.scaled(x))


def test_a_subclassed_model_and_what_it_cannot_count():
    model = Subclassed()
    model(np.zeros((2, 4), "float32"))
    cost = kd.model_cost(model)
    assert (cost.parameters, cost.macs) == (4 + 4 * 5 + 5, 4 * 5)
    assert cost.uncounted == ("scaled",)
    assert "scaled" in str(cost)
    # It was watched, and isn't any more.
    assert "call" not in vars(model.dense)


def test_a_cost_is_frozen_and_says_all():
    cost = kd.model_cost(resnet())
    with pytest.raises(dataclasses.FrozenInstanceError):
        cost.macs = 1
    lines = str(cost).splitlines()
    assert lines[0] == f"{cost.parameters:,} parameters"
    assert len(lines) == 2 + len(cost.litert_bytes)
    sizes = [cost.litert_bytes[s] for s in ("float32", "float16", "int8")]
    assert sizes == sorted(sizes, reverse=True)


def test_what_has_no_size_costs_nothing_known():
    with pytest.raises(TypeError, match=r"Received: model=3"):
        kd.model_cost(3)
    with pytest.raises(ValueError, match="isn't built"):
        kd.model_cost(keras.Sequential([layers.Dense(2)]))
    free = keras.Sequential([keras.Input((None, None, 1)), layers.Conv2D(2, 1)])
    with pytest.raises(ValueError, match=r"Received: .*\(None, None, None"):
        kd.model_cost(free)


@only_on("tensorflow")
def test_the_estimate_is_near_the_file(tmp_path):
    student = kd.shrink(resnet20(), width=0.5)
    artifact = kd.export_litert(student, tmp_path / "s.tflite", "dynamic_int8")
    estimate = kd.model_cost(student).litert_bytes["dynamic_int8"]
    assert abs(estimate / artifact.size - 1) < 0.25
