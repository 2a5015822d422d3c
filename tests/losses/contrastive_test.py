"""Contrast, against its formula and published code."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support import CLASSES, evaluate_eagerly, images, values

import keras_distill as kd
from keras_distill.losses import ContrastiveRepresentation
from keras_distill.losses.contrastive import contrast


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def built(teacher=(None, 6), student=(None, 4), **arguments):
    keras.utils.set_random_seed(0)
    loss = ContrastiveRepresentation(seed=3, embedding=5, **arguments)
    loss.build(teacher, student)
    return loss


def array(variable):
    return np.array(ops.convert_to_numpy(variable.value), "float64")


def unit(x):
    return x / np.sqrt((x**2).sum(axis=-1, keepdims=True))


def embed(layer, x):
    x = x.reshape(len(x), -1, x.shape[-1]).mean(axis=1)
    kernel, bias = layer.get_weights()
    return unit(x @ kernel + bias)


def softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def within_batch(loss, teacher, student):
    t = embed(loss.teacher_embedding, teacher)
    s = embed(loss.student_embedding, student)
    scores = s @ t.T / loss.temperature
    return -np.log(np.diag(softmax(scores)) * np.diag(softmax(scores.T)))


def published(scores, size, constant=1e-7):
    noise = (scores.shape[1] - 1) / size
    own, others = scores[:, 0], scores[:, 1:]
    return -np.log(own / (own + noise + constant)) - np.log(
        noise / (others + noise + constant)
    ).sum(axis=-1)


@pytest.mark.usefixtures("float64")
def test_is_that_of_the_authors_but_for_a_constant(golden_inputs):
    scores = golden_inputs["scores"]
    golden = 6.131491085701746
    assert published(scores, 100).mean() == pytest.approx(golden, rel=1e-12)
    logs = ops.convert_to_tensor(np.log(scores))
    result = ops.convert_to_numpy(contrast(logs[:, 0], logs[:, 1:], 100))
    expected = published(scores, 100, constant=0.0)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert result.mean() == pytest.approx(golden, rel=2e-6)


def test_contrast_is_finite_where_scores_are_extreme():
    logs = ops.convert_to_tensor(np.array([[-1e4, 1e4, 1e4]], "float32"))
    value = ops.convert_to_numpy(contrast(logs[:, 0], logs[:, 1:], 100))
    np.testing.assert_allclose(value, 3e4, rtol=1e-3)


@pytest.mark.parametrize(
    ("teacher_shape", "student_shape"),
    [((4, 6), (4, 4)), ((4, 5, 6), (4, 2, 4)), ((4, 3, 2, 6), (4, 2, 2, 4))],
)
@pytest.mark.usefixtures("float64")
def test_within_a_batch_it_is_the_formula(
    gradient, numeric_gradient, teacher_shape, student_shape
):
    teacher, student = random(*teacher_shape), random(*student_shape, seed=1)
    loss = built(teacher_shape, student_shape, reduction=None, dtype="float64")
    np.testing.assert_allclose(
        evaluate_eagerly(loss, teacher, student),
        within_batch(loss, teacher, student),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        gradient(lambda x: ops.sum(loss(teacher, x)), student),
        numeric_gradient(
            lambda x: within_batch(loss, teacher, x).sum(), student
        ),
        rtol=1e-5,
        atol=1e-5,
    )


def with_ids(teacher, *ids):
    return {"teacher": teacher, "sample_ids": np.array(ids)}


def expected_with_banks(loss, t, s, ids, drawn, log_z):
    """The formula: values of examples, from what the banks held."""
    total = 0.0
    for v, bank, z in ((s, loss[0], log_z[0]), (t, loss[1], log_z[1])):
        rows = np.concatenate(
            [bank[ids][:, None], np.tile(bank[drawn], (len(ids), 1, 1))], axis=1
        )
        scores = np.einsum("bd,bkd->bk", v, rows) / 0.07
        total = total + published(np.exp(scores - z), len(bank), 0.0)
    return total


@pytest.mark.usefixtures("float64")
def test_with_banks_it_is_the_formula():
    loss = built(bank_size=20, negatives=8, reduction=None, dtype="float64")
    ids = np.array([4, 17, 0])
    log_z = None
    for step in range(2):
        teacher, student = random(3, 6, seed=step), random(3, 4, seed=9 + step)
        banks = [array(loss.teacher_bank), array(loss.student_bank)]
        state = array(loss.random.state).astype("uint32")
        seed = keras.random.SeedGenerator(0)
        seed.state.assign(state)
        drawn = ops.convert_to_numpy(
            keras.random.randint((8,), 0, 20, seed=seed)
        )
        t = embed(loss.teacher_embedding, teacher)
        s = embed(loss.student_embedding, student)
        values = evaluate_eagerly(loss, with_ids(teacher, *ids), student)
        if log_z is None:  # the first batch sets it
            log_z = array(loss.log_normalizers)
            rows = [np.vstack([banks[0][ids]]), banks[0][drawn]]
            powers = np.concatenate(
                [
                    np.exp((s * rows[0]).sum(-1) / 0.07),
                    np.exp(s @ rows[1].T / 0.07).ravel(),
                ]
            )
            assert log_z[0] == pytest.approx(
                np.log(powers.mean() * 20), rel=1e-6
            )
        np.testing.assert_allclose(array(loss.log_normalizers), log_z)
        np.testing.assert_allclose(
            values,
            expected_with_banks(banks, t, s, ids, drawn, log_z),
            rtol=1e-5,
        )
        for bank, before, v in zip(
            (loss.teacher_bank, loss.student_bank), banks, (t, s), strict=True
        ):
            before[ids] = unit(0.5 * before[ids] + 0.5 * v)
            np.testing.assert_allclose(array(bank), before, atol=1e-6)


def test_example_out_of_range_is_nan_and_changes_no_bank():
    loss = built(bank_size=5, negatives=3, reduction=None)
    before = array(loss.teacher_bank)
    batch = with_ids(random(3, 6), -1, 5, 2)
    values = evaluate_eagerly(loss, batch, random(3, 4))
    np.testing.assert_array_equal(np.isnan(values), [True, True, False])
    changed = np.any(array(loss.teacher_bank) != before, axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(changed), [2])


def test_of_an_example_that_comes_twice_one_embedding_is_kept():
    loss = built(bank_size=5, negatives=3, momentum=0.0)
    student = random(2, 4)
    evaluate_eagerly(loss, with_ids(random(2, 6), 2, 2), student)
    row = array(loss.student_bank)[2]
    both = embed(loss.student_embedding, student)
    assert np.abs(both - row).max(axis=-1).min() < 1e-6


def network(width):
    keras.utils.set_random_seed(width)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(width, activation="relu", name="hidden"),
            layers.Dense(CLASSES),
        ]
    )


@pytest.mark.traced
@pytest.mark.usefixtures("differentiable")
def test_banks_follow_the_examples_of_fit_and_are_saved(tmp_path):
    loss = ContrastiveRepresentation(
        "hidden", "hidden", bank_size=40, negatives=16, seed=1
    )
    distiller = kd.Distiller(network(6), network(4), loss)
    distiller.compile(optimizer="sgd")
    banks = [loss.teacher_bank, loss.student_bank]
    trained = [
        *loss.teacher_embedding.trainable_variables,
        *loss.student_embedding.trainable_variables,
    ]
    before, layers_before = values(banks), values(trained)
    x, y = images(12)
    ids = np.arange(12) * 3
    batch = kd.TransferBatch(x, sample_ids=ids)
    distiller.fit(batch, y, batch_size=4, epochs=2, verbose=0)
    for bank, old in zip(values(banks), before, strict=True):
        changed = np.any(bank != old, axis=-1)
        np.testing.assert_array_equal(np.flatnonzero(changed), ids)
        np.testing.assert_allclose(np.linalg.norm(bank[ids], axis=-1), 1, 1e-5)
    for new, old in zip(values(trained), layers_before, strict=True):
        assert np.any(new != old)
    assert array(loss.has_normalizers) == 1
    after, normalizers = values(banks), array(loss.log_normalizers)
    distiller.evaluate(x, y, verbose=0)
    for bank, old in zip(values(banks), after, strict=True):
        np.testing.assert_array_equal(bank, old)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    (copy,) = loaded.distillation_losses.values()
    for bank, old in zip(
        values([copy.teacher_bank, copy.student_bank]), after, strict=True
    ):
        np.testing.assert_array_equal(bank, old)
    np.testing.assert_array_equal(array(copy.log_normalizers), normalizers)
    loaded.fit(batch, y, batch_size=4, verbose=0)
    # The first batch of a run that goes on doesn't set them again.
    np.testing.assert_array_equal(array(copy.log_normalizers), normalizers)


@pytest.mark.usefixtures("differentiable")
def test_asks_for_sample_ids_where_there_are_banks():
    loss = ContrastiveRepresentation(bank_size=12)
    distiller = kd.Distiller(network(6), network(4), loss)
    with pytest.raises(ValueError, match="TransferBatch"):
        distiller.fit(*images(12), verbose=0)
    assert not ContrastiveRepresentation().uses_sample_ids


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("bank_size", 0),
        ("bank_size", 2**24 + 1),
        ("negatives", 0),
        ("embedding", 1.5),
        ("temperature", 0.0),
        ("momentum", 1.0),
        ("momentum", -0.1),
    ],
)
def test_refuses_what_is_out_of_range(argument, value):
    with pytest.raises(ValueError, match=rf"Received: {argument}=.*Pass a"):
        ContrastiveRepresentation(**{argument: value})


def test_refuses_lists_of_layers():
    with pytest.raises(ValueError, match="one layer with one"):
        ContrastiveRepresentation(
            teacher_layer_name=["a", "b"], student_layer_name=["a", "b"]
        )
