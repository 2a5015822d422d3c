"""What methods there are, read from their classes and docstrings."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from keras_distill.losses.base import DistillationLoss, LogitLoss
from keras_distill.losses.feature_loss import FeatureLoss

# "Hinton, Vinyals and Dean" or "Zhao et al.", then the quoted title, a venue
# and the year.
_REFERENCE = re.compile(
    r'^([^"]+?), "[^"]+?[.,]?",? (?:[^"]*?\b)?((?:19|20)\d\d)\b'
)
_ACRONYM = re.compile(r"\((?:[^()]*, )?([A-Z][\w-]*)\)\.$")
_BASES = (DistillationLoss, FeatureLoss, LogitLoss)
_AXES = {5: "volumes", 4: "feature maps", 3: "tokens", 2: "vectors"}
_RELATIONS = "relations between examples"
# Their examples depend on each other by batch normalization alone, whatever
# layers these compare.
NORMALIZE = (
    "FactorTransfer",
    "KnowledgeReview",
    "SemanticCalibration",
    "SoftmaxRegression",
)


@dataclasses.dataclass(frozen=True)
class Method:
    """What a method is and needs.

    Attributes:
        name: The loss's class, in `kd.losses`.
        acronym: What the paper calls it; empty if it has no short name.
        paper: Authors and year.
        compares: What it looks at: logits, layers of some kind, or relations
            between examples.
        needs_labels: Whether it needs hard labels.
        layers: How many layers one loss compares.
        projector: Who brings the student's layer to the teacher's shape:
            `"auto"`, `"own parts"`, both, or empty.
        weight: The loss's weight in a `Distiller` that isn't told another.
        hard_label_weight: That of the hard labels next to it.
        loss: The class itself.
    """

    name: str
    acronym: str
    paper: str
    compares: str
    needs_labels: bool
    layers: str
    projector: str
    weight: float
    hard_label_weight: float
    loss: type[DistillationLoss] = dataclasses.field(repr=False)

    @classmethod
    def of(cls, loss: type[DistillationLoss]) -> Method:
        """Read a class and its docstring.

        Raises:
            ValueError: If the docstring doesn't say what it must.
        """
        return cls(
            loss.__name__,
            acronym_of(loss),
            paper_of(loss),
            _compares(loss),
            loss.uses_labels,
            _layers(loss),
            _projector(loss),
            loss.default_weight,
            loss.default_hard_label_weight,
            loss,
        )

    @property
    def documentation(self) -> str:
        """Formula, arguments, an example and the source."""
        return inspect.getdoc(self.loss) or ""


def methods_of(exported: Iterable[Any]) -> tuple[Method, ...]:
    """The methods among some objects, sorted: logits, layers, relations."""
    found = [
        Method.of(loss)
        for loss in exported
        if inspect.isclass(loss)
        and issubclass(loss, DistillationLoss)
        and loss not in _BASES
    ]
    return tuple(sorted(found, key=lambda m: sort_key(m.compares, m.name)))


def sort_key(compares: str, name: str) -> tuple[int, str]:
    """Logits come first, then layers, then relations; each by name."""
    return {"logits": 0, _RELATIONS: 2}.get(compares, 1), name.lower()


def find_method(name: str, known: Iterable[Method]) -> Method:
    """The method of a name.

    Raises:
        ValueError: If there is none; it says which names are close.
    """
    by_name = {method.name: method for method in known}
    if name in by_name:
        return by_name[name]
    # In whatever case, by the paper's name, or misspelt.
    names = {other.lower(): other for other in by_name}
    names |= {m.acronym.lower(): m.name for m in by_name.values() if m.acronym}
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    meant = " or ".join(dict.fromkeys(names[match] for match in close))
    hint = f"Did you mean {meant}?" if meant else "methods() has all names."
    raise ValueError(f"There is no such method. Received: {name!r}. {hint}")


def acronym_of(documented: Callable[..., Any]) -> str:
    """What stands in brackets at the end of the docstring's first line.

    Raises:
        ValueError: If there are brackets without an acronym.
    """
    first = (inspect.getdoc(documented) or "").split("\n")[0]
    if "(" not in first:
        return ""
    found = _ACRONYM.search(first)
    if found is None:
        raise ValueError(
            f"{documented.__name__}: the first line of the docstring has "
            f"brackets, but no acronym in them. Received: {first!r}. End it "
            "with '(ACRONYM).'"
        )
    return found[1]


def paper_of(documented: Callable[..., Any]) -> str:
    """Authors and year of the docstring's first reference.

    Raises:
        ValueError: If there is none, or it can't be read.
    """
    text = inspect.getdoc(documented) or ""
    if "Reference:\n" not in text:
        raise ValueError(f"{documented.__name__}: it has no Reference.")
    reference = " ".join(text.split("Reference:\n")[1].split())
    found = _REFERENCE.match(reference)
    if found is None:
        raise ValueError(
            f"{documented.__name__}: its Reference isn't of the form authors, "
            f'"title", venue year. Received: {reference!r}.'
        )
    return f"{found[1]} {found[2]}"


def _compares(loss: type[DistillationLoss]) -> str:
    if loss.relates_examples and loss.__name__ not in NORMALIZE:
        return _RELATIONS
    if issubclass(loss, LogitLoss):
        return "logits"
    if not issubclass(loss, FeatureLoss) or loss.axes is None:
        return "any layers"
    return ", ".join(kind for axes, kind in _AXES.items() if axes in loss.axes)


def _layers(loss: type[DistillationLoss]) -> str:
    if not loss.pairs_layers:
        return "all with all"
    name = inspect.signature(loss).parameters["teacher_layer_name"]
    return "several pairs" if "LayerNames" in str(name) else "one pair"


def _projector(loss: type[DistillationLoss]) -> str:
    made = loss.make_projector is not DistillationLoss.make_projector
    mends = made
    if issubclass(loss, FeatureLoss):
        mends = loss.same_channels or loss.same_size
    kinds = [
        *(["auto"] if made and mends and loss.pairs_layers else []),
        *(["own parts"] if loss.has_parts else []),
    ]
    return " and ".join(kinds)
