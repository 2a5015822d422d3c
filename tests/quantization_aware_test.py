"""Students that train with the rounding of their quantised file."""

import keras
import numpy as np
import pytest
from keras import layers
from support import cnn, crossentropy, images, mlp, only_on, teacher, values

import keras_distill as kd
from keras_distill.export import processes, trained_ranges
from keras_distill.fake_quantization import (
    FakeQuantizedActivations,
    FakeQuantizedWeights,
)


def residual_student(seed=3):
    """All kinds of layers that a file quantises, and what surrounds them."""
    keras.utils.set_random_seed(seed)
    norm = layers.BatchNormalization
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Rescaling(1 / 2, offset=-0.5, name="rescaling")(image)
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="first")(x)
    x = layers.ReLU(6, name="first_relu")(norm(name="first_norm")(x))
    y = layers.DepthwiseConv2D(
        3, padding="same", depth_multiplier=2, name="depthwise"
    )(x)
    y = layers.ReLU(name="depthwise_relu")(norm(name="depthwise_norm")(y))
    y = layers.Conv2D(4, 1, name="pointwise")(y)
    y = norm(name="pointwise_norm", scale=False)(y)
    x = layers.ReLU(name="relu")(layers.Add(name="add")([x, y]))
    side = layers.Conv2D(2, 1, activation="relu", name="side")(x)
    x = layers.SeparableConv2D(3, 3, padding="same", name="separable")(x)
    x = layers.Activation("silu", name="silu")(norm(name="separable_norm")(x))
    x = layers.Concatenate(name="concat")([x, side])
    x = layers.Conv2DTranspose(4, 3, strides=2, name="transposed")(x)
    x = layers.ReLU(name="transposed_relu")(norm(name="transposed_norm")(x))
    inner = [layers.Conv2D(4, 3, name="inner"), norm(), layers.ReLU()]
    x = keras.Sequential([keras.Input(x.shape[1:]), *inner], name="block")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    logits = layers.Dense(3, name="logits")(layers.Dropout(0.3)(x))
    return with_statistics(keras.Model(image, logits, name="residual"))


def with_statistics(model):
    """A model whose normalisations do something, as trained ones do."""
    random = np.random.default_rng(5)
    for layer in trained_ranges.layers_of(model):
        if isinstance(layer, layers.BatchNormalization):
            for variable in layer.weights:
                variable.assign(random.uniform(0.5, 1.5, variable.shape))
    # So that the classes differ.
    model.layers[-1].kernel.assign(
        10 * random.normal(size=model.layers[-1].kernel.shape)
    )
    return model


def trained_on(value, layer):
    """What a step of SGD on the sum of a layer's outputs subtracts.

    Returns:
        From the values that the layer got, and from its own weights.
    """
    dense = layers.Dense(len(value), use_bias=False)
    model = keras.Sequential([keras.Input((1,)), dense, layer])
    dense.kernel.assign([value])
    before = values(model.trainable_variables)
    model.compile(
        optimizer=keras.optimizers.SGD(1.0),
        loss=lambda _, output: keras.ops.sum(output, axis=-1),
    )
    model.train_on_batch(np.ones((1, 1)), np.zeros((1, len(value))))
    after = values(model.trainable_variables)
    first, *rest = [b - a for b, a in zip(before, after, strict=True)]
    return first[0], rest


def test_weights_round_channel_by_channel_to_nearest():
    dense = layers.Dense(2, use_bias=False)
    layer = FakeQuantizedWeights(dense, "weight_only_int4", 4)
    layer.build((None, 3))
    dense.kernel.assign([[0.7, 0.0], [-0.26, 0.0], [0.04, 0.0]])
    rounded = keras.ops.convert_to_numpy(layer.rounded_weights())
    np.testing.assert_allclose(
        rounded, [[0.7, 0.0], [-0.3, 0.0], [0.0, 0.0]], atol=1e-7
    )
    x = np.float32([[1.0, 2.0, 3.0]])
    output = keras.ops.convert_to_numpy(layer(x))
    np.testing.assert_allclose(output, x @ rounded, atol=1e-6)


def test_gradient_of_weights_is_that_of_the_exact_ones():
    dense = layers.Dense(2, use_bias=False)
    model = keras.Sequential(
        [keras.Input((3,)), FakeQuantizedWeights(dense, "dynamic_int8", 8)]
    )
    before = values([dense.kernel])[0]
    model.compile(keras.optimizers.SGD(1.0), loss=lambda _, output: output)
    x = np.float32([[1.0, 2.0, 3.0]])
    model.train_on_batch(x, np.zeros((1, 2)))
    # The loss is the mean of two outputs.
    np.testing.assert_allclose(
        before - values([dense.kernel])[0], np.tile(x.T, 2) / 2, atol=1e-6
    )


def test_activations_round_within_a_range_that_holds_zero_exactly():
    layer = FakeQuantizedActivations(fixed=(-1.0, 1.55))
    x = np.float32([-2.0, -0.014, 0.0, 0.004, 0.016, 3.0])
    np.testing.assert_allclose(
        layer(x), [-1.0, -0.01, 0.0, 0.0, 0.02, 1.55], atol=1e-6
    )
    assert float(layer(x)[2]) == 0.0


def test_gradient_of_activations_stops_outside_of_the_range():
    layer = FakeQuantizedActivations(fixed=(-1.0, 1.55))
    inside, _ = trained_on([-2.0, -0.5, 0.5, 3.0], layer)
    np.testing.assert_allclose(inside, [0.0, 1.0, 1.0, 0.0], atol=1e-6)


def test_learned_ends_get_the_gradient_of_clipping_and_of_the_step():
    layer = FakeQuantizedActivations("learned")
    layer.build((None, 4))
    layer.lowest.assign(-1.0)
    layer.highest.assign(1.55)
    _, (lowest, highest) = trained_on([-2.0, 0.012, 3.0, 4.0], layer)
    residual = (1 - 1.2) / 255
    np.testing.assert_allclose(lowest, 1 - residual, atol=1e-5)
    np.testing.assert_allclose(highest, 2 + residual, atol=1e-5)


def test_an_end_at_zero_stays_there():
    layer = FakeQuantizedActivations("learned")
    layer.build((None, 2))
    layer.highest.assign(1.0)
    _, (lowest, _) = trained_on([-2.0, 0.5], layer)
    assert lowest == 0.0


def test_ranges_follow_batches_in_training_alone():
    layer = FakeQuantizedActivations()
    layer.build((None, 2))
    layer.lowest.assign(-1.0)
    layer.highest.assign(1.0)
    x = np.float32([[0.5, 3.0]])
    layer(x, training=False)
    assert layer.range() == (-1.0, 1.0)
    layer(x, training=True)
    np.testing.assert_allclose(layer.range(), (-0.99, 1.02), atol=1e-6)
    layer.trainable = False
    layer(x, training=True)
    np.testing.assert_allclose(layer.range(), (-0.99, 1.02), atol=1e-6)


@pytest.mark.parametrize("make", [residual_student, cnn])
def test_copy_without_rounding_is_the_student(make):
    student = make()
    if make is cnn:
        with_statistics(student)
    x, _ = images()
    before = values(student.variables)
    ready = kd.quantization_aware(student, "int8", x)
    plain = trained_ranges.plain_student(ready).plain
    kinds = [type(v) for v in trained_ranges.layers_of(plain)]
    expected = student.predict(x, verbose=0)
    np.testing.assert_allclose(
        plain.predict(x, verbose=0), expected, atol=1e-5 * np.ptp(expected)
    )
    # Folded, all of them.
    assert layers.BatchNormalization not in kinds
    for ours, theirs in zip(values(student.variables), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert student.layers[0].output is not None


def test_rounds_where_a_file_does():
    ready = kd.quantization_aware(residual_student(), "int8", images()[0])
    names = {layer.name for layer in trained_ranges.layers_of(ready)}
    ranges = {n.removesuffix("_range") for n in names if n.endswith("_range")}
    assert ranges == {
        "image",
        "rescaling",
        "first_relu",
        "depthwise_relu",
        "pointwise",
        # Not add, which is one operation with its ReLU, nor side, which takes
        # the range of concat.
        "relu",
        "separable_depthwise",
        "separable",
        "concat",
        "transposed",
        "transposed_relu",
        ready.get_layer("block").layers[-1].name.removesuffix("_range"),
        "pool",
        "logits",
    }


def test_a_norm_isnt_folded_into_a_layer_with_other_readers():
    image = keras.Input((4, 4, 1))
    x = layers.Conv2D(2, 1, name="conv")(image)
    y = layers.BatchNormalization(name="norm")(x)
    student = keras.Model(image, layers.Add()([x, y]))
    ready = kd.quantization_aware(student, "dynamic_int8")
    assert ready.get_layer("norm")
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 1))
    np.testing.assert_allclose(
        ready.predict(x, verbose=0), student.predict(x, verbose=0), atol=0.05
    )


def test_four_bits_leave_depthwise_convolutions_in_float():
    ready = kd.quantization_aware(residual_student(), "weight_only_int4")
    rounds = {
        layer.name
        for layer in trained_ranges.layers_of(ready)
        if isinstance(layer, FakeQuantizedWeights)
    }
    assert rounds == {
        "first",
        "pointwise",
        "side",
        "separable",
        "inner",
        "logits",
    }


def test_a_final_softmax_stays_in_sight():
    student = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, activation="tanh", name="hidden"),
            layers.Dense(3, activation="softmax", name="head"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(32, 4))
    ready = kd.quantization_aware(student, "int8", x)
    assert ready.layers[-1].name == "head_activation"
    hidden = ready.get_layer("hidden_activation_range")
    assert hidden.range() == (-1.0, 127 / 128)
    distiller = kd.Distiller(mlp_teacher(), ready)
    distiller.fit(x, np.arange(32) % 3, verbose=0)


def mlp_teacher():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3)])


def test_a_shared_layer_rounds_the_same_weights_twice():
    shared = layers.Dense(4, activation="relu", name="shared")
    x = keras.Input((4,))
    student = keras.Model(x, layers.Dense(2)(shared(shared(x))))
    data = np.random.default_rng(0).normal(size=(32, 4))
    ready = kd.quantization_aware(student, "int8", data)
    assert ready.get_layer("shared_range").range() != (
        ready.get_layer("shared_range_1").range()
    )
    assert len(ready.trainable_variables) == len(student.trainable_variables)


@pytest.mark.parametrize("ranges", ["moving_average", "learned"])
def test_trains_with_a_teacher_and_can_be_saved(ranges, tmp_path):
    x, y = images()
    ready = kd.quantization_aware(cnn(), "int8", x, ranges)
    before = [v.range() for v in ready.layers if v.name.endswith("_range")]
    distiller = kd.Distiller(
        teacher(),
        ready,
        losses=kd.losses.Hint("pool", "pool", projector="auto"),
    )
    distiller.compile(optimizer=keras.optimizers.Adam(0.01))
    distiller.fit(x * 1.1, y, epochs=2, verbose=0)
    after = [v.range() for v in ready.layers if v.name.endswith("_range")]
    assert all(b != a for b, a in zip(before, after, strict=True))
    ready.save(tmp_path / "ready.keras")
    loaded = keras.saving.load_model(tmp_path / "ready.keras")
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), ready.predict(x, verbose=0)
    )


def test_training_brings_back_what_four_bits_lose():
    x, y = images(60)
    student = mlp(16)
    student.compile(keras.optimizers.Adam(0.01), crossentropy())
    student.fit(x, y, epochs=20, verbose=0)
    ready = kd.quantization_aware(student, "weight_only_int4")
    assert ready.compiled
    before = ready.evaluate(x, y, verbose=0)
    ready.fit(x, y, epochs=5, verbose=0)
    assert ready.evaluate(x, y, verbose=0) < before


# The same number on each backend.
LOSS = 1.17381


@pytest.mark.traced
@pytest.mark.parametrize("mode", ["jit_compile", "run_eagerly"])
def test_a_step_is_the_same_on_each_backend(mode, backend):
    if (mode, backend) in {("jit_compile", "torch"), ("run_eagerly", "jax")}:
        pytest.skip("It takes that backend long, and isn't its usual way.")
    x, y = images()
    student, random = mlp(), np.random.default_rng(0)
    student.set_weights(
        [random.normal(size=w.shape) / 4 for w in student.get_weights()]
    )
    ready = kd.quantization_aware(student, "int8", x, "learned")
    ready.compile(keras.optimizers.SGD(0.1), crossentropy(), **{mode: True})
    ready.train_on_batch(x, y)
    loss = ready.test_on_batch(x, y)
    np.testing.assert_allclose(loss, LOSS, rtol=1e-3)


def test_mixed_precision_rounds_in_float32():
    student = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(4, activation="relu", dtype="mixed_bfloat16"),
            layers.Dense(3, dtype="mixed_bfloat16"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(32, 8))
    ready = kd.quantization_aware(student, "int8", x)
    expected = student.predict(x, verbose=0).astype("float32")
    seen = ready.predict(x, verbose=0).astype("float32")
    np.testing.assert_allclose(seen, expected, atol=0.05 * np.ptp(expected))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x):
        return self.dense(x)


def test_says_what_is_wrong():
    x, _ = images()
    subclassed = Subclassed()
    subclassed(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="shows no graph"):
        kd.quantization_aware(subclassed, "dynamic_int8")
    with pytest.raises(ValueError, match="Pass some hundred"):
        kd.quantization_aware(cnn(), "int8")
    with pytest.raises(ValueError, match="no training for this scheme"):
        kd.quantization_aware(cnn(), "float16")
    floats = kd.Quantization("int8", float_layers=("conv",))
    with pytest.raises(ValueError, match="in all layers"):
        kd.quantization_aware(cnn(), floats, x)
    with pytest.raises(ValueError, match="two kinds of ranges"):
        kd.quantization_aware(cnn(), "int8", x, "percentile")
    ready = kd.quantization_aware(cnn(), "dynamic_int8")
    with pytest.raises(ValueError, match="quantised already"):
        kd.quantization_aware(ready, "dynamic_int8")
    empty = keras.Sequential([keras.Input((4,)), layers.ReLU()])
    with pytest.raises(ValueError, match="no weights to round"):
        kd.quantization_aware(empty, "dynamic_int8")


def test_refuses_a_file_of_another_scheme(tmp_path):
    ready = kd.quantization_aware(cnn(), "dynamic_int8")
    for quantization in ("float32", "int8", kd.Quantization("dynamic_int4")):
        with pytest.raises(
            ValueError, match="Pass quantization='dynamic_int8'"
        ):
            kd.export_litert(ready, tmp_path / "a.tflite", quantization)
    ready = kd.quantization_aware(cnn(), "int8", images()[0])
    equalized = kd.Quantization("int8", equalize=True)
    with pytest.raises(ValueError, match="the rounding of another file"):
        kd.export_litert(ready, tmp_path / "a.tflite", equalized)


def details(path):
    """The tensors of a file."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    return [
        (d, interpreter.get_tensor(d["index"]))
        for d in interpreter.get_tensor_details()
        if d["quantization_parameters"]["scales"].size
    ]


def test_int8_file_has_the_trained_ranges(tmp_path):
    student = residual_student()
    x = np.random.default_rng(0).random((300, 8, 8, 1), "float32")
    ready = kd.quantization_aware(student, "int8", x[:100])
    path = tmp_path / "student.tflite"
    artifact = kd.export_litert(ready, path, "int8")
    scales = {
        (np.float32(d["quantization"][0]), d["quantization"][1])
        for d, _ in processes.call(details, path)
    }
    for layer in trained_ranges.layers_of(ready):
        if isinstance(layer, FakeQuantizedActivations):
            low, high = np.float32(layer.range())
            scale = (high - low) / np.float32(255)
            zero = int(np.rint(-128 - low / scale))
            assert (scale, zero) in scales, layer.name
    expected, seen = ready.predict(x, verbose=0), artifact.predict(x)
    step = np.ptp(ready.get_layer("logits_range").range()) / 255
    assert np.abs(expected - seen).max() <= 3 * step
    assert np.mean(expected.argmax(-1) == seen.argmax(-1)) >= 0.99


@only_on("tensorflow")
@pytest.mark.parametrize("bits", [4, 8])
def test_file_has_the_rounded_weights(bits, tmp_path):
    ready = kd.quantization_aware(residual_student(), f"weight_only_int{bits}")
    path = tmp_path / "student.tflite"
    kd.export_litert(ready, path, f"weight_only_int{bits}")
    in_file = [
        np.sort(dequantised(d, integers).ravel())
        for d, integers in processes.call(details, path)
    ]
    rounding = [
        layer
        for layer in trained_ranges.layers_of(ready)
        if isinstance(layer, FakeQuantizedWeights)
    ]
    assert len(in_file) == len(rounding)
    for layer in rounding:
        weights = keras.ops.convert_to_numpy(layer.rounded_weights())
        ours = np.sort(weights.ravel())
        assert any(
            theirs.shape == ours.shape and np.allclose(theirs, ours, atol=1e-6)
            for theirs in in_file
        ), layer.name


def dequantised(detail, integers):
    parameters = detail["quantization_parameters"]
    shape = [1] * integers.ndim
    shape[parameters["quantized_dimension"]] = -1
    return integers.astype("float32") * parameters["scales"].reshape(shape)


@only_on("tensorflow")
def test_asks_for_data_where_a_tensor_has_no_range(tmp_path):
    student = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(4, name="hidden"),
            layers.LayerNormalization(name="norm"),
            layers.Dense(3, name="logits"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(100, 8)).astype("float32")
    ready = kd.quantization_aware(student, "int8", x)
    path = tmp_path / "student.tflite"
    with pytest.raises(ValueError, match=r"norm.*calibration_data"):
        kd.export_litert(ready, path, "int8")
    artifact = kd.export_litert(ready, path, "int8", calibration_data=x)
    expected, seen = ready.predict(x, verbose=0), artifact.predict(x)
    assert np.mean(expected.argmax(-1) == seen.argmax(-1)) >= 0.95


@only_on("tensorflow")
def test_pixels_need_no_range(tmp_path):
    student = keras.Sequential(
        [
            keras.Input((4, 4, 1), dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(3, 3, name="conv"),
        ]
    )
    x = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), "uint8")
    ready = kd.quantization_aware(student, "int8", x)
    artifact = kd.export_litert(ready, tmp_path / "student.tflite", "int8")
    expected, seen = ready.predict(x, verbose=0), artifact.predict(x)
    step = np.ptp(ready.get_layer("conv_range").range()) / 255
    assert np.abs(expected - seen).max() <= 2 * step


@only_on("tensorflow")
def test_sequences_and_embeddings(tmp_path):
    student = keras.Sequential(
        [
            keras.Input((12,), dtype="int32", name="tokens"),
            layers.Embedding(20, 8, name="embedding"),
            layers.Conv1D(6, 3, activation="relu", name="conv"),
            layers.SeparableConv1D(6, 3, activation="relu", name="separable"),
            layers.GlobalAveragePooling1D(name="pool"),
            layers.Dense(3, name="logits"),
        ]
    )
    x = np.random.default_rng(0).integers(0, 20, (200, 12))
    ready = kd.quantization_aware(student, "int8", x)
    artifact = kd.export_litert(ready, tmp_path / "student.tflite", "int8")
    expected, seen = ready.predict(x, verbose=0), artifact.predict(x)
    step = np.ptp(ready.get_layer("logits_range").range()) / 255
    assert np.abs(expected - seen).max() <= 3 * step


@only_on("tensorflow")
def test_words_that_come_as_floats_have_no_range(tmp_path):
    student = keras.Sequential(
        [
            keras.Input((12,), name="tokens"),
            layers.Embedding(300, 8, name="embedding"),
            layers.GlobalAveragePooling1D(name="pool"),
            layers.Dense(3, name="logits"),
        ]
    )
    x = np.random.default_rng(0).integers(0, 300, (200, 12)).astype("float32")
    ready = kd.quantization_aware(student, "int8", x)
    assert "tokens_range" not in [layer.name for layer in ready.layers]
    whole = kd.Quantization("int8", integer_io=True)
    with pytest.raises(ValueError, match=r"input 'tokens'.*dtype='int32'"):
        kd.quantization_aware(student, whole, x)
    artifact = kd.export_litert(ready, tmp_path / "student.tflite", "int8")
    expected, seen = ready.predict(x, verbose=0), artifact.predict(x)
    step = np.ptp(ready.get_layer("logits_range").range()) / 255
    assert np.abs(expected - seen).max() <= 3 * step


def test_what_was_adapted_stays_so():
    norm = layers.Normalization(axis=-1, name="norm")
    norm.adapt(np.float32([[0.0, 10.0], [2.0, 30.0]]))
    student = keras.Sequential([keras.Input((2,)), norm, layers.Dense(3)])
    x = np.float32([[1.0, 20.0], [2.0, 40.0]])
    ready = kd.quantization_aware(student, "dynamic_int8")
    difference = ready.predict(x, verbose=0) - student.predict(x, verbose=0)
    # Each weight is off by half a step at most.
    step = np.abs(values([student.layers[-1].kernel])[0]).max(0) / 127
    scaled = np.float32([[0.0, 0.0], [1.0, 2.0]])
    largest = np.abs(scaled).sum(-1, keepdims=True) * step / 2
    assert np.all(np.abs(difference) <= largest + 1e-6)


@pytest.mark.parametrize("scheme", ["dynamic_int8", "int8"])
def test_regularizers_of_outputs_are_kept(scheme):
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 2))
    penalty = keras.regularizers.L2(0.1)
    conv = layers.SeparableConv2D(
        3, 3, activation="relu", activity_regularizer=penalty
    )
    x = layers.BatchNormalization()(conv(image))
    x = layers.GlobalAveragePooling2D()(x)
    head = layers.Dense(3, activation="softmax", activity_regularizer="l1")
    student = keras.Model(image, head(x))
    x = np.random.default_rng(0).normal(size=(16, 6, 6, 2)).astype("float32")
    ready = kd.quantization_aware(student, scheme, x)
    penalties = []
    for model in (student, ready):
        model.compile("sgd", lambda _, y: 0 * y)
        penalties.append(model.test_on_batch(x, np.zeros((16, 3))))
    assert penalties[0] > 0.01
    # But for what eight bits change: counted twice, or not at all, is far more.
    assert penalties[1] == pytest.approx(penalties[0], rel=0.05)


def test_half_precision_rounds_its_weights_as_the_file_does():
    keras.config.set_dtype_policy("float16")
    try:
        dense = layers.Dense(2, use_bias=False)
        layer = FakeQuantizedWeights(dense, "dynamic_int8", 8)
        layer.build((None, 3))
    finally:
        keras.config.set_dtype_policy("float32")
    weights = np.float16([[1.27, 0.0], [-0.005, 0.0], [0.0151, 0.0]])
    dense.kernel.assign(weights)
    exact = weights.astype("float32")
    scale = exact[:, 0].max() / 127
    expected = np.rint(exact / scale) * scale
    rounded = keras.ops.convert_to_numpy(layer.rounded_weights())
    np.testing.assert_array_equal(rounded, expected.astype("float16"))


def student_of_two_outputs():
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="relu", name="hidden")(inputs)
    kinds = layers.Dense(3, name="kinds")(x)
    chance = layers.Dense(1, activation="sigmoid", name="chance")(x)
    return keras.Model(inputs, [kinds, chance])


def test_outputs_keep_their_names(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 6))
    labels = {"kinds": np.zeros((40, 3)), "chance": np.zeros((40, 1))}
    student = student_of_two_outputs()
    student.compile(
        "sgd", loss={"kinds": "mse", "chance": "mse"}, metrics={"kinds": "mae"}
    )
    student.fit(x, labels, verbose=0)
    ready = kd.quantization_aware(
        student, kd.Quantization("int8", integer_io=True), x
    )
    assert ready.output_names == ["kinds", "chance"]
    seen = ready.evaluate(x, labels, verbose=0, return_dict=True)
    assert {"kinds_loss", "kinds_mae", "chance_loss"} < set(seen)
    ready.save(tmp_path / "ready.keras")
    loaded = keras.saving.load_model(tmp_path / "ready.keras")
    assert loaded.output_names == ["kinds", "chance"]
    again = loaded.evaluate(x, labels, verbose=0, return_dict=True)
    assert again == pytest.approx(seen)
    assert kd.quantization_aware(cnn(), "dynamic_int8").output_names == [
        "logits"
    ]


@only_on("tensorflow")
def test_a_relu_in_the_middle_is_returned(tmp_path):
    inputs = keras.Input((6,))
    dense = layers.Dense(8, name="dense")(inputs)
    relu = layers.ReLU(name="relu")(dense)
    head = layers.Dense(2, name="head")(relu)
    x = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
    for outputs in ([relu, head], [dense, relu, head], [dense, relu]):
        student = keras.Model(inputs, outputs)
        ready = kd.quantization_aware(student, "int8", x)
        artifact = kd.export_litert(ready, tmp_path / "s.tflite", "int8")
        seen = artifact.predict(x)
        expected = ready.predict(x, verbose=0)
        for name, a, b in zip(ready.output_names, expected, seen, strict=True):
            step = np.ptp(ready.get_layer(f"{name}_range").range()) / 255
            assert np.abs(a - b).max() <= 1.01 * step
