"""What the tests of losses share: gradients, float64 and inputs."""

import contextlib

import keras
import numpy as np
import pytest


def _gradient(function, x):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        x = tf.convert_to_tensor(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return tape.gradient(value, x)
    if keras.backend.backend() == "jax":
        import jax

        # Compiled as a whole, which is faster than each operation by itself.
        return jax.jit(jax.grad(function))(keras.ops.convert_to_tensor(x))
    import torch

    with torch.enable_grad():
        x = keras.ops.convert_to_tensor(x).detach().requires_grad_()
        return torch.autograd.grad(function(x), x)[0]


def _numeric_gradient(function, x, step=1e-5):
    gradient = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        above, below = x.copy(), x.copy()
        above[i] += step
        below[i] -= step
        difference = float(function(above)) - float(function(below))
        gradient[i] = difference / (2 * step)
    return gradient


@pytest.fixture(scope="session")
def differentiable():
    if keras.backend.backend() == "numpy":
        pytest.skip("Keras' NumPy backend computes no gradients.")


@pytest.fixture(scope="session")
def gradient(differentiable):
    """`gradient(f, x)`: of a function to a scalar, as a NumPy array.

    bfloat16, which NumPy doesn't know, comes back as float32.
    """

    def of(function, x):
        result = _gradient(function, x)
        dtype = keras.backend.standardize_dtype(result.dtype)
        if dtype == "bfloat16":
            result = keras.ops.cast(result, "float32")
        return keras.ops.convert_to_numpy(result)

    return of


@pytest.fixture(scope="session")
def numeric_gradient():
    """`numeric_gradient(f, x)`: central differences of a NumPy function."""
    return _numeric_gradient


@pytest.fixture
def float64():
    """JAX computes in float64 only where it is told to."""
    if keras.backend.backend() == "numpy":
        pytest.skip("Keras' NumPy backend rounds float64 to float32.")
    context = contextlib.nullcontext()
    if keras.backend.backend() == "jax":
        import jax

        context = jax.enable_x64(True)
    with context:
        yield


@pytest.fixture(scope="session")
def golden():
    """Student's and teacher's logits of the golden values."""
    random = np.random.default_rng(2024)
    student = random.normal(0, 2.0, (6, 10))
    teacher = random.normal(0, 3.0, (6, 10))
    return teacher, student
