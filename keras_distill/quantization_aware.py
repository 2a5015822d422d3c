"""A student that trains as its quantised file will compute."""

from __future__ import annotations

from typing import Any

import keras

from keras_distill.export.examples import as_examples
from keras_distill.export.schemes import Quantization, as_quantization
from keras_distill.export.signature import describe_inputs, require_whole_ids
from keras_distill.fake_quantization import (
    FakeQuantizedActivations,
    FakeQuantizedWeights,
)
from keras_distill.model_graphs import layers_of
from keras_distill.predictions import predict
from keras_distill.rounding_copy import RoundingCopy

_SCHEMES = (
    "int8",
    "weight_only_int8",
    "weight_only_int4",
    "dynamic_int8",
    "dynamic_int4",
)
_RANGES = ("moving_average", "learned")
# Examples that run at once when ranges are calibrated.
_BATCH = 64


def quantization_aware(
    student: keras.Model,
    quantization: Quantization | str = "int8",
    calibration_data: Any = None,
    ranges: str = "moving_average",
) -> keras.Model:
    """A copy of a student that computes as its quantised file will.

    Rounding weights after training loses accuracy, and more the fewer bits
    there are. The copy rounds in training too, so that its weights learn to do
    well when rounded. Train it with a `Distiller`, or alone, then export it
    with the same scheme: the file has the very weights and ranges that the
    copy trained with, and needs no calibration data.

    A `BatchNormalization` behind a layer becomes part of its weights. What the
    file keeps in float isn't rounded: in 4 bits the depthwise and transposed
    convolutions, in all schemes `Conv3D` and, but for "int8", `Embedding`.
    Neither are weights inside of layers such as `LSTM` or
    `MultiHeadAttention`, which the file does round. Their inner tensors have
    no ranges: to export these students, pass `calibration_data` again.

    Of a `BatchNormalization` that stands alone the result is rounded, and its
    file rounds the product within it, too.

    Formula:
        Weights, for each output channel:
        `scale = max|w| / (2**(bits - 1) - 1)`, `round(w / scale) * scale`.
        Activations, for each tensor: `scale = (highest - lowest) / 255`,
        `zero_point = round(-128 - lowest / scale)`,
        `(clip(round(x / scale) + zero_point, -128, 127) - zero_point) * scale`.
        Gradients pass through the rounding as if it weren't there, and stop
        outside of a range.

    Args:
        student: A built Functional or Sequential model, trained or not. It
            isn't changed.
        quantization: The scheme that the file will have: "int8" (weights and
            activations), "dynamic_int8", "dynamic_int4", "weight_only_int8" or
            "weight_only_int4" (weights). Of a `Quantization` the scheme counts,
            and `integer_io`, which is the same in training; it has no others.
        calibration_data: For "int8", some hundred inputs that the ranges start
            from, as for `export_litert`.
        ranges: For "int8", "moving_average" of the batches' smallest and
            largest values, with a momentum of 0.99; or "learned", ends of
            ranges that are trained as weights.

    Returns:
        A Functional model with the student's names of layers and outputs, and
        a layer "<name>_range" where a tensor is rounded. It is compiled as the
        student is.

    Raises:
        ValueError: If the student shows no graph, has no layer to quantise, or
            is quantised already; if the scheme or `ranges` is unknown; if
            "int8" comes without calibration data.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import keras_distill as kd
        >>> student = keras.Sequential([
        ...     keras.Input((8,)),
        ...     keras.layers.Dense(4, activation="relu", name="hidden"),
        ...     keras.layers.Dense(3, name="logits")])
        >>> x = np.random.default_rng(0).normal(size=(64, 8))
        >>> ready = kd.quantization_aware(student, "int8", x)
        >>> [layer.name for layer in ready.layers[1:]]
        ['input_range', 'hidden', 'hidden_range', 'logits', 'logits_range']
        >>> ready.get_layer("hidden_range").range()[0]
        0.0

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for
        Efficient Integer-Arithmetic-Only Inference", CVPR 2018; Esser et al.,
        "Learned Step Size Quantization", ICLR 2020.
    """
    scheme = _scheme(quantization)
    _check(student, scheme, calibration_data, ranges)
    if as_quantization(quantization).integer_io:
        require_whole_ids(student)
    ready = RoundingCopy(student, scheme, ranges).make()
    if not any(isinstance(v, FakeQuantizedWeights) for v in layers_of(ready)):
        raise ValueError(
            f"{scheme!r} has no weights to round in the student. "
            f"Received: student='{student.name}'. Pass a student with Conv or "
            "Dense layers in its graph, or another scheme."
        )
    if scheme == "int8":
        _calibrate(ready, calibration_data)
    return ready


def _scheme(value: Quantization | str) -> str:
    quantization = as_quantization(value)
    if quantization.scheme not in _SCHEMES:
        raise ValueError(
            "There is no training for this scheme. Received: "
            f"quantization={quantization.scheme!r}. Pass one of "
            f"{', '.join(_SCHEMES)}."
        )
    plain = Quantization(
        quantization.scheme, integer_io=quantization.integer_io
    )
    if quantization != plain:
        raise ValueError(
            "A student trains with a scheme's own rounding, channel by channel "
            f"and in all layers. Received: {quantization}. Pass "
            f"{quantization.scheme!r}; float_layers can be passed to "
            "`export_litert`."
        )
    return quantization.scheme


def _check(student: Any, scheme: str, data: Any, ranges: str) -> None:
    if ranges not in _RANGES:
        raise ValueError(
            f"There are two kinds of ranges. Received: ranges={ranges!r}. Pass "
            "'moving_average' or 'learned'."
        )
    if scheme == "int8" and data is None:
        raise ValueError(
            "'int8' needs inputs that the ranges start from. Received: "
            "calibration_data=None. Pass some hundred of the training inputs."
        )
    if not isinstance(student, keras.Model) or not student.built:
        raise ValueError(
            "Quantisation-aware training starts from a built Keras model. "
            f"Received: student={student!r}. Call it on a batch, or start it "
            "with `keras.Input`."
        )
    for layer in layers_of(student):
        if layer.quantization_mode is not None or isinstance(
            layer, FakeQuantizedWeights
        ):
            raise ValueError(
                "The student is quantised already. Received: layer "
                f"'{layer.name}'. Pass the student as it was before."
            )


def _calibrate(ready: keras.Model, data: Any) -> None:
    """Let the ranges hold all that the layers return for some inputs."""
    names, inputs = describe_inputs(ready, None)
    arrays = as_examples(data, names, inputs, ready)
    ranges = [
        layer
        for layer in layers_of(ready)
        if isinstance(layer, FakeQuantizedActivations)
    ]
    x = keras.tree.map_structure(arrays.__getitem__, names)
    trainable = [layer.trainable for layer in ranges]
    for layer in ranges:
        # On JAX, a pass without training keeps no change of what is trained.
        layer.observes, layer.trainable = True, False
    predict(ready, x, _BATCH)
    for layer, before in zip(ranges, trainable, strict=True):
        layer.observes, layer.trainable = False, before
    # The compiled one would go on observing.
    ready.make_predict_function(force=True)
