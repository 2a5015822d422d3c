"""matplotlib's drawings as part of a page: its colours, its font, its words."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

# Colours that stand for the page's, which change with light and dark.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
TEACHER, ALONE, DISTILLED = "#040404", "#050505", "#060606"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    TEACHER: "teacher",
    ALONE: "alone",
    DISTILLED: "distilled",
}
_STYLE = {
    "svg.fonttype": "none",
    # A name with dollars is no formula.
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.linewidth": 1,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.75,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


class Drawing(NamedTuple):
    """A figure of a page.

    Attributes:
        title: What it shows.
        svg: The drawing.
        alt: What it says, in words and numbers.
    """

    title: str
    svg: str
    alt: str


@contextlib.contextmanager
def canvas(
    name: str, width: float, height: float
) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on, and a list that gets the SVG when the block ends.

    Args:
        name: Unlike that of any other drawing of the page.
        width: In inches; 3.6 fill a telephone.
        height: In inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    drawn: list[str] = []
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.add_subplot(), drawn
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    drawn.append(_as_part(file.getvalue()))


def _as_part(svg: str) -> str:
    """The drawing without what only a file of its own needs."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.S)
    # The page has several drawings, and each name once.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    svg = svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
    return re.sub(r"<[^>]*>", lambda tag: _with_variables(tag[0]), svg)


def _with_variables(tag: str) -> str:
    """The page's colours, and no more digits than can be seen."""
    for stands_for, variable in _VARIABLES.items():
        tag = tag.replace(stands_for, f"var(--{variable})")
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag)
