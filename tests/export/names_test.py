"""Names that TensorFlow doesn't take, and operations that lose theirs."""

import keras
import numpy as np
import pytest
from support import only_on

import keras_distill as kd

layers = keras.layers
# The process that converts is the same on each backend.
pytestmark = only_on("torch")


def exported(student, tmp_path, *arguments, **options):
    path = tmp_path / "student.tflite"
    return kd.export_litert(student, path, *arguments, **options)


def student_of_inputs(*names):
    inputs = [keras.Input((4,), name=name) for name in names]
    x = layers.Concatenate()(inputs) if len(inputs) > 1 else inputs[0]
    return keras.Model(inputs, layers.Dense(2)(x))


def test_layers_keep_names_that_are_no_scopes(tmp_path):
    names = ["my dense", "größe", "a;b:c", "_d", "-e", "a1-b"]
    student = keras.Sequential([keras.Input((4,))], name="_ü; x")
    for name in names:
        student.add(layers.Dense(4, activation="relu", name=name))
    errors = kd.layer_errors(student, "dynamic_int8")
    assert {error.layer for error in errors} == set(names)
    kept = kd.Quantization("dynamic_int8", float_layers=("a;b:c", "größe"))
    artifact = exported(student, tmp_path, kept)
    assert artifact.quantization.float_layers == ("a;b:c", "größe")


@pytest.mark.parametrize(
    "names", [("_x",), ("größe", "_y"), ("X", "x"), ("1", "args")]
)
def test_inputs_keep_names_that_are_no_arguments(names, tmp_path):
    student = student_of_inputs(*names)
    artifact = exported(student, tmp_path)
    assert tuple(info.name for info in artifact.inputs) == names
    random = np.random.default_rng(0)
    x = [random.normal(size=(3, 4)).astype("float32") for _ in names]
    np.testing.assert_allclose(
        artifact.predict(x), student.predict(x, verbose=0), atol=1e-5
    )


def test_self_is_the_runners_own_name(tmp_path):
    student = student_of_inputs("self", "self_")
    artifact = exported(student, tmp_path)
    assert [info.name for info in artifact.inputs] == ["self_", "input_1"]
    x = [np.ones((2, 4), "float32"), np.zeros((2, 4), "float32")]
    np.testing.assert_allclose(
        artifact.predict(x), student.predict(x, verbose=0), atol=1e-5
    )


def test_other_formats_take_them_or_say_what_to_do(tmp_path):
    student = student_of_inputs("größe", "_y")
    x = [np.ones((2, 4), "float32"), np.ones((2, 4), "float32")]
    expected = student.predict(x, verbose=0)
    for artifact in (
        kd.export_onnx(student, tmp_path / "s.onnx"),
        kd.export_openvino(student, tmp_path / "s.xml"),
    ):
        np.testing.assert_allclose(artifact.predict(x), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"Received: input 'größe'.*Give it"):
        kd.export_saved_model(student, tmp_path / "s")
    student = student_of_inputs("X", "x")
    with pytest.raises(ValueError, match="inputs 'X' and 'x'"):
        kd.export_saved_model(student, tmp_path / "s")


def test_one_tensor_is_returned_twice(tmp_path):
    inputs = keras.Input((4,))
    x = layers.Dense(2)(inputs)
    student = keras.Model(inputs, [x, layers.Dense(3)(x), x])
    data = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    integers = kd.Quantization("int8", integer_io=True)
    for quantization in (None, "dynamic_int8", "int8", "int16x8", integers):
        artifact = exported(
            student, tmp_path, quantization, calibration_data=data
        )
        first, _, second = artifact.predict(data)
        np.testing.assert_array_equal(first, second)
        assert artifact.snr_db > 30
    student = keras.Model(inputs, [x, x])
    artifact = exported(student, tmp_path, "int8", calibration_data=data)
    assert artifact.snr_db > 30


def test_last_operations_belong_to_their_own_layers():
    inputs = keras.Input((4,))
    x = layers.Dense(3, name="first")(inputs)
    y = layers.Dense(3, name="second")(x)
    total = layers.Add(name="sum")([x, y])
    chances = layers.Softmax(name="chances")(y)
    student = keras.Model(inputs, [total, chances, keras.ops.exp(x)])
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    errors = kd.layer_errors(student, "int8", x)
    found = {error.layer: error.operations for error in errors}
    assert found == {
        "first": ("FULLY_CONNECTED",),
        "second": ("FULLY_CONNECTED",),
        "sum": ("RESHAPE", "ADD"),
        "chances": ("SOFTMAX",),
        # Of no layer.
        "<Exp>": ("EXP",),
    }
