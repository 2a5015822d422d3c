"""What can't be used: one clear line, status 2, and nothing left behind."""

import pathlib

import pytest
from support import only_on

from keras_distill.cli import main

# Each changes this command: `distill teacher student data -o out/out.keras`.
# A number replaces the argument at that place; what follows is added.
MISTAKES = {
    "unknown method": (["--method", "SoftTarget"], "mean SoftTargets"),
    "acronym": (["--method", "DKD"], "mean DecoupledSoftTargets"),
    "unknown option": (
        ["--method", "SoftTargets", "temprature=4"],
        "Did you mean temperature?",
    ),
    "no option": (["--method", "SoftTargets", "x.npy"], "written name=value"),
    "type of an option": (
        ["--method", "SoftTargets", "temperature=warm"],
        "of type float. Received: temperature=warm",
    ),
    "range of an option": (
        ["--method", "SoftTargets", "temperature=-1"],
        "must be a positive number",
    ),
    "option twice": (
        ["--method", "SoftTargets", "temperature=1", "--temperature", "2"],
        "given once",
    ),
    "option of no method": (
        ["--method", "LogitMatching", "--temperature", "2"],
        "No chosen method has a temperature",
    ),
    "missing option": (["--method", "SparseSoftTargets"], "needs its k"),
    "layers of no method": (["--layers", "conv=hidden"], "Layers are for"),
    "layers that are no pairs": (
        ["--method", "Hint", "--layers", "conv"],
        "come in pairs",
    ),
    "unknown layer": (
        ["--method", "Hint", "--layers", "conv=nowhere"],
        "no layer 'nowhere'",
    ),
    "weights": (["--weight", "1", "--weight", "2"], "has one weight"),
    "no teacher": ([1, "nowhere.keras"], "nowhere.keras"),
    "no student": ([2, "nowhere.keras"], "nowhere.keras"),
    "no data": ([3, "nowhere.npz"], "no such data"),
    "teacher of another kind": ([1, "x.npy"], "The teacher is a .keras file"),
    "damaged teacher": ([1, "noise.keras"], "isn't a `.keras` file"),
    "damaged data": ([3, "noise.npz"], "as `np.savez` writes it"),
    "pickled data": ([3, "pickle.npz"], "without pickles"),
    "unknown data": ([3, "notes.txt"], "how to read these data"),
    "folder of nothing": ([3, "out"], "without folders"),
    "class of nothing": ([3, "."], "'out' without files that end in"),
    "shapes": ([3, "large.npz"], "of shape (8, 8, 1). Received: examples of"),
    "labels beyond": ([3, "beyond.npz"], "labels from 1 to 3"),
    "labels missing": ([3, "fewer.npz"], "arrays of [9, 60] rows"),
    "other classes": ([3, "words.npz"], "3 classes apart. Received: 2"),
    "other names": (
        [3, "abc.npz", "--validation", "bcd.npz"],
        "a, b, c from 'abc.npz' and b, c, d from 'bcd.npz'",
    ),
    "holes": ([3, "holes.npz"], "NaN or infinity in example 7 of 'holes.npz'"),
    "classes of the student": ([2, "five.keras"], "3 and 5 classes"),
    "report of other classes": (
        [2, "five.keras", "--report", "out/r.html", "--validation", "0.2"],
        "--report, and 3 and 5 classes",
    ),
    "several classes": ([3, "several.npz"], "rows sum to 3 to 3"),
    "report on mixed classes": (
        [3, "soft.npz", "--report", "out/r.html", "--validation", "0.2"],
        "aren't one-hot",
    ),
    "report on no labels": (
        [3, "unknown.npz", "--report", "out/r.html", "--validation", "0.2"],
        "no example with a label",
    ),
    "no labels": ([3, "x.npy", "--alone"], "--alone needs labels"),
    "no labels for the method": (
        [3, "x.npy", "--method", "DecoupledSoftTargets"],
        "DecoupledSoftTargets needs labels",
    ),
    "split of the data": (["--split", "test"], "no such split"),
    "name of the labels": (["--labels", "z"], "no such array of labels"),
    "resizing numbers": (["--resize"], "take no size"),
    "share": (["--validation", "1.5"], "Both parts of a split"),
    "validation twice": (
        ["--validation", "0.5", "--validation-split", "test"],
        "Leave one out",
    ),
    "validation on the same": (["--validation", "data.npz"], "for both"),
    "validation on the same part": (
        [3, "parts.npz", "--validation-split", "train"],
        "for both",
    ),
    "export of any size": (
        [2, "any.keras", "--export", "out/s.tflite"],
        "examples of one shape",
    ),
    "report on nothing": (["--report", "out/r.html"], "Pass --validation"),
    "report of another kind": (
        ["--report", "out/r.pdf", "--validation", "0.2"],
        "ends in .html or .md or .json",
    ),
    "scheme without a file": (["--quantization", "int8"], "without --export"),
    "two students": (["--width", "0.5"], "Received: both"),
    "epochs": (["--epochs", "0"], "a whole number from 1 on"),
    "learning rate": (["--learning-rate", "0"], "is more than 0"),
    "no number": (["--learning-rate", "nan"], "it is a number"),
    "seed": (["--seed", "-1"], "from 0 to 4294967295, not '-1'"),
    "suffix": ([5, "out/out.h5"], "ends in .keras"),
    "cache among others": (["--cache", "."], "a folder of its own"),
    "cache in a file": (["--cache", "notes.txt"], "a folder of its own"),
    "the teacher's file": ([5, "teacher.keras", "--force"], "its teacher"),
    "file that is there": ([5, "student.keras"], "Pass --force"),
    "no folder": ([5, "out/no/out.keras"], "no folder to write to"),
    "below a file": ([5, "notes.txt/out.keras"], "no folder to write to"),
    "below a file, exported": (
        ["--export", "notes.txt/s.tflite"],
        "no folder to write to",
    ),
    "unknown option of distill": (["--epoch", "3"], "--epoch"),
}
MEASURE = ["report", "--teacher", "teacher.keras", "--students"]
VERIFY = ["verify", "notes.txt", "student.keras"]


def message(given, capsys):
    """What a command that is refused says."""
    assert main(given) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("keras-distill: ")
    return line


@pytest.mark.parametrize("case", MISTAKES)
def test_distill(case, files, tmp_path, capsys, monkeypatch):
    change, expected = MISTAKES[case]
    (tmp_path / "out").mkdir()
    for file in files.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    there = sorted(tmp_path.rglob("*"))
    given = ["distill", "teacher.keras", "student.keras", "data.npz"]
    given += ["-o", "out/out.keras"]
    if isinstance(change[0], int):
        place, name, *change = change
        given[place] = name
    assert expected in message([*given, *change], capsys)
    assert sorted(tmp_path.rglob("*")) == there


@only_on("torch")
@pytest.mark.skipif(
    not pathlib.Path("/proc/self").exists(), reason="There is no /proc."
)
def test_a_disk_that_refuses(files, capsys):
    given = ["distill", "teacher.keras", "student.keras", "data.npz"]
    given[1:] = [f"{files}/{name}" for name in given[1:]]
    said = message([*given, "-o", "/proc/out.keras"], capsys)
    assert "The folder can't be written to" in said


@only_on("torch")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["distil"], "invalid choice: 'distil'"),
        ([], "COMMAND"),
        (["methods", "Hints"], "Did you mean Hint"),
        (["inspect", "nowhere.tflite"], "nowhere.tflite"),
        (["report"], "no file and no models"),
        (["report", "a.json", "--seeds", "1"], "Received: a.json and --seeds"),
        (["report", "nowhere.json"], "nowhere.json"),
        (
            ["report", "a.json", "--scale", "1/255", "--data-dir", "x"],
            "Received: --scale, --data-dir, and 'a.json'",
        ),
        (
            ["export", "student.keras", "s.tflite", "--resize"],
            "Received: --resize, and no --calibration",
        ),
        (["report", "noise.json"], "UnicodeDecodeError"),
        (
            [*MEASURE, "student.keras", "--data", "x.npy"],
            "without labels",
        ),
        (
            [*MEASURE, "five.keras", "--data", "data.npz"],
            "a teacher of 3 classes",
        ),
        (
            [*VERIFY, "x.npy", "--max-drop", "0.1"],
            "no accuracy to lose",
        ),
        ([*VERIFY, "data.npz"], "notes.txt"),
        ([*VERIFY, "parts.npz"], "'parts.npz' without --split"),
        (
            [*MEASURE, "student.keras", "--data", "parts.npz"],
            "'parts.npz' without --split",
        ),
        (
            [*VERIFY, "data.npz", "--max-drop", "2"],
            "accuracy_drop is a fraction",
        ),
        (
            ["verify", "notes.txt", "logit.keras", "rows.npz"],
            "2 classes apart. Received: labels of 3 columns",
        ),
        (["label", "teacher.keras", "x.npy", ""], "an empty name"),
        (["label", "teacher.keras", "x.npy", "c", "--rank", "1"], "rank=1"),
        (["label", "teacher.keras", "x.npy", "."], "a folder of its own"),
        (["label", "teacher.keras", "holes.npz", "c"], "in example 7"),
        (["completion", "cmd"], "invalid choice: 'cmd'"),
    ],
)
def test_other_commands(given, expected, files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    there = sorted(files.rglob("*"))
    assert expected in message(given, capsys)
    assert sorted(files.rglob("*")) == there
