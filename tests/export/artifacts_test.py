"""What exports return: printed, and given to what checks and wraps files."""

import dataclasses
import re

import keras
import numpy as np
import pytest
from support import only_on

import keras_distill as kd
from keras_distill.export import OperationTime, measure

layers = keras.layers
# What comes after the float32 file is the same on each backend.
pytestmark = only_on("torch")
X = np.random.default_rng(0).normal(size=(20, 6)).astype("float32")


@pytest.fixture(scope="module")
def student():
    keras.utils.set_random_seed(0)
    hidden = layers.Dense(8, activation="relu", name="hidden")
    return keras.Sequential(
        [keras.Input((6,), name="pixels"), hidden, layers.Dense(3, name="head")]
    )


@pytest.fixture(scope="module")
def artifact(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "student.tflite"
    return kd.export_litert(student, path, "int8", calibration_data=X)


def test_memory_is_unknown_where_the_system_does_not_say(monkeypatch):
    def status(key):
        raise FileNotFoundError("/proc/self/status")

    monkeypatch.setattr(measure, "_status", status)
    with measure._peak_memory() as grown:
        pass
    assert grown == []


def test_prints_in_a_few_lines(artifact, student, tmp_path):
    first, *ports = str(artifact).splitlines()
    assert re.fullmatch(
        rf"{artifact.path}: \d\.\d KB, int8, \d\d\.\d dB to float32", first
    )
    assert ports == [
        "in   pixels (1, 6) float32",
        "out  output_0 (1, 3) float32",
    ]
    text = str(kd.export_litert(student, tmp_path / "f.tflite"))
    pattern = r"KB, float32, within \d\.\de[-+]\d\d of Keras\n"
    assert re.search(pattern, text)
    assert str(kd.export_onnx(student, tmp_path / "s.onnx")).endswith(
        "\n".join(ports)
    )


def test_artifact_and_both_kinds_of_paths_are_the_same(
    artifact, student, tmp_path
):
    for given in (artifact, artifact.path, str(artifact.path)):
        check = kd.verify_litert(given, student, X, runs=1)
        assert check.scheme == "int8"
        package = kd.export_microcontroller(
            given, tmp_path / "firmware", X, arena=65536
        )
        assert package.name == "student"
        assert kd.export.check_on_micro(given, X).arena > 0
    for use in (
        lambda: kd.verify_litert(3, student, X),
        lambda: kd.export_microcontroller(3, tmp_path / "firmware", X),
    ):
        with pytest.raises(TypeError, match="artifact=3"):
            use()


def test_profile_is_printed_with_the_slowest_first(artifact, student):
    check = kd.verify_litert(artifact, student, X, runs=3, profile=True)
    names = {time.operation for time in check.profile}
    assert names == {"QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"}
    times = tuple(
        OperationTime("CONV_2D", f"model._1/{layer}._1/Relu;x", ms, ms / 21)
        for ms, layer in enumerate("abcdef", 1)
    )
    lines = str(dataclasses.replace(check, profile=times)).splitlines()[-5:]
    assert lines[0] == "29% of the time       CONV_2D 'f', 6.0000 ms"
    assert [line.split()[0] for line in lines[1:]] == [
        "24%",
        "19%",
        "14%",
        "10%",
    ]
    plain = str(dataclasses.replace(check, profile=()))
    assert "of the time" not in plain
