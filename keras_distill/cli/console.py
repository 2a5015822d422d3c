"""What a command shows: a table or JSON, and its progress."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def progress() -> Iterator[int]:
    """Keras' `verbose`: 1 where a person looks at a terminal, else 0.

    Bars go to standard error: standard output is for results.
    """
    with contextlib.redirect_stdout(sys.stderr):
        yield int(sys.stderr.isatty())


def print_json(facts: Any) -> None:
    """Facts for other programs."""
    print(json.dumps(facts, indent=2, allow_nan=False))


def warn(text: str) -> None:
    """Say what a person should know, in a line."""
    print(f"keras-distill: warning: {text}", file=sys.stderr, flush=True)


def columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1
) -> str:
    """A table with columns of text on the left, and of numbers on the right.

    Args:
        header: What stands over the columns.
        rows: The cells of each row.
        texts: How many columns are text.

    Example:
        >>> print(columns(["", "size"], [["teacher", "12"], ["student", "3"]]))
                 size
        teacher    12
        student     3
    """
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join(lines)
