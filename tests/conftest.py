"""What every test needs: the backend, and the same start each time."""

import gc
import os
import pathlib
from unittest import mock

# PyTorch and TensorFlow each bring their own copies of some libraries; loaded
# in the other order, they crash.
if os.environ.get("KERAS_BACKEND") == "torch":
    import torch  # noqa: F401

# To compile takes most of the time; what is compiled runs once or twice. Many
# tests, and the processes that they start, compile the same small programs.
CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ |= {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}

import keras  # noqa: E402
import pytest  # noqa: E402

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf

    # Keras' layers don't draw with this seed, and to set it makes TensorFlow
    # forget its kernels.
    tf.random.set_seed(0)
    tf.random.set_seed = lambda seed: None


# What takes longest begins first: at the end, all wait for the last file.
FIRST = (
    "distribution",
    "losses/contract_test.py",
    "teachers/files_test.py",
    "equals_keras_test.py",
    "quantization_aware_test.py",
    "export/quantization_test.py",
    "cli/distill_test.py",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not any(x in str(item.path) for x in FIRST))


def pytest_collection_finish():
    """What was imported stays: to look through it each time takes long."""
    gc.collect()
    gc.freeze()
    # What is traced is many objects, of which few are garbage.
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def _same_start():
    keras.utils.set_random_seed(0)
    yield
    if BACKEND == "tensorflow":
        # Where it runs eagerly, it forgets its kernels here, too.
        with mock.patch.object(tf, "executing_eagerly", return_value=False):
            keras.utils.clear_session(free_memory=False)
    else:
        keras.utils.clear_session(free_memory=False)


@pytest.fixture(autouse=True)
def _not_traced(request):
    """To trace a step takes TensorFlow longer than all else in most tests."""
    if BACKEND == "tensorflow":
        traced = request.node.get_closest_marker("traced")
        tf.config.run_functions_eagerly(not traced)


@pytest.fixture
def backend():
    return BACKEND
