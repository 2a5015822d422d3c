"""The process that `processes` keeps: it imports once, and forks for a call.

Usage: `python -m keras_distill.export.worker`. Each line of the input is a
folder with a call in it, each line of the output the exit status of one.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pathlib
import pickle
import re
import select
import sys
import tempfile
from typing import TextIO

from keras_distill.export.processes import FORKS, report_to

_IDLE_SECONDS = 600
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# What takes long to import. Each package may be missing.
_PRELOADED = [
    "tensorflow",
    "ai_edge_litert.interpreter",
    "ai_edge_quantizer.quantizer",
    "tflite_micro.python.tflite_micro.runtime",
]


def main() -> None:
    """Answer calls until the caller is gone, or silent for long."""
    # What libraries print isn't an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    report_to(answers)
    for name in _PRELOADED:
        if importlib.util.find_spec(name.split(".", maxsplit=1)[0]):
            importlib.import_module(name)
    while not FORKS or select.select([sys.stdin], [], [], _IDLE_SECONDS)[0]:
        folder = sys.stdin.readline().strip()
        if not folder:
            return
        _answer(pathlib.Path(folder), answers)


def _answer(folder: pathlib.Path, answers: TextIO) -> None:
    if not FORKS:
        print(_run(folder), file=answers, flush=True)
        return
    child = os.fork()
    if child == 0:
        os._exit(_run(folder))
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _run(folder: pathlib.Path) -> int:
    """Run the call that lies in a folder; return its exit status."""
    # What libraries leave behind goes with the folder.
    tempfile.tempdir = str(folder)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        request = (folder / "request").read_bytes()
        working_folder, sys.path[:], function, arguments = pickle.loads(request)
        os.chdir(working_folder)
        result = pickle.dumps(function(*arguments))
        (folder / "result").write_bytes(result)
    except BaseException as error:
        report = (type(error).__name__, reason_of(str(error)))
        (folder / "error").write_bytes(pickle.dumps(report))
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(ValueError):
                stream.flush()
    return 0


def reason_of(message: str) -> str:
    r"""An error's message, of Keras too, as plain text with the reason alone.

    Example:
        >>> reason_of("\x1b[1mIt fails.\x1b[0m\n\nArguments received by f(): 1")
        'It fails.'
    """
    message = _COLOURS.sub("", message)
    # Keras prints whole configurations before the reason, and arguments after.
    message = message.split("Exception encountered: ")[-1]
    message = message.split("\n\nArguments received by ")[0]
    return re.sub(r"\n\s*\n", "\n", message)[:4000]


if __name__ == "__main__":
    main()
