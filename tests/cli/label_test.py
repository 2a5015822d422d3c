"""`keras-distill label`, as a shell calls it."""

import json

import numpy as np
import pytest
from PIL import Image
from support import cnn, images, only_on

import keras_distill as kd
from keras_distill.cli import main


@pytest.fixture
def files(tmp_path):
    """A teacher and examples in files."""
    teacher = cnn(4)
    teacher.save(tmp_path / "teacher.keras")
    x, _ = images(45)
    np.save(tmp_path / "x.npy", x)
    return tmp_path, teacher, x


def command(folder, *more):
    return [
        *("label", f"{folder}/teacher.keras", f"{folder}/x.npy"),
        *(f"{folder}/cache", "--batch-size", "8", "--shard-rows", "16"),
        *more,
    ]


def test_ranks_fill_a_cache_together(files, capsys):
    folder, teacher, x = files
    assert main(command(folder, "--rank", "1", "--world", "2", "--json")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["missing"] == 2
    assert not facts["complete"]
    assert main(command(folder, "--rank", "0", "--world", "2")) == 0
    cache = kd.TeacherCache.open(folder / "cache", x, teacher)
    cache.verify(x)
    np.testing.assert_allclose(
        cache.read(np.arange(45)).teacher_output,
        np.asarray(teacher.predict(x, verbose=0)),
        # Half a step of float16, and what two ways to compute differ by.
        rtol=2**-11,
        atol=1e-4,
    )


def test_arrays_by_name(files):
    folder, _, x = files
    np.savez(folder / "x.npz", images=x)
    arguments = command(folder)
    arguments[2] = f"{folder}/x.npz"
    assert main(arguments) == 0
    kd.TeacherCache.open(folder / "cache").verify(x)


@only_on("torch")
def test_images_of_any_size(files):
    folder, *_ = files
    for i in range(3):
        (folder / f"images/{i}").mkdir(parents=True)
        picture = Image.fromarray(np.full((9 + i, 9), 90 * i, "uint8"))
        picture.save(folder / f"images/{i}/a.png")
    arguments = command(folder, "--size", "8", "8")
    arguments[2] = f"{folder}/images"
    assert main(arguments) == 0
    cache = kd.TeacherCache.open(folder / "cache")
    assert len(cache.read(np.arange(3)).teacher_output) == 3


@only_on("torch")
def test_labels_are_left_out_by_their_name(files):
    folder, _, x = files
    np.savez(folder / "x.npz", images=x, classes=np.zeros(len(x)))
    arguments = command(folder, "--labels", "classes")
    arguments[2] = f"{folder}/x.npz"
    assert main(arguments) == 0
    kd.TeacherCache.open(folder / "cache").verify(x)


@only_on("torch")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: "nowhere.keras"}, "nowhere.keras"),
        ({2: "nowhere.npy"}, "nowhere.npy"),
        ({1: "x.npy"}, "x.npy"),
        ({2: "teacher.keras"}, "how to read these data"),
    ],
)
def test_what_cannot_be_used_is_one_line(files, capsys, change, message):
    folder, *_ = files
    arguments = command(folder)
    for place, name in change.items():
        arguments[place] = f"{folder}/{name}"
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert message in said.err
    assert said.out == ""
    assert not (folder / "cache").exists()


@only_on("torch")
def test_another_storage_is_refused(files, capsys):
    folder, *_ = files
    assert main(command(folder)) == 0
    assert main(command(folder, "--storage", "uint8")) == 2
    assert "other tensors or another storage" in capsys.readouterr().err
