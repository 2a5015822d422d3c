"""Masked generation, against its formula."""

import keras
import numpy as np
import pytest
from keras import ops
from support import cnn, evaluate_eagerly, images, values
from support import teacher as make_teacher

import keras_distill as kd
from keras_distill.losses import MaskedGeneration


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def built(shape=(None, None, None, 3), **arguments):
    keras.utils.set_random_seed(0)
    loss = MaskedGeneration(seed=3, **arguments)
    loss.build(shape, shape)
    return loss


class Keep(keras.Layer):
    """Stands for a generator, and remembers what it saw."""

    def call(self, x, training=None):
        self.seen = ops.convert_to_numpy(x)
        return x


def convolve(x, kernel, bias):
    """A 3x3 convolution with zeros around."""
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return bias + sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )


def formula(loss, teacher, student):
    first, bias, second, other_bias = [
        ops.convert_to_numpy(w).astype("float64")
        for w in loss.generators[0].get_weights()
    ]
    hidden = np.maximum(convolve(student, first, bias), 0)
    made = convolve(hidden, second, other_bias)
    return ((teacher - made) ** 2).sum(axis=(1, 2, 3))


@pytest.mark.usefixtures("float64")
def test_values_and_gradient_are_the_formulas(gradient, numeric_gradient):
    teacher, student = random(2, 4, 3, 3), random(2, 4, 3, 3, seed=1)
    loss = built(masked_share=0.0, reduction=None, dtype="float64")
    np.testing.assert_allclose(
        evaluate_eagerly(loss, teacher, student),
        formula(loss, teacher, student),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        gradient(lambda x: ops.sum(loss(teacher, x)), student),
        numeric_gradient(lambda x: formula(loss, teacher, x).sum(), student),
        rtol=1e-5,
        atol=1e-7,
    )


@pytest.mark.parametrize(
    ("mask", "share", "axes"), [("channel", 0.15, (1, 2)), ("spatial", 0.65, 3)]
)
def test_masks_whole_channels_or_places(mask, share, axes):
    loss = built(mask=mask)
    loss.generators = [Keep()]
    shape = (20, 8, 8, 50)
    ones = np.ones(shape, "float32")
    value = evaluate_eagerly(loss, ones, ones)
    hidden = loss.generators[0].seen == 0
    np.testing.assert_array_equal(hidden.all(axis=axes), hidden.any(axis=axes))
    assert hidden.mean() == pytest.approx(share, abs=0.04)
    assert value == pytest.approx(hidden.sum() / 20, rel=1e-5)
    first, second = hidden[0], hidden[1]
    assert np.any(first != second)
    before = hidden
    evaluate_eagerly(loss, ones, ones)
    assert np.any((loss.generators[0].seen == 0) != before)


def test_mask_follows_the_seed():
    x = random(3, 4, 4, 3).astype("float32")
    assert evaluate_eagerly(built(), x, x) == evaluate_eagerly(built(), x, x)


def test_weight_goes_with_the_mask():
    assert MaskedGeneration().default_weight == 7e-5
    assert MaskedGeneration(mask="spatial").default_weight == 2e-5


@pytest.mark.usefixtures("differentiable")
def test_trains_generators_of_several_layers_in_a_distiller():
    loss = MaskedGeneration(
        teacher_layer_name=["norm", "pool"],
        student_layer_name=["norm", "pool"],
        projector="auto",
    )
    distiller = kd.Distiller(make_teacher(), cnn(), loss, loss_weights=1e-3)
    assert len(loss.generators) == 2
    before = [values(g.variables) for g in loss.generators]
    x, y = images(16)
    distiller.compile(optimizer="sgd")
    history = distiller.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert np.all(np.isfinite(history.history["loss"]))
    for generator, old in zip(loss.generators, before, strict=True):
        for a, b in zip(values(generator.variables), old, strict=True):
            assert np.any(a != b)


def test_refuses_what_it_cannot_mask():
    with pytest.raises(ValueError, match=r"mask='rows'.*'channel'"):
        MaskedGeneration(mask="rows")
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"masked_share=.*Pass a number"):
            MaskedGeneration(masked_share=share)


def test_refuses_vectors():
    with pytest.raises(ValueError, match="4 axes"):
        MaskedGeneration().check_shapes((None, 3), (None, 3))
