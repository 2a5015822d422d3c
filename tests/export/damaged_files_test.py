"""Files from anywhere: an error each time, and no end of the process."""

import json
import pathlib
import warnings
import zipfile

import keras
import numpy as np
import pytest
from support import only_on

import keras_distill as kd
from keras_distill import cli
from keras_distill.export import flatbuffer, inspect
from keras_distill.export.keras_file import load_keras

layers = keras.layers
# What comes after the float32 file is the same on each backend.
pytestmark = only_on("torch")
DAMAGED = 1000


def dense_student():
    return keras.Sequential(
        [keras.Input((6,), name="pixels"), layers.Dense(3, name="head")],
        name="digits",
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "student.tflite"
    kd.export_litert(
        dense_student(),
        path,
        metadata=kd.Metadata(labels=("one", "two", "three")),
    )
    return path


def damaged(content, random):
    """A file with some bytes changed, cut off, repeated or moved."""
    content = bytearray(content)
    at = int(random.integers(len(content)))
    kind = random.integers(4)
    if kind == 0:
        content[at] ^= 1 << int(random.integers(8))
    elif kind == 1:
        length = int(random.integers(1, 64))
        content[at : at + length] = random.bytes(length)
    elif kind == 2:
        del content[at:]
    else:
        content[at:at] = content[at // 2 : at // 2 + 32] + b"\0"
    return bytes(content)


def test_each_damage_to_our_file_is_an_error(file, tmp_path):
    random, content = np.random.default_rng(0), file.read_bytes()
    path = tmp_path / "damaged.tflite"
    for _ in range(DAMAGED):
        broken = damaged(content, random)
        if broken == content:
            continue
        path.write_bytes(broken)
        # One that is cut off before its facts is a stranger's.
        with pytest.raises(ValueError, match="LiteRT file"):
            kd.LiteRTArtifact.load(path)


def test_damage_to_a_file_of_another_program_never_ends_the_process(
    file, tmp_path
):
    random = np.random.default_rng(0)
    model, _ = flatbuffer.split(file.read_bytes())
    path, errors = tmp_path / "damaged.tflite", 0
    for _ in range(DAMAGED):
        path.write_bytes(damaged(model, random))
        try:
            facts = inspect(path)
        except flatbuffer.DamagedFileError:
            errors += 1
        else:
            # Without a checksum, a changed weight can't be seen.
            assert facts["operations"]
    assert errors > DAMAGED // 4


def test_each_damage_to_a_keras_file_is_an_error(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "student.keras"
    dense_student().save(path)
    content = path.read_bytes()
    unseen = 0
    for _ in range(DAMAGED):
        path.write_bytes(damaged(content, random))
        try:
            facts = inspect(path)
        except flatbuffer.DamagedFileError:
            continue
        # A date in the archive, say: what counts has a checksum.
        assert facts["name"] == "digits"
        unseen += 1
    assert unseen < DAMAGED // 4


def test_keras_file_is_loaded_in_safe_mode(tmp_path):
    path = tmp_path / "student.keras"
    student = dense_student()
    student.save(path)
    x = np.ones((2, 6), "float32")
    np.testing.assert_array_equal(
        load_keras(path).predict(x, verbose=0), student.predict(x, verbose=0)
    )
    unsafe = keras.Sequential([keras.Input((2,)), layers.Lambda(lambda x: x)])
    with warnings.catch_warnings():
        # About the very lambda.
        warnings.simplefilter("ignore")
        unsafe.save(path)
    with pytest.raises(flatbuffer.DamagedFileError, match="lambda"):
        load_keras(path)


def test_archive_that_unpacks_to_far_more_is_refused(tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", b"\0" * 2**28)
    with pytest.raises(flatbuffer.DamagedFileError, match="when unpacked"):
        inspect(path)


def test_facts_that_fill_the_memory_are_refused(file, tmp_path, monkeypatch):
    monkeypatch.setattr(flatbuffer, "_LARGEST_ENTRY", 10)
    with pytest.raises(flatbuffer.DamagedFileError, match="no exporter writes"):
        kd.LiteRTArtifact.load(file)


def test_file_of_another_program_has_no_facts(file, tmp_path):
    path = tmp_path / "other.tflite"
    path.write_bytes(flatbuffer.split(file.read_bytes())[0])
    assert inspect(path)["note"] == "written by another program"
    with pytest.raises(ValueError, match="from another program"):
        kd.LiteRTArtifact.load(path)
    path.write_text("no model")
    with pytest.raises(flatbuffer.DamagedFileError, match="TFL3"):
        inspect(path)


def test_facts_and_labels_are_in_the_file(tmp_path, capsys):
    teacher, student = dense_student(), dense_student()
    x = np.zeros((4, 6), "float32")
    path = tmp_path / "student.tflite"
    kd.export_litert(
        student,
        path,
        metadata=kd.Metadata(
            labels=("one", "two", "three"),
            normalization={"pixels": "divided by 255"},
            description="Digits.",
            teacher=teacher,
            data=x,
            figures={"test accuracy": 0.75},
        ),
    )
    facts = inspect(path)
    assert facts["labels"] == ["one", "two", "three"]
    assert facts["operations"] == {"FULLY_CONNECTED": 1}
    assert facts["student"]["parameters"] == 21
    assert facts["student"]["sha256"] != facts["teacher"]["sha256"]
    assert facts["data"]["shapes"] == [[4, 6]]
    assert facts["figures"] == {"test accuracy": 0.75}
    # Any zip program reads it.
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt") == b"one\ntwo\nthree\n"
    assert cli.main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    for text in ("pixels [1, 6] float32", "divided by 255", "Digits."):
        assert text in shown
    assert cli.main(["inspect", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(facts))


def test_same_export_twice_is_the_same_file(tmp_path):
    student = dense_student()
    first, second = tmp_path / "1.tflite", tmp_path / "2.tflite"
    kd.export_litert(student, first)
    kd.export_litert(student, second)
    assert first.read_bytes() == second.read_bytes()


def test_command_says_what_is_wrong(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path / "no.tflite")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert cli.main([]) == 2
    assert "required: COMMAND" in capsys.readouterr().err


def test_cli_is_installed():
    pyproject = pathlib.Path(kd.__file__).parents[1] / "pyproject.toml"
    assert 'keras-distill = "keras_distill.cli:main"' in pyproject.read_text()


@pytest.mark.parametrize(
    "facts", [{}, [1], {"quantization": {"scheme": "int8", "new": 1}}]
)
def test_facts_that_make_no_sense_are_an_error(facts, file, tmp_path):
    model, _ = flatbuffer.split(file.read_bytes())
    path = tmp_path / "odd.tflite"
    path.write_bytes(flatbuffer.with_facts(model, facts, ()))
    with pytest.raises(flatbuffer.DamagedFileError):
        kd.LiteRTArtifact.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_error": "small"}, "max_error='small'"),
        ({"snr_db": True}, "snr_db=True"),
        ({"description": 7}, r"description=7 \(expected: str\)"),
        ({"student": {"name": 1}}, "student: name=1"),
        ({"input_names": "image"}, r"input_names=image for inputs \['pixels'"),
        ({"outputs": []}, "for outputs"),
        ({"inputs": [{"name": "pixels", "shape": "6"}]}, "inputs: shape='6'"),
        ({"quantization": {"integer_io": "no"}}, "integer_io='no'"),
        ({"quantization": {"float_layers": [1]}}, "Received: 1 in it"),
    ],
)
def test_facts_of_other_types_are_an_error(change, message, file, tmp_path):
    model, facts = flatbuffer.split(file.read_bytes())
    for name, value in change.items():
        is_dict = isinstance(value, dict)
        facts[name] = {**facts[name], **value} if is_dict else value
    path = tmp_path / "odd.tflite"
    path.write_bytes(flatbuffer.with_facts(model, facts, ()))
    with pytest.raises(flatbuffer.DamagedFileError, match=message):
        kd.LiteRTArtifact.load(path)


def test_facts_do_not_overrule_what_is_measured(file, tmp_path):
    model, _ = flatbuffer.split(file.read_bytes())
    path = tmp_path / "lies.tflite"
    lies = {"operations": {"NOTHING": 1}, "size": 1, "inputs": "none"}
    path.write_bytes(flatbuffer.with_facts(model, lies, ()))
    facts = inspect(path)
    assert facts["operations"] == {"FULLY_CONNECTED": 1}
    assert facts["size"] == path.stat().st_size
    assert facts["inputs"][0]["name"] == "pixels"
