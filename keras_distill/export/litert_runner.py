"""Runs a LiteRT file on the interpreter. Also a script for a process apart.

The interpreter can abort the process on a file that it doesn't take, so an
unknown file is run by `python litert_runner.py MODEL INPUTS OUTPUTS` first. The
module imports nothing of the package: as a script it starts without Keras.
"""

from __future__ import annotations

import pathlib
import pickle
import sys
from typing import Any

import numpy as np


def open_signature(path: str) -> Any:
    """The runner of the file's one signature, its memory allocated."""
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_path=path).get_signature_runner()


def run(path: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a file of batch 1 on each example of a batch."""
    signature = open_signature(path)
    size = len(next(iter(inputs.values())))
    rows = [
        signature(**{name: x[i : i + 1] for name, x in inputs.items()})
        for i in range(size)
    ]
    return {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}


def _main(model: str, inputs: str, outputs: str) -> None:
    arrays = pickle.loads(pathlib.Path(inputs).read_bytes())
    pathlib.Path(outputs).write_bytes(pickle.dumps(run(model, arrays)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
