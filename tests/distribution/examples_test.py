"""The example runs as its pages say."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from support import only_on

pytestmark = [only_on("torch"), pytest.mark.alone]
FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "distributed"
SETTINGS = os.environ | {
    "KERAS_BACKEND": "torch",
    "PYTHONPATH": str(FOLDER.parents[1]),
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
    "RAY_TRAIN_V2_ENABLED": "1",
    # On a slow machine, its workers take long to start.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "240",
}


def run(*command):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=FOLDER,
        env=SETTINGS,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """A folder with a teacher in it."""
    where = tmp_path_factory.mktemp("run")
    run(*f"train.py teacher --folder {where}".split())
    return where


@pytest.fixture(scope="module")
def by_torchrun(teachers):
    """The same folder, with a student besides; and what was printed."""
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2"
    student = f"train.py student --epochs 3 --folder {teachers}"
    return teachers, run(*torchrun.split(), *student.split())


def weights(folder):
    path = folder / "student.keras"
    return keras.saving.load_model(path, compile=False).get_weights()


def test_two_processes_of_torchrun(by_torchrun):
    _, printed = by_torchrun
    # Two processes share the output: one's line may break into the other's.
    assert set(re.findall(r"process \d of 2", printed)) == {
        "process 0 of 2",
        "process 1 of 2",
    }
    # Said once, and learned something.
    (accuracy,) = re.findall(r"accuracy (\S+)\n", printed)
    assert float(accuracy) > 0.3


def test_two_workers_of_ray_do_the_same(by_torchrun, tmp_path):
    pytest.importorskip(
        "ray.train", reason="needs ray[train]", exc_type=ImportError
    )
    folder, _ = by_torchrun
    shutil.copy(folder / "teacher.keras", tmp_path)
    run(*f"train_on_ray.py --epochs 3 --folder {tmp_path}".split())
    for one, other in zip(weights(tmp_path), weights(folder), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_manifests_parse():
    yaml = pytest.importorskip("yaml", reason="comes with ray")
    job = yaml.safe_load((FOLDER / "kuberay.yaml").read_text())
    groups = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert job["kind"] == "RayJob"
    assert groups[0]["replicas"] == 2
    for script in FOLDER.glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
