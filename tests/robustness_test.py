"""Odd models, data and losses that a user brings one day."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from support import cnn, crossentropy, images, mlp, teacher, values

import keras_distill as kd


def number(tensor):
    return float(ops.convert_to_numpy(tensor))


class Gap(kd.losses.DistillationLoss):
    """One value for each example, also of a sequence."""

    def call(self, teacher, student):
        gap = ops.square(teacher - student)
        return ops.mean(gap, axis=tuple(range(1, len(gap.shape))))


def test_a_teacher_that_gives_nan_is_not_hidden():
    guide = mlp(16, name="teacher")
    guide.layers[-1].bias.assign([np.inf, 0, 0])
    distiller = kd.Distiller(guide, mlp())
    x, _ = images()
    logs = distiller.fit(
        x, epochs=2, verbose=0, callbacks=[keras.callbacks.TerminateOnNaN()]
    ).history
    assert np.isnan(logs["loss"][0])
    assert len(logs["loss"]) == 1


def test_losses_of_one_name_are_all_kept():
    class L2(Gap):
        pass

    losses = [L2("logits", "logits"), L2("logits", "logits"), Gap(name="l2")]
    distiller = kd.Distiller(mlp(), mlp(), losses=losses)
    assert list(distiller.distillation_losses) == ["l2", "l2_1", "l2_2"]
    assert len(distiller.loss_weights) == 3


def test_padding_and_missing_labels_together():
    tagger = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Embedding(10, 4, mask_zero=True),
            layers.Dense(3),
        ]
    )
    x = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 0, 0]])
    y = np.array([[0, 1, 2, 0, 0, 0], [1, 1, 0, 2, 0, 0]])
    output = tagger(x)
    expected = number(crossentropy()(y, output))
    marked = np.where(x == 0, -1, y)
    for labels in (y, marked, np.eye(3)[y]):
        value = number(kd.HardLabels()(labels, output))
        assert value == pytest.approx(expected, rel=1e-5)


def test_rows_of_minus_one_have_no_label():
    logits = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    indices = np.array([0, 1, 2, -1, -1, -1])
    rows = np.where(indices[:, None] < 0, -1.0, np.eye(3)[indices])
    by_index, by_row = (
        float(kd.HardLabels()(labels, logits)) for labels in (indices, rows)
    )
    assert by_row == pytest.approx(by_index, rel=1e-6)
    metrics = []
    for labels in (indices, rows):
        metric = kd.HardLabelAccuracy()
        metric.update_state(labels, logits)
        metrics.append((float(metric.result()), float(metric.count.value)))
    assert metrics[0] == metrics[1]
    assert metrics[0][1] == 3


def test_a_loss_with_one_value_each_on_masked_sequences():
    def tagger(width):
        return keras.Sequential(
            [
                keras.Input((6,)),
                layers.Embedding(10, 4, mask_zero=True),
                layers.LSTM(4, return_sequences=True, name="hidden"),
                layers.Dense(width),
            ]
        )

    x = np.array([[1, 2, 3, 0, 0, 0]] * 4)
    losses = [
        Gap("hidden", "hidden"),
        kd.losses.Hint("hidden", "hidden"),
        kd.losses.SoftTargets(),
    ]
    distiller = kd.Distiller(tagger(3), tagger(3), losses=losses)
    guide, student = (
        keras.Model(m.inputs, m.get_layer("hidden").output).predict(
            x, verbose=0
        )
        for m in (distiller.teacher, distiller.student)
    )
    logs = distiller.train_on_batch(x, return_dict=True)
    squares = (guide - student) ** 2
    assert logs["gap_loss"] == pytest.approx(squares.mean(), rel=1e-5)
    assert logs["hint_loss"] == pytest.approx(squares[:, :3].mean(), rel=1e-5)


def test_predict_takes_a_transfer_batch():
    x, _ = images()
    student = mlp()
    distiller = kd.Distiller(None, student)
    batch = kd.TransferBatch(x, np.zeros((40, 3), "float32"), {})
    np.testing.assert_allclose(
        distiller.predict(batch, verbose=0),
        student.predict(x, verbose=0),
        rtol=1e-6,
    )


def loss_of(distiller, *batch):
    """Of the soft targets, after a step."""
    logs = distiller.train_on_batch(*batch, return_dict=True)
    return logs["soft_targets_loss"]


def test_a_file_knows_that_the_cache_holds_probabilities(tmp_path):
    stored = kd.StoredTeacher(keras.KerasTensor((None, 3)), {}, "softmax")
    made = kd.Distiller(stored, mlp())
    made.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    x, _ = images(4)
    batch = kd.TransferBatch(x, np.eye(3)[[0, 1, 2, 0]] * 0.8 + 0.2 / 3)
    assert loss_of(loaded, batch) == pytest.approx(loss_of(made, batch))


def test_a_projector_turns_probabilities_into_logits():
    guide, x = teacher(), images(4)[0]
    ends = layers.Dense(3, kernel_initializer="ones")
    student = keras.Sequential([mlp(), layers.Softmax()])
    loss = kd.losses.SoftTargets(projector=ends)
    # Probabilities sum to 1: what the projector says of each class.
    raised = np.exp(np.float64(guide.predict(x, verbose=0)) / 4)
    p = raised / raised.sum(-1, keepdims=True)
    expected = 16 * (p * np.log(p * 3)).sum(-1).mean()
    found = loss_of(kd.Distiller(guide, student, loss), x)
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_mean_of_probabilities_is_one():
    inputs = keras.Input((8, 8, 1))
    ends = [layers.Softmax()(mlp(seed=seed)(inputs)) for seed in (1, 2)]
    guide = keras.Model(inputs, layers.Average()(ends))
    x, _ = images(4)
    told = kd.losses.SoftTargets(from_logits=False)
    both = [
        loss_of(kd.Distiller(guide, mlp(), loss), x) for loss in (None, told)
    ]
    assert both[0] == pytest.approx(both[1])


def test_weights_of_arrays_without_labels_are_not_dropped():
    x, _ = images(8)
    made = kd.Distiller(mlp(16), mlp())
    with pytest.raises(ValueError, match="sample_weight, and no y"):
        made.fit(x, sample_weight=np.zeros(8), verbose=0)
    with pytest.raises(ValueError, match="class_weight, and no y"):
        made.fit(x, class_weight={0: 1.0}, verbose=0)
    with pytest.raises(ValueError, match="sample_weight, and no y"):
        made.evaluate(x, sample_weight=np.zeros(8), verbose=0)
    with pytest.raises(ValueError, match="sample_weight, and no y"):
        made.fit(x, validation_data=(x, None, np.zeros(8)), verbose=0)
    nothing = np.full(8, -1)
    logs = made.fit(x, nothing, sample_weight=np.zeros(8), verbose=0).history
    assert logs["soft_targets_loss"] == logs["hard_label_loss"] == [0.0]


def test_default_soft_targets_go_with_the_hard_loss():
    made = kd.Distiller(mlp(16), mlp())
    several = keras.losses.BinaryCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match=r"losses=kd.losses.BinarySoftTargets"):
        made.compile(loss=several)
    soft = kd.losses.SoftTargets()
    kd.Distiller(mlp(16), mlp(), soft).compile(loss=several)


def test_an_outputs_loss_has_a_name_of_its_own():
    inputs = keras.Input((4,))
    student = keras.Model(
        inputs, {n: layers.Dense(3, name=n)(inputs) for n in ("a", "b")}
    )
    loss = kd.losses.SoftTargets(4.0, "a", "a", name="a")
    made = kd.Distiller(keras.models.clone_model(student), student, loss)
    hard = dict.fromkeys("ab", kd.HardLabels())
    with pytest.raises(ValueError, match="'a_loss'"):
        made.compile(loss=hard)


class TwoHeads(keras.Model):
    """Two outputs by name, and no graph."""

    def __init__(self):
        super().__init__()
        self.heads = {name: layers.Dense(3) for name in ("a", "b")}

    def call(self, x):
        return {name: head(x) for name, head in self.heads.items()}


@pytest.mark.parametrize("name", ["a", "soft"])
def test_losses_by_output_of_a_model_without_a_graph(name):
    x, y = np.ones((4, 2), "float32"), np.zeros(4)
    guide, student = TwoHeads(), TwoHeads()
    for model in (guide, student):
        model(x)
    loss = kd.losses.SoftTargets(4.0, "a", "a", name=name)
    made = kd.Distiller(guide, student, loss)
    hard = dict.fromkeys("ab", kd.HardLabels())
    if name == "a":
        with pytest.raises(ValueError, match="'a_loss'"):
            made.compile(loss=hard)
        return
    made.compile(loss=hard)
    logs = made.fit(x, {"a": y, "b": y}, verbose=0).history
    assert {"a_loss", "b_loss", "soft_loss"} <= set(logs)


class Tokens(keras.Model):
    """Looks numbers up, and shows no graph."""

    def __init__(self):
        super().__init__()
        self.table = self.add_weight(shape=(9, 4))
        self.ends = layers.Dense(3)

    def call(self, numbers):
        found = keras.ops.take(self.table, numbers, axis=0)
        return self.ends(keras.ops.mean(found, axis=1))


def test_a_model_without_a_graph_may_take_integers():
    x = np.arange(20).reshape(4, 5) % 9
    guide, student = Tokens(), Tokens()
    for model in (guide, student):
        model(x)
    history = kd.Distiller(guide, student).fit(x, verbose=0).history
    assert history["soft_targets_loss"][0] > 0


def test_a_lean_file_knows_that_the_teacher_gave_probabilities(tmp_path):
    inputs = keras.Input((8, 8, 1))
    guide = keras.Model(inputs, layers.Softmax()(mlp(16)(inputs)))
    made = kd.Distiller(
        guide,
        mlp(),
        save_teacher=False,
        teacher_inputs=lambda x: x,
    )
    made.save(tmp_path / "lean.keras")
    loaded = keras.models.load_model(tmp_path / "lean.keras")
    x, _ = images()
    batch = kd.TransferBatch(x, guide.predict(x, verbose=0), {})
    ours, theirs = (
        d.train_on_batch(batch, return_dict=True)["soft_targets_loss"]
        for d in (made, loaded)
    )
    assert theirs == pytest.approx(ours, rel=1e-4)


def test_a_student_whose_metrics_cannot_be_copied():
    student = mlp()

    def local(y_true, y_pred):
        return ops.mean(y_pred)

    student.compile("adam", crossentropy(), metrics=[local])
    with pytest.warns(UserWarning, match="can't be copied"):
        distiller = kd.Distiller(teacher(), student)
    x, y = images()
    with pytest.raises(ValueError, match=r"call `compile\(\)`"):
        distiller.fit(x, y, verbose=0)
    distiller.compile("sgd", crossentropy(), metrics=["accuracy"])
    assert np.isfinite(distiller.fit(x, y, verbose=0).history["loss"]).all()


def test_the_loss_of_one_output_in_a_list_or_dict():
    for loss in ([crossentropy()], {"logits": crossentropy()}):
        part = mlp()
        inputs = keras.Input((8, 8, 1))
        outputs = layers.Dense(3, name="logits")(part(inputs))
        student = keras.Model(inputs, outputs)
        student.compile("sgd", loss)
        distiller = kd.Distiller(mlp(16), student)
        assert list(distiller.distillation_losses) == ["soft_targets"]
        assert distiller.fit(*images(), verbose=0).history["loss"][0] > 0


@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # for output b
def test_labels_for_one_output_of_a_dict():
    inputs = keras.Input((8, 8, 1))
    flat = layers.Flatten()(inputs)
    student = keras.Model(
        inputs, {"a": layers.Dense(3)(flat), "b": layers.Dense(2)(flat)}
    )
    soft = kd.losses.SoftTargets(student_layer_name="a")
    distiller = kd.Distiller(mlp(16), student, losses=soft)
    distiller.compile("sgd", {"a": crossentropy()}, metrics=None)
    x, y = images()
    logs = distiller.fit(x, {"a": y}, verbose=0).history
    assert logs["hard_label_loss"][0] > 0
    assert set(logs) == {"loss", "hard_label_loss", "soft_targets_loss"}


def test_a_layer_can_be_frozen_between_predict_and_fit():
    distiller = kd.Distiller(mlp(16), mlp())
    x, y = images()
    distiller.predict(x, verbose=0)
    hidden = distiller.student.get_layer("hidden")
    hidden.trainable = False
    before = values(hidden.variables)
    distiller.compile()
    distiller.fit(x, y, verbose=0)
    np.testing.assert_array_equal(before[0], values(hidden.variables)[0])


class Learned(kd.losses.DistillationLoss):
    """Has a layer, and random numbers, of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(3)
        self.seed = keras.random.SeedGenerator(1)

    def call(self, teacher, student):
        noise = keras.random.normal((1, 3), seed=self.seed)
        return ops.mean(ops.square(teacher - self.dense(student) - noise), -1)


def test_what_a_loss_learns_and_draws():
    with pytest.raises(ValueError, match="isn't built"):
        kd.Distiller(mlp(16), mlp(), losses=Learned())
    loss = Learned()
    loss.dense.build((None, 3))
    distiller = kd.Distiller(mlp(16), mlp(), losses=loss)
    before = values([loss.dense.kernel, loss.seed.state])
    x, _ = images()
    distiller.compile("sgd", loss=None)
    distiller.fit(x, verbose=0)
    after = values([loss.dense.kernel, loss.seed.state])
    assert all((a != b).any() for a, b in zip(after, before, strict=True))


def test_penalties_in_half_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        student = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Flatten(),
                layers.Dense(3, activity_regularizer="l2"),
            ]
        )
    finally:
        keras.config.set_dtype_policy("float32")
    logs = kd.Distiller(mlp(16), student).fit(images()[0], verbose=0).history
    assert np.isfinite(logs["loss"]).all()


def test_numbers_of_numpy_and_wrong_ones():
    distiller = kd.Distiller(mlp(), mlp(), loss_weights=np.float32(0.5))
    assert float(distiller.loss_weights[0].value) == 0.5
    with pytest.raises(ValueError, match="Each loss has one weight"):
        kd.Distiller(mlp(), mlp(), loss_weights={"soft_targets": 0.5})
    for temperature in ("logits", float("inf"), 0.0):
        with pytest.raises(ValueError, match="positive number"):
            kd.losses.SoftTargets(temperature)
    with pytest.raises(ValueError, match=r"losses=\[\]"):
        kd.Distiller(mlp(), cnn(), losses=[])
