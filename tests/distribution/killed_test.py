"""A process that is killed ends the training of all, which then goes on."""

import time

from distribution.launch import assert_resumed, launch, launched
from support import only_on

GONE = "Another process of this training has gone"


@only_on("torch")
def test_pytorch_says_so_and_goes_on(tmp_path):
    codes, outputs = launch("processes", tmp_path, ["killed"], size=2)
    assert time.time() - float((tmp_path / "died").read_text()) < 60
    assert codes == [1, -9]
    assert GONE in outputs[0]
    launched("processes", tmp_path, ["resumed", "uninterrupted"], size=2)
    assert_resumed(tmp_path)


@only_on("jax")
def test_jax_says_so(tmp_path):
    """That it goes on is tested on PyTorch, where it takes less time."""
    codes, outputs = launch("processes", tmp_path, ["killed"], size=2)
    assert time.time() - float((tmp_path / "died").read_text()) < 60
    assert codes[0] != 0
    assert codes[1] == -9
    assert GONE in outputs[0]
