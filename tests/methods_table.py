"""The README's table of methods, made from the losses themselves.

    python tests/methods_table.py

writes it anew. Nothing in it is written by hand: names, acronyms and papers
come from docstrings, the rest from classes and their signatures.
"""

import pathlib

import keras_distill as kd
from keras_distill.losses.catalogue import acronym_of, paper_of, sort_key

README = pathlib.Path(__file__).parent.parent / "README.md"
BEGIN = "<!-- methods: python tests/methods_table.py -->"
END = "<!-- methods end -->"
HEADER = (
    "method",
    "paper",
    "compares",
    "labels",
    "layers",
    "projector",
    "weight",
    "of hard labels",
)


def row(method):
    """The cells of a method."""
    short = f" ({method.acronym})" if method.acronym else ""
    return (
        f"`{method.name}`{short}",
        method.paper,
        method.compares,
        "yes" if method.needs_labels else "–",
        method.layers,
        method.projector or "–",
        f"{method.weight:g}",
        f"{method.hard_label_weight:g}",
    )


def simkd():
    """The row of SimKD, which is a function and not a loss."""
    function = kd.reuse_classifier
    return (
        f"`{function.__name__}()` ({acronym_of(function)})",
        paper_of(function),
        "feature maps",
        "–",
        "one pair",
        "own parts",
        "–",
        "–",
    )


def table():
    """The table, as Markdown."""
    rows = [*map(row, kd.losses.methods()), simkd()]
    rows.sort(key=lambda cells: sort_key(cells[2], cells[0]))
    lines = [HEADER, ["---"] * len(HEADER), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def split(text):
    """A README's text before, in and after its table."""
    for mark in (BEGIN, END):
        assert text.count(mark) == 1, f"README.md needs one line {mark}"
    before, rest = text.split(BEGIN)
    inside, after = rest.split(END)
    return before, inside.strip("\n"), after


def main():
    before, _, after = split(README.read_text())
    README.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")


if __name__ == "__main__":
    main()
