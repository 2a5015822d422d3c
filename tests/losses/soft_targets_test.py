"""Soft targets, against numbers worked out elsewhere."""

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis.extra.numpy import arrays
from keras import layers, ops
from support import evaluate, evaluate_eagerly, follows_from_the_formula

from keras_distill.comparison import Comparison
from keras_distill.losses import (
    BinarySoftTargets,
    LogitMatching,
    SoftTargets,
)
from keras_distill.losses.base import to_logits

# Values of the original implementation of the widest-spread code base.
GOLDEN = {4.0: 5.004764872996098, 1.0: 2.8966207332103555}

quick = hypothesis.settings(max_examples=25, deadline=None, database=None)
# Eighths up to 16: float32 holds them, and their sums, exactly.
eighths = st.integers(-128, 128).map(lambda i: i / 8)
logits = arrays(np.float32, (3, 5), elements=eighths)


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(logits):
    return np.exp(log_softmax(logits))


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def divergence(teacher, student, temperature):
    """The formula in NumPy, a value for each row."""
    log_p = log_softmax(np.asarray(teacher, "float64") / temperature)
    log_q = log_softmax(np.asarray(student, "float64") / temperature)
    return temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def binary_divergence(teacher, student, temperature):
    """The same for yes and no, and the mean over labels."""
    two = [np.stack([0 * z, z], axis=-1) for z in (teacher, student)]
    return divergence(*two, temperature).mean(axis=-1)


def random(*shape, seed=0, scale=3.0):
    return np.random.default_rng(seed).normal(0, scale, shape)


@pytest.mark.parametrize("temperature", GOLDEN)
@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(golden, temperature):
    loss = SoftTargets(temperature, reduction=None, dtype="float64")
    values = evaluate(loss, *golden)
    assert values.dtype == "float64"
    assert values.mean() == pytest.approx(GOLDEN[temperature], rel=1e-12)


@pytest.mark.parametrize("temperature", GOLDEN)
def test_golden_value_in_float32(golden, temperature):
    value = evaluate(SoftTargets(temperature), *golden)
    assert value == pytest.approx(GOLDEN[temperature], rel=1e-6)


# Values of code whose loss is the same but for a factor, or for constants that
# keep it from a logarithm of zero: temperature, value, factor, tolerance.
SAME_ELSEWHERE = {
    "DeiT, a mean over classes": (3.0, 0.497253236946638, 10, 1e-12),
    "ONE, 1e-7 added to the targets": (3.0, 4.972539286838037, 1, 1e-5),
    "mutual learning, 1e-8 added": (1.0, 2.89661933971052, 1, 1e-6),
}


@pytest.mark.parametrize("code", SAME_ELSEWHERE)
@pytest.mark.usefixtures("float64")
def test_is_what_other_code_computes(golden, code):
    temperature, value, factor, tolerance = SAME_ELSEWHERE[code]
    loss = SoftTargets(temperature, reduction=None, dtype="float64")
    mean = evaluate(loss, *golden).mean()
    assert mean == pytest.approx(factor * value, rel=tolerance)


@pytest.mark.usefixtures("float64")
def test_differs_from_a_cross_entropy_by_the_teachers_entropy(golden_inputs):
    """The mean over tokens of a code base for language models."""
    names = ("teacher_sequences", "student_sequences", "mask")
    teacher, student, mask = (golden_inputs[name] for name in names)
    loss = SoftTargets(1.0, reduction=None, dtype="float64")
    log_p = log_softmax(teacher)
    entropy = -(np.exp(log_p) * log_p).sum(axis=-1)
    values = evaluate(loss, teacher, student) + entropy
    mean = values[mask].mean()
    assert mean == pytest.approx(5.593763981597142, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.usefixtures("float64")
def test_values_are_the_formulas(golden, temperature):
    loss = SoftTargets(temperature, reduction=None, dtype="float64")
    expected = divergence(*golden, temperature)
    np.testing.assert_allclose(evaluate(loss, *golden), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("loss_class", "formula"),
    [(SoftTargets, divergence), (BinarySoftTargets, binary_divergence)],
)
@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(
    loss_class, formula, gradient, numeric_gradient
):
    loss = loss_class(3.0, dtype="float64")
    teacher, student = random(3, 4), random(3, 4, seed=1)
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(lambda x: formula(teacher, x, 3.0).mean(), student),
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_gradient_is_exact_for_a_gap_of_ten_thousand(gradient, temperature):
    """Probabilities that are clipped, or rounded, lose it altogether."""
    loss = SoftTargets(temperature, reduction="sum")
    teacher = np.array([[1e4, 0.0, 0.0]], "float32")
    student = np.array([[0.0, 1e4, 0.0]], "float32")
    np.testing.assert_array_equal(
        gradient(lambda x: loss(teacher, x), student),
        temperature * np.array([[-1.0, 1.0, 0.0]]),
    )
    assert evaluate(loss, teacher, student) == temperature * 1e4


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_binary_gradient_is_exact_for_a_gap_of_ten_thousand(
    gradient, temperature
):
    loss = BinarySoftTargets(temperature, reduction="sum")
    teacher = np.array([[1e4], [-1e4]], "float32")
    np.testing.assert_array_equal(
        gradient(lambda x: loss(teacher, x), -teacher),
        temperature * np.array([[-1.0], [1.0]]),
    )
    assert evaluate(loss, teacher, -teacher) == 2 * temperature * 1e4


@pytest.mark.parametrize("gap", [17.0, 40.0, 100.0])
def test_gradient_does_not_vanish_with_the_gap(gradient, gap):
    loss = SoftTargets(1.0)
    teacher = np.array([[gap, 0.0]], "float32")
    slope = gradient(lambda x: loss(teacher, x), teacher[:, ::-1].copy())
    np.testing.assert_allclose(np.linalg.norm(slope), np.sqrt(2), rtol=1e-6)


@follows_from_the_formula
@quick
@hypothesis.given(logits, logits, st.integers(-(2**16), 2**16))
def test_adding_a_constant_to_a_row_changes_nothing(teacher, student, shift):
    loss = SoftTargets(4.0, reduction=None)
    moved = student + np.array([[shift / 8], [0.0], [-shift]], "float32")
    np.testing.assert_allclose(
        evaluate(loss, teacher, moved),
        evaluate(loss, teacher, student),
        rtol=1e-6,
    )


@follows_from_the_formula
@quick
@hypothesis.given(logits, logits)
def test_is_never_negative(teacher, student):
    for loss in (SoftTargets(2.0), BinarySoftTargets(2.0)):
        assert evaluate(loss, teacher, student) >= -1e-6


@follows_from_the_formula
@quick
@hypothesis.given(logits, logits, st.permutations(range(5)))
def test_the_order_of_classes_means_nothing(teacher, student, order):
    loss = SoftTargets(2.0, reduction=None)
    np.testing.assert_allclose(
        evaluate(loss, teacher[:, order], student[:, order]),
        evaluate(loss, teacher, student),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.usefixtures("float64")
def test_high_temperature_matches_centred_logits(golden):
    centred = [side - side.mean(axis=-1, keepdims=True) for side in golden]
    matching = LogitMatching(reduction=None, dtype="float64")
    limit = evaluate(matching, *centred) / 10

    def distance(temperature):
        loss = SoftTargets(temperature, reduction=None, dtype="float64")
        return np.abs(evaluate(loss, *golden) / limit - 1).max()

    assert distance(1e4) < 1e-3
    # The next term of the expansion is of the order of 1 / T.
    assert distance(1e4) / distance(1e3) == pytest.approx(0.1, rel=0.01)


def test_binary_equals_two_classes():
    teacher, student = random(6, 1), random(6, 1, seed=1)
    two = [np.concatenate([0 * z, z], axis=-1) for z in (teacher, student)]
    np.testing.assert_allclose(
        evaluate(BinarySoftTargets(3.0, reduction=None), teacher, student),
        evaluate(SoftTargets(3.0, reduction=None), *two),
        rtol=1e-5,
        atol=1e-6,
    )


def test_binary_takes_the_mean_over_labels():
    teacher, student = random(6, 4), random(6, 4, seed=1)
    np.testing.assert_allclose(
        evaluate(BinarySoftTargets(3.0, reduction=None), teacher, student),
        binary_divergence(teacher, student, 3.0),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("loss_class", "activation"),
    [(SoftTargets, softmax), (BinarySoftTargets, sigmoid)],
)
@pytest.mark.usefixtures("float64")
def test_probabilities_equal_logits(golden, loss_class, activation):
    teacher, student = golden
    on_logits = loss_class(reduction=None, dtype="float64")
    on_probabilities = loss_class(
        from_logits=False, reduction=None, dtype="float64"
    )
    np.testing.assert_allclose(
        evaluate(on_probabilities, activation(teacher), student),
        evaluate(on_logits, teacher, student),
        # Keras' mean over labels rounds to float32.
        rtol=1e-10 if loss_class is SoftTargets else 1e-6,
    )


@pytest.mark.parametrize("loss_class", [SoftTargets, BinarySoftTargets])
def test_probabilities_of_zero_and_one_are_finite(loss_class, gradient):
    loss = loss_class(from_logits=False, reduction="sum")
    teacher = np.array([[1.0, 0.0], [0.0, 1.0]], "float32")
    student = np.array([[2.0, -1.0], [0.0, 500.0]], "float32")
    assert 0 < evaluate(loss, teacher, student) < np.inf
    slope = gradient(lambda x: loss(teacher, x), student)
    assert np.all(np.isfinite(slope))
    assert np.any(slope != 0)


@pytest.mark.parametrize("gap", [20.0, 80.0, 86.0, 90.0, 150.0])
@pytest.mark.parametrize(
    ("loss_class", "activation"),
    [(SoftTargets, "softmax"), (BinarySoftTargets, "sigmoid")],
)
def test_student_that_is_sure_and_wrong_has_a_finite_gradient(
    gradient, loss_class, activation, gap
):
    """Through its softmax: 1 / p times p, of a p that has underflowed."""
    loss = loss_class(20.0, reduction="sum")
    student = np.array([[gap, 0.0], [-gap, gap]], "float32")

    def value(x):
        return loss(
            -student, to_logits(getattr(ops, activation)(x), activation)
        )

    assert np.isfinite(ops.convert_to_numpy(value(student)))
    assert np.all(np.isfinite(gradient(value, student)))


def test_class_map_picks_the_teachers_classes(golden):
    teacher, student = golden
    classes = [7, 2, 9]
    mapped = SoftTargets(class_map=classes)
    direct = SoftTargets()
    student = student[:, :3]
    assert evaluate(mapped, teacher, student) == pytest.approx(
        evaluate(direct, teacher[:, classes], student), rel=1e-6
    )
    # Probabilities: those of the other classes are shared out.
    mapped = SoftTargets(class_map=classes, from_logits=False)
    assert evaluate(mapped, softmax(teacher), student) == pytest.approx(
        evaluate(direct, teacher[:, classes], student), rel=1e-5
    )


@pytest.mark.parametrize("loss_class", [SoftTargets, BinarySoftTargets])
def test_masked_classes_count_for_nothing(loss_class, gradient):
    """A logit of -inf is a class, or token, that is ruled out on both sides."""
    loss = loss_class(2.0, reduction=None)
    masked = np.array([[1.0, -np.inf, 2.0], [0.0, 3.0, -np.inf]], "float32")
    student = np.array([[2.0, -np.inf, 0.0], [1.0, 1.0, -np.inf]], "float32")
    kept = [[[1.0, 2.0], [0.0, 3.0]], [[2.0, 0.0], [1.0, 1.0]]]
    classes_left = 2 / 3 if loss_class is BinarySoftTargets else 1
    np.testing.assert_allclose(
        evaluate(loss, masked, student),
        evaluate(loss, *kept) * classes_left,
        rtol=1e-6,
    )
    slope = gradient(lambda x: ops.sum(loss(masked, x)), student)
    assert np.all(slope[np.isinf(student)] == 0)
    assert np.all(slope[np.isfinite(student)] != 0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2**-8)]
)
def test_gradient_over_a_large_vocabulary(gradient, dtype, tolerance):
    """Off by the rounding of its dtype, however many the classes."""
    loss = SoftTargets(1.0, reduction="sum")
    teacher = ops.cast(random(2, 32_000), dtype)
    student = ops.cast(random(2, 32_000, seed=1), dtype)
    p, q = (
        softmax(ops.convert_to_numpy(ops.cast(x, "float32")).astype("float64"))
        for x in (teacher, student)
    )
    slope = gradient(lambda x: loss(teacher, x), student)
    error = np.linalg.norm(slope - (q - p)) / np.linalg.norm(q - p)
    assert error < tolerance


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_gradient_at_equality(gradient, dtype):
    loss = SoftTargets(4.0, reduction="sum")
    teacher = ops.cast(random(2, 32_000), dtype)
    slope = gradient(lambda x: loss(teacher, x), teacher)
    assert np.linalg.norm(slope) < 1e-6


@pytest.fixture
def sequences():
    """Logits of 2 sequences of 3 places and 4 classes, and each value."""
    teacher, student = random(2, 3, 4), random(2, 3, 4, seed=1)
    return teacher, student, divergence(teacher, student, 4.0)


def masked(student):
    """The student's sequences, the first of them one place shorter."""
    student = student.astype("float32")
    student[0, 2] = 0.0
    return layers.Masking()(ops.convert_to_tensor(student))


MASK = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])


def test_sequences(sequences):
    teacher, student, values = sequences
    np.testing.assert_allclose(
        evaluate(SoftTargets(reduction=None), teacher, student),
        values,
        rtol=1e-5,
    )
    mean = evaluate(SoftTargets(), teacher, student)
    assert mean == pytest.approx(values.mean(), rel=1e-5)


@pytest.mark.parametrize(
    "weights",
    [
        np.array([2.0, 0.5]),
        np.array([[2.0], [0.5]]),
        np.array([[1.0, 0.0, 2.0], [0.5, 3.0, 0.0]]),
    ],
    ids=["batch", "batch-1", "batch-time"],
)
def test_sequences_with_weights(sequences, weights):
    teacher, student, values = sequences
    per_place = weights[:, None] if weights.ndim == 1 else weights
    value = evaluate(SoftTargets(), teacher, student, weights)
    assert value == pytest.approx((values * per_place).mean(), rel=1e-5)


def test_weights_of_a_square_batch_belong_to_examples():
    """As many examples as places: NumPy's rules would weight the places."""
    teacher, student = random(3, 3, 4), random(3, 3, 4, seed=1)
    values = divergence(teacher, student, 4.0)
    value = evaluate(SoftTargets(), teacher, student, np.array([1.0, 0.0, 0.0]))
    assert value == pytest.approx(values[0].sum() / 9, rel=1e-5)


@pytest.mark.usefixtures("differentiable")
@pytest.mark.parametrize(
    "weights",
    [
        None,
        np.array([2.0, 0.5], "float32"),
        np.array([[1.0, 0.0, 2.0], [0.5, 3.0, 0.0]], "float32"),
    ],
    ids=["none", "batch", "batch-time"],
)
def test_masked_sequences(sequences, weights):
    teacher, student, values = sequences
    weights = None if weights is None else ops.convert_to_tensor(weights)
    given = None if weights is None else ops.convert_to_numpy(weights).copy()
    value = evaluate_eagerly(SoftTargets(), teacher, masked(student), weights)
    per_place = MASK.copy()
    if given is not None:
        per_place *= given[:, None] if given.ndim == 1 else given
        np.testing.assert_array_equal(ops.convert_to_numpy(weights), given)
    expected = (values * per_place).sum() / MASK.sum()
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("differentiable")
def test_masks_outlive_the_way_back_to_logits(sequences):
    """A student that ends in a softmax is compared by its logits."""
    teacher, student, values = sequences
    comparison = Comparison(
        "", SoftTargets(), student_is_probability=True, projectors=[None]
    )
    probabilities = layers.Activation("softmax")(masked(student))
    value = evaluate_eagerly(
        comparison.loss,
        teacher,
        comparison.student_side(probabilities, {}, training=False),
    )
    expected = (values * MASK).sum() / MASK.sum()
    assert value == pytest.approx(expected, rel=1e-4)


def test_temperature_can_be_set(golden):
    loss = SoftTargets(4.0)
    assert isinstance(loss.temperature, keras.Variable)
    assert not loss.temperature.trainable
    loss.temperature.assign(1.0)
    assert evaluate(loss, *golden) == pytest.approx(GOLDEN[1.0], rel=1e-6)
    assert loss.get_config()["temperature"] == 1.0


@pytest.mark.parametrize("loss_class", [SoftTargets, BinarySoftTargets])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_refuses_a_temperature_that_is_not_positive(loss_class, temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature}"):
        loss_class(temperature)


def test_refuses_the_softmax_of_one_logit():
    with pytest.raises(ValueError, match="Use BinarySoftTargets"):
        SoftTargets()(random(2, 1), random(2, 1))


def test_names_the_remedies_for_other_classes():
    with pytest.raises(ValueError, match="10 and 3 classes") as error:
        SoftTargets()(random(2, 10), random(2, 3))
    assert "class_map=[...]" in str(error.value)
    assert "projector=keras.layers.Dense(...)" in str(error.value)
    with pytest.raises(ValueError, match="2 and 3 classes"):
        SoftTargets(class_map=[7, 8])(random(2, 10), random(2, 3))


@pytest.mark.parametrize("wrong", [10, -1])
def test_refuses_a_class_that_the_teacher_lacks(wrong):
    with pytest.raises(ValueError, match=rf"classes \[{wrong}\]"):
        SoftTargets(class_map=[0, wrong])(random(2, 10), random(2, 2))


def test_says_where_the_places_differ():
    with pytest.raises(ValueError, match=r"\(2, 1, 4\) and \(2, 5, 4\)"):
        SoftTargets()(random(2, 1, 4), random(2, 5, 4))


def test_unknown_shapes_are_not_refused():
    SoftTargets().check_shapes((None, None, 4), (None, 7, None))
    with pytest.raises(ValueError, match="Pass class_map"):
        SoftTargets().check_shapes((None, None, 4), (None, 7, 5))


@pytest.mark.parametrize("loss_class", [SoftTargets, BinarySoftTargets])
def test_weights_of_examples_are_exact(loss_class):
    teacher, student = random(4, 5), random(4, 5, seed=1)
    weights = np.array([2.0, 0.0, 1.0, 0.25])
    values = evaluate(loss_class(reduction=None), teacher, student)
    value = evaluate(loss_class(), teacher, student, weights)
    assert value == pytest.approx(weights @ values / 4, rel=1e-6)
