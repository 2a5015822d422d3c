"""PyTorch: two processes train the student that one trains."""

import time

import pytest
from distribution.launch import (
    GONE,
    assert_equal,
    assert_resumed,
    found,
    launch,
    launched,
)
from distribution.scenarios import run_on_one
from support import only_on

pytestmark = only_on("torch")
EQUAL = [
    "everything",
    "everything_accumulated",
    "arrays",
    "agreed",
    "relations",
    "relations_alone",
    "texts",
    "relations_per_replica",
    "banks",
]
ALONE = ["normalization", "dropout", "callbacks", "apart", "stopped", "frozen"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder, and how the processes ended of which one was killed."""
    where = tmp_path_factory.mktemp("processes")
    codes, outputs = launch("processes", where, ["killed"], size=2)
    seconds = time.time() - float((where / "died").read_text())
    return where, codes, outputs, seconds


@pytest.fixture(scope="module")
def folder(killed):
    where, *_ = killed
    names = [*EQUAL, *ALONE, "resumed", "uninterrupted"]
    launched("processes", where, names, size=2)
    return where


def test_says_that_a_process_was_killed(killed):
    _, codes, outputs, seconds = killed
    assert seconds < 60
    assert codes == [1, -9]
    assert GONE in outputs[0]


def test_processes_part_unless_one_failed(killed, folder):
    assert (folder / "ended-killed-0").read_text() == "2"
    for rank in (0, 1):
        assert (folder / f"ended-{EQUAL[0]}-{rank}").read_text() == "1"


def test_goes_on_after_it(folder):
    assert_resumed(folder)


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_do_what_one_does(folder, name):
    one = run_on_one(name)
    for rank in (0, 1):
        assert_equal(found(folder, name, rank), one)


@pytest.mark.parametrize("name", [*EQUAL, *ALONE])
def test_processes_agree_to_the_bit(folder, name):
    first, second = (found(folder, name, rank) for rank in (0, 1))
    assert_equal(first, second, tolerance=0)


def test_each_process_drops_other_units(folder):
    first, second = (found(folder, "dropout", rank) for rank in (0, 1))
    states = [k for k, v in first.items() if v.dtype.kind != "f"]
    assert states
    for key in states:
        assert first[key][0] != second[key][0]
        assert first[key][1] == second[key][1]  # as many draws


def test_what_would_train_apart_is_refused(folder):
    assert found(folder, "apart", 1)["refused"] == [1]


def test_all_stop_where_one_is_told_to(folder):
    for rank in (0, 1):
        history = found(folder, "stopped", rank)
        assert 5 <= history["steps"][0] < 9
        assert len(history["loss"]) == 2


def test_frozen_weights_stay_as_they_are(folder):
    assert found(folder, "frozen", 0)["moved"] == [0]


def test_one_process_writes_files_and_one_stops_all(folder):
    assert (folder / "files-0" / "student.keras").exists()
    assert (folder / "files-0.csv").exists()
    assert not (folder / "files-1").exists()
    assert not (folder / "files-1.csv").exists()
    assert len(found(folder, "callbacks", 0)["loss"]) == 1
