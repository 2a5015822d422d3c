"""Factor transfer, against published code and NumPy, in both stages."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from support import (
    cnn,
    crossentropy,
    evaluate,
    follows_from_the_formula,
    images,
    teacher,
    values,
)

import keras_distill as kd
from keras_distill.losses import FactorTransfer, paraphraser


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def identity(dtype="float32"):
    return keras.Sequential(
        [
            keras.Input((None, None, None), dtype=dtype),
            layers.Identity(dtype=dtype),
        ]
    )


def bare(dtype="float32", **arguments):
    """The loss on factors that are given, without networks."""
    loss = FactorTransfer(identity(dtype), dtype=dtype, **arguments)
    loss.translator = identity(dtype)
    loss.built = True
    return loss


def formula(teacher, student, power=2, distance_power=1):
    def normalized(f):
        f = f if power is None else (f**power).mean(axis=-1)
        f = f.reshape(len(f), -1)
        return f / np.linalg.norm(f, axis=-1, keepdims=True)

    distance = np.abs(normalized(teacher) - normalized(student))
    return (distance**distance_power).mean(axis=-1)


@pytest.mark.usefixtures("float64")
def test_equals_published_code(golden_inputs):
    loss = bare("float64", reduction=None)
    teacher = golden_inputs["teacher_maps_7_channels"]
    value = evaluate(loss, teacher, golden_inputs["student_maps"]).mean()
    assert value == pytest.approx(0.0696017983832581, rel=1e-6)


def test_float32_is_near_published_code(golden_inputs):
    teacher = golden_inputs["teacher_maps_7_channels"]
    value = evaluate(bare(), teacher, golden_inputs["student_maps"])
    assert value == pytest.approx(0.0696017983832581, rel=1e-6)


@pytest.mark.parametrize("power", [None, 1, 2, 3])
@pytest.mark.parametrize("distance_power", [1, 2])
def test_values_are_the_formulas(power, distance_power):
    arguments = {"power": power, "distance_power": distance_power}
    teacher, student = random(4, 3, 5, 6), random(4, 3, 5, 6, seed=1)
    np.testing.assert_allclose(
        evaluate(bare(reduction=None, **arguments), teacher, student),
        formula(teacher, student, **arguments),
        rtol=1e-5,
    )


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(2, 2, 3, 3), random(2, 2, 3, 4, seed=1)
    loss = bare("float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(lambda x: formula(teacher, x).mean(), student),
        rtol=1e-5,  # Keras' mean is of float32 on PyTorch.
        atol=1e-9,
    )


def test_gradient_of_silent_factors_is_finite(gradient):
    slope = gradient(
        lambda x: bare()(random(2, 2, 2, 3), x),
        np.zeros((2, 2, 2, 3), "float32"),
    )
    assert np.all(np.isfinite(slope))


@follows_from_the_formula
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10.0))
def test_scale_does_not_matter(seed, scale):
    teacher, student = random(2, 2, 3, 4), random(2, 2, 3, 4, seed=seed)
    np.testing.assert_allclose(
        evaluate(bare(reduction=None), teacher, scale * student),
        formula(teacher, student),
        rtol=1e-4,
        atol=1e-6,
    )


def test_larger_factors_are_averaged():
    teacher, student = random(2, 6, 4, 3), random(2, 3, 2, 3, seed=1)
    pooled = teacher.reshape(2, 3, 2, 2, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(
        evaluate(bare(reduction=None), teacher, student),
        formula(pooled, student),
        rtol=1e-5,
    )


def test_paraphraser_has_the_papers_shape():
    encoder, autoencoder = paraphraser((None, 4, 4, 7), rate=0.5)
    assert encoder.output_shape == (None, 4, 4, 3)
    assert autoencoder.output_shape == (None, 4, 4, 7)
    counts = [
        sum(isinstance(x, kind) for x in encoder.layers)
        for kind in (layers.Conv2D, layers.BatchNormalization, layers.LeakyReLU)
    ]
    assert counts == [3, 3, 3]


@pytest.mark.usefixtures("differentiable")
def test_both_stages_learn():
    x, y = images(16)
    model = teacher()
    feature_model = keras.Model(model.inputs, model.get_layer("conv").output)
    features = feature_model.predict(x, verbose=0)
    encoder, autoencoder = paraphraser(features.shape)
    autoencoder.compile(keras.optimizers.Adam(0.01), "mse")
    before = values(encoder.trainable_variables)
    losses = autoencoder.fit(features, features, epochs=5, verbose=0)
    assert losses.history["loss"][-1] < losses.history["loss"][0]
    learned = values(encoder.trainable_variables)
    assert all(np.any(a != b) for a, b in zip(before, learned, strict=True))
    loss = FactorTransfer(
        encoder, teacher_layer_name="conv", student_layer_name="relu"
    )
    distiller = kd.Distiller(model, cnn(3), loss, hard_label_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.01), loss=crossentropy())
    translator = values(loss.translator.trainable_variables)
    losses = distiller.fit(x, y, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for old, new in zip(
        translator, values(loss.translator.trainable_variables), strict=True
    ):
        assert np.any(old != new)
    for mine, copied in zip(
        learned, values(loss.paraphraser.trainable_variables), strict=False
    ):
        np.testing.assert_array_equal(mine, copied)
    for old, new in zip(
        learned, values(encoder.trainable_variables), strict=True
    ):
        np.testing.assert_array_equal(old, new)


def test_uses_a_copy_of_the_paraphraser():
    encoder, _ = paraphraser((None, 4, 4, 6))
    loss = FactorTransfer(encoder)
    assert loss.paraphraser is not encoder
    assert not loss.paraphraser.trainable_variables
    assert encoder.trainable_variables
    for ours, theirs in zip(
        values(loss.paraphraser.variables),
        values(encoder.variables),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("power", [0, -1, 1.5])
def test_refuses_other_powers(power):
    with pytest.raises(ValueError, match="Received: power="):
        FactorTransfer(identity(), power=power)


def test_refuses_other_distances():
    with pytest.raises(ValueError, match="Received: distance_power=3"):
        FactorTransfer(identity(), distance_power=3)


def test_refuses_several_layers():
    with pytest.raises(ValueError, match="belongs to one layer"):
        FactorTransfer(
            identity(),
            teacher_layer_name=["a", "b"],
            student_layer_name=["a", "b"],
        )


def test_refuses_a_paraphraser_without_weights():
    with pytest.raises(ValueError, match="isn't built"):
        FactorTransfer(keras.Sequential([layers.Conv2D(3, 1)]))


def test_refuses_vectors():
    with pytest.raises(ValueError, match="4 axes"):
        FactorTransfer(identity()).check_shapes((None, 5), (None, 5))


@pytest.mark.parametrize("shape", [(None, 5), (None, 4, 4, None)])
def test_refuses_to_paraphrase_other_shapes(shape):
    with pytest.raises(ValueError, match="Received: teacher_shape="):
        paraphraser(shape)


@pytest.mark.parametrize("rate", [0.0, -1.0, 0.1])
def test_refuses_a_rate_that_leaves_nothing(rate):
    with pytest.raises(ValueError, match="Received: rate="):
        paraphraser((None, 4, 4, 6), rate)
