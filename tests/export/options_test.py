"""Batches, signatures, operations of TensorFlow, and equality of backends."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from support import only_on

import keras_distill as kd
from keras_distill.export import processes

layers = keras.layers


def dense_student():
    return keras.Sequential(
        [keras.Input((6,), name="pixels"), layers.Dense(3, name="head")]
    )


@only_on("torch")
@pytest.mark.parametrize("batch_size", [None, 4])
def test_batches_of_any_size_and_of_one_size(batch_size, tmp_path):
    student = dense_student()
    artifact = kd.export_litert(
        student, tmp_path / "s.tflite", batch_size=batch_size
    )
    assert artifact.batch_size == batch_size
    assert artifact.inputs[0].shape == (batch_size, 6)
    x = np.random.default_rng(0).normal(size=(11, 6)).astype("float32")
    np.testing.assert_allclose(
        artifact.predict(x), student.predict(x, verbose=0), atol=1e-5
    )
    again = kd.LiteRTArtifact.load(artifact.path)
    assert again.batch_size == batch_size
    check = kd.verify_litert(again, student, x, runs=1)
    assert check.agreement == 1


@only_on("torch")
def test_batch_of_the_student_and_static_scheme(tmp_path):
    student = keras.Sequential(
        [keras.Input(batch_shape=(4, 6)), layers.Dense(3)]
    )
    x = np.random.default_rng(0).normal(size=(10, 6)).astype("float32")
    path = tmp_path / "s.tflite"
    artifact = kd.export_litert(
        student, path, "int8", batch_size=4, calibration_data=x
    )
    assert artifact.predict(x).shape == (10, 3)
    assert artifact.snr_db > 20
    # The last batch is calibrated, too, though it isn't a whole one.
    x[8:] *= 50
    artifact = kd.export_litert(
        student, path, "int8", batch_size=4, calibration_data=x
    )
    assert artifact.snr_db > 20


@only_on("torch")
def test_signature_has_the_name_that_was_given(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    artifact = kd.export_litert(
        dense_student(), tmp_path / "s.tflite", signature="classify"
    )
    interpreter = Interpreter(model_content=artifact.model())
    assert interpreter.get_signature_list() == {
        "classify": {"inputs": ["pixels"], "outputs": ["output_0"]}
    }
    assert artifact.predict(np.zeros((2, 6), "float32")).shape == (2, 3)


@only_on("torch")
def test_lists_in_and_tuples_out(tmp_path):
    a, b = keras.Input((4,), name="a"), keras.Input((5,), name="b")
    student = keras.Model(
        [a, b], (layers.Dense(2)(a), layers.Dense(3)(layers.Add()([b, b])))
    )
    artifact = kd.export_litert(student, tmp_path / "s.tflite")
    x = [np.ones((3, 4), "float32"), np.ones((3, 5), "float32")]
    expected = student.predict(x, verbose=0)
    for found in (artifact, kd.LiteRTArtifact.load(artifact.path)):
        for e, s in zip(expected, found.predict(x), strict=True):
            np.testing.assert_allclose(s, e, atol=1e-6)


@only_on("tensorflow")
def test_operations_of_tensorflow_if_the_caller_allows_them(tmp_path):
    grow = layers.Resizing(8, 8, interpolation="bicubic", name="grow")
    student = keras.Sequential([keras.Input((4, 4, 3)), grow])
    path = tmp_path / "s.tflite"
    with pytest.raises(RuntimeError, match="allow_flex=True"):
        kd.export_litert(student, path)
    with pytest.warns(UserWarning, match="Check it on the device"):
        artifact = kd.export_litert(student, path, allow_flex=True)
    assert [o.name for o in artifact.operations] == ["FlexResizeBicubic"]
    assert artifact.max_error < 1e-5
    with pytest.raises(RuntimeError, match="Run it on the device"):
        artifact.predict(np.zeros((2, 4, 4, 3), "float32"))
    # Where there is no need for it, nothing changes.
    plain = kd.export_litert(dense_student(), path, allow_flex=True)
    assert [o.name for o in plain.operations] == ["FULLY_CONNECTED"]


EXPORT = """
import json, sys
import keras
import keras_distill as kd
if __name__ == "__main__":
    student = keras.saving.load_model(sys.argv[1])
    artifact = kd.export_litert(student, sys.argv[2])
    print(json.dumps([o.name for o in artifact.operations]))
"""


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="It is compared with."
)
def test_file_is_the_one_that_tensorflow_gives(tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.Activation("silu")(layers.BatchNormalization()(x))
    x = layers.Reshape((36, 8))(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)])
    x = layers.LayerNormalization()(x)
    student = keras.Model(image, layers.Dense(4)(layers.GRU(6)(x)))
    student.save(tmp_path / "student.keras")
    ours = kd.export_litert(student, tmp_path / "ours.tflite")
    done = subprocess.run(
        [sys.executable, "-c", EXPORT]
        + [str(tmp_path / name) for name in ("student.keras", "theirs.tflite")],
        env=os.environ
        | {
            "KERAS_BACKEND": "tensorflow",
            "PYTHONPATH": os.pathsep.join(processes.search_path()),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    names = json.loads(done.stdout.splitlines()[-1])
    assert [o.name for o in ours.operations] == names
    theirs = kd.LiteRTArtifact.load(tmp_path / "theirs.tflite")
    x = np.random.default_rng(1).random((16, 12, 12, 3)).astype("float32")
    np.testing.assert_allclose(
        ours.predict(x), theirs.predict(x), rtol=0, atol=1e-6
    )
    assert ours.max_error <= 1e-5


@only_on("torch")
def test_made_up_names_are_none_of_the_users(tmp_path):
    x = keras.Input((3,))
    student = keras.Model(
        x,
        {
            "output_2": layers.Dense(2)(x),
            "z": [layers.Dense(2)(x), layers.Dense(2)(x)],
        },
    )
    artifact = kd.export_litert(student, tmp_path / "s.tflite")
    inputs = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    expected = student.predict(inputs, verbose=0)
    seen = artifact.predict(inputs)
    np.testing.assert_allclose(seen["output_2"], expected["output_2"], 1e-5)
    for e, s in zip(expected["z"], seen["z"], strict=True):
        np.testing.assert_allclose(s, e, rtol=1e-5)


@only_on("torch")
def test_folder_in_the_files_place_is_left_alone(tmp_path):
    folder = tmp_path / "s.tflite"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="A folder is in"):
        kd.export_litert(dense_student(), folder)
    assert (folder / "mine.txt").read_text() == "mine"
