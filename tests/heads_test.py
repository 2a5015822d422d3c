"""What a model ends in, in all the ways of writing it."""

import keras
import pytest
from keras import layers, ops

from keras_distill.heads import final_activation


def functional(*steps, shape=(4,)):
    """A Functional model of steps, layers or functions, one after another."""
    tensor = inputs = keras.Input(shape)
    for step in steps:
        tensor = step(tensor)
    return keras.Model(inputs, tensor)


def classifier(activation=None, width=4):
    return functional(layers.Dense(3, activation=activation), shape=(width,))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3, activation="softmax", name="dense")

    def call(self, inputs):
        return self.dense(inputs)


class Temperate(layers.Layer):
    """A custom layer without a config."""

    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature

    def call(self, inputs):
        return inputs / self.temperature


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "end",
    [
        lambda kind: [layers.Dense(3, activation=kind)],
        lambda kind: [layers.Dense(3, activation=keras.activations.get(kind))],
        lambda kind: [layers.Dense(3), layers.Activation(kind)],
        lambda kind: [
            layers.Dense(3),
            layers.Activation(kind, dtype="float32"),
        ],
        lambda kind: [layers.Dense(3), getattr(ops, kind)],
        lambda kind: [layers.Dense(3), keras.activations.get(kind)],
        lambda kind: [layers.Dense(3, activation=kind), layers.Reshape((3, 1))],
        lambda kind: [layers.Dense(3, activation=kind), layers.Flatten()],
        lambda kind: [
            layers.Dense(3, activation=kind),
            lambda x: ops.squeeze(ops.expand_dims(x, 1), 1),
        ],
        lambda kind: [
            layers.Dense(3, activation=kind),
            layers.Activation("linear", dtype="float32"),
        ],
        lambda kind: [
            layers.Dense(3, activation=kind),
            lambda x: ops.cast(x, "float32"),
        ],
        lambda kind: [layers.Dense(5), classifier(kind, 5)],
        lambda kind: [functional(layers.Dense(5), classifier(kind, 5))],
        lambda kind: [keras.Sequential([layers.Dense(3, activation=kind)])],
    ],
    ids=[
        "argument",
        "function",
        "layer",
        "float32-layer",
        "ops",
        "activations",
        "reshape",
        "flatten",
        "squeeze",
        "linear",
        "cast",
        "nested",
        "nested-twice",
        "nested-sequential",
    ],
)
def test_finds_the_activation(kind, end):
    assert final_activation(functional(*end(kind))) == kind


def test_finds_a_softmax_layer():
    assert final_activation(functional(layers.Softmax())) == "softmax"


def test_finds_it_in_a_sequential_model():
    steps = [keras.Input((4,)), layers.Dense(3), layers.Softmax()]
    assert final_activation(keras.Sequential(steps)) == "softmax"
    assert final_activation(keras.Sequential(steps[:-1])) is None


def test_finds_it_at_each_time_step():
    model = functional(
        layers.TimeDistributed(layers.Dense(3, activation="softmax")),
        shape=(5, 4),
    )
    assert final_activation(model) == "softmax"


@pytest.mark.parametrize(
    "steps",
    [
        [layers.Dense(3)],
        [layers.Dense(3, activation="relu")],
        [layers.Dense(3, activation="log_softmax")],
        [layers.Dense(3), ops.log_softmax],
        [layers.Softmax(), layers.Dense(3)],
        [layers.Dense(3, activation="softmax"), ops.log],
        [layers.Dense(3, activation="sigmoid"), Temperate(2.0)],
        [Subclassed()],
    ],
    ids=[
        "linear",
        "relu",
        "log-softmax",
        "ops-log-softmax",
        "in-the-middle",
        "log",
        "custom",
        "subclassed",
    ],
)
def test_finds_none(steps):
    assert final_activation(functional(*steps)) is None


def test_subclassed_model_shows_none():
    model = Subclassed()
    assert final_activation(model) is None
    assert final_activation(functional(model)) is None
    assert final_activation(model) is None
    assert final_activation(model, "dense") == "softmax"


def outputs():
    inputs = keras.Input((4,))
    head = layers.Dense(3, activation="softmax", name="head")
    logits = layers.Dense(3, name="logits")
    return inputs, head(inputs), logits(inputs)


def test_finds_an_output_by_its_key():
    inputs, head, logits = outputs()
    model = keras.Model(inputs, {"main": head, "other": logits})
    assert final_activation(model, "main") == "softmax"
    assert final_activation(model, "other") is None


def test_finds_an_output_by_its_index():
    inputs, head, logits = outputs()
    model = keras.Model(inputs, [logits, head])
    assert final_activation(model, 0) is None
    assert final_activation(model, 1) == "softmax"
    assert final_activation(model, -1) == "softmax"
    # No such output: whoever looks for its tensor says so.
    assert final_activation(model, 2) is None


def test_says_nothing_about_several_outputs_at_once():
    inputs, head, _ = outputs()
    assert final_activation(keras.Model(inputs, [head, head])) is None
    assert final_activation(keras.Model(inputs, [head])) == "softmax"


def test_finds_a_layer_by_its_name():
    inputs, head, logits = outputs()
    model = keras.Model(inputs, {"main": head, "other": logits})
    assert final_activation(model, "head") == "softmax"
    assert final_activation(model, "logits") is None
    outer = keras.Sequential(
        [keras.Input((4,)), keras.Model(inputs, head, name="inner")]
    )
    assert final_activation(outer, "inner/head") == "softmax"
    assert final_activation(outer, "inner") == "softmax"


def test_finds_none_where_there_is_no_such_layer():
    # Nor an output of that key: whoever looks for its tensor says so.
    assert final_activation(classifier("softmax"), "tail") is None


def test_finds_each_output_of_a_sub_model():
    inputs, head, logits = outputs()
    inner = keras.Model(inputs, [logits, head])
    outer = keras.Input((4,))
    first, second = inner(outer)
    assert final_activation(keras.Model(outer, first)) is None
    assert final_activation(keras.Model(outer, second)) == "softmax"


def test_finds_it_where_a_layer_is_shared():
    shared = layers.Dense(3, activation="softmax")
    flat = layers.Flatten()
    left, right = keras.Input((4,)), keras.Input((4,))
    model = keras.Model(
        [left, right], [flat(shared(left)), flat(shared(right)), flat(left)]
    )
    assert [final_activation(model, i) for i in range(3)] == [
        "softmax",
        "softmax",
        None,
    ]


def test_leaves_the_graph_as_it_was():
    model = classifier("softmax")
    before = len(model.output._keras_history.operation._outbound_nodes)
    final_activation(model, 0)
    final_activation(model)
    after = len(model.output._keras_history.operation._outbound_nodes)
    assert after == before
