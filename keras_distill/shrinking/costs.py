"""What a model costs: parameters, multiplications and the size of its file."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import keras

from keras_distill.export.schemes import SCHEMES
from keras_distill.features import sublayers
from keras_distill.shrinking.file_sizes import estimated_bytes
from keras_distill.shrinking.layer_calls import (
    LayerCall,
    calls_in_step,
    layer_calls,
)
from keras_distill.shrinking.multiplications import COUNTS, UNCOUNTED


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """What a model costs. Its text has a line for each figure.

    Attributes:
        parameters: Numbers in its weights, statistics included.
        macs: Multiply-accumulates for one example.
        litert_bytes: The estimated size of its LiteRT file, by the scheme's
            name.
        uncounted: Names of layers with weights of kinds that `macs` can't know.

    Example:
        >>> cost = ModelCost(10, 8, {"float32": 3000}, ())
        >>> print(cost)
        10 parameters
        8 multiply-accumulates
        2.9 KiB as float32 (estimated)
    """

    parameters: int
    macs: int
    litert_bytes: Mapping[str, int]
    uncounted: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.parameters:,} parameters",
            f"{self.macs:,} multiply-accumulates",
            *(
                f"{size / 1024:,.1f} KiB as {scheme} (estimated)"
                for scheme, size in self.litert_bytes.items()
            ),
        ]
        if self.uncounted:
            lines.append(f"without what {list(self.uncounted)} multiply")
        return "\n".join(lines)


def model_cost(model: keras.Model) -> ModelCost:
    """Count a model's parameters and multiplications, and estimate its file.

    A student's size decides what it can learn and where it can run, so it is
    worth a look before training. Nothing is computed, and the model stays as it
    is.

    Multiply-accumulates are those of kernels and of attention's two products,
    for one example; a convolution's edges count in full, and so do masked
    steps. What adds or scales counts nothing (biases, normalisations,
    activations, pooling, `Embedding`), nor does what a custom layer or a graph
    multiplies by `keras.ops`. Custom layers with weights of their own are
    `uncounted`.

    The file's size is that of its weights as the scheme rounds them, and of a
    constant for each operation. It was fitted to the 72 files of
    `examples/export_table.py` (7 to 142 KB), from which it is 4 % off in the
    mean and 15 % at most. Files of other networks may be further off; the more
    weights there are, the less the constants count. Static schemes write out
    recurrent layers for each step of a sequence, which it knows; what custom
    layers compute, it doesn't. `kd.export_litert` makes the file, and tells its
    size.

    Formula:
        `Dense`: `places * in * out`. `Conv2D`: `height * width * kernel *
        kernel * in / groups * out`, of the output's height and width.
        Attention: `heads * queries * keys * (key_dim + value_dim)`, and its
        four kernels. `LSTM`: `steps * 4 * units * (in + units)`.

    Args:
        model: Any built Keras model whose inputs have fixed shapes.

    Returns:
        The costs, as a frozen `ModelCost`.

    Raises:
        TypeError: If it is no model.
        ValueError: If it isn't built, or the shape of its inputs isn't known.

    Example:
        >>> import keras, keras_distill as kd
        >>> model = keras.Sequential([
        ...     keras.Input((8,)),
        ...     keras.layers.Dense(64, activation="relu"),
        ...     keras.layers.Dense(10),
        ... ])
        >>> cost = kd.model_cost(model)
        >>> cost.parameters, cost.macs
        (1226, 1152)
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            "What costs something is a keras.Model. Received: "
            f"model={model!r} of type {type(model).__name__}. Load it first, "
            "with keras.saving.load_model."
        )
    if not model.built:
        raise ValueError(
            "The model isn't built, so its layers have no sizes yet. "
            f"Received: model='{model.name}'. Begin it with keras.Input."
        )
    calls = [part for call in layer_calls(model) for part in _parts(call)]
    sizes = {
        name: estimated_bytes(calls, scheme) for name, scheme in SCHEMES.items()
    }
    uncounted = {c.layer.name: None for c in calls if _is_uncounted(c.layer)}
    return ModelCost(
        parameters=model.count_params(),
        macs=sum(_macs(call) for call in calls),
        litert_bytes=types.MappingProxyType(sizes),
        uncounted=tuple(uncounted),
    )


def _parts(call: LayerCall) -> list[LayerCall]:
    """The calls that a call consists of, for each step of a sequence."""
    if type(call.layer) is not keras.layers.TimeDistributed:
        return [call]
    steps = call.read[0][1]
    return [
        # As if all steps were examples.
        part._replace(
            read=[(steps * shape[0], *shape[1:]) for shape in part.read],
            returned=(steps * part.returned[0], *part.returned[1:]),
        )
        for inner in calls_in_step(call)
        for part in _parts(inner)
    ]


def _macs(call: LayerCall) -> int:
    count = COUNTS.get(type(call.layer))
    return count(*call) if count else 0


def _is_uncounted(layer: Any) -> bool:
    if type(layer) in (*COUNTS, *UNCOUNTED):
        return False
    within = {id(w) for inner in sublayers(layer) for w in inner.weights}
    return any(id(w) not in within for w in layer.weights)
