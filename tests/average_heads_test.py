"""A student with two heads: trained, averaged, saved."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support import CLASSES, crossentropy, images, mlp, teacher, values

import keras_distill as kd

HEADS = ("class", "distillation")


@keras.saving.register_keras_serializable("tests")
class Tokens(layers.Layer):
    """Puts a token for each head before the patches."""

    def build(self, shape):
        self.tokens = self.add_weight(
            shape=(1, 2, shape[-1]), initializer="normal", name="tokens"
        )

    def call(self, patches):
        tokens = ops.repeat(self.tokens, ops.shape(patches)[0], axis=0)
        return ops.concatenate([tokens, patches], axis=1)

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] + 2, shape[2])


def vit(as_dict=True):
    """A transformer of one block, with a class and a distillation token."""
    image = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 4, strides=4, name="patches")(image)
    x = Tokens(name="tokens")(layers.Reshape((4, 8))(x))
    x = x + layers.MultiHeadAttention(2, 4)(x, x)
    heads = {
        name: layers.Dense(CLASSES, name=f"{name}_head")(x[:, i])
        for i, name in enumerate(HEADS)
    }
    return keras.Model(image, heads if as_dict else list(heads.values()))


def predict(model, x):
    return keras.tree.map_structure(ops.convert_to_numpy, model(x))


@pytest.mark.traced
@pytest.mark.parametrize("by_output", [True, False])
def test_each_head_learns_from_its_teacher_alone(by_output):
    x, y = images(12)
    student = vit()
    loss = kd.losses.HardTargets(student_layer_name="distillation")
    distiller = kd.Distiller(
        teacher(), student, losses=loss, hard_label_weight=0.5
    )
    assert float(ops.convert_to_numpy(distiller.loss_weights[0])) == 0.5
    distiller.compile(
        keras.optimizers.SGD(0.1),
        loss={"class": crossentropy()},
        metrics={"class": "accuracy"},
    )
    kernels = [student.get_layer(f"{name}_head").kernel for name in HEADS]
    before = values(kernels)
    heads = predict(student, x)
    # Keras asks for labels of every output where there are metrics.
    labels = dict.fromkeys(HEADS, y) if by_output else y
    history = distiller.fit(x, labels, batch_size=12, verbose=0).history
    expected = {
        "hard_label_loss": crossentropy()(y, heads["class"]),
        "hard_targets_loss": crossentropy()(
            predict(teacher(), x).argmax(axis=-1), heads["distillation"]
        ),
    }
    for name, value in expected.items():
        assert history[name][0] == pytest.approx(
            float(ops.convert_to_numpy(value)), rel=1e-5
        )
    for old, new in zip(before, values(kernels), strict=True):
        assert np.any(old != new)


@pytest.mark.parametrize("as_dict", [True, False])
def test_gives_the_mean_of_both_heads(tmp_path, as_dict):
    x, _ = images(5)
    student = vit(as_dict)
    model = kd.average_heads(student)
    heads = keras.tree.flatten(predict(student, x))
    expected = (heads[0] + heads[1]) / 2
    np.testing.assert_allclose(predict(model, x), expected, rtol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predict(loaded, x), expected, rtol=1e-6)


def test_shares_the_students_weights():
    x, _ = images(5)
    student = vit()
    model = kd.average_heads(student, HEADS)
    head = student.get_layer("class_head")
    before = predict(model, x)
    head.bias.assign(head.bias + 2.0)
    np.testing.assert_allclose(predict(model, x), before + 1.0, rtol=1e-5)


def test_averages_the_heads_that_are_named():
    image = keras.Input((8, 8, 1))
    hidden = layers.Flatten()(image)
    student = keras.Model(
        image,
        [layers.Dense(CLASSES)(hidden) for _ in range(2)]
        + [layers.Dense(1)(hidden)],
    )
    x, _ = images(5)
    heads = predict(student, x)
    np.testing.assert_allclose(
        predict(kd.average_heads(student, [0, 1]), x),
        (heads[0] + heads[1]) / 2,
        rtol=1e-5,
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="outputs of shapes"):
        kd.average_heads(student)
    with pytest.raises(ValueError, match="outputs of shapes"):
        kd.average_heads(student, [0])
    with pytest.raises(ValueError, match=r"names=\[0, 3\]"):
        kd.average_heads(student, [0, 3])


def test_refuses_a_model_with_one_output():
    with pytest.raises(ValueError, match="with several"):
        kd.average_heads(mlp())
