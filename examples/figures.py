"""What examples measure: kept as JSON, and shown as tables of the README."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

BACKENDS = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
RESULTS = pathlib.Path(__file__).parent / "results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where figures are kept, and whether they are only shown."""
    parser.add_argument(
        "--json", type=pathlib.Path, help="a file to keep the figures in"
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="measure nothing, but show the table of that file, or of results/",
    )


def show(path: pathlib.Path, table: Callable[[Any], str]) -> None:
    """Print the table of a file's figures."""
    print(table(json.loads(path.read_text())))


def keep(path: pathlib.Path, facts: dict[str, Any]) -> None:
    """Put a backend's figures beside those of others, whole or not at all."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    about = describe()
    kept[about["backend"]] = {**facts, "about": about}
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(kept, indent=1) + "\n")
    part.replace(path)


def append(path: pathlib.Path, run: dict[str, Any]) -> None:
    """Put a run behind others, in the place of one with the same settings."""
    kept = json.loads(path.read_text()) if path.exists() else []
    kept = [one for one in kept if one["settings"] != run["settings"]]
    lines = ",\n".join(map(json.dumps, [*kept, {**run, "about": describe()}]))
    part = path.with_name(f"{path.name}.part")
    part.write_text(f"[\n{lines}\n]\n")
    part.replace(path)


def describe() -> dict[str, str]:
    """On what the figures were measured."""
    import keras

    return {
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
    }


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The mean and the standard deviation."""
    return f"{np.mean(values):{form}} ± {np.std(values, ddof=1):{form}}"


def percent(values: Sequence[float], form: str = ".1f") -> str:
    """The same of shares, in percent."""
    if len(values) == 1:
        return f"{100 * values[0]:{form}} %"
    return f"{spread(100 * np.array(values), form)} %"


def quartiles(values: Sequence[float], form: str) -> str:
    """The median, and the quartiles behind it."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:{form}} ({low:{form}}–{high:{form}})"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
