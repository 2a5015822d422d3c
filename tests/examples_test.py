"""The examples know every loss, so that none is left out of a table."""

import pathlib
import re

import pytest

import keras_distill as kd

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
BASES = {"DistillationLoss", "FeatureLoss", "LogitLoss"}
LOSSES = {
    name
    for name in set(kd.losses.__all__) - BASES
    if isinstance(getattr(kd.losses, name), type)
    and issubclass(getattr(kd.losses, name), kd.losses.DistillationLoss)
}


def test_compares_every_method():
    text = (EXAMPLES / "compare_methods.py").read_text()
    # Fashion-MNIST has ten classes that exclude each other.
    assert LOSSES - set(re.findall(r"\bl\.(\w+)", text)) == {
        "BinarySoftTargets"
    }


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_has_a_plain_torch_version_of_every_loss(loss):
    assert loss in (EXAMPLES / "benchmark_losses.py").read_text()
