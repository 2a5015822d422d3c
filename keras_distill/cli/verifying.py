"""`keras-distill verify`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import pathlib
import sys
from typing import Any

from keras_distill.cli.arguments import Commands, add_command, number, positive
from keras_distill.cli.console import print_json, progress
from keras_distill.cli.files import (
    arrays_for,
    load_model,
    read_data,
    require_chosen_part,
    require_labels,
)
from keras_distill.export import Budget, LiteRTCheck, verify_litert

_FELL_SHORT = 1


def add(commands: Commands) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "verify",
        _run,
        "compare a .tflite file with its student",
        "Run a file on the real interpreter, compare it with its student, and\n"
        "say what it costs. The exit status is 1 if a limit doesn't hold.",
        "  keras-distill verify student.tflite student.keras test.npz \\\n"
        "      --max-drop 0.01 --max-size 256KB",
        reads_data=True,
    )
    command.add_argument("file", type=pathlib.Path, help="the .tflite file")
    command.add_argument(
        "student", type=pathlib.Path, help="the .keras file it was made of"
    )
    command.add_argument("data", help="examples that nothing was chosen by")
    limits = command.add_argument_group("limits")
    limits.add_argument(
        "--max-drop",
        type=number,
        metavar="SHARE",
        help="most accuracy it may lose: 0.01 is one point",
    )
    limits.add_argument(
        "--min-agreement",
        type=number,
        metavar="SHARE",
        help="least examples on which it decides as Keras does",
    )
    limits.add_argument("--min-snr", type=number, metavar="DB")
    limits.add_argument("--max-size", metavar="SIZE", help="such as 256KB")
    limits.add_argument(
        "--max-arena",
        metavar="SIZE",
        help="most memory on TensorFlow Lite Micro, such as 64KB",
    )
    limits.add_argument("--max-latency", type=number, metavar="MS")
    command.add_argument(
        "--threshold",
        type=number,
        help="from where on a value says yes, if the model doesn't show it",
    )
    command.add_argument("--threads", type=positive, default=1)
    command.add_argument("--runs", type=positive, default=50)


def _run(parsed: argparse.Namespace) -> int:
    limits = {
        "flash": parsed.max_size,
        "arena": parsed.max_arena,
        "latency_ms": parsed.max_latency,
        "accuracy_drop": parsed.max_drop,
        "agreement": parsed.min_agreement,
        "snr_db": parsed.min_snr,
    }
    asked = any(limit is not None for limit in limits.values())
    budget = Budget(**limits) if asked else None
    student = load_model(parsed.student, "student")
    data = read_data(parsed, parsed.data, parsed.split, student, "student")
    require_chosen_part(parsed, data)
    require_labels(student, "student", data)
    if parsed.max_drop is not None and data.labels is None:
        raise ValueError(
            "Without labels there is no accuracy to lose. Received: "
            f"--max-drop, and '{data.source}' without labels."
        )
    x, y = arrays_for(student, data), data.labels
    with progress():
        check = verify_litert(
            parsed.file,
            student,
            x if y is None else (x, y),
            threshold=parsed.threshold,
            micro=parsed.max_arena is not None,
            threads=parsed.threads,
            runs=parsed.runs,
        )
    excesses = {} if budget is None else budget.excesses(check.costs)
    if parsed.json:
        print_json({**facts_of(check), "falls_short": sorted(excesses)})
    else:
        print(check)
    if budget is None or not excesses:
        return 0
    print(
        f"keras-distill: '{parsed.file}' falls short of what was asked: "
        f"{budget.describe(excesses, check.costs)}.",
        file=sys.stderr,
    )
    return _FELL_SHORT


def facts_of(check: LiteRTCheck) -> dict[str, Any]:
    """What a check found, for JSON."""
    facts = {
        **dataclasses.asdict(check),
        "accuracy": check.accuracy,
        "keras_accuracy": check.keras_accuracy,
        "accuracy_drop": check.accuracy_drop,
        "agreement": check.agreement,
        "max_error": check.max_error,
        "snr_db": check.snr_db,
    }
    found: dict[str, Any] = _finite(facts)
    return found


def _finite(value: Any) -> Any:
    """The same, with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
