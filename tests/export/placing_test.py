"""Files that go where links lead, and folders that are gone."""

import os

import keras
import pytest
from support import mlp, only_on

import keras_distill as kd
from keras_distill.export import processes
from keras_distill.export.placing import place_file, target_of

pytestmark = [
    only_on("torch"),
    pytest.mark.skipif(os.name != "posix", reason="Links are POSIX."),
]


def test_what_a_link_leads_to_is_written(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    link, target = tmp_path / "link", store / "target"
    link.symlink_to(target)
    for content in (b"first", b"second"):
        place_file(link, content)
        assert target.read_bytes() == content
        assert link.is_symlink()
        assert os.listdir(store) == ["target"]
        assert sorted(os.listdir(tmp_path)) == ["link", "store"]


def test_links_are_followed_however_many(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("c")
    assert target_of(tmp_path.relative_to(tmp_path) / "a") == tmp_path / "c"


def test_export_follows_a_link(tmp_path):
    path, target = tmp_path / "newest.tflite", tmp_path / "first.tflite"
    path.symlink_to(target)
    artifact = kd.export_litert(mlp(), path)
    assert artifact.path == path
    assert path.is_symlink()
    assert target.stat().st_size == artifact.size


def test_link_to_nowhere_is_an_error(tmp_path):
    for export, name in [
        (kd.export_litert, "tflite"),
        (kd.export_onnx, "onnx"),
    ]:
        path = tmp_path / f"link.{name}"
        path.symlink_to(tmp_path / "no" / "file")
        with pytest.raises(ValueError, match=r"There is no folder '.*no'"):
            export(mlp(), path)


def test_working_folder_that_was_removed_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(FileNotFoundError, match=r"os\.chdir"):
        processes.call(len, "abc")
    for path in (tmp_path / "s.tflite", "s.tflite"):
        with pytest.raises(FileNotFoundError, match=r"os\.chdir"):
            kd.export_litert(keras.Sequential(), path)
