"""A report of real models, small ones, on each backend."""

import contextlib
import dataclasses

import keras
import numpy as np
import pytest
from support import CLASSES, crossentropy, images, mlp, only_on

import keras_distill as kd
from keras_distill.export import LiteRTCheck, MicroCheck, OutputCheck
from keras_distill.export.measure import Latency
from keras_distill.reports import tables, words
from keras_distill.reports.paired import Interval
from keras_distill.reports.pictures import pictures_of

X, Y = images(40)


def small(seed):
    """Compiles in no time, and has something to say."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES, name="logits"),
        ]
    )


@pytest.fixture(scope="module")
def trained():
    """A teacher, a distiller and a student alone, after three epochs."""
    teacher = mlp(16, seed=7)
    distiller = kd.Distiller(teacher, small(1))
    alone = small(1)
    alone.compile("adam", crossentropy(), metrics=["accuracy"])
    for model in (distiller, alone):
        model.fit(X, Y, validation_data=(X, Y), epochs=3, verbose=0)
    return teacher, distiller, alone


@pytest.fixture(scope="module")
def made(trained):
    teacher, distiller, alone = trained
    return kd.report(teacher, [distiller], (X, Y), baselines=[alone], seeds=[1])


def test_facts_are_those_of_the_models(trained, made):
    teacher, distiller, alone = trained
    facts = made.facts
    decided = [m.predict(X, verbose=0).argmax(-1) for m in trained]
    right = [float((d == Y).mean()) for d in decided]
    groups = facts.teacher, facts.distilled, facts.alone
    assert [g.mean("accuracy") for g in groups] == pytest.approx(right)
    assert facts.gain.by_seed == (pytest.approx(right[1] - right[2]),)
    assert facts.teacher_lead.mean == pytest.approx(right[0] - right[2])
    agreement = float((decided[0] == decided[1]).mean())
    assert facts.distilled.mean("agreement") == pytest.approx(agreement)
    assert facts.teacher.parameters == teacher.count_params()
    assert facts.distilled.parameters == alone.count_params()
    assert facts.examples == len(X)
    assert facts.temperature == 4.0
    assert facts.seeds == (1,)
    assert facts.environment["keras"] == keras.version()
    assert keras.backend.backend() in facts.environment["backend"]
    assert facts.command
    # As Keras has it: its loss is in float32.
    loss = distiller.evaluate(X, Y, verbose=0, return_dict=True)["loss"]
    assert facts.distilled.mean("nll") == pytest.approx(loss, rel=1e-5)
    gap = facts.gap_closed
    if right[0] > right[2]:
        gain, lead = right[1] - right[2], right[0] - right[2]
        assert gap == pytest.approx(gain / lead)


def test_curves_are_kerass(trained, made):
    _, distiller, alone = trained
    for run, model in zip(made.facts.runs, (distiller, alone), strict=True):
        history = model.history.history
        assert run.curves == {n: tuple(v) for n, v in history.items()}
        assert (run.finished, run.planned) == (3, 3)
        assert not run.is_cut_off
    assert "soft_targets_loss" in made.facts.runs[0].curves
    assert made.facts.runs[0].weights == {
        "hard_label_loss": pytest.approx(0.1),
        "soft_targets_loss": pytest.approx(0.9),
    }


def test_files_are_written(made, tmp_path):
    for suffix in (".html", ".md", ".json"):
        made.save(tmp_path / f"report{suffix}")
    assert kd.Report.load(tmp_path / "report.json") == made
    assert "seed 1" in (tmp_path / "report.md").read_text("utf-8")


def test_soft_targets_are_the_teachers(trained, made):
    logits = trained[0].predict(X, verbose=0).astype("float64")
    for example in made.facts.soft_targets:
        assert example.label == Y[example.index]
        assert example.classes[0] == logits[example.index].argmax()
        for row, t in zip(
            example.teacher, made.facts.temperatures, strict=True
        ):
            p = np.exp(logits[example.index] / t)
            expected = (p / p.sum())[list(example.classes)]
            np.testing.assert_allclose(row, expected, rtol=1e-6)
        assert example.picture.shape == (8, 8, 1)
        assert sum(example.distilled) == pytest.approx(1)


def test_models_stay_as_they_were(trained):
    before = [
        [keras.ops.convert_to_numpy(w).copy() for w in m.weights]
        for m in trained
    ]
    teacher, distiller, alone = trained
    kd.report(teacher, distiller, (X, Y), baselines=alone)
    after = [
        [keras.ops.convert_to_numpy(w) for w in m.weights] for m in trained
    ]
    for ours, theirs in zip(before, after, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch == 1


@pytest.mark.parametrize(
    ("callback", "is_cut_off"), [(Interrupt, True), (Stop, False)]
)
def test_an_interrupted_run_says_so(callback, is_cut_off, trained):
    distiller = kd.Distiller(trained[0], small(2))
    distiller.compile(run_eagerly=True)
    with contextlib.suppress(KeyboardInterrupt):
        distiller.fit(X, Y, epochs=9, verbose=0, callbacks=[callback()])
    report = kd.report(trained[0], distiller, (X, Y), seeds=[5])
    (run,) = report.facts.runs
    assert (run.finished, run.planned, run.stopped) == (2, 9, not is_cut_off)
    assert run.is_cut_off == is_cut_off
    told = [f.seen for f in report.verdict.obstacles]
    assert told == ["distilled, seed 5: 2 of 9 epochs."] * is_cut_off


def test_a_run_that_goes_on_counts_from_where_it_was(trained):
    distiller = kd.Distiller(trained[0], small(2))
    distiller.compile(run_eagerly=True)
    distiller.fit(X, Y, initial_epoch=3, epochs=5, verbose=0)
    report = kd.report(trained[0], distiller, (X, Y))
    (run,) = report.facts.runs
    assert (run.finished, run.planned, run.is_cut_off) == (5, 5, False)
    assert len(run.curves["loss"]) == 2


def test_failed_seeds_say_so(trained):
    teacher, distiller, alone = trained
    broken = small(3)
    broken.get_layer("logits").bias.assign([np.nan] * CLASSES)
    report = kd.report(
        teacher,
        [distiller, None, broken],
        (X, Y),
        baselines=[alone] * 3,
        seeds=[1, 2, 3],
    )
    facts = report.facts
    assert [s is None for s in facts.distilled.scores] == [False, True, True]
    assert len(facts.gain.by_seed) == 1
    (found,) = (f for f in report.verdict.findings if f.rule == "failed_runs")
    assert "seed 2: the run gave no model" in found.seen
    assert "seed 3: its outputs are no numbers" in found.seen
    assert found in report.verdict.obstacles


def test_a_loss_that_is_no_number_says_so(trained):
    teacher, _, alone = trained
    history = {"loss": [1.0, 0.5, float("nan"), float("inf")], "f1": [[1, 2]]}
    report = kd.report(teacher, alone, (X, Y), histories=[history])
    (run,) = report.facts.runs
    assert run.curves == {"loss": (1.0, 0.5, None, None)}
    (found,) = report.verdict.obstacles
    assert found.rule == "lost_numbers"
    assert "from epoch 3 on" in found.seen


def test_curves_alone_do_not_say_how_a_run_ended(trained):
    teacher, distiller, _ = trained
    curves = distiller.history.history
    report = kd.report(teacher, distiller, (X, Y), histories=[curves])
    (run,) = report.facts.runs
    assert (run.finished, run.planned) == (3, None)
    assert words.end(run) == "not known"
    assert not tables.all_as_planned(report.facts)
    assert "unknown_runs" in {f.rule for f in report.verdict.findings}


def test_values_belong_to_the_epochs_that_they_are_of(trained):
    distiller = kd.Distiller(trained[0], small(2))
    distiller.compile(run_eagerly=True)
    distiller.fit(
        X,
        Y,
        initial_epoch=2,
        epochs=6,
        validation_data=(X, Y),
        validation_freq=2,
        verbose=0,
    )
    distiller.history.history["loss"][1] = float("nan")
    facts = kd.report(trained[0], distiller, (X, Y)).facts
    (run,) = facts.runs
    assert run.epochs_of("loss") == range(3, 7)
    # After the epochs 4 and 6, but Keras doesn't say so.
    assert len(run.curves["val_loss"]) == 2
    assert run.epochs_of("val_loss") is None
    assert "val_loss" in tables.undrawn(facts)
    assert "loss" not in tables.undrawn(facts)
    assert run.lost_in == "epoch 4"
    only_there = {"loss": (1.0,) * 4, "val_loss": (1.0, None)}
    lost = dataclasses.replace(run, curves=only_there)
    assert lost.lost_in == "validation"


def test_the_gap_is_that_of_whole_pairs(made):
    def group(*accuracies):
        (score,) = made.facts.alone.scores
        scores = [
            a if a is None else dataclasses.replace(score, accuracy=a)
            for a in accuracies
        ]
        return dataclasses.replace(made.facts.alone, scores=tuple(scores))

    facts = dataclasses.replace(
        made.facts,
        teacher=group(0.95),
        alone=group(0.5, 0.9),
        distilled=group(0.9, None),
        teacher_lead=Interval(0.25, 0.2, 0.3),
    )
    assert facts.gap_closed == pytest.approx(0.4 / 0.45)
    assert "closed 89 % of the gap" in tables.summary(facts)
    facts = dataclasses.replace(facts, distilled=group(None, None))
    assert facts.gap_closed is None


def test_labels_come_in_each_form(trained):
    teacher, _, alone = trained
    expected = kd.report(teacher, alone, (X, Y)).facts
    hot = np.eye(CLASSES)[Y]
    for labels in (hot, Y[:, None], list(Y)):
        facts = kd.report(teacher, alone, (X, labels)).facts
        assert facts.alone == expected.alone
        assert facts.distilled == expected.distilled
        assert facts.data == expected.data
    some = np.where(np.arange(len(Y)) < 30, Y, -1)
    facts = kd.report(teacher, alone, (X, some)).facts
    assert facts.examples == 30
    fewer = kd.report(teacher, alone, (X[:30], Y[:30])).facts
    assert facts.distilled == fewer.distilled
    assert facts.data == fewer.data != expected.data


class Stored(kd.teachers.Teacher):
    runtime = "numpy"

    def label(self, inputs):
        return inputs.reshape(len(inputs), -1)[:, :CLASSES], {}

    @property
    def fingerprint(self):
        return {"kind": "stored"}


def test_teachers_of_each_kind(trained):
    *_, alone = trained
    logits = X.reshape(len(X), -1)[:, :CLASSES]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = kd.report(logits, alone, (X, Y)).facts.teacher
    assert expected.parameters is None
    assert kd.report(Stored(), alone, (X, Y)).facts.teacher == expected
    found = kd.report(p, alone, (X, Y)).facts.teacher
    assert found.mean("nll") == pytest.approx(expected.mean("nll"), rel=1e-6)


def test_a_teacher_with_other_inputs(trained):
    teacher, *_ = trained
    bright = kd.Distiller(
        teacher, small(1), teacher_inputs=keras.layers.Rescaling(2.0)
    )
    found = kd.report(teacher, bright, (X, Y)).facts.teacher
    logits = teacher.predict(2 * X, verbose=0)
    expected = float((logits.argmax(-1) == Y).mean())
    assert found.mean("accuracy") == pytest.approx(expected)


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_one_value_is_two_classes(activation):
    def network(seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(1, activation)]
        )

    x = np.random.default_rng(0).normal(size=(30, 4)).astype("float32")
    y = np.arange(30) % 2
    teacher, student = network(1), network(2)
    facts = kd.report(teacher, student, (x, y)).facts
    threshold = 0.5 if activation else 0.0
    yes = student.predict(x, verbose=0)[:, 0] > threshold
    assert facts.distilled.mean("accuracy") == (yes == y).mean()
    assert facts.distilled.mean("rank_correlation") is None
    assert facts.distilled.wrong_classes is None


def test_sigmoids_of_several_classes_are_refused(trained):
    teacher, _, alone = trained
    inputs = keras.Input((8, 8, 1))
    shares = keras.ops.sigmoid(alone(inputs))
    student = keras.Model(inputs, shares)
    with pytest.raises(ValueError, match=r"as sigmoids. Pass"):
        kd.report(teacher, student, (X, Y))
    said = student.predict(X, verbose=0)
    with pytest.raises(ValueError, match="'teacher', whose 3 values"):
        kd.report(said, alone, (X, Y))


def check(**changes):
    values = {
        "scheme": "int8",
        "size": 9000,
        "examples": 40,
        "outputs": {"out": OutputCheck(0.5, 0.6, 0.9, 0.1, 0.01, 30.0)},
        "latency": Latency(0.01, 0.02, 1, 50),
        "peak_memory": 2**20,
        "fully_accelerated": True,
        "operations": {"CONV_2D": 1},
        "profile": (),
        "micro": MicroCheck(5000, 40.0, 0.1, 1.0, {}),
    }
    return LiteRTCheck(**(values | changes))


def test_exports_are_their_checks(trained):
    teacher, _, alone = trained
    report = kd.report(
        teacher, alone, (X, Y), exports=[check(), check(micro=None)]
    )
    first, second = report.facts.exports
    assert dataclasses.astuple(first) == (
        *("int8", 9000, 0.5, 0.6, 0.9),
        *(0.01, 0.02, 1, 2**20, 5000),
    )
    assert second.arena is None
    rules = [f.rule for f in report.verdict.findings]
    assert "exports_keep_accuracy" in rules


def test_pictures_are_scaled_and_small():
    x = np.zeros((2, 200, 100, 3), "float32")
    x[1] = 5.0
    first, second = pictures_of(x, np.array([0, 1]))
    assert first.shape == (50, 25, 3)
    assert set(second.pixels) == {"/"}  # 255 in base64
    first_channels = np.moveaxis(x, -1, 1)
    assert pictures_of(first_channels, np.array([0, 1])) == [first, second]
    for other in (x[..., 0], np.zeros((2, 5, 5, 7)), {"a": x}, [x]):
        assert pictures_of(other, np.array([0, 1])) == [None, None]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"teacher": "teacher.keras"}, TypeError, "Received: teacher=str"),
        ({"teacher": np.eye(3)}, ValueError, "3 rows of the teacher"),
        ({"teacher": np.full((40, 3), np.nan)}, ValueError, "NaN or infinite"),
        ({"teacher": np.eye(40, 4) * 2}, ValueError, "of 4 classes and"),
        ({"teacher": np.ones((40, 4, 3))}, ValueError, "one row of values"),
        ({"teacher": np.full((40, 1), 0.5)}, ValueError, "may be a probab"),
        ({"students": []}, ValueError, "at least one student"),
        ({"students": [None]}, ValueError, "at least one student"),
        ({"students": ["x"]}, TypeError, "Received: str"),
        ({"baselines": [None, None]}, ValueError, "2 baselines for 1 stu"),
        ({"histories": []}, ValueError, "0 histories for 1 students"),
        ({"histories": [3]}, TypeError, "what `fit` returned"),
        ({"seeds": [1, 2]}, ValueError, "2 seeds for 1 students"),
        ({"class_names": ["a"]}, ValueError, "1 class_names for 3 classes"),
        ({"exports": ["x.tflite"]}, TypeError, "kd.verify_litert returned"),
        ({"data": X}, TypeError, r"`\(x, y\)`"),
        ({"data": (X, Y[:5])}, ValueError, "5 labels for"),
        ({"data": (X, Y + 9)}, ValueError, "3 classes"),
        ({"data": (X, np.full(40, -1))}, ValueError, "no example with a label"),
        ({"data": (X, np.full((40, 3), 0.3))}, ValueError, "one-hot"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, error, message, trained):
    arguments = {
        "teacher": trained[0],
        "students": trained[2],
        "data": (X, Y),
        **changes,
    }
    with pytest.raises(error, match=message):
        kd.report(**arguments)


def test_tensorboard_logs_every_term(trained, tmp_path):
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    distiller = kd.Distiller(
        trained[0],
        small(1),
        losses=[kd.losses.SoftTargets(), kd.losses.LogitMatching()],
    )
    board = keras.callbacks.TensorBoard(tmp_path)
    history = distiller.fit(
        X, Y, validation_data=(X, Y), epochs=2, verbose=0, callbacks=[board]
    ).history
    for folder, prefix in (("train", ""), ("validation", "val_")):
        events = event_accumulator.EventAccumulator(str(tmp_path / folder))
        events.Reload()
        terms = [
            name.removeprefix("val_")
            for name in history
            if name.startswith("val_") == bool(prefix)
        ]
        assert terms
        for term in terms:
            logged = events.Tensors(f"epoch_{term}")
            values = [tensor_util.make_ndarray(e.tensor_proto) for e in logged]
            assert values == pytest.approx(history[prefix + term], rel=1e-6)
    assert {"soft_targets_loss", "logit_matching_loss"} <= set(history)


@only_on("jax")
def test_inputs_by_name():
    def network(name):
        given = keras.Input((4,), name=name)
        return keras.Model(given, keras.layers.Dense(3)(given))

    random = np.random.default_rng(0)
    x = {n: random.normal(size=(12, 4)).astype("float32") for n in "ab"}
    teacher, student = network("a"), network("b")
    facts = kd.report(teacher, student, (x, np.arange(12) % 3)).facts
    decided = student.predict(x["b"], verbose=0).argmax(-1)
    expected = (decided == np.arange(12) % 3).mean()
    assert facts.distilled.mean("accuracy") == pytest.approx(expected)
    assert facts.soft_targets[0].picture is None


def test_a_report_of_failures_alone(trained, tmp_path):
    teacher, _, alone = trained
    broken = small(3)
    broken.get_layer("logits").bias.assign([np.inf] * CLASSES)
    report = kd.report(teacher, broken, (X, Y), baselines=alone)
    assert report.facts.distilled is None
    assert report.facts.gain is None
    for suffix in (".html", ".md", ".json"):
        report.save(tmp_path / f"report{suffix}")
    text = (tmp_path / "report.md").read_text("utf-8")
    assert text.startswith("# The runs are incomplete")
    assert kd.Report.load(tmp_path / "report.json") == report
