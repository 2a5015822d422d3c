"""Padding that Keras masked, in losses, labels and weights."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_distill as kd
from keras_distill.masks import mask_of

TOKENS = np.random.default_rng(0).integers(1, 9, (10, 7))
TOKENS[:, 4:] = 0
LABELS = np.random.default_rng(1).integers(0, 4, (10, 7))
PADDED = np.where(TOKENS == 0, -1, LABELS)


def tagger(width):
    keras.utils.set_random_seed(width)
    return keras.Sequential(
        [
            keras.Input((7,), dtype="int32"),
            layers.Embedding(9, width, mask_zero=True, name="embedding"),
            layers.Dense(4),
        ]
    )


def logits(model):
    return model.predict(TOKENS, verbose=0)


def term(loss, labels=LABELS, hard=None, **arguments):
    """The loss's value in a step of a Distiller."""
    distiller = kd.Distiller(tagger(8), tagger(4), losses=loss)
    distiller.compile(optimizer="sgd", loss=hard, metrics=None)
    logs = distiller.train_on_batch(
        TOKENS, labels, return_dict=True, **arguments
    )
    return float(logs[f"{loss.name}_loss"])


def test_mask_of():
    tensor = ops.convert_to_tensor(TOKENS)
    masked = tagger(4).layers[0](tensor)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(mask_of(masked)), TOKENS != 0
    )
    assert mask_of(tensor) is None
    assert mask_of([[1.0, 2.0]]) is None


@pytest.mark.traced
@pytest.mark.parametrize(
    "make",
    [
        kd.losses.DecoupledSoftTargets,
        lambda: kd.losses.StandardizedLogits(kd.losses.OneForAll()),
    ],
)
def test_padding_counts_once_with_labels(make):
    some = np.where(np.arange(7) % 3 == 1, -1, PADDED)
    for labels in (LABELS, PADDED, some):
        loss = make()
        loss.reduction = None
        marked = np.where(TOKENS == 0, -1, labels)
        places = marked >= 0
        values = loss(
            {"teacher": logits(tagger(8)), "labels": LABELS},
            logits(tagger(4)),
        )
        expected = ops.convert_to_numpy(values)[places].mean()
        assert term(make(), labels) == pytest.approx(expected, rel=1e-5)


def test_weights_of_places_are_multiplied_by_the_mask_once():
    weights = np.random.default_rng(2).uniform(size=(10, 7)).astype("float32")
    loss = kd.losses.SoftTargets(reduction=None)
    values = ops.convert_to_numpy(loss(logits(tagger(8)), logits(tagger(4))))
    inside = TOKENS != 0
    expected = (values * weights)[inside].sum() / inside.sum()
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for hard in (None, kd.HardLabels(), crossentropy):
        value = term(
            kd.losses.SoftTargets(),
            hard=hard,
            sample_weight=weights.copy(),
        )
        assert value == pytest.approx(expected, rel=1e-5)


def test_weights_of_examples_next_to_no_hard_labels():
    weights = np.linspace(0, 1, 10).astype("float32")
    value = term(kd.losses.SoftTargets(), sample_weight=weights)
    everywhere = np.repeat(weights[:, None], 7, axis=1)
    expected = term(kd.losses.SoftTargets(), sample_weight=everywhere)
    assert value == pytest.approx(expected, rel=1e-5)


# What comes after the layer isn't trained, of which Keras warns.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_hints_of_several_layers():
    names = ["embedding", "embedding"]
    teacher, student = tagger(4), tagger(4)
    student.layers[0].set_weights([teacher.layers[0].get_weights()[0] + 1])
    loss = kd.losses.Hint(names, names)
    distiller = kd.Distiller(teacher, student, losses=loss)
    logs = distiller.train_on_batch(TOKENS, return_dict=True)
    assert logs["hint_loss"] == pytest.approx(2, rel=1e-5)


def test_accuracy_is_that_of_the_places_that_count():
    model = tagger(4)
    model.compile(
        metrics=[
            kd.HardLabelAccuracy(name="ours"),
            keras.metrics.SparseCategoricalAccuracy(name="keras"),
        ],
        loss=kd.HardLabels(),
    )
    logs = model.evaluate(TOKENS, LABELS, verbose=0, return_dict=True)
    assert logs["ours"] == pytest.approx(logs["keras"], rel=1e-6)
    again = model.evaluate(TOKENS, PADDED, verbose=0, return_dict=True)
    assert again["ours"] == pytest.approx(logs["ours"], rel=1e-6)


def test_metrics_of_the_training_see_the_mask():
    distiller = kd.Distiller(tagger(8), tagger(4))
    distiller.compile(
        # Without steps, training and evaluation measure the same student.
        keras.optimizers.SGD(0.0),
        metrics=[
            keras.metrics.SparseCategoricalAccuracy(name="keras"),
            kd.metrics.BrierScore(name="ours"),
        ],
    )
    trained = distiller.fit(TOKENS, LABELS, epochs=1, verbose=0).history
    seen = distiller.evaluate(TOKENS, LABELS, verbose=0, return_dict=True)
    inside = TOKENS != 0
    right = (logits(tagger(4)).argmax(-1) == LABELS)[inside].mean()
    assert seen["keras"] == pytest.approx(right, rel=1e-6)
    for name in ("keras", "ours"):
        assert trained[name][0] == pytest.approx(seen[name], rel=1e-5)
