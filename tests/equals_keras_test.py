"""With the teacher's word weighing nothing, a Distiller is plain Keras."""

import functools

import keras
import numpy as np
import pytest
from keras import layers
from support import (
    assert_same_values,
    cnn,
    crossentropy,
    images,
    mlp,
    teacher,
    values,
)

import keras_distill as kd

TOLERANCE = 1e-6


def mlp_teacher():
    return mlp(16, seed=7, name="teacher")


def assert_equals_keras(
    build, *data, compiled=None, soft=None, guide=mlp_teacher, **fitted
):
    """Train a student by itself and in a distiller, and compare.

    `build` makes the student; `data`, or what it returns if callable, goes to
    `fit`, as do the keywords; `compiled()` gives the arguments of `compile`.
    """
    soft = soft or [kd.losses.SoftTargets()]
    compiled = compiled or (
        lambda: {
            "optimizer": keras.optimizers.Adam(0.01),
            "loss": crossentropy(),
            "metrics": ["accuracy"],
        }
    )
    histories, weights, models = [], [], []
    for distilled in (False, True):
        student = build()
        model = student
        if distilled:
            model = kd.Distiller(
                guide(),
                student,
                losses=soft,
                loss_weights=[0.0] * len(soft),
                hard_label_weight=1.0,
            )
        model.compile(**compiled())
        keras.utils.set_random_seed(11)
        given = data[0]() if callable(data[0]) else data
        options = {"epochs": 2, "verbose": 0, **fitted}
        histories.append(model.fit(*given, **options).history)
        weights.append(values(student.weights))
        models.append(model)
    plain, ours = histories
    assert set(plain) <= set(ours)
    for name, numbers in plain.items():
        np.testing.assert_allclose(
            ours[name], numbers, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name
        )
    assert_same_values(weights[1], weights[0], TOLERANCE)
    return models


def tensors(x, y, weights=None):
    """The data as the backend's own tensors."""
    arrays = [a for a in (x, y, weights) if a is not None]
    return tuple(keras.ops.convert_to_tensor(a) for a in arrays)


SPREAD = np.linspace(0, 2, 40).astype("float32")
# Several at once, as each takes a compilation.
FIT_OPTIONS = {
    "ragged last batch, validation_split, class_weight": {
        "batch_size": 16,
        "validation_split": 0.25,
        "class_weight": {0: 0.5, 1: 1.0, 2: 3.0},
    },
    "validation_data, sample_weight, steps_per_epoch": {
        "validation_data": images(20, seed=3),
        "sample_weight": SPREAD,
        "steps_per_epoch": 2,
        "batch_size": 8,
    },
}


@pytest.mark.traced
@pytest.mark.parametrize("option", FIT_OPTIONS)
def test_fit_options(option):
    assert_equals_keras(mlp, *images(), **FIT_OPTIONS[option])


def adam(**options):
    return keras.optimizers.Adam(0.01, **options)


COMPILE_OPTIONS = {
    "run_eagerly": lambda: {"run_eagerly": True},
    "no jit, string loss, decay, clipping, average": lambda: {
        "jit_compile": False,
        "loss": "sparse_categorical_crossentropy",
        "optimizer": keras.optimizers.AdamW(
            0.01, global_clipnorm=0.1, use_ema=True, ema_momentum=0.5
        ),
    },
    "weighted_metrics, accumulation": lambda: {
        "weighted_metrics": ["accuracy"],
        "optimizer": adam(gradient_accumulation_steps=2),
    },
}


@pytest.mark.parametrize("option", COMPILE_OPTIONS)
def test_compile_options(option):
    def compiled():
        usual = {"optimizer": adam(), "loss": crossentropy()}
        return {**usual, **COMPILE_OPTIONS[option]()}

    weights = SPREAD if "weighted_metrics" in option else None
    assert_equals_keras(
        mlp, *images(), compiled=compiled, sample_weight=weights
    )


@pytest.mark.traced
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_jit_compile(backend, monkeypatch):
    # PyTorch needs most of a minute to trace one model, and minutes for the
    # C++: there, one is traced, and runs as it was traced.
    jit = iter([backend != "torch", True])
    if backend == "torch":
        import torch

        traced = functools.partial(torch.compile, backend="eager")
        monkeypatch.setattr(torch, "compile", traced)
    soft = [kd.losses.SoftTargets(), kd.losses.Hint("hidden", "hidden", "auto")]
    assert_equals_keras(
        mlp,
        *images(),
        soft=soft,
        compiled=lambda: {
            "optimizer": adam(),
            "loss": crossentropy(),
            "jit_compile": next(jit),
        },
        batch_size=20,
    )


@pytest.mark.traced
def test_steps_per_execution(backend):
    def compiled():
        return {
            "optimizer": adam(),
            "loss": crossentropy(),
            "steps_per_execution": 2,
        }

    if backend == "torch":
        with pytest.raises(ValueError, match="steps_per_execution=2"):
            kd.Distiller(teacher(), cnn()).compile(**compiled())
        return
    assert_equals_keras(mlp, *images(), compiled=compiled, batch_size=8)


def test_dropout_and_batch_statistics():
    assert_equals_keras(
        lambda: cnn(dropout=0.5), *images(), epochs=3, guide=teacher
    )


def test_penalties_count_once_and_unscaled():
    def regularised():
        keras.utils.set_random_seed(1)
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Flatten(),
                layers.Dense(
                    6,
                    kernel_regularizer=keras.regularizers.L2(0.1),
                    activity_regularizer=keras.regularizers.L1(0.1),
                ),
                layers.Dense(3),
            ]
        )

    assert_equals_keras(regularised, *images())
    # Weighing the hard labels by half must not halve the penalties.
    student = regularised()
    distiller = kd.Distiller(
        teacher(), student, loss_weights=0.0, hard_label_weight=0.5
    )
    distiller.compile(adam(), crossentropy())
    x, y = images()
    logs = distiller.train_on_batch(x, y, return_dict=True)
    alone = regularised()
    alone.compile(adam(), crossentropy())
    whole = alone.test_on_batch(x, y, return_dict=True)["loss"]
    predicted = alone.predict(x, verbose=0)
    hard = float(crossentropy()(y, predicted))
    assert logs["loss"] == pytest.approx(whole - 0.5 * hard, rel=1e-5)
    assert logs["hard_label_loss"] == pytest.approx(hard, rel=1e-5)


def test_the_teachers_penalties_do_not_count():
    def strict_teacher():
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Flatten(),
                layers.Dense(
                    3,
                    kernel_regularizer=keras.regularizers.L2(10.0),
                    activity_regularizer=keras.regularizers.L2(10.0),
                ),
            ]
        )

    assert_equals_keras(mlp, *images(), guide=strict_teacher)


def test_masks():
    def tagger():
        keras.utils.set_random_seed(1)
        return keras.Sequential(
            [
                keras.Input((6,)),
                layers.Embedding(10, 4, mask_zero=True),
                layers.LSTM(4, return_sequences=True),
                layers.Dense(3),
            ]
        )

    random = np.random.default_rng(0)
    x = random.integers(1, 10, (20, 6))
    x[:, 4:] = 0
    y = random.integers(0, 3, (20, 6))

    def compiled():
        # On JAX, Keras' own `fit` loses the mask before metrics see it, which
        # ours does not.
        metrics = None if keras.backend.backend() == "jax" else ["accuracy"]
        return {"optimizer": "sgd", "loss": crossentropy(), "metrics": metrics}

    assert_equals_keras(tagger, x, y, guide=tagger, compiled=compiled)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    def mixed():
        keras.config.set_dtype_policy(policy)
        try:
            return cnn()
        finally:
            keras.config.set_dtype_policy("float32")

    model = assert_equals_keras(mixed, *images())[1]
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")


def two_heads(kind):
    """A student with outputs `a` (3 classes) and `b` (a number)."""

    def build():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((8, 8, 1))
        hidden = layers.Dense(5, name="hidden")(layers.Flatten()(inputs))
        a = layers.Dense(3, name="a")(hidden)
        b = layers.Dense(1, name="b")(hidden)
        outputs = {"dict": {"a": a, "b": b}, "tuple": (a, b)}
        return keras.Model(inputs, outputs[kind])

    return build


def labels_of(kind):
    x, y = images()
    number = x.mean(axis=(1, 2))
    return x, {"a": y, "b": number} if kind == "dict" else [y, number]


# Plain Keras has no order for the outputs of a dict.
@pytest.mark.parametrize(("kind", "how"), [("dict", "dict"), ("tuple", "list")])
def test_several_outputs(kind, how):
    x, y = labels_of(kind)
    losses = {"a": crossentropy(), "b": "mse"}
    metrics = {"a": ["accuracy"], "b": ["mae"]}
    weights = {"a": 1.0, "b": 0.3}

    def compiled():
        parts = {"loss": losses, "metrics": metrics, "loss_weights": weights}
        if how == "list":
            parts = {name: list(part.values()) for name, part in parts.items()}
        return {"optimizer": adam(), **parts}

    soft = [
        kd.losses.SoftTargets(
            teacher_layer_name="logits", student_layer_name="a"
        )
    ]
    assert_equals_keras(two_heads(kind), x, y, compiled=compiled, soft=soft)


def test_sample_weights_by_output():
    x, y = labels_of("dict")
    soft = [
        kd.losses.SoftTargets(
            teacher_layer_name="logits", student_layer_name="a"
        )
    ]
    assert_equals_keras(
        two_heads("dict"),
        x,
        y,
        compiled=lambda: {
            "optimizer": adam(),
            "loss": {"a": crossentropy(), "b": "mse"},
        },
        soft=soft,
        sample_weight={"a": SPREAD, "b": SPREAD[::-1].copy()},
    )


class Batches(keras.utils.PyDataset):
    """The images in batches of 8."""

    def __init__(self):
        super().__init__()
        self.x, self.y = images()

    def __len__(self):
        return 5

    def __getitem__(self, index):
        part = slice(8 * index, 8 * index + 8)
        return self.x[part], self.y[part]


def test_py_dataset():
    assert_equals_keras(mlp, lambda: (Batches(),), shuffle=False)


def test_generator():
    def forever():
        while True:
            yield from (Batches()[i] for i in range(5))

    assert_equals_keras(
        mlp, lambda: (forever(),), steps_per_epoch=5, shuffle=False
    )


def test_native_tensors():
    assert_equals_keras(mlp, lambda: tensors(*images()))


@pytest.mark.traced
def test_tf_data():
    tf = pytest.importorskip("tensorflow", reason="tf.data is TensorFlow's")
    data = tf.data.Dataset.from_tensor_slices(images()).batch(16)
    assert_equals_keras(mlp, lambda: (data,), shuffle=False)


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="To import PyTorch takes long, and JAX shows the same.",
)
def test_data_loader():
    torch = pytest.importorskip("torch", reason="DataLoader is PyTorch's")
    x, y = images()
    data = torch.utils.data.TensorDataset(
        torch.from_numpy(x), torch.from_numpy(y)
    )
    loader = torch.utils.data.DataLoader(data, batch_size=16)
    assert_equals_keras(mlp, lambda: (loader,), shuffle=False)


def test_train_and_test_on_batch():
    x, y = images()
    logs, weights = [], []
    for distilled in (False, True):
        student = mlp(dropout=0.5)
        model = student
        if distilled:
            model = kd.Distiller(
                mlp_teacher(), student, loss_weights=0.0, hard_label_weight=1.0
            )
        model.compile(adam(), crossentropy(), metrics=["accuracy"])
        for _ in range(3):
            model.train_on_batch(x, y, sample_weight=SPREAD)
        results = model.test_on_batch(x, y, return_dict=True)
        logs.append({name: float(value) for name, value in results.items()})
        weights.append(values(student.weights))
    assert logs[1] == pytest.approx(logs[0], abs=TOLERANCE)
    assert_same_values(weights[1], weights[0], TOLERANCE)


def test_callbacks_see_the_same_run():
    def callbacks():
        return [
            keras.callbacks.EarlyStopping(
                "val_loss", patience=1, restore_best_weights=True
            ),
            keras.callbacks.ReduceLROnPlateau("val_loss", patience=1),
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.LearningRateScheduler(lambda e, lr: lr * 0.9),
        ]

    results = []
    for distilled in (False, True):
        student = mlp()
        model = student
        if distilled:
            model = kd.Distiller(
                mlp_teacher(), student, loss_weights=0.0, hard_label_weight=1.0
            )
        model.compile(adam(), crossentropy(), metrics=["accuracy"])
        keras.utils.set_random_seed(11)
        history = model.fit(
            *images(),
            validation_split=0.3,
            epochs=5,
            verbose=0,
            callbacks=callbacks(),
        ).history
        results.append((history, values(student.weights)))
    (plain, weights), (ours, ours_weights) = results
    for name, numbers in plain.items():
        np.testing.assert_allclose(ours[name], numbers, rtol=1e-6, atol=1e-6)
    assert_same_values(ours_weights, weights, TOLERANCE)
