"""A teacher in a process of its own, which may be on another backend."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from typing import IO, Any

from keras_distill.export.processes import search_path
from keras_distill.teachers import messages

# Errors of the process that are raised here as what they are there.
_ERRORS: dict[str, type[Exception]] = {
    "ImportError": ImportError,
    "TypeError": TypeError,
    "ValueError": ValueError,
}


class TeacherProcess:
    """A process that opened a teacher, and labels what it is sent.

    It ends with this object, or with the process that started it.

    Args:
        backend: Keras' backend there.
        request: What it is to open.

    Raises:
        RuntimeError: If the process ended.
    """

    def __init__(self, backend: str, request: dict[str, Any]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            # `-P`: a file in the working folder can't stand in for a package.
            [sys.executable, "-P", "-m", "keras_distill.teachers.worker"],
            env=os.environ
            | {
                "KERAS_BACKEND": backend,
                "PYTHONPATH": os.pathsep.join(search_path()),
                "TF_CPP_MIN_LOG_LEVEL": "2",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # An interrupt is the caller's, who ends this process then.
            start_new_session=True,
        )
        self._end = weakref.finalize(
            self, _end, self._process, self._log, os.getpid()
        )
        self.facts = self.ask(request)

    def ask(self, message: Any) -> Any:
        """Send a message, and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            messages.write(self._process.stdin, message)
            answer = messages.read(self._process.stdout)
        except (BrokenPipeError, EOFError) as error:
            raise RuntimeError(self._obituary()) from error
        except BaseException:
            # Half of a message is on its way.
            self.close()
            raise
        if "error" in answer:
            kind, text = answer["error"]
            raise _ERRORS.get(kind, RuntimeError)(
                text if kind in _ERRORS else f"{kind}: {text}"
            )
        return answer

    def _obituary(self) -> str:
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        self.close()
        said = "\n".join(lines[-15:]) or "nothing"
        return (
            "The teacher's process ended before it answered. Received: "
            f"{how}, and the last that it said was: {said}\nIf it was killed, "
            "free memory, or pass smaller batches. `label` starts it again."
        )

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None and self._end.alive

    def close(self) -> None:
        """End the process."""
        self._end()


def _end(process: subprocess.Popen[bytes], log: IO[bytes], owner: int) -> None:
    # A fork of the caller has no right to its parent's process.
    if os.getpid() == owner:
        process.kill()
        process.wait()
    for file in (process.stdin, process.stdout, log):
        with contextlib.suppress(BrokenPipeError):
            file.close()  # type: ignore[union-attr]
