"""Soft targets of few classes, against NumPy and published code."""

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis.extra.numpy import arrays
from keras import layers, ops
from support import (
    assert_same_values,
    evaluate,
    evaluate_eagerly,
    follows_from_the_formula,
    values,
)

import keras_distill as kd
from keras_distill.losses import (
    SampledSoftTargets,
    SampledTargets,
    SoftTargets,
    SparseSoftTargets,
    SparseTargets,
    StandardizedLogits,
)

# Values for the 5 greatest of 30: the first two are those of published code,
# the last of the formula alone; and the value for all 30.
GOLDEN = {
    "teacher_renormalized": 4.244873562865011,
    "tail": 2.7612380790461257,
    "renormalized": 1.9326114658294613,
}
DENSE = 3.3536258760499886
MISSING = [*GOLDEN, "spread"]

quick = hypothesis.settings(max_examples=15, deadline=None, database=None)
logits = arrays(
    np.float32, (3, 5), elements=st.integers(-64, 64).map(lambda i: i / 8)
)


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def divergence(p, q):
    safe = np.where(p > 0, p, 1.0)
    return (p * (np.log(safe) - np.log(q))).sum(axis=-1)


def formula(teacher, student, k, missing, temperature=1.0):
    """Row by row."""
    shape = student.shape
    rows = []
    for t, s in zip(
        teacher.reshape(-1, shape[-1]),
        student.reshape(-1, shape[-1]),
        strict=True,
    ):
        p, q = softmax(t / temperature), softmax(s / temperature)
        top = np.argsort(-t, kind="stable")[:k]
        others = np.setdiff1d(np.arange(shape[-1]), top)
        kept, given = p[top], q[top]
        if missing == "tail":
            kept = np.append(kept, p[others].sum())
            given = np.append(given, q[others].sum() if len(others) else 1.0)
        elif missing == "spread":
            share = p[others].sum() / max(len(others), 1)
            kept = np.append(kept, np.full(len(others), share))
            given = np.append(given, q[others])
        else:
            kept = kept / kept.sum()
        if missing == "renormalized":
            given = given / given.sum()
        rows.append(temperature**2 * divergence(kept, given))
    return np.reshape(rows, shape[:-1])


def stored(targets):
    """Targets as they come back from a file."""
    return type(targets)(*map(ops.convert_to_numpy, targets))


def random(*shape, seed=0, scale=2.0):
    return np.random.default_rng(seed).normal(0, scale, shape)


@pytest.fixture
def sequences(golden_inputs):
    """Sequences of tokens, and the mean over those that count."""
    teacher, student, mask = (
        golden_inputs[name]
        for name in ("teacher_sequences", "student_sequences", "mask")
    )
    return teacher, student, lambda values: values[mask].sum() / mask.sum()


@pytest.mark.parametrize("missing", GOLDEN)
@pytest.mark.usefixtures("float64")
def test_golden_value_in_float64(sequences, missing):
    *pair, mean = sequences
    loss = SparseSoftTargets(
        5, missing=missing, reduction=None, dtype="float64"
    )
    values = evaluate(loss, *pair)
    assert values.dtype == "float64"
    assert mean(values) == pytest.approx(GOLDEN[missing], rel=1e-12)


@pytest.mark.parametrize("missing", GOLDEN)
@pytest.mark.parametrize("store", [False, True])
def test_golden_value_in_float32(sequences, missing, store):
    teacher, student, mean = sequences
    loss = SparseSoftTargets(5, missing=missing, reduction=None)
    if store:
        teacher = stored(loss.targets(teacher))
        assert [part.shape for part in teacher] == [
            *[(2, 5, 5)] * 2,
            *[(2, 5)] * 2,
        ]
    value = mean(evaluate(loss, teacher, student))
    assert value == pytest.approx(GOLDEN[missing], rel=1e-5)


@follows_from_the_formula
@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.usefixtures("float64")
def test_all_classes_are_soft_targets(sequences, missing):
    *pair, mean = sequences
    loss = SparseSoftTargets(
        30, missing=missing, reduction=None, dtype="float64"
    )
    values = evaluate(loss, *pair)
    assert mean(values) == pytest.approx(DENSE, rel=1e-10)
    dense = SoftTargets(1.0, reduction=None, dtype="float64")
    np.testing.assert_allclose(values, evaluate(dense, *pair), rtol=1e-8)


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("k", [1, 4, 9, 10])
@pytest.mark.usefixtures("float64")
def test_values_are_the_formulas(golden, missing, k):
    loss = SparseSoftTargets(k, 3.0, missing, reduction=None, dtype="float64")
    np.testing.assert_allclose(
        evaluate(loss, *golden),
        formula(*golden, k, missing, 3.0),
        rtol=1e-8,
        atol=1e-12,
    )


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(gradient, numeric_gradient, missing):
    teacher, student = random(3, 6), random(3, 6, seed=1)
    loss = SparseSoftTargets(2, 2.0, missing, dtype="float64")
    np.testing.assert_allclose(
        gradient(lambda x: loss(teacher, x), student),
        numeric_gradient(
            lambda x: formula(teacher, x, 2, missing, 2.0).mean(), student
        ),
        rtol=1e-5,
        atol=1e-9,
    )


@follows_from_the_formula
@quick
@hypothesis.given(logits, logits, st.integers(1, 5))
def test_a_tail_never_exceeds_soft_targets(teacher, student, k):
    values = evaluate(SparseSoftTargets(k, reduction=None), teacher, student)
    dense = evaluate(SoftTargets(1.0, reduction=None), teacher, student)
    assert np.all(values >= -1e-5)
    assert np.all(values <= dense * (1 + 1e-5) + 1e-5)


@quick
@hypothesis.given(logits, logits, st.integers(1, 5), st.sampled_from(MISSING))
def test_stored_targets_equal_live_ones(teacher, student, k, missing):
    """Equal logits too, of which some are kept and some are not."""
    loss = SparseSoftTargets(k, 2.0, missing, reduction=None)
    targets = stored(loss.targets(teacher))
    live = evaluate(loss, teacher, student)
    np.testing.assert_array_equal(evaluate(loss, targets, student), live)
    if missing == "tail":
        total = np.exp(teacher.astype("float64") / 2).sum(axis=-1)
        kept = np.exp(targets.logits.astype("float64") / 2).sum(axis=-1)
        np.testing.assert_allclose(
            np.exp(targets.log_rest), total - kept, rtol=1e-4, atol=1e-6
        )


def test_what_renormalizing_both_ignores():
    """The student gives nearly all to a class that the teacher rules out."""
    teacher, student = [[5.0, 4.0, -9.0]], [[5.0, 4.0, 20.0]]
    values = {
        missing: evaluate(
            SparseSoftTargets(2, missing=missing), teacher, student
        )
        for missing in MISSING
    }
    assert values.pop("renormalized") == pytest.approx(0, abs=1e-6)
    assert min(values.values()) > 10


@pytest.mark.parametrize("missing", ["tail", "spread", "teacher_renormalized"])
@pytest.mark.parametrize("gap", [1e4, 80.0])
def test_a_student_that_is_sure_has_a_gradient(gradient, missing, gap):
    """Of what it gives to all other classes, float32 sees nothing."""
    loss = SparseSoftTargets(1, missing=missing, reduction="sum")
    teacher = np.array([[1.0, 0.0, 0.0]], "float32")
    student = np.array([[gap, 0.0, 0.0]], "float32")
    p = softmax(teacher)
    if missing == "teacher_renormalized":
        p = np.array([[1.0, 0.0, 0.0]])
    slope = gradient(lambda x: loss(teacher, x), student)
    # float32 has a spacing of 0.001 at ten thousand.
    expected = np.array([[1.0, 0.0, 0.0]]) - p
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-6)


def test_class_map_and_probabilities_are_stored_as_the_students():
    teacher, student = random(4, 7), random(4, 3, seed=1)
    loss = SparseSoftTargets(
        2, 2.0, from_logits=False, class_map=[6, 0, 2], reduction=None
    )
    probabilities = softmax(teacher)
    targets = stored(loss.targets(probabilities))
    live = evaluate(loss, probabilities, student)
    np.testing.assert_array_equal(evaluate(loss, targets, student), live)
    expected = formula(teacher[:, [6, 0, 2]], student, 2, "tail", 2.0)
    np.testing.assert_allclose(live, expected, rtol=1e-4)


@pytest.mark.parametrize("missing", GOLDEN)
def test_masked_classes_count_for_nothing(gradient, missing):
    loss = SparseSoftTargets(2, missing=missing, reduction=None)
    teacher = np.array([[1.0, -np.inf, 2.0, 0.5], [3.0] + 3 * [-np.inf]])
    student = np.array([[2.0, -np.inf, 0.0, 1.0], [1.0] + 3 * [-np.inf]])
    teacher, student = teacher.astype("float32"), student.astype("float32")
    keep = [0, 2, 3]
    expected = formula(teacher[:1, keep], student[:1, keep], 2, missing)
    values = evaluate(loss, teacher, student)
    np.testing.assert_allclose(values, [*expected, 0.0], rtol=1e-5, atol=1e-6)
    slope = gradient(lambda x: ops.sum(loss(teacher, x)), student)
    assert np.all(np.isfinite(slope))
    assert np.all(slope[np.isinf(student)] == 0)


@pytest.mark.parametrize("missing", ["tail", "spread"])
def test_targets_of_another_temperature_are_seen(missing):
    teacher = random(4, 8)
    targets = SparseSoftTargets(2, 1.0, missing).targets(teacher)
    loss = SparseSoftTargets(2, 4.0, missing, reduction=None)
    assert np.all(np.isnan(evaluate(loss, stored(targets), teacher)))
    loss.temperature = 1.0
    assert np.all(np.isfinite(evaluate(loss, stored(targets), teacher)))


def test_targets_of_the_kept_alone_hold_at_any_temperature():
    teacher, student = random(4, 8), random(4, 8, seed=1)
    loss = SparseSoftTargets(2, 4.0, "teacher_renormalized")
    targets = SparseSoftTargets(2, 1.0).targets(teacher)
    np.testing.assert_allclose(
        evaluate(loss, stored(targets), student),
        evaluate(loss, teacher, student),
        rtol=1e-6,
    )


def test_half_precision_holds_stored_targets():
    teacher, student = random(4, 8), random(4, 8, seed=1)
    loss = SparseSoftTargets(8)
    targets = stored(loss.targets(teacher))
    small = SparseTargets(
        targets.indices.astype("uint16"),
        targets.logits.astype("float16"),
        # There is no rest, whose logarithm goes to minus infinity.
        np.full(4, -np.inf, "float16"),
        targets.temperature.astype("float16"),
    )
    value = evaluate(loss, small, student)
    assert value == pytest.approx(evaluate(loss, teacher, student), rel=2e-3)


@pytest.mark.usefixtures("differentiable")
def test_masked_tokens_count_for_nothing(sequences):
    teacher, student, _ = sequences
    student = student.astype("float32")
    student[0, 3:], student[1, 4:] = 0.0, 0.0
    masked = layers.Masking()(ops.convert_to_tensor(student))
    loss = SparseSoftTargets(5)
    value = evaluate_eagerly(loss, stored(loss.targets(teacher)), masked)
    assert value == pytest.approx(GOLDEN["tail"], rel=1e-5)


def test_standardized_with_a_live_teacher(golden):
    loss = StandardizedLogits(SparseSoftTargets(10))
    dense = StandardizedLogits(SoftTargets(1.0))
    assert evaluate(loss, *golden) == pytest.approx(
        evaluate(dense, *golden), rel=1e-5
    )


@pytest.mark.usefixtures("float64")
def test_sampled_values_are_the_formulas():
    student = random(2, 3, 6)
    indices = np.array([[[0, 5], [1, 1], [2, 3]], [[4, 0], [5, 5], [3, 3]]])
    weights = np.abs(random(2, 3, 2, seed=1))
    loss = SampledSoftTargets(2, 2.0, reduction=None, dtype="float64")
    log_q = np.log(softmax(student / 2.0))
    picked = np.take_along_axis(log_q, indices, axis=-1)
    np.testing.assert_allclose(
        evaluate(loss, SampledTargets(indices, weights), student),
        -4.0 * (weights * picked).sum(axis=-1),
        rtol=1e-10,
    )


@pytest.mark.usefixtures("float64")
def test_sampled_gradient_is_that_of_the_formula(gradient, numeric_gradient):
    student = random(3, 4)
    targets = SampledTargets(
        np.array([[0, 0], [1, 3], [2, 2]]), np.full((3, 2), 0.5)
    )
    loss = SampledSoftTargets(2, dtype="float64")

    def value(x):
        picked = np.take_along_axis(np.log(softmax(x)), targets.indices, -1)
        return -(0.5 * picked).sum(axis=-1).mean()

    np.testing.assert_allclose(
        gradient(lambda x: loss(targets, x), student),
        numeric_gradient(value, student),
        rtol=1e-5,
        atol=1e-9,
    )


def test_classes_drawn_twice_add_up():
    student = random(1, 4)
    twice = SampledTargets([[2, 2, 1]], [[0.25, 0.25, 0.5]])
    once = SampledTargets([[2, 1, 0]], [[0.5, 0.5, 0.0]])
    loss = SampledSoftTargets(3)
    assert evaluate(loss, twice, student) == pytest.approx(
        evaluate(loss, once, student), rel=1e-6
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_sampled_gradient_is_right_on_average(gradient, temperature):
    """As far as its error goes: five deviations of a mean of so many draws."""
    draws = 100_000
    teacher = np.array([[2.0, 0.0, -2.0, 1.0]], "float32")
    student = np.array([[0.0, 1.0, 0.0, -3.0]], "float32")
    loss = SampledSoftTargets(draws, temperature, seed=1)
    slope = gradient(lambda x: loss(teacher, x), student)
    dense = SoftTargets(temperature)
    expected = gradient(lambda x: dense(teacher, x), student)
    p = softmax(teacher / temperature)
    deviation = temperature * np.sqrt(p * (1 - p) / draws)
    assert np.all(np.abs(slope - expected) < 5 * deviation + 1e-6)
    # The greatest two alone are far from it.
    biased = SparseSoftTargets(2, temperature, "teacher_renormalized")
    slope = gradient(lambda x: biased(teacher, x), student)
    assert np.any(np.abs(slope - expected) > 5 * deviation + 1e-6)


def test_draws_anew_in_each_call_and_again_with_the_seed():
    teacher, student = random(4, 9), random(4, 9, seed=1)
    first, again = (SampledSoftTargets(3, seed=7) for _ in range(2))
    one = [evaluate_eagerly(first, teacher, student) for _ in range(2)]
    two = [evaluate_eagerly(again, teacher, student) for _ in range(2)]
    assert one == two
    assert one[0] != one[1]


def test_drawn_targets_are_the_teachers():
    loss = SampledSoftTargets(20, seed=0)
    teacher = np.array([[[0.0, 0.0, -np.inf], [-np.inf, 9.0, -np.inf]]])
    targets = stored(loss.targets(teacher))
    assert targets.indices.shape == targets.weights.shape == (1, 2, 20)
    assert set(targets.indices[0, 0]) == {0, 1}
    assert set(targets.indices[0, 1]) == {1}
    np.testing.assert_allclose(targets.weights.sum(axis=-1), 1, rtol=1e-6)


def models(activation=None):
    keras.utils.set_random_seed(0)
    return [
        keras.Sequential(
            [keras.Input((4,)), layers.Dense(5, activation)], name=name
        )
        for name in ("teacher", "student")
    ]


def trained(loss, x, teacher=None):
    """The student's weights after some steps."""
    student = models()[1]
    # A teacher that isn't needed is not asked.
    distiller = kd.Distiller(teacher, student, loss, loss_weights=1.0)
    distiller.compile(optimizer=keras.optimizers.SGD(0.1), loss=None)
    distiller.fit(x, epochs=2, batch_size=4, shuffle=False, verbose=0)
    return values(student.variables)


@pytest.mark.usefixtures("differentiable")
@pytest.mark.parametrize("missing", ["tail", "spread"])
def test_training_on_stored_targets_equals_training_on_logits(missing):
    x = random(8, 4).astype("float32")
    teacher = models()[0]
    output = ops.convert_to_numpy(teacher(x))
    loss = SparseSoftTargets(3, 2.0, missing)
    targets = stored(loss.targets(output))
    live = trained(loss, x, teacher)
    dense = trained(loss, generator(kd.TransferBatch(x, output)))
    sparse = trained(loss, generator(kd.TransferBatch(x, targets)))
    assert_same_values(dense, live, 1e-6)
    assert_same_values(sparse, live, 1e-6)


def generator(batch):
    """A data set of two batches of four."""

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            part = slice(4 * index, 4 * index + 4)
            # Keras' tree would take the empty dict along.
            return (keras.tree.map_structure(lambda a: a[part], batch),)

    return Batches()


@pytest.mark.usefixtures("differentiable")
def test_stored_targets_need_no_way_back_to_logits():
    """With a teacher of probabilities, as which they aren't stored."""
    x = random(8, 4).astype("float32")
    teacher = models("softmax")[0]
    output = ops.convert_to_numpy(teacher(x))
    loss = SparseSoftTargets(3, from_logits=False)
    targets = stored(loss.targets(output))
    live = trained(SparseSoftTargets(3), x, teacher)
    sparse = trained(
        SparseSoftTargets(3),
        generator(kd.TransferBatch(x, targets)),
        teacher,
    )
    assert_same_values(sparse, live, 1e-5)


@pytest.mark.usefixtures("differentiable")
def test_training_on_stored_draws():
    x = random(8, 4).astype("float32")
    loss = SampledSoftTargets(6, seed=0)
    output = ops.convert_to_numpy(models()[0](x))
    targets = stored(loss.targets(output))
    before = values(models()[1].variables)
    after = trained(loss, generator(kd.TransferBatch(x, targets)))
    assert np.any(before[0] != after[0])
    indices, weights = targets
    dense = np.zeros((8, 5), "float32")
    np.add.at(dense, (np.arange(8)[:, None], indices), weights)
    # What the same targets are, written out.
    soft = SoftTargets(1.0, from_logits=False)
    written = trained(soft, generator(kd.TransferBatch(x, dense)))
    assert_same_values(after, written, 1e-5)


@pytest.mark.usefixtures("differentiable")
def test_draws_go_on_where_they_stopped(tmp_path):
    x = random(8, 4).astype("float32")
    teacher, student = models()
    distiller = kd.Distiller(teacher, student, SampledSoftTargets(3, seed=1))
    distiller.fit(x, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    states = [
        values(
            [
                one.distillation_losses[
                    "sampled_soft_targets"
                ].seed_generator.state
            ]
        )
        for one in (distiller, loaded)
    ]
    assert_same_values(*states)
    fresh = SampledSoftTargets(3, seed=1).seed_generator.state
    assert np.any(values([fresh])[0] != states[0][0])


@pytest.mark.parametrize("k", [0, -1, 2.5])
def test_refuses_to_keep_no_class(k):
    with pytest.raises(ValueError, match=f"Received: k={k}"):
        SparseSoftTargets(k)


def test_refuses_to_keep_more_classes_than_there_are():
    loss = SparseSoftTargets(6)
    with pytest.raises(ValueError, match="Received: k=6"):
        loss(random(2, 5), random(2, 5))
    with pytest.raises(ValueError, match="Pass at most 5"):
        loss.targets(random(2, 5))
    few = SparseSoftTargets(2)
    with pytest.raises(ValueError, match="Pass at most 5"):
        loss(stored(few.targets(random(2, 5))), random(2, 5))


def test_refuses_an_unknown_way():
    with pytest.raises(ValueError, match="Received: missing='rest'"):
        SparseSoftTargets(5, missing="rest")


@pytest.mark.parametrize("loss_class", [SparseSoftTargets, SampledSoftTargets])
def test_refuses_a_temperature_of_zero(loss_class):
    with pytest.raises(ValueError, match="temperature=0"):
        loss_class(5, temperature=0)


@pytest.mark.parametrize("samples", [0, -1, 2.5])
def test_refuses_to_draw_nothing(samples):
    with pytest.raises(ValueError, match=f"Received: samples={samples}"):
        SampledSoftTargets(samples)


@pytest.mark.parametrize(
    ("loss", "other"),
    [
        (SparseSoftTargets(3), SparseSoftTargets(2)),
        (SampledSoftTargets(3), SampledSoftTargets(2)),
    ],
    ids=["sparse", "sampled"],
)
def test_refuses_targets_of_another_loss(loss, other):
    with pytest.raises(ValueError, match="of an equal loss"):
        loss(other.targets(random(4, 5)), random(4, 5))
    with pytest.raises(ValueError, match="of an equal loss"):
        loss(loss.targets(random(3, 5)), random(4, 5))


@pytest.mark.parametrize(
    "loss",
    [SparseSoftTargets(3), SampledSoftTargets(3)],
    ids=["sparse", "sampled"],
)
def test_refuses_more_classes_than_float32_counts(loss):
    shape = (None, 2**24 + 1)
    with pytest.raises(ValueError, match="at most 16777216 classes"):
        loss.check_shapes(shape, shape)
    loss.check_shapes((None, 2**24), (None, 2**24))
