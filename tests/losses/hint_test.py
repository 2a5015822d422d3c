"""Hints, against their formula, and the projectors that they make."""

import keras
import numpy as np
import pytest
from keras import layers
from support import evaluate, evaluate_eagerly

from keras_distill.losses import Hint


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def formula(teacher, student):
    return ((teacher - student) ** 2).reshape(len(teacher), -1).mean(axis=-1)


def project(layer, student_shape):
    """The shape behind a projector."""
    return tuple(layer(keras.KerasTensor(student_shape)).shape)


@pytest.fixture
def channels_first():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format(before)


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3), (4, 6, 5, 3)])
def test_values_are_the_formulas(shape):
    teacher, student = random(*shape), random(*shape, seed=1)
    np.testing.assert_allclose(
        evaluate(Hint(reduction=None), teacher, student),
        formula(teacher, student),
        rtol=1e-5,
    )


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    teacher, student = random(2, 3, 2, 4), random(2, 3, 2, 4, seed=1)
    loss = Hint(dtype="float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(lambda x: formula(teacher, x).mean(), student),
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.usefixtures("differentiable")
def test_padding_of_a_sequence_counts_for_nothing():
    teacher, student = random(2, 3, 4), random(2, 3, 4, seed=1)
    student[0, 1:] = 0.0
    teacher[0, 1:] = np.nan  # nobody looks at it
    expected = np.array(
        [
            formula(teacher[:1, :1], student[:1, :1])[0],
            formula(teacher[1:], student[1:])[0],
        ]
    )
    masked = layers.Masking()(student.astype("float32"))
    values = evaluate_eagerly(Hint(reduction=None), teacher, masked)
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    weights = np.array([2.0, 0.5])
    value = evaluate_eagerly(Hint(), teacher, masked, weights)
    assert value == pytest.approx(weights @ expected / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("student_shape", "advice"),
    [
        ((2, 4, 4, 1), "projector='auto'"),
        ((2, 4, 1, 16), "projector='auto'"),
        ((1, 4, 4, 16), "the same examples"),
        ((2, 16), "a layer as projector"),
    ],
)
def test_refuses_to_broadcast(student_shape, advice):
    teacher = random(2, 4, 4, 16)
    with pytest.raises(ValueError, match=advice):
        Hint()(teacher, random(*student_shape))


def test_error_names_both_layers_and_shapes():
    loss = Hint("conv4", "conv3")
    with pytest.raises(ValueError, match="Hint compares") as error:
        loss.check_shapes((None, 8, 8, 256), (None, 8, 8, 64))
    assert "(None, 8, 8, 256) of teacher layer 'conv4'" in str(error.value)
    assert "(None, 8, 8, 64) of student layer 'conv3'" in str(error.value)


def test_unknown_sizes_are_not_refused():
    Hint().check_shapes((None, None, None, 8), (None, 4, 4, 8))
    with pytest.raises(ValueError, match="Hint compares"):
        Hint().check_shapes((None, None, None, 8), (None, 4, 4, 7))


@pytest.mark.parametrize(
    ("teacher", "student", "kinds"),
    [
        ((None, 8), (None, 8), None),
        ((None, 8), (None, 3), [layers.Dense]),
        ((None, 5, 8), (None, 5, 3), [layers.Dense]),
        ((None, None, 8), (None, None, 3), [layers.Dense]),
        ((None, 4, 6, 8), (None, 4, 6, 8), None),
        ((None, 4, 6, 8), (None, 4, 6, 3), [layers.Conv2D]),
        ((None, None, None, 8), (None, None, None, 3), [layers.Conv2D]),
        ((None, 4, 6, 8), (None, 2, 3, 8), [layers.Resizing]),
        ((None, 4, 6, 8), (None, 2, 3, 3), [layers.Conv2D, layers.Resizing]),
    ],
)
def test_projector_mends_the_shape_and_no_more(teacher, student, kinds):
    projector = Hint(projector="auto").make_projector(teacher, student)
    if kinds is None:
        assert projector is None
        return
    assert project(projector, student) == teacher
    parts = getattr(projector, "layers", [projector])
    assert [type(part) for part in parts] == kinds


@pytest.mark.usefixtures("channels_first")
def test_projector_reads_channels_first():
    teacher, student = (None, 8, 4, 6), (None, 3, 2, 3)
    projector = Hint(projector="auto").make_projector(teacher, student)
    convolution, resizing = projector.layers
    assert convolution.filters == 8
    assert (resizing.height, resizing.width) == (4, 6)
    # Not run here: TensorFlow's convolutions on a CPU take channels last.
    assert project(projector, student) == teacher


def test_projected_hint_can_be_learned_to_zero():
    """The projector is linear: it can undo what made the student's map."""
    student = random(4, 2, 2, 3).astype("float32")
    projector = Hint().make_projector((None, 2, 2, 5), (None, 2, 2, 3))
    projector.build(student.shape)
    kernel = random(1, 1, 3, 5, seed=1).astype("float32")
    projector.kernel.assign(kernel)
    teacher = student @ kernel[0, 0]
    assert evaluate(Hint(), teacher, projector(student)) < 1e-12


def test_refuses_to_resize_to_an_unknown_size():
    with pytest.raises(ValueError, match="inputs of a fixed size"):
        Hint().make_projector((None, None, None, 8), (None, 4, 4, 8))


def test_refuses_to_change_the_number_of_axes():
    with pytest.raises(ValueError, match="GlobalAveragePooling2D"):
        Hint().make_projector((None, 8), (None, 4, 4, 8))
