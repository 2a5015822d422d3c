"""Functions run in a process apart, with Keras on TensorFlow.

Converters and interpreters are native code that can abort on a model that they
don't take, and the caller may be on another backend. So what touches them runs
in a process of its own. Importing TensorFlow takes seconds: where a process can
fork, one that has imported everything is kept, and each call is a fork of it.
The process that is kept ends with the caller, or when unused for ten minutes.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any, TextIO, cast

# Marks a worker, so that a script that it imports can't export again.
IN_WORKER = "KERAS_DISTILL_EXPORT_WORKER"
# Elsewhere a fork of a process that has threads isn't safe.
FORKS = sys.platform == "linux"
_PROGRESS = "progress "


class WorkerError(RuntimeError):
    """A function failed in its process, or took the process with it.

    Attributes:
        kind: Name of the exception's class, or of the signal.
        message: The exception's message, or the last lines of the log.
        killed: Whether the process ended without an exception.
    """

    def __init__(self, kind: str, message: str, killed: bool = False) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.killed = kind, message, killed


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


class _Server:
    """The process that imports once and forks for each call."""

    def __init__(self) -> None:
        environment = os.environ | {
            IN_WORKER: "1",
            "CUDA_VISIBLE_DEVICES": "-1",
            # Files are run without TensorFlow, too.
            "KERAS_BACKEND": "tensorflow" if _has_tensorflow() else "numpy",
            "PYTHONPATH": os.pathsep.join(search_path()),
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            # `-P`: a file in the working folder can't stand in for a package.
            [sys.executable, "-P", "-m", "keras_distill.export.worker"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            # An interrupt is the caller's, who ends this process then.
            start_new_session=True,
        )
        # Pipes, since pipes were asked for.
        self.requests = cast(TextIO, self.process.stdin)
        self.answers = cast(TextIO, self.process.stdout)

    def ask(self, folder: str, on_progress: Callable[[int], None]) -> str:
        """Run the call that lies in a folder; return how it ended."""
        with contextlib.suppress(BrokenPipeError):
            self.requests.write(f"{folder}\n")
            self.requests.flush()
        for line in self.answers:
            if not line.startswith(_PROGRESS):
                return line.strip()
            on_progress(int(line.removeprefix(_PROGRESS)))
        # The server ended itself: it couldn't import, or there was no fork.
        code = self.process.wait()
        self.log.seek(0)
        log = self.log.read().decode(errors="replace")
        pathlib.Path(folder, "log").write_text(log)
        return str(code)

    def close(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for file in (self.requests, self.answers, self.log):
            with contextlib.suppress(BrokenPipeError):
                file.close()


_lock = threading.RLock()
_server: _Server | None = None
_reports: TextIO | None = None


def start() -> None:
    """Let the process begin its imports, while the caller does other things."""
    _running()


def _running() -> _Server:
    """The process that is kept, or a new one."""
    global _server  # noqa: PLW0603
    working_folder()
    with _lock:
        kept = _server
        if (
            kept is not None
            and kept.owner == os.getpid()
            and kept.process.poll() is None
        ):
            return kept
        stop()
        _server = _Server()
        return _server


def stop() -> None:
    """End the process that was kept."""
    global _server  # noqa: PLW0603
    # A fork of the caller has no right to its parent's process.
    if _server is not None and _server.owner == os.getpid():
        _server.close()
    _server = None


atexit.register(stop)


def _forget() -> None:
    """A fork of the caller has neither the process nor the lock's holder."""
    global _lock, _server
    _lock, _server = threading.RLock(), None


if FORKS:
    os.register_at_fork(after_in_child=_forget)


def call(
    function: Callable[..., Any],
    *arguments: Any,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Any:
    """Call a function of a module in a process apart; return its result.

    Args:
        function: The function, which is found there by its name.
        *arguments: What it is called with. They are copied.
        on_progress: Called with what the function reports to `report`.

    Raises:
        WorkerError: If the function raised, or its process was killed.
    """
    with _lock, tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        request = (working_folder(), search_path(), function, arguments)
        (folder / "request").write_bytes(pickle.dumps(request))
        answer = _ask(name, on_progress)
        if (folder / "result").exists() and answer == "0":
            return pickle.loads((folder / "result").read_bytes())
        raise _error(folder, int(answer))


def _ask(folder: str, on_progress: Callable[[int], None]) -> str:
    server = _running()
    try:
        answer = server.ask(folder, on_progress)
    except BaseException:
        stop()
        raise
    if not FORKS:
        stop()
    return answer


def _error(folder: pathlib.Path, code: int) -> WorkerError:
    if (folder / "error").exists():
        return WorkerError(*pickle.loads((folder / "error").read_bytes()))
    log = folder / "log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    kind = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    return WorkerError(kind, "\n".join(lines[-15:]), killed=True)


def report(count: int) -> None:
    """Tell the caller of this process how far it got."""
    if _reports is not None:
        print(f"{_PROGRESS}{count}", file=_reports, flush=True)


def report_to(file: TextIO) -> None:
    """Say where `report` writes, in the process that is called."""
    global _reports  # noqa: PLW0603
    _reports = file


def search_path() -> list[str]:
    """Where Python looks for modules, with the working folder by its name."""
    return [entry or str(working_folder()) for entry in sys.path]


def working_folder() -> pathlib.Path:
    """The folder that relative paths begin in.

    Raises:
        FileNotFoundError: If it was removed.
    """
    try:
        return pathlib.Path.cwd()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            "The working folder isn't there any more, and another process "
            "can't start in it. Received: a folder that was removed. Change "
            "to one that exists: `os.chdir(...)`."
        ) from error
