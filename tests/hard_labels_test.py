"""Hard labels, against Keras' own losses and metrics."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_distill as kd

LOGITS = np.random.default_rng(0).normal(0, 2, (5, 3)).astype("float32")
LABELS = np.array([2, 0, 1, 1, 0])
ONE_HOT = np.eye(3, dtype="float32")[LABELS]
WEIGHTS = np.array([2.0, 0.0, 1.0, 0.5, 3.0], "float32")
# As LABELS, but two of them unknown.
SOME = np.array([2, -1, 1, -1, 0])
KNOWN = SOME >= 0


def softmax(logits):
    return ops.convert_to_numpy(ops.softmax(logits))


def evaluate(loss, *args):
    return ops.convert_to_numpy(loss(*args))


@pytest.mark.parametrize("weights", [None, WEIGHTS, WEIGHTS[:, None]])
@pytest.mark.parametrize(
    "labels",
    [LABELS, LABELS[:, None], LABELS.astype("float32"), ONE_HOT],
    ids=["indices", "column", "float", "one-hot"],
)
def test_equals_kerass_crossentropy(labels, weights):
    theirs = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected = evaluate(
        theirs, LABELS, LOGITS, None if weights is None else WEIGHTS
    )
    value = evaluate(kd.HardLabels(), labels, LOGITS, weights)
    assert value == pytest.approx(expected, rel=1e-6)


def test_takes_probabilities():
    loss = kd.HardLabels(from_logits=False)
    assert evaluate(loss, LABELS, softmax(LOGITS)) == pytest.approx(
        evaluate(kd.HardLabels(), LABELS, LOGITS), rel=1e-5
    )


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("shape", [(6,), (6, 1), (3, 2)])
def test_equals_kerass_binary_crossentropy(shape, from_logits):
    scores = (
        LOGITS.reshape(-1)[:6].reshape(3, 2)
        if shape == (3, 2)
        else (LOGITS.reshape(-1)[:6, None])
    )
    if not from_logits:
        scores = 1 / (1 + np.exp(-scores))
    labels = np.array([1, 0, 0, 1, 1, 0])
    theirs = keras.losses.BinaryCrossentropy(from_logits=from_logits)
    expected = evaluate(theirs, labels.reshape(scores.shape), scores)
    loss = kd.HardLabels("sigmoid", from_logits=from_logits)
    value = evaluate(loss, labels.reshape(shape), scores)
    assert value == pytest.approx(expected, rel=1e-6)
    if shape == (6,):
        # Outputs without a last axis.
        value = evaluate(loss, labels, scores[:, 0])
        assert value == pytest.approx(expected, rel=1e-6)
        weights = np.array([1.0, 0, 0, 0, 0, 0])
        value = evaluate(loss, labels, scores[:, 0], weights)
        first = evaluate(theirs, labels[:1, None], scores[:1])
        assert value == pytest.approx(first / 6, rel=1e-6)


def test_sequences():
    logits = np.stack([LOGITS[:4], LOGITS[1:]])
    labels = np.stack([LABELS[:4], LABELS[1:]])
    theirs = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=None
    )
    values = evaluate(theirs, labels, logits)
    assert evaluate(kd.HardLabels(), labels, logits) == pytest.approx(
        values.mean(), rel=1e-6
    )
    weights = np.array([2.0, 0.5])
    assert evaluate(kd.HardLabels(), labels, logits, weights) == pytest.approx(
        (values * weights[:, None]).mean(), rel=1e-6
    )


def test_mean_is_over_the_labelled():
    expected = evaluate(kd.HardLabels(), LABELS[KNOWN], LOGITS[KNOWN])
    for labels in (SOME, SOME[:, None]):
        value = evaluate(kd.HardLabels(), labels, LOGITS)
        assert value == pytest.approx(expected, rel=1e-6)
    values = evaluate(kd.HardLabels(reduction=None), SOME, LOGITS)
    assert np.all(values[~KNOWN] == 0)
    assert np.all(values[KNOWN] > 0)


def test_mean_is_over_the_labelled_with_sigmoids():
    labels = np.array([1.0, -1.0, 0.0, -1.0])
    logits = LOGITS[:4, :1]
    known = labels >= 0
    loss = kd.HardLabels("sigmoid")
    assert evaluate(loss, labels, logits) == pytest.approx(
        evaluate(loss, labels[known], logits[known]), rel=1e-6
    )
    values = evaluate(kd.HardLabels("sigmoid", reduction=None), labels, logits)
    assert np.all(values[~known] == 0)


def test_no_labels_at_all_give_zero():
    value = evaluate(kd.HardLabels(), np.full(5, -1), LOGITS)
    assert value == 0


def test_the_unlabelled_move_nothing():
    """Biases of a model, one for each example, that the loss is learned by."""
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3)])
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss=kd.HardLabels())
    before = model.get_weights()[0]
    # Each example sees a weight row of its own.
    model.fit(np.eye(5), SOME, batch_size=5, verbose=0)
    moved = np.any(model.get_weights()[0] != before, axis=-1)
    np.testing.assert_array_equal(moved, KNOWN)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("reduction", ["sum", "mean_with_sample_weight"])
def test_other_reductions_are_of_the_labelled(reduction, weights):
    loss = kd.HardLabels(reduction=reduction)
    given = () if weights is None else (weights,)
    value = evaluate(loss, SOME, LOGITS, *given)
    some = () if weights is None else (weights[KNOWN],)
    expected = evaluate(loss, LABELS[KNOWN], LOGITS[KNOWN], *some)
    assert value == pytest.approx(expected, rel=1e-6)


def test_a_label_beyond_the_classes_is_no_number():
    loss = kd.HardLabels(reduction=None)
    values = evaluate(loss, np.array([0, 3, -1]), np.zeros((3, 3)))
    np.testing.assert_allclose(values, [1.5 * np.log(3), np.nan, 0], rtol=1e-6)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", None])
def test_weights_of_the_labelled(reduction):
    loss = kd.HardLabels(reduction=reduction)
    value = evaluate(loss, SOME, LOGITS, WEIGHTS)
    values = evaluate(
        kd.HardLabels(reduction=None), LABELS[KNOWN], LOGITS[KNOWN]
    )
    expected = (values * WEIGHTS[KNOWN]).sum() / KNOWN.sum()
    assert value.mean() == pytest.approx(expected, rel=1e-6)


def test_refuses_another_activation():
    with pytest.raises(ValueError, match="activation='relu'"):
        kd.HardLabels("relu")


@pytest.mark.parametrize("kind", ["loss", "metric"])
def test_comes_back_from_its_config(kind):
    if kind == "loss":
        ours = kd.HardLabels("sigmoid", False, reduction="sum", name="mine")
    else:
        ours = kd.HardLabelAccuracy("sigmoid", False, name="mine")
    for copy in (
        type(ours).from_config(ours.get_config()),
        keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(ours)
        ),
    ):
        assert type(copy) is type(ours)
        assert copy.get_config() == ours.get_config()
        assert copy.get_config()["activation"] == "sigmoid"
        assert copy.from_logits is False


def accuracy(labels, scores, weights=None, **kwargs):
    metric = kd.HardLabelAccuracy(**kwargs)
    metric.update_state(labels, scores, weights)
    return float(metric.result())


# Classes 0, 1, 0, 2, 2.
SCORES = np.eye(3, dtype="float32")[[0, 1, 0, 2, 2]]


@pytest.mark.parametrize("weights", [None, WEIGHTS, WEIGHTS[:, None]])
@pytest.mark.parametrize(
    "form",
    [lambda y: y, lambda y: y[:, None], lambda y: np.eye(3)[y]],
    ids=["indices", "column", "one-hot"],
)
def test_accuracy_is_the_weighted_share(form, weights):
    labels = np.array([0, 1, 1, 2, 1])
    right = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    expected = (
        right.mean() if weights is None else (right @ WEIGHTS / WEIGHTS.sum())
    )
    value = accuracy(form(labels), SCORES, weights)
    assert value == pytest.approx(expected, rel=1e-6)


def test_accuracy_leaves_the_unlabelled_out():
    labels = np.array([0, -1, 1, -1, 2])
    assert accuracy(labels, SCORES) == pytest.approx(2 / 3)
    weights = np.array([1.0, 9.0, 2.0, 9.0, 3.0])
    assert accuracy(labels, SCORES, weights) == pytest.approx(4 / 6)


def test_accuracy_adds_batches_up():
    metric = kd.HardLabelAccuracy()
    metric.update_state(np.array([0]), SCORES[:1])
    metric.update_state(np.array([0, 0, -1]), SCORES[1:4])
    assert float(metric.result()) == pytest.approx(2 / 3)
    metric.reset_state()
    assert float(metric.result()) == 0


def test_accuracy_of_sigmoids_counts_labels():
    labels = np.array([[1, 0], [1, -1], [1, 1]])
    logits = np.array([[2.0, 0.1], [-1.0, 5.0], [3.0, 3.0]])
    got = accuracy(labels, logits, activation="sigmoid")
    assert got == pytest.approx(3 / 4)
    weights = np.array([1.0, 4.0, 3.0])
    got = accuracy(labels, logits, weights, activation="sigmoid")
    assert got == pytest.approx(7 / 8)


@pytest.mark.parametrize(("from_logits", "right"), [(True, 0.5), (False, 1.0)])
def test_accuracy_of_one_sigmoid(from_logits, right):
    labels, scores = np.array([1, 0]), np.array([[0.7], [0.3]])
    for outputs in (scores, scores[:, 0]):
        value = accuracy(
            labels, outputs, activation="sigmoid", from_logits=from_logits
        )
        assert value == right
