"""Logit matching, against its formula."""

import numpy as np
import pytest
from support import evaluate

from keras_distill.losses import LogitMatching


def formula(teacher, student):
    return ((teacher - student) ** 2).sum(axis=-1) / 2


def test_values_are_the_formulas(golden):
    np.testing.assert_allclose(
        evaluate(LogitMatching(reduction=None), *golden),
        formula(*golden),
        rtol=1e-6,
    )


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_the_formula(golden, gradient, numeric_gradient):
    teacher, student = golden
    loss = LogitMatching(reduction="sum", dtype="float64")
    slope = gradient(lambda x: loss(teacher, x), student)
    np.testing.assert_allclose(
        slope,
        numeric_gradient(lambda x: formula(teacher, x).sum(), student),
        rtol=1e-6,
        atol=1e-9,
    )
    np.testing.assert_allclose(slope, student - teacher, rtol=1e-12)


def test_matches_each_place_of_a_sequence():
    teacher, student = np.random.default_rng(0).normal(size=(2, 4, 3, 5))
    values = evaluate(LogitMatching(reduction=None), teacher, student)
    np.testing.assert_allclose(values, formula(teacher, student), rtol=1e-5)


def test_probabilities_are_matched_as_logarithms():
    teacher = np.array([[0.5, 0.25, 0.25]])
    loss = LogitMatching(from_logits=False)
    assert evaluate(loss, teacher, np.log(teacher)) == pytest.approx(
        0, abs=1e-12
    )
    assert evaluate(loss, teacher, [[0.0, 0.0, 0.0]]) == pytest.approx(
        (np.log(teacher) ** 2).sum() / 2, rel=1e-6
    )


def test_class_map_picks_the_teachers_classes(golden):
    teacher, student = golden
    value = evaluate(LogitMatching(class_map=[9, 0]), teacher, student[:, :2])
    expected = formula(teacher[:, [9, 0]], student[:, :2]).mean()
    assert value == pytest.approx(expected, rel=1e-6)
