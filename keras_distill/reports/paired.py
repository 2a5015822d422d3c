"""Whether a difference between paired figures is more than noise."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

# As many signs are flipped in all ways; more pairs don't need it.
_MOST_PAIRS = 16
_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and where it would lie with other samples, at 95 %.

    Attributes:
        mean: The mean.
        low: Lower end; None where there is no spread to tell it from.
        high: Upper end, likewise.

    Example:
        >>> Interval(0.02, 0.01, 0.03).above_zero
        True
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def above_zero(self) -> bool:
        """Whether all of it is positive; without a spread, it isn't known."""
        return self.low is not None and self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether all of it is negative; without a spread, it isn't known."""
        return self.high is not None and self.high < 0


@dataclasses.dataclass(frozen=True)
class Gain:
    """What the distilled students have more than those trained alone.

    Two things are drawn by chance: the seeds, and the test examples. A gain
    that is no more than one of these noises isn't shown.

    Attributes:
        by_seed: Differences of accuracy, pair by pair.
        over_seeds: Their mean with Student's t interval: other seeds, the same
            examples.
        over_examples: Their mean with a normal interval: other examples, the
            same seeds.
        p_value: Of the paired t test, two-sided; None without a spread.
        sign_flip_p: Of the paired sign-flip test, two-sided and exact, which
            takes nothing for granted of the distribution. None for more than
            16 pairs.
        smallest_p: The smallest that the sign-flip test can give with so many
            pairs.
    """

    by_seed: tuple[float, ...]
    over_seeds: Interval
    over_examples: Interval
    p_value: float | None
    sign_flip_p: float | None
    smallest_p: float | None


def gain_of(
    alone: Sequence[np.ndarray[Any, Any]],
    distilled: Sequence[np.ndarray[Any, Any]],
) -> Gain:
    """Compare pairs of students.

    Args:
        alone: For each student, which examples it got right.
        distilled: The same for their partners.
    """
    differences = np.array(
        [d.astype("float64") - a for a, d in zip(alone, distilled, strict=True)]
    )
    by_seed = differences.mean(1)
    few = len(by_seed) <= _MOST_PAIRS
    return Gain(
        by_seed=tuple(by_seed.tolist()),
        over_seeds=t_interval(by_seed),
        over_examples=normal_interval(differences.mean(0)),
        p_value=t_test(by_seed),
        sign_flip_p=sign_flip_test(by_seed) if few else None,
        smallest_p=2.0 ** (1 - len(by_seed)) if few else None,
    )


def t_interval(values: np.ndarray[Any, Any]) -> Interval:
    """Student's interval of a mean: `mean ± t * s / sqrt(n)`."""
    from scipy.stats import t

    return _interval(values, t(max(len(values) - 1, 1)))


def normal_interval(values: np.ndarray[Any, Any]) -> Interval:
    """The interval of a mean over many: `mean ± 1.96 * s / sqrt(n)`."""
    from scipy.stats import norm

    return _interval(values, norm)


def _interval(values: np.ndarray[Any, Any], distribution: Any) -> Interval:
    mean, error = float(values.mean()), standard_error(values)
    if error is None:
        return Interval(mean, None, None)
    half = float(distribution.ppf((1 + _CONFIDENCE) / 2)) * error
    return Interval(mean, mean - half, mean + half)


def standard_error(values: np.ndarray[Any, Any]) -> float | None:
    """Of the mean; None where all values are equal, as a single one is."""
    if np.ptp(values) == 0:
        return None
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def t_test(differences: np.ndarray[Any, Any]) -> float | None:
    """Two-sided p of a mean difference of 0; None without a spread."""
    from scipy.stats import t

    error = standard_error(differences)
    if error is None:
        return None
    distance = abs(float(differences.mean())) / error
    return float(2 * t.sf(distance, len(differences) - 1))


def sign_flip_test(differences: np.ndarray[Any, Any]) -> float:
    """Share of all signs under which the mean is as far from 0, or farther."""
    signs = itertools.product((1, -1), repeat=len(differences))
    means = np.abs(np.array(list(signs)) @ differences)
    # The sums of equal numbers in another order differ in the last digit.
    seen = abs(differences.sum()) * (1 - 1e-9)
    return float((means >= seen).mean())
