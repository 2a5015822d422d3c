"""What a Distiller does beyond plain Keras, and what it leaves alone."""

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


def sgd():
    return keras.optimizers.SGD(0.1)


def soft_loss(guide, student, x, temperature=4.0, axis=None):
    """The formula, in NumPy and float64."""

    def log_softmax(z):
        z = z.astype("float64") / temperature
        z = z - z.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    p, q = (log_softmax(m.predict(x, verbose=0)) for m in (guide, student))
    return temperature**2 * (np.exp(p) * (p - q)).sum(-1).mean(axis)


def test_the_blend_is_the_formula():
    x, y = images()
    guide, student = teacher(), mlp()
    soft = soft_loss(guide, student, x)
    hard = float(crossentropy()(y, student.predict(x, verbose=0)))
    distiller = kd.Distiller(
        guide, student, loss_weights=0.7, hard_label_weight=0.2
    )
    distiller.compile(sgd(), crossentropy())
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert logs["soft_targets_loss"] == pytest.approx(soft, rel=1e-5)
    assert logs["hard_label_loss"] == pytest.approx(hard, rel=1e-5)
    assert logs["loss"] == pytest.approx(0.7 * soft + 0.2 * hard, rel=1e-5)


def test_sample_weights_weigh_the_teachers_word_too():
    x, y = images()
    guide, student = teacher(), mlp()
    weights = np.linspace(0, 2, len(x)).astype("float32")
    each = soft_loss(guide, student, x, axis=())
    distiller = kd.Distiller(guide, student, hard_label_weight=0.0)
    logs = distiller.train_on_batch(x, y, weights, return_dict=True)
    assert logs["soft_targets_loss"] == pytest.approx(
        (weights * each).mean(), rel=1e-5
    )
    before = values(student.weights)
    distiller.compile(sgd())
    distiller.fit(x, y, sample_weight=np.zeros(len(x)), verbose=0)
    assert_same_values(values(student.weights), before)


@pytest.mark.traced
def test_a_ragged_last_batch_is_weighted_by_its_size():
    x, y = images(33)
    guide, student = teacher(), mlp()
    distiller = kd.Distiller(guide, student)
    distiller.compile(keras.optimizers.SGD(0.0), crossentropy())
    soft = soft_loss(guide, student, x)
    history = distiller.fit(x, y, batch_size=16, epochs=1, verbose=0).history
    assert history["soft_targets_loss"][0] == pytest.approx(soft, rel=1e-5)


@pytest.mark.traced
def test_it_learns_without_labels():
    x, _ = images(60)
    guide, student = teacher(), mlp(32)
    distiller = kd.Distiller(guide, student)
    distiller.compile(keras.optimizers.Adam(0.01), loss=None)
    before = soft_loss(guide, student, x)
    history = distiller.fit(x, epochs=25, verbose=0).history
    assert set(history) == {"loss", "soft_targets_loss"}
    assert history["loss"][0] == pytest.approx(
        0.9 * history["soft_targets_loss"][0], rel=1e-5
    )
    assert soft_loss(guide, student, x) < 0.2 * before


def test_compile_without_loss_forgets_the_earlier_one():
    x, y = images()
    distiller = kd.Distiller(teacher(), mlp())
    distiller.compile(sgd(), crossentropy(), metrics=["accuracy"])
    distiller.fit(x, y, verbose=0)
    distiller.compile(sgd(), loss=None, metrics=None)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert logs["loss"] == pytest.approx(
        0.9 * logs["soft_targets_loss"], rel=1e-5
    )
    assert logs["hard_label_loss"] == 0
    assert "accuracy" not in logs


def test_some_examples_without_labels():
    x, y = images()
    y = np.where(np.arange(len(y)) < 10, y, -1)
    guide, student = teacher(), mlp()
    hard = float(crossentropy()(y[:10], student.predict(x[:10], verbose=0)))
    soft = soft_loss(guide, student, x)
    distiller = kd.Distiller(guide, student)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert logs["hard_label_loss"] == pytest.approx(hard, rel=1e-5)
    assert logs["soft_targets_loss"] == pytest.approx(soft, rel=1e-5)


def test_the_teacher_stays_as_it_was_to_the_bit():
    guide, student = teacher(), cnn(dropout=0.3)
    guide.get_layer("conv").trainable = False
    guide.compile("adam", crossentropy(), metrics=["accuracy"])
    x, y = images()
    guide.fit(x, y, verbose=0)
    optimizer = guide.optimizer
    before = values(guide.variables), values(optimizer.variables)
    flags = [layer.trainable for layer in guide.layers]
    trained = [v.path for v in guide.trainable_variables]
    losses = [kd.losses.SoftTargets(), kd.losses.Hint("relu", "relu", "auto")]
    distiller = kd.Distiller(guide, student, losses=losses)
    distiller.trainable = False
    distiller.trainable = True
    distiller.fit(x, y, epochs=2, validation_split=0.2, verbose=0)
    assert_same_values(values(guide.variables), before[0])
    assert_same_values(values(optimizer.variables), before[1])
    assert [layer.trainable for layer in guide.layers] == flags
    assert [v.path for v in guide.trainable_variables] == trained
    assert guide.optimizer is optimizer
    assert guide.compiled
    assert distiller.teacher is guide
    assert not any(
        v is w for v in distiller.trainable_variables for w in guide.variables
    )
    assert "call" not in vars(guide.get_layer("relu"))
    assert guide.get_layer("relu").output.shape == (None, 8, 8, 16)


class Stop(keras.callbacks.Callback):
    """Raises where it is told to."""

    def __init__(self, when, error):
        super().__init__()
        self.when, self.error = when, error

    def on_epoch_begin(self, epoch, logs=None):
        if self.when == "epoch" and epoch == 1:
            raise self.error

    def on_train_batch_end(self, batch, logs=None):
        if self.when == "batch" and batch == 1:
            raise self.error

    def on_test_batch_end(self, batch, logs=None):
        if self.when == "test":
            raise self.error


@pytest.mark.traced
@pytest.mark.parametrize(
    ("when", "error"),
    [
        ("epoch", RuntimeError),
        ("batch", KeyboardInterrupt),
        ("test", KeyboardInterrupt),
    ],
)
def test_an_interrupted_fit_loses_nothing(when, error):
    guide, student = teacher(), mlp()
    before = values(guide.variables)
    distiller = kd.Distiller(guide, student)
    x, y = images()
    with pytest.raises(error):
        distiller.fit(
            x,
            y,
            batch_size=8,
            epochs=2,
            validation_split=0.2,
            verbose=0,
            callbacks=[Stop(when, error("stopped"))],
        )
    assert_same_values(values(guide.variables), before)
    assert all(np.isfinite(v).all() for v in values(student.variables))
    distiller.fit(x, y, verbose=0)


def test_a_fit_that_fails_in_its_first_step_loses_nothing():
    class Broken(kd.losses.SoftTargets):
        def compare(self, teacher, student):
            if fails:
                raise RuntimeError("broken loss")
            return super().compare(teacher, student)

    fails = True
    guide, student = teacher(), mlp()
    kept = values(guide.variables), values(student.variables)
    distiller = kd.Distiller(guide, student, losses=Broken())
    distiller.compile(sgd(), loss=None)
    with pytest.raises(RuntimeError, match="broken loss"):
        distiller.fit(images()[0], verbose=0)
    assert_same_values(values(guide.variables), kept[0])
    assert_same_values(values(student.variables), kept[1])
    fails = False
    distiller.fit(images()[0], verbose=0)


def test_an_interrupt_within_a_step_brings_the_teacher_back(
    backend, monkeypatch
):
    if backend != "jax":
        pytest.skip("only JAX gives the memory of the weights away")
    guide, student = teacher(), mlp()
    kept = values(guide.variables), values(student.variables)
    distiller = kd.Distiller(guide, student)
    distiller.make_train_function()
    step = distiller.train_function

    def interrupted(state, iterator):
        step(state, iterator)
        raise KeyboardInterrupt

    monkeypatch.setattr(distiller, "train_function", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        pytest.warns(UserWarning, match="as it was before this call"),
    ):
        distiller.fit(*images(), verbose=0)
    assert_same_values(values(guide.variables), kept[0])
    assert_same_values(values(student.variables), kept[1])


class Counter(layers.Layer):
    """Counts its calls, and tells how it was called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def call(self, inputs, training=None):
        self.calls.append(training)
        return inputs


@pytest.mark.traced
def test_one_pass_each_a_step_and_the_teacher_never_trains():
    def counted(width):
        counter = Counter()
        model = keras.Sequential(
            [keras.Input((8, 8, 1)), counter, layers.Flatten(name="flat")]
        )
        model.add(layers.Dense(width, name="hidden"))
        model.add(layers.Dense(3))
        return model, counter

    guide, heard = counted(16)
    student, ran = counted(4)
    hints = [
        kd.losses.Hint("hidden", "hidden", "auto"),
        kd.losses.Hint("flat", "flat"),
    ]
    distiller = kd.Distiller(
        guide, student, losses=[kd.losses.SoftTargets(), *hints]
    )
    distiller.compile(sgd(), loss=None, run_eagerly=True)
    heard.calls.clear()
    ran.calls.clear()
    x, _ = images(24)
    distiller.fit(x, batch_size=8, verbose=0)
    assert [c for c in heard.calls if c is not None] == [False] * 3
    assert ran.calls.count(True) == 3
    distiller.compile(sgd(), crossentropy(), run_eagerly=True)
    heard.calls.clear()
    distiller.evaluate(*images(24), batch_size=8, verbose=0)
    distiller.predict(x, verbose=0)
    assert heard.calls == []


def test_evaluate_and_predict_are_the_students_and_change_nothing():
    x, y = images()
    student = cnn(dropout=0.5)
    student.compile("adam", crossentropy(), metrics=["accuracy"])
    distiller = kd.Distiller(
        teacher(), student, losses=kd.losses.Hint("relu", "relu", "auto")
    )
    before = values(distiller.variables)
    ours = distiller.evaluate(x, y, verbose=0, return_dict=True)
    alone = student.evaluate(x, y, verbose=0, return_dict=True)
    assert ours == pytest.approx(alone, rel=1e-6)
    assert_same_values(values(distiller.variables), before)
    np.testing.assert_array_equal(
        distiller.predict(x, verbose=0), student.predict(x, verbose=0)
    )


def test_evaluate_without_labels_says_what_to_do():
    distiller = kd.Distiller(teacher(), mlp())
    with pytest.raises(ValueError, match="without labels"):
        distiller.evaluate(images()[0], verbose=0)


@pytest.mark.traced
def test_weights_and_temperature_follow_a_callback_without_recompiling():
    x, _ = images()
    guide, student = teacher(), mlp()
    distiller = kd.Distiller(guide, student)
    distiller.compile(keras.optimizers.SGD(0.0), loss=None)
    soft = distiller.distillation_losses["soft_targets"]
    traces = []
    step = distiller.train_step

    def traced(*args):
        traces.append(1)
        return step(*args)

    distiller.train_step = traced

    def schedule(epoch, logs=None):
        if epoch == 1:  # by assignment as well
            soft.temperature = 3.0
            distiller.loss_weights = [2.0]
            distiller.hard_label_weight = 0.5
            return
        soft.temperature.assign(4.0 - epoch)
        distiller.loss_weights[0].assign(1.0 + epoch)

    history = distiller.fit(
        x,
        epochs=3,
        batch_size=len(x),
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_begin=schedule)],
    ).history
    for epoch in range(3):
        expected = soft_loss(guide, student, x, temperature=4.0 - epoch)
        assert history["soft_targets_loss"][epoch] == pytest.approx(
            expected, rel=1e-4
        )
        assert history["loss"][epoch] == pytest.approx(
            (1 + epoch) * expected, rel=1e-4
        )
    assert float(distiller.hard_label_weight.value) == 0.5
    if keras.backend.backend() != "torch":  # which doesn't trace
        assert len(traces) == 1


def test_jax_compiles_once_and_once_more_for_a_ragged_batch(backend):
    if backend != "jax":
        pytest.skip("counts compilations of JAX")
    distiller = kd.Distiller(
        teacher(),
        cnn(dropout=0.3),
        losses=[
            kd.losses.SoftTargets(),
            kd.losses.Hint("relu", "relu", "auto"),
        ],
    )
    traces = []
    step = distiller.train_step
    distiller.train_step = lambda *a: traces.append(1) or step(*a)
    x, y = images(40)
    distiller.fit(x[:32], y[:32], batch_size=16, epochs=3, verbose=0)
    assert len(traces) == 1
    distiller.fit(x, y, batch_size=16, epochs=2, verbose=0)
    assert len(traces) == 2


def test_a_compiled_student_brings_what_it_was_compiled_with():
    x, y = images()
    student = mlp()

    def mine(y_true, y_pred):
        return crossentropy()(y_true, y_pred)

    student.compile(
        keras.optimizers.SGD(0.125, momentum=0.5), mine, metrics=["acc"]
    )
    student.fit(x, y, verbose=0)
    optimizer, state = student.optimizer, values(student.optimizer.variables)
    distiller = kd.Distiller(teacher(), student)
    assert isinstance(distiller.optimizer, keras.optimizers.SGD)
    assert distiller.optimizer.get_config()["momentum"] == 0.5
    history = distiller.fit(x, y, verbose=0).history
    assert "acc" in history
    assert distiller.loss is mine
    assert student.optimizer is optimizer
    assert_same_values(values(optimizer.variables), state)
    distiller.compile("rmsprop", crossentropy(), metrics=[])
    assert isinstance(distiller.optimizer, keras.optimizers.RMSprop)
    assert "acc" not in distiller.fit(x, y, verbose=0).history


def test_an_uncompiled_student_gets_the_documented_defaults():
    distiller = kd.Distiller(teacher(), mlp())
    assert isinstance(distiller.optimizer, keras.optimizers.Adam)
    assert isinstance(distiller.loss, kd.HardLabels)
    x, y = images()
    rows = np.eye(3)[y]
    from_indices = distiller.evaluate(x, y, verbose=0, return_dict=True)
    distiller = kd.Distiller(teacher(), mlp())
    from_rows = distiller.evaluate(x, rows, verbose=0, return_dict=True)
    assert from_rows == pytest.approx(from_indices, rel=1e-6)
    assert set(from_rows) == {"loss", "accuracy"}


def without_axis(model):
    """The same, with outputs of shape `(batch,)`."""
    outputs = keras.ops.squeeze(model.outputs[0], axis=-1)
    return keras.Model(model.inputs, outputs)


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_one_logit_may_come_without_an_axis(activation):
    x, y = images()
    logs = []
    for change in (without_axis, lambda model: model):
        guide = change(binary(16, activation, seed=3))
        distiller = kd.Distiller(guide, change(binary(4, activation)))
        distiller.fit(x, (y > 1) * 1, verbose=0)
        logs.append(
            distiller.evaluate(x, (y > 1) * 1, verbose=0, return_dict=True)
        )
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)
    with pytest.raises(ValueError, match="BinarySoftTargets"):
        kd.Distiller(
            without_axis(binary(4)),
            without_axis(binary(4)),
            losses=kd.losses.SoftTargets(),
        )


def binary(width, activation=None, seed=1):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(width, activation="relu"),
            layers.Dense(1, activation=activation),
        ]
    )


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_one_logit_gets_binary_soft_targets(activation):
    x, y = images()
    guide, student = binary(16, activation, seed=3), binary(4, activation)
    distiller = kd.Distiller(guide, student)
    assert isinstance(
        distiller.distillation_losses["binary_soft_targets"],
        kd.losses.BinarySoftTargets,
    )
    p, q = (m.predict(x, verbose=0).astype("float64") for m in (guide, student))
    if activation == "sigmoid":
        p, q = (np.log(v / (1 - v)) for v in (p, q))
    p, q = (1 / (1 + np.exp(-z / 4)) for z in (p, q))
    expected = 16 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    logs = distiller.train_on_batch(x, (y > 1) * 1, return_dict=True)
    assert logs["binary_soft_targets_loss"] == pytest.approx(
        expected.mean(), rel=1e-3
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=activation is None)
    student = binary(4, activation)
    hard = float(loss((y > 1)[:, None], student.predict(x, verbose=0)))
    assert logs["hard_label_loss"] == pytest.approx(hard, rel=1e-4)


def test_models_that_end_in_a_softmax_are_taken_to_log_space():
    def ended(width, seed):
        model = mlp(width, seed=seed)
        return keras.Sequential(
            [keras.Input((8, 8, 1)), model, layers.Softmax()]
        ), model

    x, y = images()
    (guide, logits), (student, student_logits) = ended(16, 3), ended(4, 1)
    expected = soft_loss(logits, student_logits, x)
    distiller = kd.Distiller(guide, student)
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert logs["soft_targets_loss"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="from_logits=False"):
        kd.Distiller(
            guide, student, losses=kd.losses.SoftTargets(from_logits=True)
        )


def test_projectors_train_and_stay_out_of_the_student():
    x, y = images()
    hint = kd.losses.Hint("relu", "relu", projector="auto")
    student = cnn()
    names = [v.path for v in student.variables]
    distiller = kd.Distiller(teacher(), student, losses=hint)
    projector = distiller.projector_0_0
    before = values(projector.variables)
    distiller.fit(x, y, verbose=0)
    after = values(projector.variables)
    assert all((a != b).any() for a, b in zip(after, before, strict=True))
    assert [v.path for v in student.variables] == names
    assert hint.projector == "auto"


def test_a_projector_sees_whether_it_trains():
    norm = layers.BatchNormalization()
    projector = keras.Sequential([layers.Conv2D(16, 1), norm])
    distiller = kd.Distiller(
        teacher(), cnn(), losses=kd.losses.Hint("relu", "relu", projector)
    )
    distiller.fit(*images(), verbose=0)
    assert np.abs(values([norm.moving_mean])[0]).max() > 0


def test_two_projectors_of_one_name_both_get_their_own_gradient():
    """On torch, parameters are known by path, and these two share one."""
    x, _ = images()

    def run():
        keras.utils.set_random_seed(2)
        hints = [
            kd.losses.Hint("relu", "relu", layers.Conv2D(16, 1, name="same")),
            kd.losses.Hint("pool", "pool", layers.Conv2D(16, 1, name="same")),
            kd.losses.SoftTargets(),
        ]
        distiller = kd.Distiller(teacher(), cnn(), losses=hints)
        distiller.compile(keras.optimizers.SGD(0.01), loss=None)
        return distiller, hints

    distiller, hints = run()
    for _ in range(2):
        distiller.train_on_batch(x)
    together = values(hints[0].projector.variables)
    # With the second hint weighing nothing, the first projector must move the
    # same, as long as the student that feeds it does: so freeze the student.
    moved = []
    for weights in ([1.0, 1.0, 1.0], [1.0, 0.0, 0.0]):
        distiller, hints = run()
        distiller.student.trainable = False
        distiller.compile(keras.optimizers.SGD(0.01), loss=None)
        for weight, value in zip(distiller.loss_weights, weights, strict=True):
            weight.assign(value)
        for _ in range(3):
            distiller.train_on_batch(x)
        moved.append(values(hints[0].projector.variables))
    assert_same_values(moved[0], moved[1], 1e-7)
    assert np.isfinite(together[0]).all()


class Labelled(kd.losses.DistillationLoss):
    """Looks at the labels too."""

    uses_labels = True

    def call(self, teacher, student):
        labels = keras.ops.cast(teacher["labels"], "int32")
        right = keras.ops.one_hot(labels, 3)
        gap = keras.ops.square(teacher["teacher"] - student)
        return keras.ops.sum(right * gap, axis=-1)


def test_a_loss_may_ask_for_the_labels():
    x, y = images()
    guide, student = teacher(), mlp()
    p, q = (m.predict(x, verbose=0) for m in (guide, student))
    distiller = kd.Distiller(guide, student, losses=Labelled())
    logs = distiller.train_on_batch(x, y, return_dict=True)
    expected = ((p - q)[np.arange(len(y)), y] ** 2).mean()
    assert logs["labelled_loss"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="needs hard labels"):
        distiller.train_on_batch(x)


class Pairs(kd.losses.DistillationLoss):
    """Compares lists of layers."""

    def call(self, teacher, student):
        return sum(
            keras.ops.mean(keras.ops.square(t - s), axis=(1, 2, 3))
            for t, s in zip(teacher, student, strict=True)
        )


def test_a_loss_may_compare_several_layers():
    x, y = images()
    pairs = Pairs(
        ["relu", "pool"],
        ["relu", "pool"],
        [layers.Conv2D(16, 1), layers.Conv2D(16, 1)],
    )
    singles = [
        kd.losses.Hint("relu", "relu", pairs.projector[0]),
        kd.losses.Hint("pool", "pool", pairs.projector[1]),
    ]
    guide = teacher()
    both = kd.Distiller(guide, cnn(), losses=pairs)
    each = kd.Distiller(guide, cnn(), losses=singles)
    together = both.train_on_batch(x, y, return_dict=True)
    # The projectors have moved, but not in the step that the logs are of.
    assert together["pairs_loss"] > 0
    both = kd.Distiller(guide, cnn(), losses=pairs)
    apart = each.train_on_batch(x, y, return_dict=True)
    assert set(apart) >= {"hint_loss", "hint_1_loss"}
