"""What every test needs: the backend, and the same start each time."""

import os

# PyTorch and TensorFlow each bring their own copies of some libraries; loaded
# in the other order, they crash.
if os.environ.get("KERAS_BACKEND") == "torch":
    import torch  # noqa: F401

import keras
import pytest


@pytest.fixture(autouse=True)
def _same_start():
    keras.utils.set_random_seed(0)
    yield
    keras.utils.clear_session(free_memory=False)


@pytest.fixture
def backend():
    return keras.backend.backend()
