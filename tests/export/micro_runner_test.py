"""Files on TensorFlow Lite Micro, against LiteRT."""

import dataclasses
from importlib.util import find_spec

import keras
import numpy as np
import pytest
from support import only_on

from keras_distill.export import (
    MicroCheck,
    Quantization,
    check_on_micro,
    export_litert,
    micro_runner,
    processes,
)

layers = keras.layers
INTEGERS = Quantization("int8", integer_io=True)


def on_micro(test):
    needed = pytest.mark.skipif(
        find_spec("tflite_micro") is None, reason="tflite-micro is optional."
    )
    return only_on("jax")(needed(test))


def classifier(activation="relu"):
    image = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(6, 3, activation="relu")(image)
    x = layers.DepthwiseConv2D(3, activation=activation)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(4)(x))


def images(count=16):
    random = np.random.default_rng(1)
    return random.normal(size=(count, 8, 8, 2)).astype("float32")


def export(student, path, quantization, x):
    return export_litert(student, path, quantization, calibration_data=x)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """The classifier's file, made once for each quantisation."""
    folder, made = tmp_path_factory.mktemp("files"), {}

    def get(quantization):
        if quantization not in made:
            path = folder / f"{len(made)}.tflite"
            made[quantization] = export(
                classifier(), path, quantization, images()
            )
        return made[quantization]

    return get


@on_micro
@pytest.mark.parametrize("quantization", ["float32", "int8", INTEGERS])
def test_returns_what_litert_returns(quantization, artifact):
    artifact = artifact(quantization)
    check = check_on_micro(artifact, images(7))
    assert isinstance(check, MicroCheck)
    assert check.agreement == 1.0
    assert check.max_error <= (1e-5 if quantization == "float32" else 0.04)
    assert check.snr_db > (100 if quantization == "float32" else 30)
    assert check.operations["DEPTHWISE_CONV_2D"] == 1
    # The input, at least, is in the arena, and no chip this small has more.
    assert 128 < check.arena < 20_000

    model, batch = artifact.model(), {"image": images(7)}
    seen = processes.call(micro_runner.run, model, batch, check.arena)
    assert seen["output_0"].dtype == "float32"
    np.testing.assert_allclose(
        seen["output_0"], artifact.predict(images(7)), atol=0.05
    )
    below = check.arena - micro_runner._ALIGNMENT
    # Which of the two it does is chance.
    with pytest.raises(processes.WorkerError, match=r"SIGSEGV|RuntimeError"):
        processes.call(micro_runner.run, model, batch, below)


@only_on("torch")
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_value_is_a_yes_or_no(shape):
    expected, seen = np.float32([1, -1, 2]), np.float32([1, 1, 2])
    agreement = micro_runner._agreement(
        expected.reshape(shape), seen.reshape(shape)
    )
    assert agreement == pytest.approx(2 / 3)


@on_micro
def test_names_of_several_inputs_and_outputs_find_their_places(tmp_path):
    # Neither in the order of the alphabet, nor of use.
    b, a = keras.Input((4,), name="b"), keras.Input((3,), name="a")
    x = layers.Concatenate()([layers.Dense(2)(a), b])
    student = keras.Model(
        {"b": b, "a": a}, {"z": layers.Dense(2)(x), "y": layers.Dense(5)(x)}
    )
    random = np.random.default_rng(1)
    batch = {
        "a": random.normal(size=(9, 3)).astype("float32"),
        "b": random.normal(size=(9, 4)).astype("float32"),
    }
    artifact = export(student, tmp_path / "student.tflite", INTEGERS, batch)
    assert check_on_micro(artifact, batch).snr_db > 25
    inputs, outputs = micro_runner.ports(artifact.model())
    assert [port.position for port in inputs] == [0, 1]
    assert {port.name for port in outputs} == {"y", "z"}
    assert all(port.details["dtype"] == np.int8 for port in inputs + outputs)


@on_micro
def test_planning_of_many_tensors_needs_more_than_is_reported(tmp_path):
    steps = keras.Input((8, 3))
    student = keras.Model(steps, layers.GRU(2, unroll=True)(steps))
    x = np.random.default_rng(1).normal(size=(4, 8, 3)).astype("float32")
    artifact = export(student, tmp_path / "student.tflite", None, x)
    model = artifact.model()
    reported = processes.call(micro_runner._reported_arena, model)
    arena = check_on_micro(artifact, x).arena
    assert arena > reported
    units = arena // micro_runner._ALIGNMENT
    assert micro_runner._fits(model, units)
    assert not micro_runner._fits(model, units - 1)


REFUSED = {
    "float16": "weights in float16",
    "dynamic_int8": "weights in int8 with activations in float",
    # It runs, and returns something else.
    "weight_only_int8": "something else than LiteRT",
}


@on_micro
@pytest.mark.parametrize("scheme", REFUSED)
def test_scheme_that_it_does_not_have(scheme, artifact):
    with pytest.raises(RuntimeError, match=REFUSED[scheme]):
        check_on_micro(artifact(scheme), images())


@on_micro
def test_missing_kernel_is_named(tmp_path):
    artifact = export(
        classifier("gelu"), tmp_path / "student.tflite", "int8", images()
    )
    with pytest.raises(RuntimeError, match=r"no kernel for GELU.*\.tflite"):
        check_on_micro(artifact, images())


@on_micro
def test_few_steps_are_rounding_and_more_are_not(artifact, monkeypatch):
    artifact = artifact(INTEGERS)
    step = artifact.outputs[0].scale
    call = processes.call

    def shift(by):
        def shifted(function, *arguments):
            result = call(function, *arguments)
            if function is micro_runner.run:
                return {name: x + by for name, x in result.items()}
            return result

        monkeypatch.setattr(processes, "call", shifted)

    shift(2 * step)
    assert check_on_micro(artifact, images()).snr_db < artifact.snr_db
    shift(100 * step)
    with pytest.raises(RuntimeError, match="of the decisions in common"):
        check_on_micro(artifact, images())
    # What quantising itself did counts as little, too.
    poor = dataclasses.replace(artifact, snr_db=-30.0)
    assert check_on_micro(poor, images()).max_error > 0.1


@on_micro
def test_wrong_examples(artifact):
    with pytest.raises(ValueError, match="examples of shape"):
        check_on_micro(artifact(INTEGERS), images()[:, :4])


def test_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(micro_runner, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --pre tflite-micro"):
        check_on_micro(None, None)
