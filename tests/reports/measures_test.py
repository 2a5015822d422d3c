"""A report's figures against NumPy, SciPy and scikit-learn."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn import metrics

from keras_distill.reports import groups, measures

CLASSES = 5


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    teacher, student = random.normal(size=(2, 200, CLASSES))
    return teacher, student, random.integers(0, CLASSES, 200)


def test_log_softmax_is_scipys(data):
    teacher, *_ = data
    for logits in (teacher, 1e4 * teacher):
        np.testing.assert_allclose(
            measures.log_softmax(logits, 3.0),
            scipy.special.log_softmax(logits / 3.0, axis=-1),
            rtol=1e-12,
            atol=1e-12,
        )


def test_likelihood_and_brier_are_scikit_learns(data):
    logits, _, labels = data
    p = scipy.special.softmax(logits, -1)
    classes = np.arange(CLASSES)
    assert measures.negative_log_likelihood(logits, labels) == pytest.approx(
        metrics.log_loss(labels, p, labels=classes), rel=1e-12
    )
    expected = np.mean(np.sum((p - np.eye(CLASSES)[labels]) ** 2, -1))
    assert measures.brier_score(logits, labels) == pytest.approx(
        expected, rel=1e-12
    )


def test_confusion_is_scikit_learns(data):
    logits, _, labels = data
    decided = logits.argmax(-1)
    np.testing.assert_array_equal(
        measures.confusion(decided, labels, CLASSES),
        metrics.confusion_matrix(labels, decided, labels=np.arange(CLASSES)),
    )


def test_divergence_is_scipys(data):
    teacher, student, _ = data
    p, q = (scipy.special.softmax(z / 2.5, -1) for z in (teacher, student))
    assert measures.divergence(teacher, student, 2.5) == pytest.approx(
        scipy.stats.entropy(p, q, axis=-1).mean(), rel=1e-12
    )
    assert measures.divergence(teacher, teacher + 7, 2.5) == pytest.approx(0)
    assert np.isfinite(measures.divergence(1e4 * teacher, student, 1.0))


def test_entropy_share_is_scipys(data):
    teacher, *_ = data
    p = scipy.special.softmax(teacher / 4, -1)
    assert measures.entropy_share(teacher, 4.0) == pytest.approx(
        scipy.stats.entropy(p, axis=-1).mean() / np.log(CLASSES), rel=1e-12
    )
    assert measures.entropy_share(np.zeros((3, 4)), 1.0) == pytest.approx(1)
    sure = measures.entropy_share(1e4 * np.eye(4), 1.0)
    assert sure == pytest.approx(0)


def test_calibration_by_hand():
    confidence = np.array([0.95, 0.99, 0.5, 0.52, 1.0])
    right = np.array([True, False, True, True, True])
    bins = measures.reliability(confidence, right)
    assert [b.count for b in bins] == [2, 3]
    assert bins[0].confidence == pytest.approx(0.51)
    assert bins[1].accuracy == pytest.approx(2 / 3)
    expected = 0.4 * 0.49 + 0.6 * abs(2 / 3 - 0.98)
    assert measures.calibration_error(bins) == pytest.approx(expected)


def test_rank_correlation_is_scipys(data):
    teacher, student, _ = data
    student = student.round(1)  # with ties
    expected = np.mean(
        [
            scipy.stats.spearmanr(a, b).statistic
            for a, b in zip(teacher, student, strict=True)
        ]
    )
    assert measures.rank_correlation(teacher, student) == pytest.approx(
        expected, rel=1e-12
    )


def test_what_has_no_order_has_no_correlation():
    assert measures.rank_correlation(np.ones((4, 1)), np.ones((4, 1))) is None
    assert measures.rank_correlation(np.ones((4, 3)), np.ones((4, 3))) is None
    assert measures.same_favourite(np.ones((4, 1)), np.ones((4, 1))) is None
    rows = np.array([[1.0, 2, 3], [5, 5, 5]])
    assert measures.rank_correlation(rows, rows) == pytest.approx(1)


def test_wrong_classes_by_hand():
    logits = np.array([[9.0, 1, 2], [3, 9, 4], [0, 9, 9]])
    labels = np.array([0, 1, 1])
    rest = measures.wrong_classes(logits, labels)
    np.testing.assert_array_equal(rest, [[1, 2], [3, 4], [0, 9]])
    shares = measures.wrong_class_shares(logits, labels, 2.0)
    a, b, c = (1 / (1 + np.exp(x / 2)) for x in (1, 1, 9))
    np.testing.assert_allclose(
        shares,
        [[0, a, 1 - a], [(b + c) / 2, 0, 1 - (b + c) / 2], [0, 0, 0]],
        atol=1e-12,
    )


def test_outcomes_by_hand():
    labels = np.array([0, 0, 0, 0, 0])
    teacher = np.array([0, 0, 1, 1, 1])
    students = np.array([[0, 1, 0, 1, 2], [0, 2, 0, 1, 2]])
    found = groups.outcomes(teacher, students, labels)
    assert found == groups.Outcomes(0.2, 0.2, 0.2, 0.2, 0.2)
