"""Fidelity metrics in a Distiller: the teacher is asked where they need it."""

import keras
import numpy as np
import pytest
from keras import layers
from measuring import agreement
from support import (
    assert_same_values,
    cnn,
    images,
    mlp,
    only_on,
    teacher,
    values,
)

import keras_distill as kd
from keras_distill.fidelity import Fidelity
from keras_distill.reports import measures


def guide():
    return mlp(16, seed=7, name="guide")


def still(distiller, *metrics, **arguments):
    """Compiled so that training changes nothing, and its logs are exact."""
    distiller.compile(
        keras.optimizers.SGD(0.0), fidelity_metrics=list(metrics), **arguments
    )
    return distiller


def known_to(asked, x):
    """Labels, of which the teacher knows three quarters."""
    labels = asked.predict(x, verbose=0).argmax(-1)
    labels[::4] = (labels[::4] + 1) % 3
    return labels


def hidden(model, x):
    parts = keras.Model(model.inputs, model.get_layer("hidden").output)
    return parts.predict(x, verbose=0).astype("float64")


def expected(asked, student, x, y):
    """The formulas, in NumPy and float64."""
    t, s = (m.predict(x, verbose=0).astype("float64") for m in (asked, student))
    knows, learned = (z.argmax(-1) == y for z in (t, s))
    features = [hidden(m, x) for m in (asked, student)]
    a, b = (f - f.mean(0) for f in features)
    norm = np.linalg.norm
    return {
        "agreement": agreement(t, s),
        "gap_closed": (learned.mean() - 0.1) / (knows.mean() - 0.1),
        "outcome_both_right": (knows & learned).sum(),
        "outcome_teacher_only": (knows & ~learned).sum(),
        "linear_cka": norm(a.T @ b) ** 2 / (norm(a.T @ a) * norm(b.T @ b)),
    }


def assert_logged(logs, wanted):
    for name, value in wanted.items():
        assert logs[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.traced
def test_fit_and_validation_log_them():
    asked, student = guide(), mlp()
    (x, _), (x_val, _) = images(24), images(12, seed=1)
    y, y_val = known_to(asked, x), known_to(asked, x_val)
    before = values(asked.variables)
    distiller = still(
        kd.Distiller(asked, student),
        kd.metrics.Agreement(),
        kd.metrics.GapClosed(0.1),
        kd.metrics.Outcomes(),
        kd.metrics.LinearCKA("hidden", "hidden"),
        metrics=["accuracy", kd.metrics.CalibrationError()],
    )
    assert distiller.teacher_layers == ["hidden"]
    history = distiller.fit(
        x, y, batch_size=12, validation_data=(x_val, y_val), verbose=0
    ).history
    logs = {name: value for name, (value,) in history.items()}
    assert_logged(logs, expected(asked, student, x, y))
    seen = expected(asked, student, x_val, y_val)
    seen["loss"] = float(
        keras.losses.SparseCategoricalCrossentropy(from_logits=True)(
            y_val, student.predict(x_val, verbose=0)
        )
    )
    assert_logged(logs, {f"val_{name}": v for name, v in seen.items()})
    assert not any("hard_label" in name for name in logs if "val_" in name)
    assert {"accuracy", "calibration_error", "val_calibration_error"} <= set(
        logs
    )
    assert_same_values(values(asked.variables), before)


def test_without_labels_and_with_weights():
    asked, student = guide(), mlp()
    x, _ = images(12)
    y = known_to(asked, x)
    distiller = still(
        kd.Distiller(asked, student),
        kd.metrics.Agreement(),
        kd.metrics.GapClosed(0.1),
        metrics=[],
    )
    wanted = expected(asked, student, x, y)["agreement"]
    logs = distiller.fit(x, verbose=0).history
    assert set(logs) == {"loss", "soft_targets_loss", "agreement"}
    assert logs["agreement"][0] == pytest.approx(wanted)
    logs = distiller.evaluate(x, verbose=0, return_dict=True)
    assert logs == pytest.approx({"agreement": wanted})
    weights = (np.arange(12) < 9).astype("float32")
    logs = distiller.evaluate(
        x, y, sample_weight=weights, verbose=0, return_dict=True
    )
    wanted = expected(asked, student, x[:9], y[:9])
    names = ("agreement", "gap_closed")
    assert_logged(logs, {name: wanted[name] for name in names})


class Counter(layers.Layer):
    """Tells how it was called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def call(self, inputs, training=None):
        self.calls.append(training)
        return inputs


@only_on("torch")
def test_evaluate_asks_the_teacher_only_where_it_must():
    counter = Counter()
    asked = keras.Sequential([keras.Input((8, 8, 1)), counter, guide()])
    x, y = images(24)
    student = mlp()
    distiller = kd.Distiller(asked, student)
    evaluate = {"batch_size": 8, "verbose": 0, "return_dict": True}
    wanted = agreement(*(m.predict(x, verbose=0) for m in (asked, student)))
    batch = kd.TransferBatch(x, asked.predict(x, verbose=0))
    still(distiller, kd.metrics.Agreement(), run_eagerly=True)
    counter.calls.clear()
    logs = distiller.evaluate(x, y, **evaluate)
    assert [c for c in counter.calls if c is not None] == [False] * 3
    assert logs["agreement"] == pytest.approx(wanted)
    counter.calls.clear()
    logs = distiller.evaluate(batch, y, **evaluate)
    assert logs["agreement"] == pytest.approx(wanted)
    distiller.predict(x, verbose=0)
    still(distiller, run_eagerly=True)
    assert "agreement" not in distiller.evaluate(x, y, **evaluate)
    assert counter.calls == []


def test_stored_outputs_are_enough():
    x, y = images(24)
    asked, student = guide(), mlp()
    stored = kd.StoredTeacher(
        keras.KerasTensor((None, 3)), {"hidden": keras.KerasTensor((None, 16))}
    )
    distiller = still(
        kd.Distiller(stored, student),
        kd.metrics.Agreement(),
        kd.metrics.LinearCKA("hidden", "hidden"),
    )
    wanted = expected(asked, student, x, y)
    features = {"hidden": hidden(asked, x).astype("float32")}
    batch = kd.TransferBatch(x, asked.predict(x, verbose=0), features)
    logs = distiller.evaluate(batch, y, verbose=0, return_dict=True)
    names = ("agreement", "linear_cka")
    assert_logged(logs, {name: wanted[name] for name in names})
    with pytest.raises(ValueError, match="no teacher to ask"):
        distiller.evaluate(x, y, verbose=0)
    lacking = batch._replace(teacher_features={})
    with pytest.raises(ValueError, match="lacks what teacher layer 'hidden'"):
        distiller.evaluate(lacking, y, verbose=0)


def ended(model):
    return keras.Sequential([keras.Input((8, 8, 1)), model, layers.Softmax()])


@pytest.mark.parametrize(
    "save_teacher", [pytest.param(True, marks=only_on("torch")), False]
)
def test_a_loaded_distiller_measures_as_before(tmp_path, save_teacher):
    x, y = images(24)
    asked, student = guide(), mlp()
    wanted = measures.divergence(
        *(m.predict(x, verbose=0).astype("float64") for m in (asked, student)),
        1.0,
    )
    made = still(
        kd.Distiller(ended(asked), ended(student), save_teacher=save_teacher),
        kd.metrics.TeacherDivergence(),
        kd.metrics.LinearCKA(),
    )
    batch = kd.TransferBatch(x, ended(asked).predict(x, verbose=0))
    logs = made.evaluate(batch, y, verbose=0, return_dict=True)
    assert logs["teacher_divergence"] == pytest.approx(wanted, rel=1e-4)
    made.save(tmp_path / "made.keras")
    loaded = keras.models.load_model(tmp_path / "made.keras")
    again = loaded.evaluate(batch, y, verbose=0, return_dict=True)
    assert again == pytest.approx(logs, rel=1e-6)


def heads(width, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 1))
    flat = layers.Flatten()(inputs)
    outputs = {n: layers.Dense(3, name=n)(flat) for n in ("a", "b")}
    return keras.Model(inputs, outputs)


def test_each_names_its_output():
    x, _ = images(24)
    asked, student = heads(16, 1), heads(4, 2)
    t, s = (m.predict(x, verbose=0) for m in (asked, student))
    y = t["a"].argmax(-1)
    loss = kd.losses.SoftTargets(teacher_layer_name="a", student_layer_name="a")
    distiller = kd.Distiller(asked, student, losses=loss)
    cross = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    still(
        distiller,
        kd.metrics.Agreement(1, "b", "b", name="b_agreement"),
        kd.metrics.GapClosed(0.1, "a", "a"),
        loss={"a": cross, "b": cross},
        metrics={"b": [kd.metrics.BrierScore()]},
    )
    logs = distiller.evaluate(x, {"a": y, "b": y}, verbose=0, return_dict=True)
    assert logs["b_agreement"] == pytest.approx(agreement(t["b"], s["b"]))
    knows, learned = ((z["a"].argmax(-1) == y).mean() for z in (t, s))
    gap = (learned - 0.1) / (knows - 0.1)
    assert logs["gap_closed"] == pytest.approx(gap, rel=1e-4)
    assert logs["b_brier_score"] > 0
    with pytest.raises(ValueError, match="Say which output"):
        distiller.compile(fidelity_metrics=[kd.metrics.Agreement()])


def test_padding_counts_for_nothing():
    def tagger(width, seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential(
            [
                keras.Input((5,), dtype="int32"),
                layers.Embedding(9, width, mask_zero=True),
                layers.Dense(4),
            ]
        )

    x = np.random.default_rng(0).integers(1, 9, (16, 5))
    x[:, 3:] = 0
    asked, student = tagger(8, 1), tagger(4, 2)
    distiller = still(kd.Distiller(asked, student), kd.metrics.Agreement())
    logs = distiller.fit(x, batch_size=16, verbose=0).history
    t, s = (m.predict(x, verbose=0)[:, :3] for m in (asked, student))
    assert logs["agreement"][0] == pytest.approx(agreement(t, s))


@pytest.mark.traced
@only_on("tensorflow")
def test_steps_in_one_execution():
    x, y = images(48)
    asked, student = guide(), mlp()
    distiller = still(
        kd.Distiller(asked, student),
        kd.metrics.Agreement(),
        steps_per_execution=2,
    )
    logs = distiller.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
    wanted = agreement(*(m.predict(x, verbose=0) for m in (asked, student)))
    assert logs["agreement"] == pytest.approx(wanted)


@only_on("jax")
def test_an_interrupted_evaluation_loses_nothing():
    class Stop(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    asked = teacher()
    before = values(asked.variables)
    distiller = still(kd.Distiller(asked, mlp()), kd.metrics.Agreement())
    x, y = images()
    with pytest.raises(KeyboardInterrupt):
        distiller.evaluate(x, y, 8, verbose=0, callbacks=[Stop()])
    assert_same_values(values(asked.variables), before)
    distiller.evaluate(x, y, 8, verbose=0)


@only_on("torch")
@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (
            {"metrics": [kd.metrics.Agreement()]},
            ValueError,
            r"Pass it in compile\(fidelity_metrics",
        ),
        (
            {"fidelity_metrics": [kd.metrics.BrierScore()]},
            TypeError,
            r"go to metrics=\[",
        ),
        (
            {"fidelity_metrics": [kd.metrics.Agreement() for _ in "ab"]},
            ValueError,
            "under the same name",
        ),
        (
            {
                "metrics": ["accuracy"],
                "fidelity_metrics": [kd.metrics.Agreement(name="accuracy")],
            },
            ValueError,
            "'accuracy' in metrics and",
        ),
        (
            {"fidelity_metrics": [kd.metrics.LinearCKA("hiden", "hidden")]},
            ValueError,
            "There is no layer 'hiden'",
        ),
        (
            {"fidelity_metrics": [kd.metrics.ClassAgreement(7)]},
            ValueError,
            "made for 7 classes",
        ),
    ],
)
def test_mistakes_show_when_it_is_compiled(arguments, error, match):
    distiller = kd.Distiller(guide(), mlp())
    with pytest.raises(error, match=match):
        distiller.compile(**arguments)


def test_probabilities_taken_for_logits_are_refused():
    distiller = kd.Distiller(ended(guide()), ended(mlp()))
    with pytest.raises(ValueError, match="teacher ends in a softmax"):
        distiller.compile(
            fidelity_metrics=[kd.metrics.Agreement(teacher_from_logits=True)]
        )
    with pytest.raises(ValueError, match="student ends in a softmax"):
        distiller.compile(metrics=[kd.metrics.CalibrationError()])
    distiller.compile(metrics=[kd.metrics.CalibrationError(from_logits=False)])


def test_labels_are_missed_where_all_metrics_need_them():
    distiller = still(kd.Distiller(guide(), mlp()), kd.metrics.Outcomes())
    with pytest.raises(ValueError, match="without labels"):
        distiller.evaluate(images()[0], verbose=0)


def test_devices_add_up_only_what_adds_up():
    student = cnn()
    cka = kd.metrics.LinearCKA("relu", "relu", name="cka")
    metrics = [kd.metrics.Agreement(), cka]
    fidelity = Fidelity(metrics, teacher(), student)
    fidelity.require_sums(False)
    with pytest.raises(ValueError, match="'cka' on several devices"):
        fidelity.require_sums(True)
    Fidelity(metrics[:1], teacher(), student).require_sums(True)
