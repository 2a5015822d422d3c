"""What the tests of losses share: gradients, float64 and inputs."""

import contextlib

import keras
import numpy as np
import pytest
import support


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
    """`gradient(f, x)`: of a function to a scalar, as a NumPy array."""
    return support.gradient


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


@pytest.fixture(scope="session")
def golden_inputs():
    """All inputs of the golden values by name, feature maps channels last."""
    random = np.random.default_rng(2024)

    def normal(*shape, scale=1.0):
        return random.normal(0, scale, shape)

    inputs = {
        "student_logits": normal(6, 10, scale=2.0),
        "teacher_logits": normal(6, 10, scale=3.0),
        "labels": random.integers(0, 10, 6),
    }
    maps = {
        "student_maps": (6, 5, 8, 8),
        "teacher_maps": (6, 5, 8, 8),
        "teacher_maps_7_channels": (6, 7, 8, 8),
        "teacher_maps_small": (6, 7, 4, 4),
        "student_maps_2": (6, 6, 4, 4),
        "teacher_maps_2": (6, 6, 4, 4),
    }
    for name, shape in maps.items():
        inputs[name] = np.moveaxis(normal(*shape), 1, -1)
    for name, shape in {
        "student_vectors": (6, 16),
        "teacher_vectors": (6, 24),
        "student_embeddings": (6, 12),
        "teacher_embeddings": (6, 12),
        "gamma": (5,),
        "beta": (5,),
    }.items():
        inputs[name] = normal(*shape)
    inputs["scores"] = np.exp(normal(6, 9)) / 20.0
    inputs["student_sequences"] = normal(2, 5, 30, scale=2.0)
    inputs["teacher_sequences"] = normal(2, 5, 30, scale=2.0)
    inputs["mask"] = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], bool)
    inputs["student_tokens"] = normal(4, 12)
    inputs["teacher_tokens"] = normal(4, 15)
    return inputs
