"""Files as teachers, and processes that run them."""

import os
import pathlib
import signal

import keras
import numpy as np
import pytest
from keras import layers
from support import cnn, images, only_on, teacher

import keras_distill as kd

as_teacher = kd.teachers.as_teacher
KerasFile = kd.teachers.KerasFile
OTHER = {"torch": "jax", "jax": "tensorflow", "tensorflow": "jax"}


def close(ours, theirs):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=2e-6)


@pytest.fixture
def saved(tmp_path):
    model = teacher()
    model.save(tmp_path / "teacher.keras")
    return model, tmp_path / "teacher.keras"


def test_a_keras_file_in_this_process(saved):
    model, path = saved
    labeller, (x, _) = as_teacher(path, layers=("relu",)), images()
    expected = as_teacher(model, layers=("relu",))
    np.testing.assert_array_equal(labeller.label(x)[0], expected.label(x)[0])
    assert labeller.fingerprint == expected.fingerprint


def test_a_keras_file_on_another_backend(saved):
    model, path = saved
    x, _ = images()
    expected, hidden = as_teacher(model, layers=("relu",)).label(x)
    labeller = as_teacher(
        KerasFile(path, OTHER[keras.backend.backend()]), layers=("relu",)
    )
    with labeller:
        output, features = labeller.label(x)
        close(output, expected)
        close(features["relu"], hidden["relu"])
        assert labeller.fingerprint == as_teacher(model).fingerprint
        assert labeller.probabilities is False
        _require_an_error_when_killed(labeller, x)
        close(labeller.label(x)[0], expected)


def _require_an_error_when_killed(labeller, x):
    process = labeller._process._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(RuntimeError, match=r"before it answered.*SIGKILL"):
        labeller._process.ask({"inputs": x})


@only_on("jax")
def test_structures_go_through_the_pipe(tmp_path):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    outputs = {"x": layers.Dense(2)(a), "y": [layers.Dense(4)(b), b + 1]}
    model = keras.Model({"a": a, "b": b}, outputs)
    model.save(tmp_path / "teacher.keras")
    inputs = {"a": np.ones((4, 3)), "b": np.ones((4, 2), "int32")}
    with KerasFile(tmp_path / "teacher.keras", "jax") as labeller:
        output, _ = labeller.label(inputs)
    expected, _ = as_teacher(model).label(inputs)
    keras.tree.map_structure(np.testing.assert_array_equal, output, expected)


@only_on("jax")
def test_errors_of_the_process(saved):
    _, path = saved
    with pytest.raises(ValueError, match=r"no layer 'relo'.*Did you mean"):
        _ = KerasFile(path, "jax", ["relo"]).fingerprint
    with KerasFile(path, "jax") as labeller:
        with pytest.raises(ValueError, match="can't take the batch"):
            labeller.label(np.zeros((2, 5), "float32"))
        assert labeller.label(np.zeros((2, 8, 8, 1)))[0].shape == (2, 3)
    with pytest.raises(ValueError, match="backend='theano'"):
        KerasFile(path, "theano")
    with pytest.raises(FileNotFoundError, match="no teacher at"):
        KerasFile(path.with_name("other.keras"))
    path.write_bytes(b"nothing")
    with pytest.raises(kd.export.DamagedFileError, match="isn't a"):
        KerasFile(path)


@only_on("jax")
def test_code_in_a_file_is_not_run(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: x)])
    model.save(tmp_path / "teacher.keras")
    with pytest.raises(RuntimeError, match="safe"):
        KerasFile(tmp_path / "teacher.keras", "jax").label(np.zeros((2, 3)))


@only_on("jax")
def test_custom_layers_are_imported(tmp_path, monkeypatch):
    (tmp_path / "teacher_layers.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable()\n"
        "class Double(keras.Layer):\n"
        "    def call(self, x):\n        return 2 * x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import teacher_layers

    model = keras.Sequential([keras.Input((3,)), teacher_layers.Double()])
    model.save(tmp_path / "teacher.keras")
    path = tmp_path / "teacher.keras"
    with KerasFile(path, "jax", imports=["teacher_layers"]) as labeller:
        output, _ = labeller.label(np.ones((2, 3)))
    np.testing.assert_array_equal(output, np.full((2, 3), 2))


@only_on("tensorflow")
def test_exported_files(tmp_path):
    model, (x, _) = teacher(), images(7)
    expected = model.predict(x, verbose=0)
    for artifact, suffix, runtime in (
        (kd.export_onnx(model, tmp_path / "t.onnx"), "t.onnx", "onnxruntime"),
        (kd.export_litert(model, tmp_path / "t.tflite"), "t.tflite", "litert"),
        (kd.export_saved_model(model, tmp_path / "t"), "t", "tensorflow"),
    ):
        labeller, by_path = as_teacher(artifact), as_teacher(tmp_path / suffix)
        with labeller:
            close(labeller.label(x)[0], expected)
        # It starts again.
        close(labeller.label(x.astype("float64"))[0], expected)
        labeller.close()
        assert labeller.runtime == by_path.runtime == runtime
        mine, theirs = labeller.fingerprint, by_path.fingerprint
        assert mine["sha256"] == theirs["sha256"]
        assert labeller.probabilities is None
    with pytest.raises(ValueError, match="hidden layers"):
        as_teacher(artifact, layers=("relu",))


@only_on("tensorflow")
def test_files_with_several_inputs_and_outputs(tmp_path):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    outputs = {"x": layers.Dense(2)(a), "y": layers.Dense(4)(b)}
    model = keras.Model([a, b], outputs)
    artifact = kd.export_onnx(model, tmp_path / "t.onnx", batch_size=None)
    inputs = [np.ones((4, 3)), np.ones((4, 2), "float32")]
    expected = model.predict(inputs, verbose=0)
    by_name = {"a": inputs[0], "b": inputs[1], "unused": np.ones(4)}
    labeller = kd.teachers.OnnxFile(artifact.path, probabilities=True)
    assert labeller.probabilities
    for given in (
        as_teacher(artifact).label(inputs),
        labeller.label(inputs),
        labeller.label(by_name),
    ):
        for name in ("x", "y"):
            close(given[0][name], expected[name])
    with pytest.raises(ValueError, match=r"Pass a dict with \['b'\]"):
        labeller.label({"a": inputs[0]})
    with pytest.raises(ValueError, match="a batch of 1 arrays"):
        labeller.label(inputs[0])


@only_on("tensorflow")
def test_integers_of_a_quantised_file_are_floats_outside(tmp_path):
    model, (x, _) = cnn(), images()
    scheme = kd.Quantization("int8", integer_io=True)
    artifact = kd.export_litert(
        model, tmp_path / "t.tflite", scheme, calibration_data=x
    )
    output, _ = as_teacher(artifact).label(x)
    np.testing.assert_array_equal(output, artifact.predict(x))


@only_on("jax")
def test_a_folder_that_is_no_saved_model(tmp_path):
    with pytest.raises(ValueError, match=r"with a saved_model\.pb"):
        as_teacher(tmp_path)


@only_on("jax")
def test_packages_that_are_missing(tmp_path, monkeypatch):
    path = pathlib.Path(tmp_path, "t.onnx")
    path.write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for suffix, extra in ((".onnx", "onnx"), (".tflite", "litert")):
        with pytest.raises(ImportError, match=rf"keras-distill\[{extra}\]"):
            as_teacher(path.rename(path.with_suffix(suffix)))
        path = path.with_suffix(suffix)
    with pytest.raises(ImportError, match=r"keras-distill\[tensorflow\]"):
        as_teacher(tmp_path)
