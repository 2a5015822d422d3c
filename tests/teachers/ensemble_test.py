"""Ensembles against float64."""

import numpy as np
import pytest
from support import cnn, images, only_on, teacher

import keras_distill as kd

as_teacher = kd.teachers.as_teacher
Ensemble = kd.teachers.Ensemble
NumpyTeacher = kd.teachers.NumpyTeacher


def says(output, probabilities=None):
    return NumpyTeacher(lambda x: output, "v1", probabilities)


def random_logits(count=3, shape=(5, 4), scale=5.0):
    random = np.random.default_rng(0)
    return [scale * random.normal(size=shape) for _ in range(count)]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def label(members, *arguments):
    return Ensemble(members, *arguments).label(np.zeros(1))[0]


SOFTMAX = {
    "probabilities": lambda z: np.log(np.mean([softmax(x) for x in z], 0)),
    "geometric": lambda z: np.mean([np.log(softmax(x)) for x in z], 0),
    "logits": lambda z: np.mean(z, 0),
}


@pytest.mark.parametrize("combine", SOFTMAX)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float64", 1e-12), ("float32", 2e-6), ("float16", 2e-6)],
)
def test_softmax(combine, dtype, tolerance):
    logits = [x.astype(dtype) for x in random_logits()]
    output = label([says(x) for x in logits], combine)
    expected = SOFTMAX[combine]([x.astype("float64") for x in logits])
    assert output.dtype == np.result_type(dtype, "float32")
    np.testing.assert_allclose(output, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(5, 4), (5, 1)])
def test_sigmoid(shape):
    logits = random_logits(shape=shape)
    members = [says(x) for x in logits]
    mean = np.mean([sigmoid(x) for x in logits], 0)
    output = label(members, "probabilities", "sigmoid")
    np.testing.assert_allclose(output, np.log(mean / (1 - mean)), rtol=1e-10)
    output = label(members, "geometric", "sigmoid")
    np.testing.assert_allclose(output, np.mean(logits, 0), rtol=1e-12)


def test_members_with_probabilities_and_with_logits():
    logits = random_logits(2)
    members = [says(softmax(logits[0]), True), says(logits[1], False)]
    expected = SOFTMAX["probabilities"](logits)
    np.testing.assert_allclose(label(members), expected, rtol=1e-10)
    members = [says(sigmoid(logits[0]), True), says(logits[1], False)]
    mean = np.mean([sigmoid(x) for x in logits], 0)
    output = label(members, "probabilities", "sigmoid")
    np.testing.assert_allclose(output, np.log(mean / (1 - mean)), rtol=1e-6)


def test_a_probability_of_zero_is_the_smallest_float32():
    output = label([says(np.array([[0.0, 1.0]]), True)], "logits")
    tiny = np.log(np.float64(np.finfo("float32").tiny))
    np.testing.assert_allclose(output, [[tiny, 0.0]], rtol=1e-12)


def test_logits_that_overflow_in_probabilities():
    huge = np.array([[1e4, 0.0], [0.0, -1e4]])
    np.testing.assert_allclose(
        label([says(huge), says(huge)]), [[0, -1e4], [0, -1e4]], rtol=1e-12
    )
    output = label([says(huge)], "probabilities", "sigmoid")
    np.testing.assert_allclose(output[0, 0], 1e4, rtol=1e-12)


def test_structures():
    a, b = random_logits(2)
    output = label([says({"x": a}), says({"x": b})], "logits")
    np.testing.assert_allclose(output["x"], (a + b) / 2, rtol=1e-12)


def test_members_of_several_kinds():
    x, _ = images()
    first, second = teacher(), cnn()
    labeller = as_teacher([first, lambda x: np.zeros((len(x), 3)) - 1])
    z = first.predict(x, verbose=0).astype("float64"), np.zeros((len(x), 3))
    expected = SOFTMAX["probabilities"](z)
    np.testing.assert_allclose(labeller.label(x)[0], expected, atol=1e-5)
    assert labeller.runtime == "keras, numpy"
    assert labeller.probabilities is False
    others = Ensemble([second, first]), Ensemble([first, second], "logits")
    prints = [str(e.fingerprint) for e in (*others, Ensemble([first, second]))]
    assert len(set(prints)) == 3
    assert str(Ensemble([first, second]).fingerprint) == prints[-1]


@only_on("jax")
def test_closing_closes_the_members():
    class Closed(NumpyTeacher):
        closed = 0

        def close(self):
            self.closed += 1

    member = Closed(np.asarray, "v1")
    with Ensemble([member, [member]]):
        pass
    assert member.closed == 2


@pytest.mark.parametrize(
    ("members", "arguments", "message"),
    [
        ([], (), "has members"),
        ([np.abs], ("mean",), r"combine='mean'"),
        ([np.abs], ("logits", "relu"), r"activation='relu'"),
    ],
)
def test_mistakes(members, arguments, message):
    members = [NumpyTeacher(f, "v1") for f in members]
    with pytest.raises(ValueError, match=message):
        Ensemble(members, *arguments)


def test_mistakes_that_a_batch_shows():
    a, b = random_logits(2)
    with pytest.raises(
        ValueError, match=r"\(5, 4\) from member 0 and \(5, 3\)"
    ):
        label([says(a), says(b[:, :3])])
    with pytest.raises(ValueError, match="softmax needs two classes"):
        label([says(a[:, :1])])
    with pytest.raises(ValueError, match="looks like probabilities"):
        label([says(softmax(a))])
    with pytest.raises(ValueError, match="can't be seen"):
        as_teacher([says(a)], layers=("conv",))
