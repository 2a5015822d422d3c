"""The command `keras-distill`: the public functions, for a shell."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from keras_distill.export import inspect


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    Args:
        arguments: The command line without the program; None is that of the
            process.

    Example:
        >>> main(["inspect", "no-such-file.tflite"])
        1
    """
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except (OSError, RuntimeError, TypeError, ValueError, ImportError) as error:
        print(f"keras-distill: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-distill", description="Knowledge distillation for Keras 3."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "inspect",
        help="show what a .tflite or .keras file is",
        description="Show what a .tflite or .keras file says of itself, and "
        "what is in it. Nothing of a .keras file is run.",
    )
    command.add_argument("file", help="the .tflite or .keras file")
    command.add_argument(
        "--json", action="store_true", help="print JSON, for other programs"
    )
    command.set_defaults(run=_inspect)
    return parser


def _inspect(parsed: argparse.Namespace) -> None:
    facts = inspect(parsed.file)
    if parsed.json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        if value not in ("", [], {}):
            print(f"{name:<{width}}  {_as_text(value)}")


def _as_text(value: Any) -> str:
    if isinstance(value, dict) and {"name", "shape", "dtype"} <= set(value):
        return f"{value['name']} {value['shape']} {value['dtype']}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_as_text(v)}" for key, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_as_text, value))
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
