"""What every metric promises, and its value against NumPy in float64."""

import keras
import numpy as np
import pytest
from measuring import (
    BASELINE,
    CLASSES,
    FIDELITY,
    METRICS,
    agreement,
    batch,
    flat,
    measure,
)
from sklearn import metrics as sklearn_metrics
from support import only_on

import keras_distill as kd

ALL = pytest.mark.parametrize("name", list(METRICS))
CLASSIFYING = [name for name in METRICS if name != "linear_cka"]


def close(found, expected, rtol=1e-5):
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol, 1e-6, err_msg=name)


@ALL
def test_two_batches_with_weights_are_the_formula_of_repeated_rows(name):
    make, formula = METRICS[name]
    teacher, student, labels = batch()
    weights = np.array([1, 2, 0, 1, 3, 0, 1, 1, 2, 1, 1, 2], "float32")
    rows = [np.repeat(x, weights.astype(int), 0) for x in batch()]
    # What counts for nothing may hold anything.
    student[weights == 0] = np.nan
    parts = [
        (teacher[part], student[part], labels[part], weights[part])
        for part in (slice(None, 6), slice(6, None))
    ]
    metric = make()
    close(measure(metric, *parts), formula(*rows))
    # What counts shows, even in one class of one row.
    student[3, 2] = np.nan
    assert np.isnan(flat(measure(metric, parts[0]))).all()


@pytest.mark.parametrize(
    ("name", "dtype"), [("brier_score", "bfloat16"), ("linear_cka", "float16")]
)
def test_half_precision_is_summed_in_float32(name, dtype):
    make, formula = METRICS[name]
    teacher, student, labels = batch()
    rounded = [keras.ops.cast(x, dtype) for x in (teacher, student)]
    exact = [
        keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))
        for x in rounded
    ]
    found = measure(make(), (*rounded, labels, None))
    close(found, formula(*(x.astype("float64") for x in exact), labels))
    with pytest.raises(ValueError, match="float32 at least"):
        make(dtype="float16")


@only_on("torch")
@ALL
def test_reset_and_config(name):
    make, formula = METRICS[name]
    teacher, student, labels = batch()
    metric = make(name="other")
    measure(metric, (teacher + 1, student[::-1], labels, None))
    metric.reset_state()
    found = measure(metric, (teacher, student, labels, None))
    config = keras.saving.serialize_keras_object(metric)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == metric.get_config()
    assert again.name == "other"
    assert measure(again, (teacher, student, labels, None)) == found
    expected = formula(teacher, student, labels)
    assert sorted(found.values()) == pytest.approx(
        sorted(expected.values()), rel=1e-5, abs=1e-6
    )


@pytest.mark.parametrize("name", ["outcomes", "brier_score"])
def test_places_of_a_sequence_count_by_themselves(name):
    make, formula = METRICS[name]
    teacher, student, labels = batch()
    weights = np.array([[1], [2], [1]], "float32")
    shaped = [x.reshape(3, 4, -1) for x in (teacher, student)]
    shaped = (*shaped, labels.reshape(3, 4), weights[:, 0])
    repeated = [np.repeat(x, 4 * [1] + 4 * [2] + 4 * [1], 0) for x in batch()]
    close(measure(make(), shaped), formula(*repeated))


@only_on("torch")
@pytest.mark.parametrize("name", CLASSIFYING)
def test_what_keras_masked_counts_for_nothing(name):
    make, formula = METRICS[name]
    teacher, student, labels = batch()
    seen = np.array([1, 1, 1, 0] * 3, bool)
    padded = np.where(seen[:, None], student, 0).reshape(3, 4, -1)
    masked = keras.layers.Masking()(keras.ops.convert_to_tensor(padded))
    shaped = teacher.reshape(3, 4, -1), masked, labels.reshape(3, 4), None
    close(
        measure(make(), shaped, jit=False),
        formula(teacher[seen], student[seen], labels[seen]),
    )


@pytest.mark.parametrize(
    "name", ["teacher_divergence", "negative_log_likelihood"]
)
def test_probabilities_are_taken_as_their_logits(name):
    make, formula = METRICS[name]
    teacher, student, labels = batch()
    p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in (teacher, student))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    given = {"from_logits": False}
    if name in FIDELITY:
        given = {"teacher_from_logits": False, "student_from_logits": False}
    close(
        measure(make(**given), (p, q, labels, None)),
        formula(teacher, student, labels),
    )


@only_on("torch")
@pytest.mark.parametrize(
    "name", [n for n in CLASSIFYING if n != "top_2_agreement"]
)
def test_a_sigmoid_is_a_classifier_of_two_classes(name):
    make, formula = METRICS[name]
    random = np.random.default_rng(3)
    teacher, student = random.normal(size=(2, 12, 1))
    labels = np.arange(12) % 2
    two = [np.concatenate([0 * z, z], -1) for z in (teacher, student)]
    given = {"activation": "sigmoid"}
    if "class" in name:
        given["classes"] = 2
    close(
        measure(make(**given), (teacher, student, labels, None)),
        formula(*two, labels),
    )
    if "class" in name:
        with pytest.raises(ValueError, match="of one sigmoid"):
            measure(make(**given), (*batch()[:2], labels, None), jit=False)


@pytest.mark.parametrize(
    "name",
    [
        "outcomes",
        pytest.param("class_accuracy", marks=only_on("torch")),
        pytest.param("calibration_error", marks=only_on("torch")),
    ],
)
def test_labels_in_every_form(name):
    make, formula = METRICS[name]
    teacher, student, labels = batch()
    known = np.arange(12) % 3 > 0
    some = np.where(known, labels, -1)
    rows = np.where(known[:, None], np.eye(CLASSES)[labels], -1)
    expected = formula(teacher[known], student[known], labels[known])
    for given in (some, some[:, None], rows):
        close(measure(make(), (teacher, student, given, None)), expected)
    beyond = np.where(known, labels, CLASSES)
    found = flat(measure(make(), (teacher, student, beyond, None)))
    assert np.isnan(found).all()


@only_on("torch")
@ALL
def test_without_examples(name):
    make, _ = METRICS[name]
    zero = np.zeros(12, "float32")
    found = flat(measure(make(), (*batch(), zero)))
    empty = "class" in name or name in ("gap_closed", "linear_cka")
    assert all(np.isnan(v) if empty else v == 0 for v in found)


@only_on("torch")
def test_likelihood_and_brier_are_scikit_learns():
    _, student, labels = batch()
    p = np.exp(student) / np.exp(student).sum(-1, keepdims=True)
    classes = np.arange(CLASSES)
    for name, theirs in (
        ("negative_log_likelihood", sklearn_metrics.log_loss),
        ("brier_score", sklearn_metrics.brier_score_loss),
    ):
        found = measure(METRICS[name][0](), (student, student, labels, None))
        expected = theirs(labels, p, labels=classes)
        assert flat(found) == pytest.approx([expected], rel=1e-5)


@only_on("torch")
def test_class_accuracy_is_scikit_learns_recall():
    _, student, labels = batch()
    found = measure(
        kd.metrics.ClassAccuracy(CLASSES), (student, student, labels, None)
    )
    expected = sklearn_metrics.recall_score(
        labels, student.argmax(-1), average=None
    )
    assert flat(found) == pytest.approx(list(expected))


@only_on("torch")
def test_class_map_chooses_the_teachers_classes():
    teacher, student, _ = batch()
    chosen = [3, 0]
    metric = kd.metrics.Agreement(class_map=chosen)
    metric.update_state(teacher, student[:, :2])
    expected = agreement(teacher[:, chosen], student[:, :2])
    assert float(metric.result()) == pytest.approx(expected)
    metric = kd.metrics.Agreement(class_map=[0, CLASSES])
    with pytest.raises(ValueError, match=r"classes \[4\] that the teacher"):
        metric.update_state(teacher, student[:, :2])
    with pytest.raises(ValueError, match="whole numbers"):
        kd.metrics.Agreement(class_map=[-1, 0])


@only_on("torch")
def test_no_gap_is_no_share():
    labels = np.zeros(4, int)
    right, wrong = np.eye(2)[[0] * 4], np.eye(2)[[1] * 4]
    metric = kd.metrics.GapClosed(BASELINE)
    metric.update_state(wrong, right, labels=labels)
    assert np.isnan(float(metric.result()))


def test_alignment_ignores_rotation_factor_and_offset():
    random = np.random.default_rng(1)
    features = random.normal(size=(12, 4))
    rotation, _ = np.linalg.qr(random.normal(size=(4, 4)))
    # The mean is far larger than what is to be seen.
    rows = (100 + features, 1e4 * features @ rotation, None, None)
    found = flat(measure(kd.metrics.LinearCKA(), rows))
    assert found == pytest.approx([1], abs=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: m.Agreement(0), ValueError, "above 0"),
        (lambda m: m.Agreement(activation="tanh"), ValueError, "softmax or"),
        (lambda m: m.Agreement(1, ["a"], ["b"]), TypeError, "one layer"),
        (lambda m: m.TeacherDivergence(0), ValueError, "positive"),
        (lambda m: m.GapClosed(91), ValueError, "a share"),
        (lambda m: m.CalibrationError(0), ValueError, "above 0"),
        (lambda m: m.ClassAccuracy(1), ValueError, "two classes at least"),
        (lambda m: m.ClassAccuracy("ab"), ValueError, "two classes at least"),
        (lambda m: m.ClassAgreement(["a", "a"]), ValueError, "of its own"),
    ],
)
def test_arguments_that_make_no_sense(call, error, match):
    with pytest.raises(error, match=match):
        call(kd.metrics)


@only_on("torch")
@pytest.mark.parametrize(
    ("metric", "shapes", "match"),
    [
        (kd.metrics.Agreement(), [(4,), (4, 3)], "the same classes"),
        (kd.metrics.Agreement(), [(4, 5), (4, 3)], "the same classes"),
        (kd.metrics.Agreement(), [(4, 1), (4, 1)], "softmax of a single"),
        (kd.metrics.Agreement(4), [(4, 3), (4, 3)], "top_k=3 or less"),
        (kd.metrics.ClassAgreement(4), [(4, 3)] * 2, "made for 4 classes"),
        (kd.metrics.Outcomes(), [(4, 3)] * 2, "needs hard labels"),
        (kd.metrics.ClassAccuracy(4), [(4,), (4, 3)], "made for 4 classes"),
        (kd.metrics.LinearCKA(), [(4, 2**14), (4, 1)], "at most 16384"),
        # One label would count for all.
        (kd.metrics.BrierScore(), [(1,), (4, 3)], "a label for each place"),
        (kd.metrics.BrierScore(), [(3, 3), (4, 3)], "a label for each place"),
        (
            kd.metrics.BrierScore("sigmoid"),
            [(1, 1), (4, 1)],
            "a label for each place",
        ),
    ],
)
def test_outputs_that_dont_fit(metric, shapes, match):
    with pytest.raises(ValueError, match=match):
        metric.update_state(*map(np.zeros, shapes))


@only_on("torch")
def test_labels_that_would_be_ignored_are_refused():
    with pytest.raises(ValueError, match="Leave them out"):
        kd.metrics.Agreement().update_state(*batch()[:2], labels=batch()[2])
    metric = kd.metrics.BrierScore("sigmoid")
    with pytest.raises(ValueError, match="a label of its own"):
        metric.update_state(np.zeros(4), np.zeros((4, 3)))


@pytest.mark.parametrize("dtype", ["int64", "bool", "float32"])
def test_labels_of_a_sigmoid_have_any_dtype(dtype):
    metric = kd.metrics.BrierScore("sigmoid")
    metric.update_state(np.array([0, 1]).astype(dtype), np.zeros((2, 1)))
    assert float(metric.result()) == 0.5


def test_a_sigmoid_may_come_without_an_axis():
    labels, logits = np.array([0, 1, -1, 1]), np.array([0.5, 2, 3, -1])
    for shape in ((4,), (4, 1)):
        metric = kd.metrics.BrierScore("sigmoid")
        metric.update_state(labels, logits.reshape(shape))
        chances = 1 / (1 + np.exp(-logits[labels >= 0]))
        # The classes are 0 and 1.
        expected = 2 * np.mean((chances - labels[labels >= 0]) ** 2)
        assert float(metric.result()) == pytest.approx(expected, rel=1e-5)


@only_on("torch")
def test_a_rounding_is_no_gap():
    metric = kd.metrics.GapClosed(0.53)
    labels = np.arange(100) % 2
    said = np.eye(2)[np.where(np.arange(100) < 53, labels, 1 - labels)]
    metric.update_state(said, np.eye(2)[labels], labels=labels)
    assert np.isnan(float(metric.result()))


@only_on("torch")
def test_alignment_keeps_to_the_layers_it_was_built_for():
    metric = kd.metrics.LinearCKA()
    metric.update_state(np.zeros((4, 2, 2)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"built for \[4, 3\]"):
        metric.update_state(np.zeros((4, 5)), np.zeros((4, 3)))


def test_in_the_compile_of_a_plain_model():
    teacher, student, labels = batch()
    model = keras.Sequential([keras.Input((CLASSES,)), keras.layers.Identity()])
    model.compile(
        loss="mse",
        metrics=[kd.metrics.Agreement(), kd.metrics.LinearCKA()],
    )
    logs = model.evaluate(student, teacher, verbose=0, return_dict=True)
    del logs["loss"]
    expected = {
        key: value
        for name in ("agreement", "linear_cka")
        for key, value in METRICS[name][1](teacher, student, labels).items()
    }
    close(logs, expected)
