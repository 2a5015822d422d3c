"""Students that end in the teacher's classifier."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support import CLASSES, assert_same_values, images, values

import keras_distill as kd


def network(width, strides=1, size=8, name=None):
    keras.utils.set_random_seed(width)
    return keras.Sequential(
        [
            keras.Input((size, size, 1)),
            layers.Conv2D(
                width, 3, strides, "same", activation="relu", name="map"
            ),
            layers.GlobalAveragePooling2D(name="vector"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(CLASSES, name="logits"),
        ],
        name=name,
    )


def teacher(**arguments):
    model = network(8, name="teacher", **arguments)
    model.get_layer("norm").moving_mean.assign(np.full(8, 0.1))
    return model


def distiller(theirs, ours, layer):
    made = kd.Distiller(
        theirs,
        ours,
        losses=kd.losses.Hint(layer, "projector"),
        loss_weights=1.0,
        hard_label_weight=0.0,
    )
    made.compile(optimizer=keras.optimizers.SGD(0.1))
    return made


@pytest.mark.traced
@pytest.mark.parametrize("layer", ["map", "vector"])
def test_only_backbone_and_projector_learn(layer):
    theirs, small = teacher(), network(4)
    student = kd.reuse_classifier(theirs, small, layer, layer)
    head = student.get_layer("teacher_head")
    trained = student.trainable_variables
    mine = [
        *small.get_layer("map").variables,
        *student.get_layer("projector").trainable_variables,
    ]
    assert {id(v) for v in trained} == {id(v) for v in mine}
    frozen = [*theirs.variables, *head.variables]
    before = [values(trained), values(frozen)]
    x, y = images(16)
    history = distiller(theirs, student, layer).fit(
        x, y, batch_size=8, epochs=3, verbose=0
    )
    losses = history.history["hint_loss"]
    assert losses[-1] < losses[0]
    for old, new in zip(before[0], values(trained), strict=True):
        assert np.any(old != new)
    assert_same_values(before[1], values(frozen))


def test_weights_of_the_head_are_copies():
    theirs = teacher()
    student = kd.reuse_classifier(theirs, network(4), "map", "map")
    head = student.get_layer("teacher_head")
    copied = {id(v) for v in head.variables}
    assert not copied & {id(v) for v in theirs.variables}
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 8)).astype("float32")
    tail = x
    for layer in theirs.layers[-3:]:
        tail = layer(tail, training=False)
    np.testing.assert_allclose(*map(ops.convert_to_numpy, (head(x), tail)))


def test_evaluates_head_of_projector_of_backbone():
    theirs, small = teacher(), network(4)
    student = kd.reuse_classifier(theirs, small, "map", "map")
    made = distiller(theirs, student, "map")
    x, y = images(16)
    made.fit(x, y, batch_size=8, verbose=0)
    projected = student.get_layer("projector")(
        small.get_layer("map")(ops.convert_to_tensor(x)), training=False
    )
    logits = projected
    for layer in theirs.layers[1:]:
        logits = layer(logits, training=False)
    logits = ops.convert_to_numpy(logits)
    np.testing.assert_allclose(
        student.predict(x, verbose=0), logits, rtol=1e-4, atol=1e-5
    )
    accuracy = made.evaluate(x, y, return_dict=True, verbose=0)["accuracy"]
    assert accuracy == pytest.approx((logits.argmax(axis=-1) == y).mean())


@pytest.mark.parametrize(
    ("ours", "theirs", "kind"),
    [
        (1, 2, layers.AveragePooling2D),
        (2, 1, layers.Resizing),
        (1, 3, layers.Resizing),
        (1, 1, layers.Conv2D),
    ],
)
def test_brings_the_map_to_the_teachers_size(ours, theirs, kind):
    big = teacher(strides=theirs)
    student = kd.reuse_classifier(big, network(4, ours), "map", "map")
    projector = student.get_layer("projector")
    assert projector.output_shape == big.get_layer("map").output.shape
    assert isinstance(projector.layers[0], kind)


def test_narrows_by_the_factor():
    def filters(**arguments):
        student = kd.reuse_classifier(
            teacher(), network(4), "map", "map", **arguments
        )
        projector = student.get_layer("projector")
        return [x.filters for x in projector.layers if hasattr(x, "filters")]

    assert filters() == [4, 4, 8]
    assert filters(factor=8) == [1, 1, 8]


def test_takes_functional_models_and_sub_models():
    inputs = keras.Input((8, 8, 1))
    backbone = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(6, 3, name="conv")],
        name="backbone",
    )
    x = layers.GlobalAveragePooling2D()(backbone(inputs))
    theirs = keras.Model(inputs, layers.Dense(CLASSES)(x))
    student = kd.reuse_classifier(theirs, network(4), "backbone", "map")
    made = distiller(theirs, student, "backbone")
    made.fit(*images(8), verbose=0)
    with pytest.raises(ValueError, match="not one inside a layer"):
        kd.reuse_classifier(theirs, network(4), "backbone/conv", "map")


def test_survives_a_file(tmp_path):
    student = kd.reuse_classifier(teacher(), network(4), "map", "map")
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    x, _ = images(4)
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), student.predict(x, verbose=0), rtol=1e-5
    )


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="Doesn't depend on the backend and takes 10 s: on tensorflow.",
)
def test_exports_with_projector_and_head(tmp_path):
    student = kd.reuse_classifier(
        teacher(), network(4, strides=2), "map", "map"
    )
    artifact = kd.export_litert(student, tmp_path / "student.tflite")
    x, _ = images(5)
    np.testing.assert_allclose(
        artifact.predict(x), student.predict(x, verbose=0), atol=1e-4
    )


def test_refuses_names_that_are_not_there():
    with pytest.raises(ValueError, match=r"no layer 'maps'.*'map'"):
        kd.reuse_classifier(teacher(), network(4), "maps", "map")
    with pytest.raises(ValueError, match="no layer 'deep'"):
        kd.reuse_classifier(teacher(), network(4), "map", "deep")


class Subclassed(keras.Model):
    """A model without a graph."""

    def call(self, x):
        return x


def test_refuses_models_without_a_graph():
    for models in ((Subclassed(), network(4)), (teacher(), Subclassed())):
        with pytest.raises(ValueError, match="shows no graph"):
            kd.reuse_classifier(*models, "map", "map")


def test_refuses_a_layer_that_others_lead_past():
    inputs = keras.Input((8, 8, 1))
    one = layers.Conv2D(4, 3, padding="same", name="one")(inputs)
    two = layers.Conv2D(4, 3, padding="same", name="two")(one)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add()([one, two]))
    theirs = keras.Model(inputs, layers.Dense(CLASSES)(x))
    with pytest.raises(ValueError, match="needs more than its output"):
        kd.reuse_classifier(theirs, network(4), "two", "map")
    kd.reuse_classifier(theirs, network(4), "pool", "vector")


def test_refuses_a_map_for_a_vector():
    with pytest.raises(ValueError, match="map to map or from vector"):
        kd.reuse_classifier(teacher(), network(4), "vector", "map")


def test_refuses_to_resize_to_an_unknown_size():
    with pytest.raises(ValueError, match="inputs of a fixed size"):
        kd.reuse_classifier(teacher(size=None), network(4), "map", "map")


@pytest.mark.parametrize("factor", [0, 1.5])
def test_refuses_another_factor(factor):
    with pytest.raises(ValueError, match=r"factor=.*Pass an integer"):
        kd.reuse_classifier(teacher(), network(4), "map", "map", factor)


def test_takes_models_that_were_put_together_layer_by_layer():
    """Each `add` leaves a graph of its own behind."""

    def grown(width):
        model = keras.Sequential([keras.Input((8, 8, 1))])
        model.add(layers.Conv2D(width, 3, activation="relu", name="c"))
        model.add(layers.GlobalAveragePooling2D(name="pool"))
        model.add(layers.Dense(3, name="logits"))
        return model

    guide, small = grown(6), grown(2)
    student = kd.reuse_classifier(guide, small, "c", "c")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    projected = student.get_layer("projector")(small.get_layer("c")(x))
    expected = guide.get_layer("logits")(guide.get_layer("pool")(projected))
    np.testing.assert_allclose(
        student.predict(x, verbose=0),
        keras.ops.convert_to_numpy(expected),
        atol=1e-6,
    )
