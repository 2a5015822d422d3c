"""Small models and data that many tests share."""

import keras
import numpy as np
import pytest
from keras import layers

CLASSES = 3


def images(count=40, seed=0):
    """Images of random numbers and their labels."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, 8, 8, 1)).astype("float32")
    return x, np.arange(count) % CLASSES


def cnn(width=4, seed=1, name=None, classes=CLASSES, dropout=0.0):
    """A small convolutional network whose layers have names."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(width, 3, padding="same", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.Activation("relu", name="relu"),
            layers.MaxPooling2D(2, name="pool"),
            layers.Dropout(dropout, name="drop", seed=5),
            layers.Flatten(),
            layers.Dense(classes, name="logits"),
        ],
        name=name,
    )


def mlp(width=6, seed=1, name=None, dropout=0.0):
    """The smallest student, for tests that need no more: it compiles fast."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(width, activation="relu", name="hidden"),
            layers.Dropout(dropout, name="drop", seed=5),
            layers.Dense(CLASSES, name="logits"),
        ],
        name=name,
    )


def teacher(seed=7):
    """A wider network than `cnn()`, with a different start."""
    model = cnn(16, seed=seed, name="teacher")
    model.get_layer("norm").moving_mean.assign(np.full(16, 0.1))
    return model


def values(variables):
    """Copies of variables' values."""
    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in variables]


def crossentropy():
    """The usual loss of `cnn()`."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def assert_same_values(ours, theirs, tolerance=0.0):
    """Equal lists of arrays, to the bit or to an absolute tolerance."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        if tolerance:
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
        else:
            np.testing.assert_array_equal(a, b)


def only_on(backend):
    """Run a test on one backend: it takes long, and is the same on each."""
    return pytest.mark.skipif(
        keras.backend.backend() != backend,
        reason=f"Doesn't depend on the backend and takes long: on {backend}.",
    )


# JAX compiles each operation for each shape, which takes most of such tests.
follows_from_the_formula = pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="It follows from the formula, which is tested on JAX too.",
)


def evaluate_eagerly(loss, teacher, student, *weights):
    """A loss's value, as a NumPy array: with masks, and with what it keeps."""
    if isinstance(student, np.ndarray):
        # Keras would round float64 to its floatx.
        student = keras.ops.convert_to_tensor(student, loss.dtype)
    return keras.ops.convert_to_numpy(loss(teacher, student, *weights))


def evaluate(loss, teacher, student, *weights):
    """The same of a loss that keeps nothing, of tensors without masks."""
    if keras.backend.backend() != "jax":
        return evaluate_eagerly(loss, teacher, student, *weights)
    import jax

    def once(*sides):
        with keras.StatelessScope():
            return loss(*sides)

    # Compiled as a whole, which is faster than each operation by itself.
    return np.asarray(jax.jit(once)(teacher, student, *weights))


def evaluate_with_labels(loss, teacher, student, labels):
    """The same of a loss that looks at the labels."""
    return evaluate(loss, {"teacher": teacher, "labels": labels}, student)


def gradient(function, x):
    """The gradient of a function to a scalar, as a NumPy array."""
    return as_float(_gradient(function, x))


def as_float(tensor):
    """A NumPy array; bfloat16, which NumPy doesn't know, as float32."""
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        tensor = keras.ops.cast(tensor, "float32")
    return keras.ops.convert_to_numpy(tensor)


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

        def once(x):
            # What layers assign in there are no values to keep.
            with keras.StatelessScope():
                return function(x)

        # Compiled as a whole, which is faster than each operation by itself.
        return jax.jit(jax.grad(once))(keras.ops.convert_to_tensor(x))
    import torch

    with torch.enable_grad():
        x = keras.ops.convert_to_tensor(x).detach().requires_grad_()
        return torch.autograd.grad(function(x), x)[0]
