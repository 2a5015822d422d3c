"""JAX: a process that is killed ends the training of all.

In a file of its own, since the others wait half a minute for a sign of life.
"""

import time

from distribution.launch import GONE, launch
from support import only_on

pytestmark = only_on("jax")


def test_says_that_a_process_was_killed(tmp_path):
    """That it goes on is tested on PyTorch, where it takes less time."""
    codes, outputs = launch("processes", tmp_path, ["killed"], size=2)
    assert time.time() - float((tmp_path / "died").read_text()) < 60
    assert codes[0] != 0
    assert codes[1] == -9
    assert GONE in outputs[0]
