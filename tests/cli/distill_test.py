"""`keras-distill distill`, through its entry point and in this process."""

import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from support import only_on

import keras_distill as kd
from keras_distill.cli import distilling, main
from keras_distill.cli.method_options import losses_of
from keras_distill.export import processes

COMMAND = [sys.executable, "-m", "keras_distill.cli"]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(processes.search_path()),
    # Where it is on, TensorFlow says so as it is imported, whatever the level
    # of its log.
    "TF_ENABLE_ONEDNN_OPTS": "0",
}


def arguments(files, output, *more, student="student.keras", data="data.npz"):
    return [
        *("distill", f"{files}/teacher.keras", f"{files}/{student}"),
        *(f"{files}/{data}", "-o", str(output), "--epochs", "2", *more),
    ]


def run(*given):
    return subprocess.run(
        [*COMMAND, *given],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def values(path):
    return keras.saving.load_model(path, compile=False).get_weights()


def test_program_distils_and_says_so_in_json(files, tmp_path):
    output = tmp_path / "out.keras"
    done = run(
        *arguments(files, output, "--json", "--alone", "--validation", "0.2"),
        *("--method", "SoftTargets", "temperature=2"),
        *("--cache", str(tmp_path / "cache")),
    )
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["methods"] == ["SoftTargets"]
    assert (facts["examples"], facts["judged_by"]) == (48, 12)
    assert facts["teacher"]["accuracy"] == 1.0
    assert facts["written"] == [str(output)]
    # What was written is what was measured.
    student = keras.saving.load_model(output, compile=False)
    assert facts["student"]["parameters"] == student.count_params()
    assert set(facts) >= {"alone", "student_before", "seconds"}


def test_program_says_mistakes_in_a_line(files, tmp_path):
    done = run(
        *arguments(files, tmp_path / "out.keras", "--method", "SoftTarget")
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("keras-distill: There is no such method.")
    assert "Did you mean SoftTargets" in line
    assert list(tmp_path.iterdir()) == []


@only_on("torch")
def test_an_interrupt_leaves_nothing_and_says_how_to_go_on(files, tmp_path):
    given = arguments(files, tmp_path / "out.keras", "--epochs", "1000000")
    process = subprocess.Popen(
        [*COMMAND, *given],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, a shell has it ignored.
        preexec_fn=lambda: signal.signal(  # noqa: PLW1509 (nothing else)
            signal.SIGINT, signal.SIG_DFL
        ),
    )
    try:
        # Said before the training begins.
        first = process.stdout.readline()
        assert first == "teacher: 100.0% of the training data\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said == (
        "keras-distill: interrupted. Nothing was written but what --cache "
        "stored, from which the same command goes on.\n"
    )
    assert list(tmp_path.iterdir()) == []


@only_on("torch")
def test_cache_teaches_as_the_teacher_does(files, tmp_path, capsys):
    live, stored = tmp_path / "live.keras", tmp_path / "stored.keras"
    assert main(arguments(files, live)) == 0
    cached = arguments(files, stored, "--cache", str(tmp_path / "cache"))
    assert main(cached) == 0
    assert "SoftTargets: 2 epochs of 60" in capsys.readouterr().out
    kd.TeacherCache.open(tmp_path / "cache").verify()
    for one, other in zip(values(live), values(stored), strict=True):
        # As far as float16 says what the teacher said. In batches of another
        # order, they would be a hundred times as far apart.
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-5)


@only_on("torch")
def test_alone_learns_in_the_same_order(files, tmp_path, monkeypatch):
    trained = []
    train_alone = distilling.train_alone

    def kept(parsed, student, data):
        train_alone(parsed, student, data)
        trained.extend(student.get_weights())

    monkeypatch.setattr(distilling, "train_alone", kept)
    # A teacher without weight leaves what the labels say.
    only_labels = ("--weight", "0", "--hard-label-weight", "1", "--alone")
    output = tmp_path / "out.keras"
    assert main(arguments(files, output, *only_labels)) == 0
    for one, other in zip(trained, values(output), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


@only_on("torch")
def test_alone_keeps_what_a_normalization_found():
    x = np.random.default_rng(0).normal(5, 3, (20, 4))
    norm = keras.layers.Normalization()
    norm.adapt(x)
    model = keras.Sequential([keras.Input((4,)), norm, keras.layers.Dense(2)])
    alone = distilling._copy(model)
    for one, other in zip(model.weights, alone.weights, strict=True):
        assert one is not other
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), alone.predict(x, verbose=0)
    )


@only_on("torch")
def test_ranges_are_those_of_examples_from_everywhere(
    files, tmp_path, monkeypatch
):
    """A file may have one class after the other."""
    seen = []

    def export_litert(student, path, scheme, calibration_data):
        seen.append(calibration_data)
        raise RuntimeError("seen")

    monkeypatch.setattr(distilling, "export_litert", export_litert)
    monkeypatch.setattr(distilling, "_CALIBRATION", 20)
    with np.load(files / "data.npz") as data:
        x = np.repeat(data["x"][:1], 60, axis=0)
    x.reshape(60, -1)[:, 0] = np.arange(60)
    np.savez(tmp_path / "sorted.npz", x=x, y=np.arange(60) // 20)
    given = arguments(files, tmp_path / "out.keras")
    given[3] = str(tmp_path / "sorted.npz")
    given += ["--export", str(tmp_path / "s.tflite"), "--quantization", "int8"]
    assert main(given) == 1
    numbers = np.asarray(seen[0]).reshape(20, -1)[:, 0]
    assert len(np.unique(numbers)) == 20
    assert np.all(np.bincount(numbers.astype(int) // 20, minlength=3) >= 3)


@only_on("torch")
def test_the_same_seed_gives_the_same_student(files, tmp_path):
    for name in ("a", "b"):
        assert main(arguments(files, tmp_path / f"{name}.keras")) == 0
    other = arguments(files, tmp_path / "c.keras", "--seed", "1")
    assert main(other) == 0
    a, b, c = (values(tmp_path / f"{name}.keras") for name in "abc")
    assert all(map(np.array_equal, a, b))
    assert not all(map(np.array_equal, a, c))


@only_on("torch")
def test_a_shrunk_student_with_report_and_file(files, tmp_path, capsys):
    written = [tmp_path / name for name in ("o.keras", "o.html", "o.tflite")]
    output, report, file = map(str, written)
    data = f"{files}/flat.npz"  # without the axis of one channel
    given = [
        *("distill", f"{files}/teacher.keras", data),
        *("-o", output, "--report", report, "--export", file),
        *("--width", "0.5", "--quantization", "int8", "--validation", "0.2"),
        *("--epochs", "2", "--alone", "--method", "SoftTargets"),
        *("--method", "Hint", "projector=auto", "--layers", "conv=conv"),
        *("--weight", "1", "--weight", "10"),
    ]
    assert main(given) == 0
    said = capsys.readouterr()
    assert f"written: {output}, {file}, {report}" in said.out
    assert sorted(tmp_path.iterdir()) == sorted(written)
    student = keras.saving.load_model(output, compile=False)
    assert student.get_layer("conv").filters == 2
    assert "keras-distill distill" in written[1].read_text()
    # Nothing of that is replaced without a word.
    assert main(given) == 2
    assert "Pass --force" in capsys.readouterr().err
    verify = ["verify", file, output, data]
    assert main([*verify, "--max-drop", "1", "--max-size", "64KB"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main([*verify, "--min-snr", "200", "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["falls_short"] == ["snr_db"]
    assert "falls short of what was asked: snr_db=" in said.err
    other = ["verify", file, f"{files}/student.keras", f"{files}/data.npz"]
    assert main(other) == 2
    assert "made from another student" in capsys.readouterr().err


@only_on("torch")
def test_a_student_of_fewer_classes(files, tmp_path, capsys):
    data = np.load(files / "data.npz")
    np.savez(tmp_path / "data.npz", x=data["x"], y=data["y"] % 2)
    keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    ).save(tmp_path / "two.keras")
    given = arguments(files, tmp_path / "out.keras", "--json")
    given[2:4] = [f"{tmp_path}/two.keras", f"{tmp_path}/data.npz"]
    given += ["--method", "SoftTargets", "class_map=2,0"]
    assert main(given) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["teacher"]["accuracy"] is None
    assert "how good the teacher is isn't known" in said.err


@only_on("torch")
def test_warns_of_a_teacher_that_knows_nothing(files, tmp_path, capsys):
    x = np.random.default_rng(5).normal(size=(30, 8, 8, 1)).astype("float32")
    teacher = keras.saving.load_model(files / "teacher.keras", compile=False)
    right = teacher.predict(x, verbose=0).argmax(-1)
    np.savez(tmp_path / "wrong.npz", x=x, y=(right + 1) % 3)
    given = arguments(files, tmp_path / "out.keras")
    given[3] = str(tmp_path / "wrong.npz")
    assert main(given) == 0
    assert "right in 0.0%, no better than naming" in capsys.readouterr().err
    # Always the same class: right as often as a guess, but for the rounding.
    given = arguments(files, tmp_path / "other.keras", "--scale", "0")
    assert main(given) == 0
    assert "right in 33.3%, no better than naming" in capsys.readouterr().err


@only_on("torch")
def test_without_known_labels_nobody_is_wrong(files, tmp_path, capsys):
    given = arguments(files, tmp_path / "out.keras", "--json")
    given[3] = f"{files}/unknown.npz"
    assert main(given) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts["teacher"]["accuracy"] is facts["student"]["accuracy"] is None
    assert facts["student"]["agreement"] is not None
    assert "how good the teacher is isn't known" in said.err


@only_on("torch")
def test_a_training_that_fails_writes_nothing(files, tmp_path, capsys):
    given = arguments(files, tmp_path / "out.keras", "--learning-rate", "1e30")
    assert main([*given, "--epochs", "4"]) == 1
    assert "came to nothing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@only_on("torch")
@pytest.mark.parametrize("step", ["train_alone", "_report"])
def test_what_fails_afterwards_leaves_the_student(
    step, files, tmp_path, capsys, monkeypatch
):
    def fail(*arguments):
        raise ValueError("no such luck.")

    monkeypatch.setattr(distilling, step, fail)
    output = tmp_path / "out.keras"
    given = arguments(files, output, "--alone", "--validation", "0.2")
    assert main([*given, "--report", str(tmp_path / "r.json")]) == 1
    said = capsys.readouterr().err
    assert f"no such luck. The student is written: '{output}'." in said
    assert list(tmp_path.iterdir()) == [output]
    assert keras.saving.load_model(output, compile=False).built


def test_options_become_arguments():
    (loss,) = losses_of(
        [["MultiLevelLogits", "temperatures=4,2", "class_map=1,0"]], None, ()
    )
    assert loss.get_config()["temperatures"] == [4.0, 2.0]
    assert loss.class_map == [1, 0]
    (loss,) = losses_of(
        [["StandardizedLogits", "loss=SoftTargets", "loss.temperature=2"]],
        None,
        (),
    )
    assert loss.get_config()["loss"]["config"]["temperature"] == 2.0
    soft, hint = losses_of(
        [["SoftTargets", "from_logits=true"], ["Hint", "projector=auto"]],
        3.0,
        ["a/b=c", "d=e"],
    )
    assert (soft.get_config()["temperature"], soft.from_logits) == (3.0, True)
    assert hint.teacher_layer_name == ["a/b", "d"]
    assert hint.student_layer_name == ["c", "e"]
    assert hint.projector == "auto"
