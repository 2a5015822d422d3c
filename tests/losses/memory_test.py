"""Losses over all triples, or a bank, stay within a bound of memory."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
# Peaks belong to a process, so each case has one of its own.
SCRIPT = """
    import os, resource, sys

    if os.environ["KERAS_BACKEND"] == "torch":
        import torch
    import keras
    import numpy as np
    import keras_distill as kd
    from conftest import _gradient

    def step(loss, count):
        random = np.random.default_rng(0)
        teacher, student = (
            random.normal(size=(count, 512)).astype("float32")
            for _ in range(2)
        )
        if loss.uses_sample_ids:
            teacher = {"teacher": teacher, "sample_ids": np.arange(count)}
        slope = _gradient(lambda x: loss(teacher, x), student)
        assert np.isfinite(keras.ops.convert_to_numpy(slope)).all()

    def made():
        loss = MAKE
        loss.build((None, 512), (None, 512))
        return loss

    step(made(), 8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(made(), COUNT)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((after - before) / 2**20)  # GB, from kB
"""
CASES = {
    # All angles of 384 examples at once, with what their gradient needs,
    # would take over 2 GB.
    "angles": ("kd.losses.RelationalAngle()", 384),
    # 1024 x 16384 embeddings of 128 numbers would take 8 GB.
    "bank": ("kd.losses.ContrastiveRepresentation(bank_size=20000)", 1024),
    "in-batch": ("kd.losses.ContrastiveRepresentation()", 1024),
}


@pytest.mark.skipif(sys.platform != "linux", reason="Others count otherwise.")
@pytest.mark.usefixtures("differentiable")
@pytest.mark.parametrize("case", CASES)
def test_runs_in_less_than_a_gigabyte(case):
    make, count = CASES[case]
    script = textwrap.dedent(SCRIPT).replace("MAKE", make)
    result = subprocess.run(
        [sys.executable, "-c", script.replace("COUNT", str(count))],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'losses'}",
        },
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1.0
