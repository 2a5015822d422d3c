"""Students as ONNX, OpenVINO and SavedModel files, from each backend."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_distill import (
    Distiller,
    ExportArtifact,
    export_onnx,
    export_openvino,
    export_saved_model,
)
from keras_distill.export import float_file, formats, placing

layers = keras.layers

# How a format is exported, what it needs, and what it leaves.
FORMATS = {
    "onnx": (export_onnx, ["onnxruntime", "tf2onnx"], ["s.onnx"]),
    "openvino": (export_openvino, ["openvino"], ["s.xml", "s.bin"]),
    "saved_model": (export_saved_model, [], ["s"]),
}
on_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="Doesn't depend on the backend and takes seconds: on jax.",
)


@pytest.fixture(params=FORMATS)
def export(request, tmp_path):
    """Exports a student to a folder of the test's."""
    function, packages, files = FORMATS[request.param]
    for package in packages:
        pytest.importorskip(package)

    def export(student, **options):
        return function(student, tmp_path / files[0], **options)

    export.files = sorted(files)
    return export


def vision_student():
    image = keras.Input((12, 12, 4), name="image")
    x = layers.Conv2D(8, 3, groups=2, padding="same", use_bias=False)(image)
    x = layers.Activation("gelu")(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, strides=2, padding="same")(x)
    up = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(x)
    kind = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, {"kind": kind, "image": up})


def text_student():
    tokens = keras.Input((8,), dtype="int32", name="tokens")
    x = layers.Embedding(50, 8, mask_zero=True)(tokens)
    return keras.Model(tokens, layers.Dense(3)(layers.LSTM(4)(x)))


def dense_student():
    return keras.Sequential([keras.Input((4,), name="x"), layers.Dense(3)])


def unsupported_student():
    student = [keras.Input((8, 8, 1)), layers.Resizing(12, 12, "lanczos5")]
    return keras.Sequential(student)


def assert_agrees(artifact, student, x):
    assert artifact.max_error <= 1e-4
    expected, seen = student.predict(x, verbose=0), artifact.predict(x)
    keras.tree.assert_same_structure(expected, seen)
    for e, s in zip(
        keras.tree.flatten(expected), keras.tree.flatten(seen), strict=True
    ):
        assert s.dtype == "float32"
        np.testing.assert_allclose(s, e, rtol=0, atol=1e-4 * np.ptp(e))


def test_convolutional_student_agrees_with_keras(export, tmp_path):
    student = vision_student()
    tensorflow_before = "tensorflow" in sys.modules
    artifact = export(student, batch_size=None)
    images = np.random.default_rng(1).uniform(0, 1, (5, 12, 12, 4))
    assert_agrees(artifact, student, images.astype("float32"))
    assert ("tensorflow" in sys.modules) == tensorflow_before
    assert isinstance(artifact, ExportArtifact)
    assert artifact.input_names == "image"
    # A graph has each name once.
    names = {"kind": "kind", "image": "image_out"}
    assert artifact.output_names == names
    assert [info[:3] for info in artifact.outputs] == [
        ("image_out", (None, 12, 12, 4), "float32"),
        ("kind", (None, 3), "float32"),
    ]
    assert sorted(os.listdir(tmp_path)) == export.files
    assert artifact.size == sum(
        placing.size_of(tmp_path / file) for file in export.files
    )
    with pytest.raises(ValueError, match="examples of shape"):
        artifact.predict(images[:, :6])


@on_jax
def test_recurrent_student_agrees_with_keras(export):
    student = text_student()
    artifact = export(student)
    assert artifact.batch_size == 1
    tokens = np.random.default_rng(1).integers(0, 50, (3, 8), "int32")
    assert_agrees(artifact, student, tokens)


@on_jax
def test_a_new_file_takes_the_place_of_the_old_if_it_passed(
    export, tmp_path, monkeypatch
):
    student = dense_student()
    x = np.eye(4, dtype="float32")
    before = export(student)
    outputs = before.predict(x)
    student.set_weights([2 * w for w in student.get_weights()])

    with monkeypatch.context() as patch:
        patch.setattr(formats, "require_parity", _refuse)
        with pytest.raises(RuntimeError, match="refused"):
            export(student)
    assert sorted(os.listdir(tmp_path)) == export.files
    np.testing.assert_array_equal(before.predict(x), outputs)

    after = export(student)
    assert sorted(os.listdir(tmp_path)) == export.files
    np.testing.assert_allclose(after.predict(x), 2 * outputs, rtol=1e-6)


def _refuse(*args):
    raise RuntimeError("refused")


@on_jax
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_operations_without_a_counterpart_are_named(name, tmp_path):
    export, packages, files = FORMATS[name]
    for package in packages:
        pytest.importorskip(package)
    message = r"ScaleAndTranslate at '.*resizing.*export_saved_model"
    with pytest.raises(RuntimeError, match=message):
        export(unsupported_student(), tmp_path / files[0])
    assert os.listdir(tmp_path) == []


@on_jax
def test_onnx_file_has_the_opset_and_names_asked_for(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("tf2onnx")
    path = tmp_path / "s.onnx"
    export_onnx(dense_student(), path, batch_size=None, opset=13)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [o.version for o in model.opset_import if not o.domain] == [13]
    (value,) = model.graph.input
    assert value.name == "x"
    assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


@on_jax
def test_openvino_is_imported_without_its_telemetry():
    pytest.importorskip("openvino")
    script = (
        "import sys\n"
        "from keras_distill.export.format_runners import import_openvino\n"
        "import_openvino().Core()\n"
        "print('openvino_telemetry' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "KERAS_BACKEND": "numpy",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    ).stdout
    assert printed.split() == ["False"]


def move_in(folder, in_the_way=False):
    with placing.staged(folder) as at:
        for name in "ab":
            (at / name).write_text("new")
        if in_the_way:
            # Where a folder "b" would be moved aside to.
            (at.parent / "old" / "b").touch()


@pytest.mark.parametrize("broken", [1, 2, 3, 4])
def test_several_files_are_moved_all_or_none(broken, tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).write_text("old")
    replace, calls = os.replace, []

    def fail(source, target):
        calls.append(source)
        if len(calls) == broken:
            raise OSError("broken")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="broken"):
        move_in(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert [(tmp_path / name).read_text() for name in "ab"] == ["old", "old"]


def test_links_that_part_files_are_an_error(tmp_path):
    (tmp_path / "s.xml").symlink_to(tmp_path / "other.xml")
    with pytest.raises(ValueError, match=r"s\.bin' isn't one"):
        export_openvino(dense_student(), tmp_path / "s.xml")


def test_new_files_are_taken_back_if_one_cannot_be_moved(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "full").touch()
    with pytest.raises(OSError, match="directory"):
        move_in(tmp_path, in_the_way=True)
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize(
    ("export", "name", "message"),
    [
        (export_onnx, "s.tflite", r"Pass '.*s\.onnx'"),
        (export_onnx, "no/s.onnx", "There is no folder"),
        (export_onnx, "folder.onnx", "is a folder"),
        (export_openvino, "s.bin", r"Pass '.*s\.xml'"),
        (export_openvino, "folder.xml", "is a folder"),
        (export_saved_model, "", "holds other things"),
        (export_saved_model, "file", "holds other things"),
    ],
)
def test_paths_that_cannot_be_written(export, name, message, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "folder.bin").mkdir()
    (tmp_path / "file").touch()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match=message):
        export(dense_student(), tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("export", "name", "extra"),
    [
        (export_onnx, "s.onnx", "onnx"),
        (export_openvino, "s.xml", "openvino"),
        (export_saved_model, "s", "tensorflow"),
    ],
)
def test_missing_packages_are_named(export, name, extra, tmp_path, monkeypatch):
    monkeypatch.setattr(float_file.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=rf"keras-distill\[{extra}\]"):
        export(dense_student(), tmp_path / name)


def test_students_and_opsets_that_cannot_be_exported(tmp_path):
    with pytest.raises(ValueError, match="opset=19"):
        export_onnx(dense_student(), tmp_path / "s.onnx", opset=19)
    distiller = Distiller(dense_student(), dense_student())
    with pytest.raises(TypeError, match=r"distiller\.student"):
        export_saved_model(distiller, tmp_path / "s")
    assert os.listdir(tmp_path) == []
