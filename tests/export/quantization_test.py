"""Quantised files against their float32 ones and against arithmetic."""

import dataclasses
import sys

import keras
import numpy as np
import pytest
from support import only_on

import keras_distill as kd
from keras_distill.export import (
    equalization,
    flatbuffer,
    processes,
    quantizer,
    runner,
    student_files,
)
from keras_distill.export.quantized_file import operations_by_layer, snr_db
from keras_distill.export.schemes import SCHEMES, as_quantization
from keras_distill.model_graphs import id_limits

layers = keras.layers
# What comes after the float32 file is the same on each backend.
pytestmark = only_on("torch")


@pytest.fixture(scope="module")
def student():
    keras.utils.set_random_seed(1)
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(16, 3, strides=2, use_bias=False, name="first")(image)
    x = layers.BatchNormalization(momentum=0.9)(x)
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Add(name="sum")([x, layers.Conv2D(16, 1, name="side")(x)])
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(32, activation="relu", name="hidden")(x)
    return keras.Model(image, layers.Dense(4, name="head")(x))


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return random.random((40, 12, 12, 3)).astype("float32")


# At least this much signal, in dB: about 6 for each bit that is kept.
LEAST_SNR = {
    "float16": 50,
    "weight_only_int8": 30,
    "dynamic_int8": 28,
    "int16x8": 30,
    "int8": 25,
    "dynamic_int4_block32": 8,
    "weight_only_int4": 8,
    "dynamic_int4": 8,
}


def test_every_scheme_keeps_the_signal_that_its_bits_can(
    student, images, tmp_path
):
    assert [*LEAST_SNR] == [name for name in SCHEMES if name != "float32"]
    expected = {"": student.predict(images, verbose=0)}
    path, sizes = tmp_path / "student.tflite", {}
    for scheme, least in LEAST_SNR.items():
        artifact = kd.export_litert(
            student, path, scheme, calibration_data=images
        )
        assert artifact.quantization.scheme == scheme
        seen = {"": artifact.predict(images)}
        assert snr_db(expected, seen) >= least, scheme
        assert artifact.inputs[0].dtype == "float32"
        sizes[scheme] = artifact.size
    assert sizes["dynamic_int4"] < sizes["dynamic_int8"] < sizes["float16"]


def test_weights_are_rounded_by_the_formula(tmp_path):
    student = keras.Sequential(
        [keras.Input((40,)), layers.Dense(8, name="head")]
    )
    weights, _ = student.get_layer("head").get_weights()
    for bits, per_channel in [(8, True), (8, False), (4, True)]:
        artifact = kd.export_litert(
            student,
            tmp_path / "student.tflite",
            kd.Quantization(f"dynamic_int{bits}", per_channel=per_channel),
        )
        largest = np.abs(weights).max(0 if per_channel else None)
        scale = largest / (2 ** (bits - 1) - 1)
        tensors = flatbuffer.read_model(artifact.model()).subgraphs[0].tensors
        stored = [t for t in tensors if t.quantization.scale is not None]
        np.testing.assert_allclose(
            stored[0].quantization.scale, scale.reshape(-1), rtol=1e-6
        )
        # The inputs pick single weights: rows of the identity.
        rounded = np.round(weights / scale) * scale
        rows = artifact.predict(np.eye(40, dtype="float32"))
        np.testing.assert_allclose(rows, rounded, atol=largest.max() / 100)


def test_integers_in_and_out(student, images, tmp_path):
    artifact = kd.export_litert(
        student,
        tmp_path / "student.tflite",
        kd.Quantization("int8", integer_io=True),
        calibration_data=images,
    )
    info = artifact.inputs[0]
    assert (info.dtype, artifact.outputs[0].dtype) == ("int8", "int8")
    # The calibration images lie between 0 and 1.
    assert info.scale == pytest.approx(1 / 255, rel=0.01)
    assert info.zero_point == -128
    floats = kd.export_litert(
        student, tmp_path / "f.tflite", "int8", calibration_data=images
    )
    np.testing.assert_allclose(
        artifact.predict(images), floats.predict(images), atol=1e-6
    )
    again = kd.LiteRTArtifact.load(artifact.path)
    assert again == dataclasses.replace(artifact)


def test_masked_attention_survives_int8(tmp_path):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((10,), dtype="int32", name="tokens")
    x = layers.Embedding(30, 16, mask_zero=True)(tokens)
    x = layers.MultiHeadAttention(2, 8)(x, x)
    x = layers.GlobalAveragePooling1D()(x)
    student = keras.Model(tokens, layers.Dense(3)(x))
    ids = np.random.default_rng(0).integers(1, 30, (64, 10)).astype("int32")
    ids[::2, 6:] = 0
    for scheme in ("int8", "int16x8"):
        artifact = kd.export_litert(
            student, tmp_path / "s.tflite", scheme, calibration_data=ids
        )
        assert artifact.snr_db > 25


def test_ranges_of_a_mask_end_below_the_smallest_logit(monkeypatch):
    graph = [
        flatbuffer.Operation("ADD", ("logits", "mask"), ("masked",), 0),
        flatbuffer.Operation("SOFTMAX", ("masked",), ("weights",), 0),
    ]
    monkeypatch.setattr(quantizer, "operations", lambda _: graph)
    ranges = {
        name: {"min": np.array([low]), "max": np.array([high])}
        for name, low, high in [
            ("logits", -2.0, 3.0),
            ("mask", -1e9, 0.0),
            ("masked", -1e9, 3.0),
            ("weights", 0.0, 1.0),
        ]
    }
    clamped = quantizer._clamp_masks(b"", ranges)
    assert clamped["mask"]["min"].item() == -2 - 3 - 8
    assert clamped["masked"]["min"].item() == -2 - 8
    assert clamped["masked"]["max"].item() == 3
    assert clamped["logits"] == ranges["logits"]
    assert ranges["mask"]["min"].item() == -1e9


def test_recurrent_student_in_integers(tmp_path):
    keras.utils.set_random_seed(0)
    signal = keras.Input((6, 4))
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(signal)
    student = keras.Model(signal, layers.Dense(3)(layers.GRU(8)(x)))
    x = np.random.default_rng(0).normal(size=(32, 6, 4)).astype("float32")
    artifact = kd.export_litert(
        student, tmp_path / "s.tflite", "int8", calibration_data=x
    )
    assert artifact.snr_db > 15
    assert not any(o.name == "WHILE" for o in artifact.operations)
    # The layers of the caller's student are as they were.
    assert not any(
        layer.unroll for layer in student.layers if hasattr(layer, "unroll")
    )


@pytest.fixture(scope="module")
def fragile():
    """A student whose first layer has one channel 150 times the others."""
    keras.utils.set_random_seed(2)
    student = keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(16, activation="relu", name="wild"),
            layers.Dense(16, activation="relu", name="calm"),
            layers.Dense(4, name="head"),
        ]
    )
    kernel, bias = student.get_layer("wild").get_weights()
    kernel[:, 0] = np.abs(kernel[:, 0]) * 150
    student.get_layer("wild").set_weights([kernel, bias])
    kernel, bias = student.get_layer("calm").get_weights()
    kernel[0] /= 150
    student.get_layer("calm").set_weights([kernel, bias])
    return student


def test_layer_errors_name_the_layer_that_loses_it(fragile):
    x = np.random.default_rng(0).random((64, 16)).astype("float32")
    errors = kd.layer_errors(fragile, "int8", x)
    assert errors[0].layer in ("wild", "calm")
    assert {error.layer for error in errors} == {"wild", "calm", "head"}
    ratios = [error.snr_db for error in errors]
    assert ratios == sorted(ratios)
    assert ratios[0] < ratios[-1] - 10


def test_worst_layers_stay_in_float_until_the_bound_is_met(fragile, tmp_path):
    x = np.random.default_rng(0).random((64, 16)).astype("float32")
    path = tmp_path / "student.tflite"
    with pytest.warns(UserWarning, match="signal-to-noise"):
        all_int8 = kd.export_litert(fragile, path, "int8", calibration_data=x)
    assert all_int8.quantization.float_layers == ()
    bound = all_int8.snr_db + 15
    mixed = kd.export_litert(
        fragile,
        path,
        kd.Quantization("int8", min_snr_db=bound),
        calibration_data=x,
    )
    assert mixed.snr_db >= bound
    assert 1 <= len(mixed.quantization.float_layers) < 3
    again = kd.export_litert(
        fragile,
        path,
        kd.Quantization("int8", float_layers=mixed.quantization.float_layers),
        calibration_data=x,
    )
    assert again.snr_db == pytest.approx(mixed.snr_db)
    with pytest.warns(UserWarning, match="with all layers in float"):
        kd.export_litert(
            fragile,
            path,
            kd.Quantization("int8", min_snr_db=100),
            calibration_data=x,
        )
    with pytest.raises(RuntimeError, match="Not even with all layers"):
        kd.export_litert(
            fragile,
            path,
            kd.Quantization("int8", integer_io=True, min_snr_db=1000),
            calibration_data=x,
        )


def test_equalised_channels_lose_less_to_integers(fragile, tmp_path):
    x = np.random.default_rng(0).random((64, 16)).astype("float32")
    path = tmp_path / "student.tflite"
    with pytest.warns(UserWarning, match="signal-to-noise"):
        plain = kd.export_litert(fragile, path, "int8", calibration_data=x)
    equal = kd.export_litert(
        fragile,
        path,
        kd.Quantization("int8", equalize=True),
        calibration_data=x,
    )
    assert equal.snr_db > plain.snr_db + 15
    expected = fragile.predict(x, verbose=0)
    error = np.abs(equal.predict(x) - expected).max()
    assert error < 0.05 * np.ptp(expected)


def test_equalisation_changes_nothing_in_float(student, images, tmp_path):
    artifact = kd.export_litert(student, tmp_path / "student.tflite")
    content = artifact.model()
    equal = processes.call(equalization.equalize, content)
    model = flatbuffer.read_model(equal)
    # "first" feeds "depthwise" alone, and "hidden" feeds "head".
    pairs = equalization._pairs(model)
    assert [first.kernel.shape for first, _ in pairs] == [
        (16, 3, 3, 3),
        (32, 16),
    ]
    for first, second in pairs:
        np.testing.assert_allclose(
            equalization._largest(first.kernel, first.out_axis),
            equalization._largest(second.kernel, second.in_axis),
            rtol=2e-3,
        )
    inputs = {"image": images}
    np.testing.assert_allclose(
        runner.run(equal, inputs, 1)["output_0"],
        runner.run(content, inputs, 1)["output_0"],
        atol=1e-5,
    )


def test_operations_belong_to_the_layer_whose_work_they_do():
    def operation(name, inputs, output):
        return flatbuffer.Operation(name, inputs, (output,), 0)

    fused = "model._1/relu._1/Relu;model._1/block._1/conv._2/convolution"
    found = operations_by_layer(
        [
            operation(
                "CONV_2D", ("x", "model._1/block._1/conv._2/convolution"), fused
            ),
            operation("ADD", (fused, "y"), "model._1/sum._1/add"),
            operation(
                "FULLY_CONNECTED", ("z", "model._1/dense_1._1/MatMul"), "out:0"
            ),
            operation("SOFTMAX", ("model._1/sum._1/add",), "out:1"),
            operation("MUL", ("model._1/sum._1/add",), "model._1/mul_1"),
            operation("RESHAPE", ("model._1/sum._1/add",), "constant"),
        ],
        {"out:0": "model._1/other._1/Relu", "out:1": "model._1/end._1/Softmax"},
    )
    layers = ["block/conv", "sum", "dense_1", "end", "<mul_1>"]
    assert [*found] == layers
    assert [o.name for o in found["sum"]] == ["ADD", "RESHAPE"]


BAD = {
    "unknown scheme": (lambda: kd.Quantization("int7"), "one of float32"),
    "layers as text": (
        lambda: kd.Quantization("int8", float_layers="head"),
        r"Pass \('head',\)",
    ),
    "integer io of floats": (
        lambda: kd.Quantization("dynamic_int8", integer_io=True),
        "integer_io is for schemes",
    ),
    "bound of floats": (
        lambda: kd.Quantization("float16", min_snr_db=10.0),
        "min_snr_db is for schemes",
    ),
    "blocks of a tensor": (
        lambda: kd.Quantization("dynamic_int4_block32", per_channel=False),
        "parts of a channel",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_contradictions_are_errors(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("integer_io", "yes"),
        ("per_channel", 1),
        ("equalize", None),
        ("float_layers", {"head"}),
        ("min_snr_db", "20"),
    ],
)
def test_arguments_of_other_types_are_errors(name, value):
    with pytest.raises(TypeError, match=f"{name}="):
        kd.Quantization("int8", **{name: value})


def test_layers_in_a_list_are_as_in_a_tuple():
    quantization = kd.Quantization("int8", float_layers=["head"])
    assert quantization.float_layers == ("head",)


def test_what_is_no_scheme_is_an_error():
    with pytest.raises(TypeError, match="quantization=8"):
        as_quantization(8)
    assert as_quantization(None).scheme == "float32"


def test_ranges_need_data(student, tmp_path):
    path = tmp_path / "student.tflite"
    with pytest.raises(ValueError, match="'int8' needs the ranges"):
        kd.export_litert(student, path, "int8")
    with pytest.raises(ValueError, match="no examples"):
        kd.export_litert(student, path, "int8", calibration_data=iter([]))
    with pytest.raises(ValueError, match="examples of shape"):
        kd.export_litert(
            student, path, "int8", calibration_data=np.zeros((2, 5, 5, 3))
        )
    assert not path.exists()


def test_data_is_looked_at_before_anything_is_converted(
    student, images, tmp_path, monkeypatch
):
    def convert(*args):
        raise AssertionError("converted")

    monkeypatch.setattr(student_files, "make_float_file", convert)
    path = tmp_path / "student.tflite"
    wrong = images[:, :6]
    with pytest.raises(ValueError, match="examples of shape"):
        kd.export_litert(student, path, "int8", calibration_data=wrong)
    with pytest.raises(ValueError, match="examples of shape"):
        kd.layer_errors(student, "int8", wrong)
    budget = kd.Budget(agreement=0.9)
    with pytest.raises(ValueError, match="examples of shape"):
        kd.export_litert(student, path, budget=budget, validation_data=wrong)
    budget = kd.Budget(accuracy_drop=0.1)
    with pytest.raises(ValueError, match="needs labels"):
        kd.export_litert(student, path, budget=budget, validation_data=images)


def test_unknown_float_layer_is_an_error(student, images, tmp_path):
    quantization = kd.Quantization("int8", float_layers=("haed",))
    with pytest.raises(ValueError, match=r"'haed'.*depthwise.*head"):
        kd.export_litert(
            student,
            tmp_path / "student.tflite",
            quantization,
            calibration_data=images,
        )


def test_useless_file_is_not_written(student, images, tmp_path, monkeypatch):
    path = tmp_path / "student.tflite"
    path.write_text("old")
    call = processes.call

    def spoil(function, *arguments, **options):
        result = call(function, *arguments, **options)
        if function is quantizer.calibrate:
            # As if the examples had been a million times smaller.
            return {
                name: {key: value / 1e6 for key, value in bounds.items()}
                for name, bounds in result.items()
            }
        return result

    monkeypatch.setattr(processes, "call", spoil)
    with pytest.raises(RuntimeError, match="destroyed the student"):
        kd.export_litert(student, path, "int8", calibration_data=images)
    assert path.read_text() == "old"


def test_calibration_shows_its_progress_to_eyes_alone(
    student, images, tmp_path, capsys, monkeypatch
):
    path, data = tmp_path / "student.tflite", keras_data_set(images)
    kd.export_litert(student, path, "int8", calibration_data=data)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    kd.export_litert(student, path, "int8", calibration_data=data)
    assert "40/40" in capsys.readouterr().out


def keras_data_set(images):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            part = images[10 * index : 10 * index + 10]
            return part, np.zeros(len(part))

    return Batches()


def test_masked_recurrent_student_in_integers(tmp_path):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((5,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True)(tokens)
    student = keras.Model(tokens, layers.Dense(3)(layers.LSTM(6)(x)))
    ids = np.random.default_rng(0).integers(1, 20, (32, 5)).astype("int32")
    ids[::2, 3:] = 0
    artifact = kd.export_litert(
        student, tmp_path / "s.tflite", "int8", calibration_data=ids
    )
    assert artifact.snr_db > 12


@pytest.mark.parametrize("scheme", ["float32", "int8"])
def test_words_may_come_as_floats(scheme, tmp_path):
    keras.utils.set_random_seed(0)
    # Keras' own inputs are floats, unless somebody says otherwise.
    words, more = keras.Input((6,), name="words"), keras.Input((2,))
    table = keras.Sequential([keras.Input((6,)), layers.Embedding(300, 8)])
    x = layers.GlobalAveragePooling1D()(table(words))
    student = keras.Model(
        [words, more], layers.Dense(3)(layers.Concatenate()([x, more]))
    )
    random = np.random.default_rng(0)
    x = [
        random.integers(0, 300, (64, 6)).astype("float32"),
        random.normal(size=(64, 2)).astype("float32"),
    ]
    artifact = kd.export_litert(
        student, tmp_path / "s.tflite", scheme, calibration_data=x
    )
    difference = artifact.predict(x) - student.predict(x, verbose=0)
    step = np.ptp(student.predict(x, verbose=0)) / 255
    assert np.abs(difference).max() < (
        1e-5 if scheme == "float32" else 4 * step
    )
    whole = kd.Quantization("int8", integer_io=True)
    with pytest.raises(ValueError, match=r"input 'words'.*dtype='int32'"):
        kd.export_litert(
            student, tmp_path / "i.tflite", whole, calibration_data=x
        )


def test_a_mask_of_ids_that_come_as_floats_is_exact(tmp_path):
    keras.utils.set_random_seed(0)
    words = keras.Input((6,), name="words")
    x = layers.Embedding(5000, 8, mask_zero=True)(words)
    x = layers.GlobalAveragePooling1D()(x)
    student = keras.Model(words, layers.Dense(3)(x))
    random = np.random.default_rng(0)
    # A step of the ids' own range would be twenty of them.
    small = random.integers(0, 9, (64, 6)).astype("float32")
    many = random.integers(0, 5000, (64, 6)).astype("float32")
    artifact = kd.export_litert(
        student,
        tmp_path / "s.tflite",
        "int8",
        calibration_data=np.concatenate([small, many]),
    )
    expected = student.predict(small, verbose=0)
    difference = artifact.predict(small) - expected
    assert np.abs(difference).max() < 0.03 * np.ptp(expected)


# What a mask is passed to needn't do anything with it.
@pytest.mark.filterwarnings("ignore:Layer 'functional")
def test_ids_are_found_wherever_a_table_reads_them():
    def table(size=50, **arguments):
        return layers.Embedding(size, 4, **arguments)

    first, second = keras.Input((6,)), keras.Input((6,))
    shared = table(mask_zero=True)
    both = keras.Model([first, second], [shared(first), shared(second)])
    assert id_limits(both) == [50, 50]
    # Masks are computed of the ids, too.
    more = [table()(first), table(20, mask_zero=True)(first), second]
    assert id_limits(keras.Model([first, second], more)) == [20, None]
    cast = table()(keras.ops.cast(first, "int32"))
    assert id_limits(keras.Model(first, cast)) == [50]
    mask = keras.Input((6,), dtype="bool")
    inner = keras.Model(first, layers.GlobalMaxPooling1D()(table()(first)))
    outer = keras.Model([second, mask], inner(second, mask=mask))
    assert id_limits(outer) == [50, None]
    ready = kd.quantization_aware(
        keras.Model(first, layers.Dense(2)(cast)), "dynamic_int8"
    )
    assert id_limits(ready) == [50]
    assert id_limits(keras.Model(first, layers.Dense(2)(first))) == [None]


def test_equalisation_stops_at_an_activation_that_pooling_has(tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.MaxPooling2D()(layers.Conv2D(8, 3, padding="same")(image))
    x = layers.Conv2D(8, 3)(layers.ReLU(6.0)(x))
    x = layers.GlobalAveragePooling2D()(x)
    student = keras.Model(image, layers.Dense(4)(x))
    kernel, bias = student.layers[1].get_weights()
    kernel = kernel * np.float32([0.1, 0.1, 1, 1, 5, 5, 10, 10])
    student.layers[1].set_weights([kernel, bias])
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    artifact = kd.export_litert(
        student,
        tmp_path / "s.tflite",
        kd.Quantization("int8", equalize=True),
        calibration_data=x,
    )
    expected = {"": student.predict(x, verbose=0)}
    assert snr_db(expected, {"": artifact.predict(x)}) > 20


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_output_that_another_layer_reads(scheme, tmp_path):
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="relu", name="hidden")(inputs)
    student = keras.Model(inputs, [x, layers.Dense(3, name="head")(x)])
    data = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    path = tmp_path / "student.tflite"
    artifact = kd.export_litert(student, path, scheme, calibration_data=data)
    assert [o.name for o in artifact.operations] == [
        "QUANTIZE",
        "FULLY_CONNECTED",
        "DEQUANTIZE",
        "FULLY_CONNECTED",
        "DEQUANTIZE",
    ]
    assert artifact.snr_db > 30
    # In float it reads the floats.
    mixed = kd.Quantization(scheme, float_layers=("head",))
    artifact = kd.export_litert(student, path, mixed, calibration_data=data)
    assert [o.name for o in artifact.operations][2:] == [
        "DEQUANTIZE",
        "FULLY_CONNECTED",
    ]
    assert artifact.snr_db > 30
