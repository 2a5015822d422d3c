"""Losses over all triples, or a bank, stay within a bound of memory."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
# Peaks belong to a process, so these have one of their own.
SCRIPT = """
import json, os, pathlib

if os.environ["KERAS_BACKEND"] == "torch":
    import torch
import keras
import numpy as np
import keras_distill as kd
from support import gradient

CASES = {
    # All angles of 320 examples at once, with what their gradient needs,
    # would take over 1.2 GB.
    "angles": (kd.losses.RelationalAngle(), 320, 32),
    # 1024 x 16384 embeddings of 128 numbers would take 8 GB.
    "bank": (kd.losses.ContrastiveRepresentation(bank_size=20000), 1024, 512),
    "in-batch": (kd.losses.ContrastiveRepresentation(), 1024, 512),
}

def step(loss, count, width):
    random = np.random.default_rng(0)
    teacher, student = (
        random.normal(size=(count, width)).astype("float32") for _ in range(2)
    )
    if loss.uses_sample_ids:
        teacher = {"teacher": teacher, "sample_ids": np.arange(count)}
    assert np.isfinite(gradient(lambda x: loss(teacher, x), student)).all()

def gigabytes(line):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(line)[1].split()[0]) / 2**20

if os.environ["KERAS_BACKEND"] == "jax":
    # XLA would stay below with all angles at once, too: it shows nothing.
    del CASES["angles"]
for loss, _, width in CASES.values():
    loss.build((None, width), (None, width))
    step(loss, 8, width)
before = gigabytes("VmRSS:")
peaks = {}
for name, (loss, count, width) in CASES.items():
    # The highest so far begins anew.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    step(loss, count, width)
    peaks[name] = gigabytes("VmHWM:") - before
print(json.dumps(peaks))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Others count otherwise.")
@pytest.mark.usefixtures("differentiable")
def test_runs_in_less_than_a_gigabyte():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        },
    )
    assert result.returncode == 0, result.stderr
    peaks = json.loads(result.stdout.splitlines()[-1])
    assert max(peaks.values()) > 0
    for name, peak in peaks.items():
        assert peak < 1.0, f"{name}: {peak} GB"
