"""Softmax regression, against its formula and published code."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support import CLASSES, evaluate, images, values

import keras_distill as kd
from keras_distill.losses import SoftmaxRegression
from keras_distill.losses.softmax_regression import distance, pooled


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def head(channels, dtype=None):
    keras.utils.set_random_seed(0)
    layer = layers.Dense(4, name="head", dtype=dtype)
    layer.build((None, channels))
    return layer


def built(teacher, student, **arguments):
    dtype = arguments.get("dtype")
    loss = SoftmaxRegression(head(teacher[-1], dtype), **arguments)
    loss.build(teacher, student)
    return loss


def pool(x):
    return x.reshape(len(x), -1, x.shape[-1]).mean(axis=1)


def formula(loss, teacher, student):
    kernel = np.asarray(loss.teacher_head.get_weights()[0], "float64")
    connect = np.asarray(loss.connector.layers[0].get_weights()[0], "float64")
    x = student @ connect
    axes = tuple(range(x.ndim - 1))
    x = (x - x.mean(axis=axes)) / np.sqrt(x.var(axis=axes) + 1e-5)
    a, b = pool(teacher), pool(np.maximum(x, 0))
    features = ((a - b) ** 2).mean(axis=-1)
    return features + (((a - b) @ kernel) ** 2).mean(axis=-1)


@pytest.mark.usefixtures("float64")
def test_is_that_of_the_authors(golden_inputs):
    def both(*names):
        return [ops.convert_to_tensor(golden_inputs[n]) for n in names]

    teacher, student = map(pooled, both("teacher_maps", "student_maps"))
    logits = distance(*both("teacher_logits", "student_logits"))
    values = ops.convert_to_numpy(distance(teacher, student) + logits)
    np.testing.assert_allclose(values.mean(), 10.524235069941474, rtol=1e-6)


@pytest.mark.parametrize(
    ("teacher_shape", "student_shape"),
    [
        ((4, 3, 2, 5), (4, 2, 2, 3)),
        ((4, 6, 5), (4, 6, 3)),
        ((4, 5), (4, 3)),
    ],
)
@pytest.mark.usefixtures("float64")
def test_values_and_gradient_are_the_formulas(
    gradient, numeric_gradient, teacher_shape, student_shape
):
    teacher, student = random(*teacher_shape), random(*student_shape, seed=1)
    loss = built(teacher_shape, student_shape, reduction=None, dtype="float64")
    np.testing.assert_allclose(
        evaluate(loss, teacher, student),
        formula(loss, teacher, student),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        gradient(lambda x: ops.sum(loss(teacher, x)), student),
        numeric_gradient(lambda x: formula(loss, teacher, x).sum(), student),
        rtol=1e-5,
        atol=1e-7,
    )


def models():
    keras.utils.set_random_seed(1)
    return [
        keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(width, 3, activation="relu", name="last"),
                layers.GlobalAveragePooling2D(),
                layers.Dropout(0.5),
                layers.Dense(CLASSES, name="head"),
            ]
        )
        for width in (8, 4)
    ]


@pytest.mark.usefixtures("differentiable")
def test_trains_the_connector_and_not_the_head(tmp_path):
    teacher, student = models()
    loss = SoftmaxRegression(teacher.get_layer("head"), "last", "last")
    distiller = kd.Distiller(teacher, student, loss)
    parts = loss.connector.trainable_variables
    frozen = [*loss.teacher_head.variables, *teacher.variables]
    before = [values(parts), values(frozen)]
    x, y = images(16)
    distiller.fit(x, y, batch_size=8, epochs=2, verbose=0)
    for old, new in zip(before[0], values(parts), strict=True):
        assert np.any(old != new)
    for old, new in zip(before[1], values(frozen), strict=True):
        np.testing.assert_array_equal(old, new)
    # The head that comes back from a file is the one that was copied.
    distiller.save_teacher = False
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    (copy,) = loaded.distillation_losses.values()
    for a, b in zip(
        copy.teacher_head.get_weights(),
        teacher.get_layer("head").get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_head_of_several_layers_runs_in_inference_mode():
    tail = keras.Sequential(
        [keras.Input((5,)), layers.Dropout(0.9), layers.Dense(2)]
    )
    loss = SoftmaxRegression(tail)
    loss.build((None, 5), (None, 5))
    x = random(4, 5).astype("float32")
    assert evaluate(loss, x, x) == evaluate(loss, x, x)


def test_refuses_a_head_that_does_not_fit():
    loss = SoftmaxRegression(head(6))
    with pytest.raises(ValueError, match="incompatible"):
        loss.build((None, 4, 4, 5), (None, 4, 4, 3))


def test_refuses_a_head_that_is_no_layer_or_has_no_weights():
    with pytest.raises(ValueError, match=r"teacher_head='fc'.*keras\.Layer"):
        SoftmaxRegression("fc")
    with pytest.raises(ValueError, match="isn't built"):
        SoftmaxRegression(layers.Dense(3))


def test_refuses_lists_of_layers():
    with pytest.raises(ValueError, match="one layer with one"):
        SoftmaxRegression(head(5), ["a", "b"], ["a", "b"])
