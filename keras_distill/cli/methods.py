"""`keras-distill methods`."""

from __future__ import annotations

import argparse
import dataclasses

from keras_distill.cli.arguments import Commands, add_command
from keras_distill.cli.console import columns, print_json
from keras_distill.losses import Method, methods
from keras_distill.losses import method as method_of

_HEADER = (
    "method",
    "acronym",
    "paper",
    "compares",
    "labels",
    "layers",
    "projector",
    "weight",
    "of hard labels",
)
# As many columns are text.
_TEXTS = 7


def add(commands: Commands) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "methods",
        _run,
        "list the methods, or explain one",
        "List the methods of distillation with what each needs, and its\n"
        "weights where none are given; or explain one of them.\n"
        "reuse_classifier (SimKD), which makes a student, is for Python.",
        "  keras-distill methods\n  keras-distill methods SoftTargets",
    )
    command.add_argument(
        "name", nargs="?", help="a method, such as SoftTargets"
    )


def _run(parsed: argparse.Namespace) -> int:
    if parsed.name is not None:
        method = method_of(parsed.name)
        if parsed.json:
            print_json(
                {**_facts(method), "documentation": method.documentation}
            )
        else:
            print(f"{method.name}\n\n{method.documentation}")
        return 0
    found = methods()
    if parsed.json:
        print_json([_facts(method) for method in found])
    else:
        print(columns(_HEADER, [_row(m) for m in found], _TEXTS))
    return 0


def _facts(method: Method) -> dict[str, object]:
    fields = (field.name for field in dataclasses.fields(method))
    return {name: getattr(method, name) for name in fields if name != "loss"}


def _row(method: Method) -> tuple[str, ...]:
    return (
        method.name,
        method.acronym or "-",
        method.paper,
        method.compares,
        "yes" if method.needs_labels else "-",
        method.layers,
        method.projector or "-",
        f"{method.weight:g}",
        f"{method.hard_label_weight:g}",
    )
