"""Run every check: lint, types, and the tests on each backend.

    python tests/run.py [--only tensorflow]

One process for each backend. Says at the end what failed.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
# One more than there are cores, since some wait for processes of their own;
# more than four only wait for memory.
COUNT = str(min(4, (os.cpu_count() or 1) + 1))
# What the tests of a file share, and what they compile, is made once. Files
# come in the order that tests/conftest.py gives them.
WORKERS = ["-n", COUNT, "--dist", "loadfile", "--no-loadscope-reorder"]
PYTEST = [sys.executable, "-m", "pytest", "-q", *WORKERS]
CHECKS = {
    "lint": [sys.executable, "-m", "ruff", "check", "."],
    "format": [sys.executable, "-m", "ruff", "format", "--check", "."],
    "types": [sys.executable, "-m", "mypy"],
    "tensorflow": PYTEST,
    "jax": PYTEST,
    "torch": [*PYTEST, "-m", "not alone"],
    # Clusters of several programs each: beside other tests, they wait too long.
    "alone": [sys.executable, "-m", "pytest", "-q", "-m", "alone"],
    # Keras' NumPy backend computes in float64, and in plain sight: formulas.
    "numpy": [
        *PYTEST,
        "tests/losses",
        "--ignore=tests/losses/contract_test.py",
    ],
}
# XLA's older way to generate code compiles what is small in less time, and in
# one piece.
LESS_TO_COMPILE = (
    "--xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)


def xla_flags():
    """These flags where XLA knows them: with one that it doesn't, it aborts."""
    environment = {**os.environ, "XLA_FLAGS": LESS_TO_COMPILE}
    probe = [sys.executable, "-c", "import jax; jax.devices()"]
    found = subprocess.run(
        probe, env=environment, check=False, capture_output=True
    )
    return "" if found.returncode else LESS_TO_COMPILE


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--only", choices=CHECKS, nargs="+", help="the checks to run"
    )
    chosen = parser.parse_args().only or list(CHECKS)
    failed = []
    for name in chosen:
        started = time.perf_counter()
        print(f"== {name}", flush=True)
        environment = {
            **os.environ,
            "KERAS_BACKEND": "torch" if name == "alone" else name,
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            # On models this small, threads of PyTorch wait for each other.
            "OMP_NUM_THREADS": "1",
            # For sitecustomize.py.
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(ROOT / "tests"), os.getenv("PYTHONPATH")])
            ),
            # Each process would compile all modules, and pytest all tests.
            "PYTHONDONTWRITEBYTECODE": "",
        }
        if name == "jax":
            environment.setdefault("XLA_FLAGS", xla_flags())
        code = subprocess.run(
            CHECKS[name], cwd=ROOT, env=environment, check=False
        ).returncode
        print(f"== {name}: {time.perf_counter() - started:.0f} s", flush=True)
        if code:
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
