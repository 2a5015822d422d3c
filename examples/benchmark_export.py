"""Time an export against the converter that it contains.

    KERAS_BACKEND=tensorflow python examples/benchmark_export.py

Both export the same students in turns: Keras' own `student.export(format=
"litert")`, which is TensorFlow's converter in this very process and checks
nothing, and `export_litert`, which saves, converts in a process apart, compares
with Keras and writes. Gives the medians and their ratio, and what the first
export of a program takes, which waits for that process to start.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

import figures

os.environ.setdefault("KERAS_BACKEND", "tensorflow")


RESULTS = figures.RESULTS / "benchmark_export.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    figures.add_arguments(parser)
    args = parser.parse_args()
    if args.table:
        figures.show(args.json or RESULTS, table)
        return
    facts = measure(args.rounds)
    if args.json:
        figures.keep(args.json, facts)


def measure(rounds: int) -> dict[str, Any]:
    import keras
    from export_table import NETWORKS

    import keras_distill as kd

    folder = pathlib.Path(tempfile.mkdtemp())
    first = NETWORKS["CNN"](keras)
    started = time.perf_counter()
    kd.export_litert(first, folder / "first.tflite")
    waited = time.perf_counter() - started
    print(f"first export of a program: {waited:.1f} s")

    seconds_of = {}
    students = {name: make(keras) for name, make in NETWORKS.items()}
    students["MobileNetV2"] = keras.applications.MobileNetV2(weights=None)
    for name, student in students.items():
        jobs = {
            "theirs": lambda s=student: s.export(
                folder / "theirs.tflite", format="litert"
            ),
            "ours": lambda s=student: kd.export_litert(
                s, folder / "ours.tflite"
            ),
        }
        taken = {who: [] for who in jobs}
        for i in range(rounds):
            for who in list(jobs)[:: 1 if i % 2 else -1]:
                with contextlib.redirect_stdout(io.StringIO()):
                    taken[who].append(seconds(jobs[who]))
        converter, export = map(statistics.median, taken.values())
        seconds_of[name] = [converter, export]
        print(
            f"{name:<18} converter {converter:6.2f} s, export {export:6.2f} s, "
            f"ratio {export / converter:.2f}",
            flush=True,
        )
    print(
        f"Medians of {rounds} rounds in turns, {os.cpu_count()} cores, Keras "
        f"{keras.version()}, {time.strftime('%Y-%m-%d')}."
    )
    return {
        "first, s": waited,
        "converter and export, s": seconds_of,
        "rounds": rounds,
    }


def table(kept: dict[str, Any]) -> str:
    """Seconds of both for each network, and their ratio."""
    (facts,) = kept.values()
    return figures.markdown(
        ("network", "Keras' converter", "`export_litert`", "ratio"),
        [
            (name, f"{a:.1f} s", f"{b:.1f} s", f"{b / a:.2f}")
            for name, (a, b) in facts["converter and export, s"].items()
        ],
    )


def seconds(action) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
