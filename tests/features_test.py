"""A forward pass that also gives hidden layers' outputs."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_distill.features import (
    FeatureExtractor,
    find_layer,
    select_inputs,
    sublayers,
)


class Block(layers.Layer):
    """A composite layer: a sublayer as attribute, one in a list, one hidden."""

    def __init__(self, name="block"):
        super().__init__(name=name)
        self.first = layers.Dense(5, name="first")
        self.more = [layers.Dense(6, name="second")]
        self._last = layers.Dense(7, name="third")

    def build(self, input_shape):
        self.first.build(input_shape)
        self.more[0].build((None, 5))
        self._last.build((None, 6))

    def call(self, inputs):
        return self._last(self.more[0](self.first(inputs)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="subclassed")
        self.block = Block()
        self.heads = [
            layers.Dense(3, name="head"),
            layers.Dense(2, name="unused"),
        ]

    def build(self, input_shape):
        self.block.build(input_shape)
        for head in self.heads:
            head.build((None, 7))

    def call(self, inputs):
        return self.heads[0](self.block(inputs))


def nested():
    backbone = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.Flatten(name="flat"),
        ],
        name="backbone",
    )
    inputs = keras.Input((8, 8, 1))
    outputs = layers.Dense(3, name="logits")(backbone(inputs))
    return keras.Model(inputs, outputs)


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return random.normal(size=(2, 8, 8, 1)).astype("float32")


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(2, 4)).astype("float32")


def numpy(value):
    return ops.convert_to_numpy(value)


@pytest.mark.parametrize("training", [False, True])
def test_output_is_the_models_own(images, training):
    model = nested()
    extract = FeatureExtractor(model, ["backbone/conv", "logits"])
    output, seen = extract(images, training=training)
    np.testing.assert_array_equal(
        numpy(output), numpy(model(images, training=training))
    )
    assert sorted(seen) == ["backbone/conv", "logits"]
    np.testing.assert_array_equal(numpy(seen["logits"]), numpy(output))


def test_sees_inside_and_at_the_end_of_sub_models(images):
    model = nested()
    backbone = model.get_layer("backbone")
    extract = FeatureExtractor(model, ["backbone/conv", "backbone"])
    _, seen = extract(images, training=False)
    convolved = backbone.get_layer("conv")(images)
    np.testing.assert_array_equal(
        numpy(seen["backbone/conv"]), numpy(convolved)
    )
    np.testing.assert_array_equal(
        numpy(seen["backbone"]), numpy(backbone(images, training=False))
    )


def test_runs_the_model_once(images):
    model = nested()
    norm = model.get_layer("backbone").get_layer("norm")
    conv = model.get_layer("backbone").get_layer("conv")
    mean = numpy(conv(images)).mean(axis=(0, 1, 2))
    FeatureExtractor(model, ["backbone/norm"])(images, training=True)
    # One step of the moving average, from zero.
    np.testing.assert_allclose(
        numpy(norm.moving_mean.value), mean * (1 - norm.momentum), rtol=1e-4
    )


def test_sees_inside_subclassed_models_and_composite_layers(rows):
    model = Subclassed()
    model(rows)
    names = ["block/first", "block/second", "block/third", "block", "head"]
    output, seen = FeatureExtractor(model, names)(rows, training=False)
    block = model.block
    first = block.first(rows)
    second = block.more[0](first)
    expected = [first, second, block._last(second), block(rows), model(rows)]
    for name, value in zip(names, expected, strict=True):
        np.testing.assert_array_equal(numpy(seen[name]), numpy(value))
    np.testing.assert_array_equal(numpy(output), numpy(model(rows)))


def test_lists_sublayers():
    assert [layer.name for layer in sublayers(Block())] == [
        "first",
        "second",
        "third",
    ]
    wrapper = layers.Bidirectional(layers.LSTM(3))
    assert [layer.name for layer in sublayers(wrapper)] == [
        "forward_lstm",
        "backward_lstm",
    ]
    assert sublayers(layers.Dense(3)) == []


def test_gradients_flow_through_features(rows):
    """A feature is the tensor that the model went on with, not a copy."""
    model = Subclassed()
    _, seen = FeatureExtractor(model, ["block"])(rows, training=False)
    assert seen["block"] is not None
    output, seen = FeatureExtractor(model, ["head"])(rows, training=False)
    assert seen["head"] is output


def test_refuses_a_layer_that_is_not_there(images):
    model = nested()
    with pytest.raises(ValueError, match="no layer 'backbon'") as error:
        FeatureExtractor(model, ["backbon/conv"])
    assert "Did you mean ['backbone']" in str(error.value)
    with pytest.raises(
        ValueError, match="no layer 'cnv' in 'backbone'"
    ) as error:
        FeatureExtractor(model, ["backbone/cnv"])
    assert "Received: layer name 'backbone/cnv'" in str(error.value)
    assert "Did you mean ['conv']" in str(error.value)
    assert "Its layers are ['conv', 'flat', 'norm']" in str(error.value)


def test_finds_a_layer_by_its_path():
    model = nested()
    conv = model.get_layer("backbone").get_layer("conv")
    assert find_layer(model, "backbone/conv") is conv


def test_refuses_a_layer_that_is_called_twice(rows):
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, shared(shared(inputs)))
    with pytest.raises(ValueError, match="called more than once"):
        FeatureExtractor(model, ["shared"])(rows, training=False)


def test_refuses_a_layer_that_is_never_called(rows):
    model = Subclassed()
    with pytest.raises(ValueError, match=r"never calls \['unused'\]"):
        FeatureExtractor(model, ["unused"])(rows, training=False)


def all_layers(layer):
    return [
        layer,
        *(x for child in sublayers(layer) for x in all_layers(child)),
    ]


def traces(model):
    """All that an extractor could leave behind."""
    return [
        (sorted(vars(layer)), len(layer._inbound_nodes), layer.call.__func__)
        for layer in all_layers(model)
    ]


def test_leaves_the_model_untouched(images):
    model = nested()
    before = traces(model)
    extract = FeatureExtractor(model, ["backbone/conv", "backbone", "logits"])
    extract(images, training=False)
    extract.specs()
    assert traces(model) == before
    for name in ("backbone/conv", "logits"):
        assert find_layer(model, name).output.shape[0] is None


def test_stops_watching_where_the_model_fails(rows):
    model = Subclassed()
    model(rows)
    extract = FeatureExtractor(model, ["block/first", "head"])
    before = traces(model)
    forward, model.block._last.call = model.block._last.call, None
    with pytest.raises(TypeError):
        extract(rows, training=False)
    del model.block._last.call
    assert model.block._last.call == forward
    assert traces(model) == before
    assert sorted(extract(rows, training=False)[1]) == ["block/first", "head"]


def test_keeps_a_call_that_someone_else_has_set(rows):
    model = Subclassed()
    model(rows)
    plain = model.heads[0].call
    model.heads[0].call = lambda x, training=None: plain(x) + 1
    theirs = model.heads[0].call
    output, seen = FeatureExtractor(model, ["head"])(rows, training=False)
    assert model.heads[0].call is theirs
    np.testing.assert_array_equal(numpy(seen["head"]), numpy(output))


def test_specs_tell_shapes_and_dtypes(images):
    model = nested()
    output, seen = FeatureExtractor(model, ["backbone/conv"]).specs()
    assert output.shape == (None, 3)
    assert seen["backbone/conv"].shape == (None, 6, 6, 4)
    assert seen["backbone/conv"].dtype == "float32"


def test_specs_leave_unknown_sizes_open():
    inputs = keras.Input((None, None, 1))
    conv = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    outputs = layers.GlobalAveragePooling2D()(conv)
    model = keras.Model(inputs, outputs)
    output, seen = FeatureExtractor(model, ["conv"]).specs()
    assert output.shape == (None, 4)
    assert seen["conv"].shape == (None, None, None, 4)


def test_specs_of_subclassed_models(rows):
    model = Subclassed()
    assert FeatureExtractor(model, ["block"]).specs() is None
    model(rows)
    output, seen = FeatureExtractor(model, ["block"]).specs()
    assert output.shape == (None, 3)
    assert seen["block"].shape == (None, 7)


def with_inputs(*names):
    inputs = [keras.Input((2,), name=name) for name in names]
    if len(inputs) == 1:
        return keras.Model(inputs[0], layers.Identity()(inputs[0]))
    return keras.Model(inputs, layers.Concatenate()(inputs))


def test_selects_inputs_by_name():
    batch = {"a": 1, "b": 2, "c": 3}
    assert select_inputs(with_inputs("b"), batch) == 2
    assert select_inputs(with_inputs("c", "a"), batch) == [3, 1]
    named = {name: keras.Input((2,), name=name) for name in ("c", "a")}
    model = keras.Model(named, layers.Add()(list(named.values())))
    assert select_inputs(model, batch) == {"c": 3, "a": 1}


def test_leaves_other_batches_alone():
    assert select_inputs(with_inputs("a"), 7) == 7
    assert select_inputs(with_inputs("a", "b"), [7, 8]) == [7, 8]
    assert select_inputs(Subclassed(), {"a": 1}) == {"a": 1}


def test_refuses_a_batch_that_lacks_an_input():
    with pytest.raises(ValueError, match=r"no \['b'\]") as error:
        select_inputs(with_inputs("a", "b"), {"a": 1, "x": 2})
    assert "keys ['a', 'x']" in str(error.value)
