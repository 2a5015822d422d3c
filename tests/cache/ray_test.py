"""Actors of Ray fill a cache, and may die."""

import os
import pathlib
import signal

import numpy as np
import pytest
from support import only_on

import keras_distill as kd

ray = pytest.importorskip("ray", reason="ray is one of the test extra")
pytestmark = [only_on("torch"), pytest.mark.alone]


@pytest.fixture(scope="module")
def cluster():
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"KERAS_BACKEND": "numpy"}},
    )
    yield
    ray.shutdown()


def maker(folder, victim=None):
    """Makes a labelling; a worker that sees the victim's row dies, once."""

    def make():
        data = np.arange(60.0)[:, None]

        def teacher(x):
            mark = pathlib.Path(folder) / "died"
            if victim is not None and victim in x and not mark.exists():
                mark.parent.mkdir(exist_ok=True)
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return np.concatenate([x, -x], axis=-1)

        return kd.cache.Labelling(
            pathlib.Path(folder) / "cache",
            kd.teachers.NumpyTeacher(teacher, "1"),
            data,
            batch_size=5,
            shard_rows=10,
        )

    return make


def content(folder):
    folder = pathlib.Path(folder) / "cache"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.npy")
    }


@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_an_actor_that_dies_loses_nothing(tmp_path, cluster):
    kd.cache.label_on_ray(maker(tmp_path / "a", victim=33.0), actors=2)
    assert (tmp_path / "a/died").exists()
    job = maker(tmp_path / "b")()
    job.run(verbose=0)
    job.finish()
    assert content(tmp_path / "a") == content(tmp_path / "b")
    kd.TeacherCache.open(tmp_path / "a/cache").verify()
