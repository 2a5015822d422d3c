"""Numbers as a reader wants them."""

from __future__ import annotations

from keras_distill.reports.facts import Group, Run
from keras_distill.reports.paired import Interval

NOTHING = "–"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent."""
    return NOTHING if share is None else f"{100 * share:.{digits}f} %"


def points(difference: float | None) -> str:
    """A difference of shares, in points, with its sign."""
    if difference is None:
        return NOTHING
    text = f"{100 * difference:+.1f}"
    return {"+0.0": "0.0", "-0.0": "0.0"}.get(text, text).replace("-", "−")


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimal places."""
    if value is None:
        return NOTHING
    return f"{value:.{digits}f}".replace("-", "−")


def count(value: float | None) -> str:
    """A count, or a mean of some."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def p_value(value: float | None) -> str:
    """A probability of chance."""
    if value is None:
        return "unknown"
    return "< 0.001" if value < 1e-3 else f"= {value:.3f}"


def interval(found: Interval) -> str:
    """The ends of an interval of differences, in points."""
    if found.low is None:
        return "unknown"
    return f"{points(found.low)} to {points(found.high)}"


def size(amount: float | None) -> str:
    """Bytes, in KiB or MiB."""
    if amount is None:
        return NOTHING
    if amount >= 2**20:
        return f"{amount / 2**20:.1f} MiB"
    return f"{amount / 2**10:.1f} KiB"


def spread(group: Group, name: str, digits: int = 1) -> str:
    """A share of several models in percent: mean and standard deviation."""
    mean, deviation = group.mean(name), group.spread(name)
    if mean is None or deviation is None:
        return percent(mean, digits)
    return f"{100 * mean:.{digits}f} ± {100 * deviation:.{digits}f} %"


def spread_number(group: Group, name: str, digits: int = 3) -> str:
    """A figure of several models: mean and standard deviation."""
    mean, deviation = group.mean(name), group.spread(name)
    if mean is None or deviation is None:
        return number(mean, digits)
    return f"{number(mean, digits)} ± {deviation:.{digits}f}"


def plural(amount: int, word: str) -> str:
    """So many of something."""
    return f"{amount:,} {word}" if amount == 1 else f"{amount:,} {word}s"


def temperature(value: float) -> str:
    """A temperature, without digits that say nothing."""
    return f"{value:.3g}"


def short_percent(share: float) -> str:
    """A share in percent for a narrow cell, without the sign."""
    value = 100 * share
    if value >= 9.95:
        return f"{value:.0f}"
    return "0" if value < 0.05 else f"{value:.1f}"


def latency(milliseconds: float) -> str:
    """A time, in ms or µs."""
    if milliseconds < 1:
        return f"{1000 * milliseconds:.3g} µs"
    return f"{milliseconds:.3g} ms"


def epochs(run: Run) -> str:
    """How many epochs were finished, of how many."""
    if run.finished is None:
        return NOTHING
    if run.planned is None:
        return str(run.finished)
    return f"{run.finished} of {run.planned}"


def end(run: Run) -> str:
    """How a run came to its end."""
    if run.failure:
        return f"failed: {run.failure}"
    if run.lost_in:
        return f"lost its numbers in {run.lost_in}"
    if run.is_cut_off:
        return "interrupted"
    if run.finished is None or run.planned is None:
        return "not known"
    early = run.finished < run.planned
    return "stopped by a callback" if early else "as planned"
