"""What every test needs: the backend, and the same start each time."""

import os
import pathlib

# PyTorch and TensorFlow each bring their own copies of some libraries; loaded
# in the other order, they crash.
if os.environ.get("KERAS_BACKEND") == "torch":
    import torch  # noqa: F401

import keras
import pytest

if keras.backend.backend() == "jax":
    import jax

    CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
    # To compile takes most of the time; what is compiled runs once or twice.
    jax.config.update("jax_disable_most_optimizations", True)
    # Many tests compile the same small programs.
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture(autouse=True)
def _same_start():
    keras.utils.set_random_seed(0)
    yield
    keras.utils.clear_session(free_memory=False)


@pytest.fixture
def backend():
    return keras.backend.backend()
