"""Records hold what they say they hold."""

import numpy as np
import pytest

import keras_distill as kd
from keras_distill.cache.storage import TopK, as_storage, for_features

ROWS = np.arange(40)


def logits(classes=30, scale=3.0, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(scale=scale, size=(40, classes)).astype("float32")


def softmax(z, temperature=1.0):
    powers = np.exp(
        (z - z.max(-1, keepdims=True)).astype("float64") / temperature
    )
    return powers / powers.sum(-1, keepdims=True)


def there_and_back(storage, values, temperature=1.0):
    shape = values.shape[1:]
    records = as_storage(storage).encode(values, shape, np.arange(len(values)))
    assert records.dtype == as_storage(storage).record(shape)
    assert not records.dtype.hasobject
    return as_storage(storage).decode(records, shape, temperature)


@pytest.mark.parametrize(
    ("storage", "error"),
    [("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8)],
)
def test_dense_numbers_are_rounded_to_the_nearest(storage, error):
    values = logits()
    back = there_and_back(storage, values)
    assert np.abs(back - values).max() <= error * np.abs(values).max()
    if storage != "bfloat16":
        np.testing.assert_array_equal(back, values.astype(storage))


def test_bfloat16_rounds_halves_to_even():
    # 1 + 1/256 and 1 + 3/256 lie in the middle between two of its numbers.
    values = np.array([[1 + 1 / 256, 1 + 3 / 256, -1.5]], "float32")
    back = there_and_back("bfloat16", values)
    np.testing.assert_array_equal(back, [[1.0, 1 + 4 / 256, -1.5]])


def test_eight_bits_are_half_a_step_off_at_most():
    values = logits(1000)
    back = there_and_back("uint8", values)
    step = (values.max(-1) - values.min(-1)) / 255
    assert (np.abs(back - values).max(-1) <= 0.5001 * step).all()
    np.testing.assert_allclose(back.min(-1), values.min(-1))
    # The total variation of the soft targets that comes of it, at T=4.
    apart = np.abs(softmax(back, 4) - softmax(values, 4)).sum(-1) / 2
    assert apart.mean() < 0.003


def test_eight_bits_of_equal_numbers_are_exact():
    values = np.full((3, 4), 2.5, "float32")
    np.testing.assert_array_equal(there_and_back("uint8", values), values)


def test_feature_maps_keep_their_shape():
    values = np.random.default_rng(0).normal(size=(5, 3, 3, 8))
    half_a_step = np.ptp(values, axis=-1).max() / 510
    for storage, error in (("float16", 2**-9), ("uint8", half_a_step)):
        back = there_and_back(storage, values)
        assert back.shape == values.shape
        np.testing.assert_allclose(back, values, rtol=0, atol=1.001 * error)


def test_what_float16_cannot_hold_is_refused():
    with pytest.raises(ValueError, match=r"too large for float16.*bfloat16"):
        there_and_back("float16", np.full((1, 3), 7e4, "float32"))


@pytest.mark.parametrize("temperature", [1.0, 1.3, 2.0, 3.0, 4.0, 7.0, 20.0])
def test_the_greatest_and_the_weight_of_the_rest(temperature):
    values = logits(1000)
    targets = there_and_back("top-10", values, temperature)
    assert isinstance(targets, kd.losses.SparseTargets)
    order = np.argsort(-values, axis=-1)
    np.testing.assert_array_equal(targets.indices, order[:, :10])
    # Share of the probability that is left to all others.
    kept = np.exp(targets.logits.astype("float64") / temperature).sum(-1)
    rest = np.exp(targets.log_rest.astype("float64"))
    truth = np.sort(softmax(values, temperature), -1)[:, :-10].sum(-1)
    np.testing.assert_allclose(rest / (kept + rest), truth, rtol=2e-3)


def test_the_rest_is_exact_at_the_stored_temperatures():
    values = logits(50).astype("float64")
    for temperature in (1.0, 2.0, 4.0, 8.0):
        targets = there_and_back("top-3", values, temperature)
        ordered = np.sort(values - values.max(-1, keepdims=True), -1)
        truth = np.log(np.exp(ordered[:, :-3] / temperature).sum(-1))
        np.testing.assert_allclose(targets.log_rest, truth, rtol=1e-5)


def test_of_equal_logits_the_first_is_kept():
    values = np.zeros((2, 100), "float32")
    values[1, 50] = 1
    targets = there_and_back("top-3", values)
    np.testing.assert_array_equal(targets.indices, [[0, 1, 2], [50, 0, 1]])


def test_sparse_targets_are_those_that_the_loss_makes():
    values = logits(20)
    loss = kd.losses.SparseSoftTargets(k=5, temperature=4.0)
    stored = there_and_back("top-5", values, 4.0)
    student = logits(20, seed=1)
    np.testing.assert_allclose(
        float(loss(stored, student)), float(loss(values, student)), rtol=2e-3
    )


def test_a_lower_temperature_than_is_stored_is_refused():
    with pytest.raises(ValueError, match=r"from 1 upwards.*0\.5"):
        there_and_back("top-3", logits(), 0.5)


def test_draws_follow_the_probabilities():
    values = np.repeat(logits(6, seed=3)[:1], 4000, axis=0)
    for temperature, name in ((1.0, "sampled-5"), (2.0, "sampled-5@2.0")):
        targets = there_and_back(name, values, temperature)
        assert isinstance(targets, kd.losses.SampledTargets)
        share = np.bincount(targets.indices.ravel(), minlength=6) / 20000
        truth = softmax(values[0], temperature)
        # Five standard errors of 20,000 draws.
        error = 5 * np.sqrt(truth * (1 - truth) / 20000)
        assert (np.abs(share - truth) <= error).all()


def test_draws_are_the_same_for_the_same_row():
    storage, values = as_storage("sampled-9"), logits()
    whole = storage.encode(values, (30,), ROWS)
    part = storage.encode(values[7:9], (30,), ROWS[7:9])
    np.testing.assert_array_equal(whole[7:9], part)
    assert not np.array_equal(whole[:20], whole[20:])


def test_draws_of_another_temperature_are_refused():
    with pytest.raises(ValueError, match="one temperature"):
        there_and_back("sampled-5", logits(), 2.0)


@pytest.mark.parametrize(
    "name",
    [
        "float32",
        "float16",
        "bfloat16",
        "uint8",
        "top-7",
        "sampled-5",
        "sampled-5@2.5",
    ],
)
def test_names_say_it_all(name):
    assert as_storage(name).name == name
    assert as_storage(as_storage(name).name) == as_storage(name)


@pytest.mark.parametrize(
    "name", ["float8", "top-0", "top-", "sampled-5@0", "", None, 16]
)
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=r"no such storage.*'top-10'"):
        as_storage(name)


def test_more_classes_than_there_are_cannot_be_kept():
    with pytest.raises(ValueError, match="fewer than there are"):
        TopK(30).record((30,))


def test_many_classes_need_wider_numbers():
    assert TopK(2).record((2**16,))["classes"].base == np.uint16
    assert TopK(2).record((2**16 + 1,))["classes"].base == np.uint32


def test_features_beside_few_classes_are_dense():
    assert for_features(as_storage("top-3")).name == "float16"
    assert for_features(as_storage("uint8")).name == "uint8"
