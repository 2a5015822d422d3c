"""Students as LiteRT files, from each backend."""

import os
import runpy
import sys
import textwrap

import keras
import numpy as np
import pytest
from support import only_on

import keras_distill
from keras_distill.export import (
    TensorInfo,
    export_litert,
    float_file,
    processes,
)

layers = keras.layers


def vision_student():
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.Activation("silu")(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", activation="gelu")(x)
    x = layers.Resizing(24, 24)(x)
    x = layers.UpSampling2D(interpolation="bilinear")(x)
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Dense(10)(x))


def text_student():
    tokens = keras.Input((12,), dtype="int32", name="tokens")
    x = layers.Embedding(50, 8, mask_zero=True)(tokens)
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(x)
    return keras.Model(tokens, layers.Dense(3)(layers.GRU(5)(x)))


def assert_agrees(artifact, student, x):
    assert artifact.max_error <= 1e-4
    assert artifact.size == artifact.path.stat().st_size
    expected, seen = student.predict(x, verbose=0), artifact.predict(x)
    keras.tree.assert_same_structure(expected, seen)
    for e, s in zip(
        keras.tree.flatten(expected), keras.tree.flatten(seen), strict=True
    ):
        np.testing.assert_allclose(s, e, rtol=0, atol=1e-4 * np.ptp(e))


def test_convolutional_student_agrees_with_keras(
    tmp_path,
):
    student = vision_student()
    tensorflow_before = "tensorflow" in sys.modules
    artifact = export_litert(student, tmp_path / "student.tflite")
    assert ("tensorflow" in sys.modules) == tensorflow_before
    assert artifact.inputs == (TensorInfo("image", (1, 32, 32, 3), "float32"),)
    assert artifact.outputs == (TensorInfo("output_0", (1, 10), "float32"),)
    images = np.random.default_rng(1).uniform(0, 255, (5, 32, 32, 3))
    images = images.astype("float32")
    assert_agrees(artifact, student, images)
    small = export_litert(
        student, artifact.path, "int8", calibration_data=images
    )
    assert small.snr_db > 20
    with pytest.raises(ValueError, match="examples of shape"):
        artifact.predict(images[:, :16])


def test_recurrent_student_agrees_with_keras(tmp_path):
    student = text_student()
    artifact = export_litert(student, str(tmp_path / "student.tflite"))
    assert artifact.inputs[0].dtype == "int32"
    tokens = np.random.default_rng(1).integers(0, 50, (5, 12), "int32")
    assert_agrees(artifact, student, tokens)
    with pytest.raises(TypeError, match="array of float32, which would lose"):
        artifact.predict(tokens.astype("float32"))


def test_mixed_precision_student_becomes_float32_and_stays_as_it_was(
    tmp_path,
):
    inputs = keras.Input((10,))
    x = layers.Normalization(mean=0.3, variance=2.0, dtype="mixed_float16")(
        inputs
    )
    x = layers.Dense(16, activation="gelu", dtype="mixed_float16")(x)
    x = layers.BatchNormalization(dtype="mixed_float16", trainable=False)(x)
    student = keras.Model(inputs, layers.Dense(4, dtype="bfloat16")(x))
    student.compile("adam", loss=lambda y, p: keras.ops.sum(y - p))
    optimizer, weights = student.optimizer, student.get_weights()
    before = [(v.dtype_policy.name, v.trainable) for v in student.layers]

    artifact = export_litert(student, tmp_path / "student.tflite")

    assert artifact.outputs[0].dtype == "float32"
    x = np.random.default_rng(1).normal(size=(4, 10)).astype("float32")
    rounded = keras.ops.convert_to_numpy(
        keras.ops.cast(student(x, training=False), "float32")
    )
    np.testing.assert_allclose(artifact.predict(x), rounded, atol=0.05)
    after = [(v.dtype_policy.name, v.trainable) for v in student.layers]
    assert after == before
    assert student.optimizer is optimizer
    assert student.compiled
    for w, old in zip(student.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(w, old)
    assert keras.config.dtype_policy().name == "float32"


CUSTOM = """
    import keras

    @keras.saving.register_keras_serializable("tests")
    def halve(x):
        return x / 2

    class Scale(keras.layers.Layer):  # not registered
        def __init__(self, factor=1.0, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

        def call(self, x):
            return x * self.factor

        def get_config(self):
            return {**super().get_config(), "factor": self.factor}

    @keras.saving.register_keras_serializable("tests")
    class Head(keras.Model):
        def __init__(self, units):
            super().__init__()
            self.units = units
            self.dense = keras.layers.Dense(units, activation=halve)

        def get_config(self):
            return {"units": self.units}

        def call(self, x):
            return {"scores": self.dense(x["file"])}
"""


@only_on("jax")
def test_dicts_images_of_bytes_and_custom_layers_of_a_module(
    tmp_path, monkeypatch
):
    (tmp_path / "student_layers.py").write_text(textwrap.dedent(CUSTOM))
    monkeypatch.syspath_prepend(tmp_path)
    import student_layers

    image = keras.Input((8, 8, 3), dtype="uint8", name="image")
    # Names that an argument of NumPy's or a Python keyword has, too.
    file = keras.Input((5,), name="file")
    x = layers.Flatten()(
        student_layers.Scale(0.1)(layers.Rescaling(1.0)(image))
    )
    x = layers.Concatenate()([layers.Dense(4)(x), file])
    head = student_layers.Head(units=3)({"file": x})
    student = keras.Model(
        {"image": image, "file": file}, {"class": head["scores"], "file": x}
    )
    artifact = export_litert(student, tmp_path / "student.tflite")
    assert {info.name for info in artifact.outputs} == {"class", "file"}
    random = np.random.default_rng(1)
    batch = {
        "image": random.integers(0, 256, (3, 8, 8, 3), "uint8"),
        "file": random.normal(size=(3, 5)).astype("float32"),
    }
    assert_agrees(artifact, student, batch)
    with pytest.raises(ValueError, match="file"):
        artifact.predict({"image": batch["image"]})


SCRIPT = """
    import keras
    import keras_distill.export

    class Doubled(keras.layers.Dense):
        def call(self, x):
            return 2 * super().call(x)

    student = keras.Sequential([keras.Input((4,)), Doubled(3)])
    {guard}
        artifact = keras_distill.export.export_litert(student, {path!r})
"""


@only_on("torch")
def test_custom_layer_of_a_guarded_script(tmp_path):
    script = tmp_path / "script.py"
    path = str(tmp_path / "student.tflite")
    guard = 'if __name__ == "__main__":'
    script.write_text(textwrap.dedent(SCRIPT).format(guard=guard, path=path))
    result = runpy.run_path(str(script), run_name="__main__")
    assert result["artifact"].max_error <= 1e-4


def test_custom_layer_of_an_unguarded_script_is_an_error(
    tmp_path,
):
    script = tmp_path / "script.py"
    path = str(tmp_path / "student.tflite")
    script.write_text(textwrap.dedent(SCRIPT).format(guard="if 1:", path=path))
    with pytest.raises(ValueError, match=r"'Doubled'.*script\.py"):
        runpy.run_path(str(script), run_name="__main__")


@only_on("tensorflow")
def test_unsupported_op_is_named_and_an_old_file_is_kept(
    tmp_path,
):
    path = tmp_path / "student.tflite"
    path.write_text("old")
    grow = layers.Resizing(16, 16, interpolation="bicubic", name="grow")
    student = keras.Sequential([keras.Input((8, 8, 3)), grow])
    with pytest.raises(RuntimeError, match=r"ResizeBicubic at '.*grow"):
        export_litert(student, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["student.tflite"]


def dense_student():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3)])


def test_file_that_disagrees_is_not_written(tmp_path, monkeypatch):
    run = float_file.run_apart
    monkeypatch.setattr(
        float_file,
        "run_apart",
        lambda *a: {n: 0 * x for n, x in run(*a).items()},
    )
    with pytest.raises(RuntimeError, match="'output_0' differs by"):
        export_litert(dense_student(), tmp_path / "student.tflite")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="Signals are POSIX.")
@pytest.mark.parametrize("step", ["convert", "run"])
def test_process_killed_by_a_signal_is_an_error(step, tmp_path, monkeypatch):
    call = processes.call
    monkeypatch.setattr(
        processes,
        "call",
        # A function that the process can import, whatever it is named here.
        lambda function, *a: call(
            os.abort if function.__name__ == step else function,
            *([] if function.__name__ == step else a),
        ),
    )
    with pytest.raises(RuntimeError, match=r"SIGABRT[\s\S]*unroll=True"):
        export_litert(dense_student(), tmp_path / "student.tflite")
    assert os.listdir(tmp_path) == []


class Subclassed(keras.Model):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, x):
        return self.layer(x)


def called(student, x):
    student(x)
    return student


def model_of(*parts):
    return keras.Sequential(list(parts))


def local_class_student():
    class Local(layers.Dense):
        pass

    return model_of(keras.Input((4,)), Local(3))


def unregistered(x):
    return x


ZEROS = np.zeros((2, 4), "float32")
BAD_STUDENTS = {
    "unbuilt": (lambda: model_of(layers.Dense(3)), "isn't built"),
    "lambda layer": (
        lambda: model_of(
            keras.Input((4,)), layers.Lambda(lambda x: x, name="twice")
        ),
        "Received: layer 'twice'",
    ),
    "lambda argument": (
        lambda: model_of(
            keras.Input((4,)),
            layers.Dense(3, activation=lambda x: x, name="odd"),
        ),
        "Received: layer 'odd'",
    ),
    "unregistered function": (
        lambda: model_of(
            keras.Input((4,)), layers.Dense(3, activation=unregistered)
        ),
        "the function 'unregistered'",
    ),
    "unknown length": (
        lambda: model_of(keras.Input((None, 4)), layers.Dense(3)),
        r"'input_0' of shape \(None, None, 4\)",
    ),
    "fixed batch": (
        lambda: model_of(keras.Input(batch_shape=(8, 4)), layers.Dense(3)),
        "Pass batch_size=8",
    ),
    "stateful": (
        lambda: model_of(
            keras.Input(batch_shape=(1, 4, 2)),
            layers.GRU(3, stateful=True, name="memory"),
        ),
        "'memory' with stateful=True",
    ),
    "local class": (local_class_student, "'Local'"),
    "no get_config": (
        lambda: called(Subclassed(layers.Dense(3)), ZEROS),
        "Subclassed",
    ),
    "ids of a subclassed model": (
        lambda: called(Subclassed(layers.Embedding(9, 3)), ZEROS),
        "Wrap it",
    ),
}


@pytest.mark.parametrize("case", BAD_STUDENTS)
def test_student_that_cannot_be_exported(case, tmp_path):
    make, message = BAD_STUDENTS[case]
    with pytest.raises(ValueError, match=message):
        export_litert(make(), tmp_path / "student.tflite")
    assert os.listdir(tmp_path) == []


def test_quantized_student_is_an_error(tmp_path):
    student = dense_student()
    student.layers[0].quantize("int8")
    with pytest.raises(ValueError, match="quantization mode 'int8'"):
        export_litert(student, tmp_path / "student.tflite")


def test_student_must_be_a_keras_model(tmp_path):
    with pytest.raises(TypeError, match="student=<Dense"):
        export_litert(layers.Dense(3), tmp_path / "student.tflite")


def test_path_must_be_a_tflite_file_in_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"Pass '.*student\.tflite'"):
        export_litert(dense_student(), tmp_path / "student.onnx")
    with pytest.raises(ValueError, match="There is no folder"):
        export_litert(dense_student(), tmp_path / "no" / "student.tflite")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(float_file.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"keras-distill\[litert\]"):
        export_litert(dense_student(), tmp_path / "student.tflite")


def test_export_inside_the_worker_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_DISTILL_EXPORT_WORKER", "1")
    with pytest.raises(RuntimeError, match="Move the call under"):
        export_litert(dense_student(), tmp_path / "student.tflite")


def test_a_distiller_is_told_to_pass_its_student(tmp_path):
    teacher, student = (
        keras.Sequential([keras.Input((4,)), layers.Dense(3)]) for _ in "ab"
    )
    distiller = keras_distill.Distiller(teacher, student)
    with pytest.raises(TypeError, match=r"distiller\.student"):
        export_litert(distiller, tmp_path / "student.tflite")
