"""Starts workers that run scenarios, and never leaves one behind."""

import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
# What those say that are left.
GONE = "Another process of this training has gone"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def launch(mode, folder, names, size=1, timeout=200, **environment):
    """Exit codes and outputs of workers that run scenarios."""
    port = free_port()
    backend = keras.backend.backend()
    hidden = {} if backend == "tensorflow" else {"HIDE_TENSORFLOW": "1"}
    workers = []
    try:
        for rank in range(size):
            ranks = {
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
                "KERAS_DISTRIBUTION_NUM_PROCESSES": str(size),
                "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
            }
            workers.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        HERE / "scenarios.py",
                        mode,
                        folder,
                        *names,
                    ],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env=os.environ
                    | ranks
                    | {
                        "KERAS_BACKEND": backend,
                        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
                        "OMP_NUM_THREADS": "1",
                        "CUDA_VISIBLE_DEVICES": "-1",
                        "TF_CPP_MIN_LOG_LEVEL": "3",
                        # With it, what TensorFlow 2.21 convolves of a replica
                        # without examples has the shape of the input.
                        "TF_ENABLE_ONEDNN_OPTS": "0",
                        # Programs of several devices that were kept wait for
                        # each other for ever, now and then.
                        "JAX_ENABLE_COMPILATION_CACHE": "false",
                    }
                    | hidden
                    | environment,
                )
            )
        outputs = [w.communicate(timeout=timeout)[0] for w in workers]
        return [w.returncode for w in workers], outputs
    finally:
        for worker in workers:
            worker.kill()


def launched(*args, **arguments):
    """The same where all must end well."""
    codes, outputs = launch(*args, **arguments)
    assert not any(codes), "\n".join(o[-3000:] for o in outputs)


def found(folder, name, who):
    with np.load(folder / f"{name}-{who}.npz") as arrays:
        return dict(arrays)


def assert_equal(mine, one, tolerance=1e-5):
    """The same weights, and the same history."""
    assert set(mine) == set(one)
    for key, value in one.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(
                mine[key], value, rtol=tolerance, atol=tolerance, err_msg=key
            )


def assert_resumed(folder):
    """Nothing of the uninterrupted training is lost, or done twice."""
    mine = found(folder, "resumed", 0)
    one = found(folder, "uninterrupted", 0)
    assert len(mine["loss"]) == 2
    one |= {k: v[1:] for k, v in one.items() if not k[1:].isdigit()}
    assert_equal(mine, one, tolerance=0)
