"""Whether a gain is more than noise, against SciPy."""

import numpy as np
import pytest
import scipy.stats

from keras_distill.reports import paired


@pytest.mark.parametrize("count", [2, 5])
def test_t_test_and_interval_are_scipys(count):
    values = np.random.default_rng(count).normal(0.3, 1, count)
    expected = scipy.stats.ttest_1samp(values, 0)
    low, high = expected.confidence_interval(0.95)
    found = paired.t_interval(values)
    assert (found.mean, found.low, found.high) == pytest.approx(
        (values.mean(), low, high), rel=1e-9
    )
    assert paired.t_test(values) == pytest.approx(expected.pvalue, rel=1e-9)


def test_sign_flips_are_scipys():
    values = np.random.default_rng(0).normal(0.3, 1, 7)
    expected = scipy.stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert paired.sign_flip_test(values) == pytest.approx(expected.pvalue)


def test_the_smallest_p_is_that_of_gains_alone():
    for count in (1, 3, 6):
        gains = np.linspace(0.1, 0.2, count)
        assert paired.sign_flip_test(gains) == 2.0 ** (1 - count)


def test_normal_interval_is_scipys():
    values = np.random.default_rng(0).normal(size=1000)
    low, high = scipy.stats.norm.interval(
        0.95, values.mean(), scipy.stats.sem(values)
    )
    found = paired.normal_interval(values)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_gain_by_hand():
    alone = [np.array([1, 0, 0, 0], bool), np.array([1, 1, 0, 0], bool)]
    distilled = [np.array([1, 1, 1, 0], bool), np.array([1, 1, 1, 0], bool)]
    gain = paired.gain_of(alone, distilled)
    assert gain.by_seed == (0.5, 0.25)
    assert gain.over_seeds.mean == 0.375
    assert gain.over_examples.mean == pytest.approx(0.375)
    # t of two values is 12.7, and the error is half their distance.
    assert gain.over_seeds.low == pytest.approx(0.375 - 12.706 / 8, rel=1e-4)
    assert gain.sign_flip_p == gain.smallest_p == 0.5


def test_without_a_spread_nothing_is_known():
    one = paired.gain_of([np.array([0, 0, 1])], [np.array([1, 0, 1])])
    assert one.over_seeds.low is None
    assert not one.over_seeds.above_zero
    assert not one.over_seeds.below_zero
    assert one.p_value is None
    assert one.smallest_p == 1
    same = [np.array([0, 1, 1])] * 3
    equal = paired.gain_of(same, same)
    assert equal.over_seeds == paired.Interval(0.0, None, None)
    assert equal.p_value is None


def test_many_pairs_need_no_sign_flips():
    right = list(np.random.default_rng(0).random((2, 20, 30)) > 0.5)
    gain = paired.gain_of(*right)
    assert gain.sign_flip_p is None
    assert gain.smallest_p is None
    assert 0 < gain.p_value < 1
