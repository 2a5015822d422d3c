"""The process that is kept, and what happens when it or a call ends."""

import contextlib
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from support import only_on

from keras_distill.export import processes
from keras_distill.export.processes import WorkerError

pytestmark = [
    only_on("torch"),
    pytest.mark.skipif(
        not processes.FORKS, reason="The process is kept where it can fork."
    ),
]


def test_call_runs_elsewhere_and_returns():
    first, second = processes.call(os.getpid), processes.call(os.getpid)
    assert len({first, second, os.getpid()}) == 3
    assert processes.call(np.square, np.arange(3)).tolist() == [0, 1, 4]


def test_error_of_a_call_is_named():
    with pytest.raises(WorkerError, match=r"ValueError.*Circular") as info:
        processes.call(
            int,
            "Circular",
        )
    assert (info.value.kind, info.value.killed) == ("ValueError", False)


def test_call_that_dies_leaves_the_process_for_the_next():
    with pytest.raises(WorkerError, match="SIGABRT") as info:
        processes.call(os.abort)
    assert info.value.killed
    with pytest.raises(WorkerError, match="exit status 3"):
        processes.call(os._exit, 3)
    assert processes.call(len, "abc") == 3


def test_process_that_was_killed_is_started_again():
    parent = processes.call(os.getppid)
    os.kill(parent, signal.SIGKILL)
    # Whether its end was noticed yet or not, it works in the end.
    with contextlib.suppress(WorkerError):
        processes.call(len, "abc")
    assert processes.call(len, "abc") == 3
    assert processes.call(os.getppid) != parent


def test_interrupt_ends_the_process_and_no_later_call():
    def interrupt(_):
        raise KeyboardInterrupt

    parent = processes.call(os.getppid)
    with pytest.raises(KeyboardInterrupt):
        processes.call(report_twice, on_progress=interrupt)
    assert processes.call(os.getppid) != parent


def report_twice():
    processes.report(1)
    processes.report(2)


def test_progress_arrives_in_order():
    counts = []
    processes.call(report_twice, on_progress=counts.append)
    assert counts == [1, 2]


def test_process_ends_with_its_caller():
    code = (
        "import os\n"
        "from keras_distill.export import processes\n"
        "print(processes.call(os.getppid))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(processes.search_path())},
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout.split()[-1]), 0)
