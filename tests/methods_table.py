"""The README's table of methods, made from the losses themselves.

    python tests/methods_table.py

writes it anew. Nothing in it is written by hand: names, acronyms and papers
come from docstrings, the rest from classes and their signatures.
"""

import inspect
import pathlib
import re

import keras_distill as kd

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
# "Hinton, Vinyals and Dean" or "Zhao et al.", then the quoted title, a venue
# and the year.
REFERENCE = re.compile(
    r'^([^"]+?), "[^"]+?[.,]?",? (?:[^"]*?\b)?((?:19|20)\d\d)\b'
)
ACRONYM = re.compile(r"\((?:[^()]*, )?([A-Z][\w-]*)\)\.$")


def losses():
    """The exported methods: all losses but the bases."""
    exported = (getattr(kd.losses, name) for name in kd.losses.__all__)
    return [
        loss
        for loss in exported
        if inspect.isclass(loss)
        and issubclass(loss, kd.losses.DistillationLoss)
        and not is_base(loss)
    ]


def is_base(loss):
    """Whether a class leaves its comparison to subclasses."""
    return loss in (
        kd.losses.DistillationLoss,
        kd.losses.FeatureLoss,
        kd.losses.LogitLoss,
    )


def acronym(loss):
    """What stands in brackets at the end of the docstring's first line."""
    first = inspect.getdoc(loss).split("\n")[0]
    if "(" not in first:
        return ""
    found = ACRONYM.search(first)
    assert found, (
        f"{loss.__name__}: the first line of the docstring, {first!r}, has "
        "brackets, but no acronym in them. End it with '(ACRONYM).'"
    )
    return found[1]


def paper(loss):
    """Authors and year of the docstring's first reference."""
    text = inspect.getdoc(loss)
    assert "Reference:\n" in text, f"{loss.__name__}: it has no Reference."
    reference = " ".join(text.split("Reference:\n")[1].split())
    found = REFERENCE.match(reference)
    assert found, (
        f"{loss.__name__}: its Reference, {reference!r}, isn't of the form "
        'authors, "title", venue year.'
    )
    return f"{found[1]} {found[2]}"


def compares(loss):
    """What the loss looks at."""
    relates = getattr(loss, "relates_examples", False)
    # Batch normalization alone relates no examples, whatever it mixes.
    if relates and "BatchNormalization(" not in source(loss):
        return "relations between examples"
    if issubclass(loss, kd.losses.LogitLoss):
        return "logits"
    if not issubclass(loss, kd.losses.FeatureLoss) or loss.axes is None:
        return "any layers"
    kinds = {5: "volumes", 4: "feature maps", 3: "tokens", 2: "vectors"}
    return ", ".join(kind for axes, kind in kinds.items() if axes in loss.axes)


def layers(loss):
    """How many layers one loss compares."""
    name = inspect.signature(loss).parameters["teacher_layer_name"]
    if not loss.pairs_layers:
        return "all with all"
    return "several pairs" if "LayerNames" in str(name) else "one pair"


def projector(loss):
    """Who brings the student's layer to the teacher's shape."""
    made = loss.make_projector is not (
        kd.losses.DistillationLoss.make_projector
    )
    mends = loss.same_channels or loss.same_size if is_feature(loss) else made
    kinds = [
        *(["auto"] if made and mends and loss.pairs_layers else []),
        *(["own parts"] if loss.has_parts else []),
    ]
    return " and ".join(kinds) or "–"


def is_feature(loss):
    return issubclass(loss, kd.losses.FeatureLoss)


def source(loss):
    return inspect.getsource(inspect.getmodule(loss))


def row(loss):
    """The cells of a method."""
    short = acronym(loss)
    return (
        f"`{loss.__name__}`" + (f" ({short})" if short else ""),
        paper(loss),
        compares(loss),
        "yes" if loss.uses_labels else "–",
        layers(loss),
        projector(loss),
        f"{loss.default_weight:g}",
        f"{loss.default_hard_label_weight:g}",
    )


def simkd():
    """The row of SimKD, which is a function and not a loss."""
    function = getattr(kd, "reuse_classifier", None)
    if function is None:
        return []
    return [
        (
            f"`{function.__name__}()` ({acronym(function)})",
            paper(function),
            "feature maps",
            "–",
            "one pair",
            "own parts",
            "–",
            "–",
        )
    ]


def table():
    """The table, as Markdown."""
    rows = sorted([*map(row, losses()), *simkd()], key=order)
    lines = [HEADER, ["---"] * len(HEADER), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def order(cells):
    """Logits, then layers, then relations; by name."""
    groups = ("logits", "relations between examples")
    place = {groups[0]: 0, groups[1]: 2}.get(cells[2], 1)
    return place, cells[0].lower()


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
