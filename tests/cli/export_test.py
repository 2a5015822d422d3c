"""`keras-distill export` and `inspect`."""

import json
import re

import keras
import numpy as np
import pytest
from support import only_on

from keras_distill import cli
from keras_distill.export import flatbuffer
from keras_distill.export.table import as_table

layers = keras.layers
# An export takes long, and is the same on each backend.
pytestmark = only_on("torch")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    student = keras.Sequential(
        [keras.Input((6,), name="pixels"), layers.Dense(3, name="head")],
        name="digits",
    )
    student.save(folder / "student.keras")
    x = np.random.default_rng(0).normal(size=(20, 6)).astype("float32")
    np.savez(folder / "data.npz", x)
    np.savez(folder / "narrow.npz", x[:, :4])
    np.savez(folder / "others.npz", a=x, b=x)
    np.save(folder / "array.npy", x)
    (folder / "noise.npz").write_bytes(b"PK\x03\x04 and noise")
    (folder / "old.tflite").write_bytes(b"an older file")
    return folder


def test_exports_with_ranges_and_says_what_it_wrote(files, tmp_path, capsys):
    path = tmp_path / "student.tflite"
    arguments = [
        *("export", str(files / "student.keras"), str(path), "--json"),
        *("--quantization", "int8", "--calibration", str(files / "array.npy")),
    ]
    assert cli.main(arguments) == 0
    said = capsys.readouterr()
    assert said.err == ""
    facts = json.loads(said.out)
    assert facts["quantization"]["scheme"] == "int8"
    assert facts["student"]["name"] == "digits"
    assert facts["size"] == path.stat().st_size
    assert facts["operations"] == {
        "QUANTIZE": 1,
        "FULLY_CONNECTED": 1,
        "DEQUANTIZE": 1,
    }
    assert cli.main([*arguments, "--force"]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^inputs +pixels \[1, 6\] float32$", shown, re.M)
    assert re.search(r"^quantization +scheme: int8$", shown, re.M)
    assert re.search(r"^signal to noise +\d+\.\d dB$", shown, re.M)


WRONG = {
    "shapes": ("s.tflite", "narrow.npz", r"shape \(6,\). Received"),
    "names": ("s.tflite", "others.npz", r"has inputs \['pixels'\] but"),
    "file": ("s.tflite", "no.npz", "no such data"),
    "no archive": ("s.tflite", "noise.npz", "as `np.savez` writes it"),
    "folder": ("no/s.tflite", "data.npz", "There is no folder"),
    "suffix": ("s.onnx", "data.npz", "ends in .tflite"),
    "there": ("old.tflite", "data.npz", "Pass --force"),
}


@pytest.mark.parametrize("case", WRONG)
def test_says_what_is_wrong(case, files, capsys):
    file, data, message = WRONG[case]
    arguments = [
        *("export", str(files / "student.keras"), str(files / file)),
        *("--quantization", "int8", "--calibration", str(files / data)),
    ]
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(message, captured.err)
    assert len(captured.err.splitlines()) == 1
    assert (files / "old.tflite").read_bytes() == b"an older file"


def test_several_inputs_are_found_by_name(tmp_path, capsys):
    inputs = [keras.Input((n,), name=f"x{n}") for n in (2, 3)]
    student = keras.Model(inputs, layers.Dense(2)(layers.Concatenate()(inputs)))
    student.save(tmp_path / "student.keras")
    random = np.random.default_rng(0)
    arrays = {f"x{n}": random.normal(size=(9, n)) for n in (3, 2)}
    np.savez(tmp_path / "data.npz", **arrays)
    arguments = [
        *("export", str(tmp_path / "student.keras")),
        *(str(tmp_path / "s.tflite"), "--quantization", "int8"),
        *("--calibration", str(tmp_path / "data.npz")),
    ]
    assert cli.main(arguments) == 0
    assert "x2 [1, 2] float32, x3 [1, 3] float32" in capsys.readouterr().out


def test_what_a_file_says_cannot_steer_a_terminal():
    facts = {"description": "a\x1b[2J\u202eb\n", "\r": "c", "size": 1}
    assert as_table(facts).splitlines() == [
        r"description  a\x1b[2J\u202eb\n",
        "size         1 bytes (0.0 KB)",
        r"\r           c",
    ]


def test_file_of_another_program_may_have_no_signature(files, tmp_path):
    from ai_edge_litert.tools import flatbuffer_utils

    path = tmp_path / "student.tflite"
    arguments = ["export", str(files / "student.keras"), str(path)]
    assert cli.main(arguments) == 0
    model = flatbuffer.read_model(flatbuffer.split(path.read_bytes())[0])
    model.signatureDefs = None
    content = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    inputs, outputs = flatbuffer.interface(content)
    assert (inputs[0]["shape"], outputs[0]["shape"]) == ([1, 6], [1, 3])
    assert inputs[0]["dtype"] == "float32"
