"""How a LiteRT file may be quantised: names that decode themselves."""

from __future__ import annotations

import dataclasses
import numbers
from typing import NamedTuple


class Scheme(NamedTuple):
    """What a scheme's name stands for.

    Attributes:
        kind: "none", "cast", "dynamic", "weight_only" or "static".
        weight_bits: Bits of a weight in the file.
        activation_bits: Bits of an activation in a static scheme, else 32.
        block: Weights that share a scale; 0 for all of a channel.
        meaning: One line for a person.
    """

    kind: str
    weight_bits: int
    activation_bits: int = 32
    block: int = 0
    meaning: str = ""


# From the most exact to the smallest.
SCHEMES = {
    "float32": Scheme("none", 32, meaning="nothing is rounded"),
    "float16": Scheme(
        "cast", 16, meaning="weights stored in half the bits, computed in float"
    ),
    "weight_only_int8": Scheme(
        "weight_only", 8, meaning="weights in int8, computed in float"
    ),
    "dynamic_int8": Scheme(
        "dynamic",
        8,
        meaning="weights in int8, activations rounded as they come",
    ),
    "int16x8": Scheme(
        "static",
        8,
        16,
        meaning="weights in int8, activations in int16, integers throughout",
    ),
    "int8": Scheme(
        "static",
        8,
        8,
        meaning="weights and activations in int8, integers throughout",
    ),
    "dynamic_int4_block32": Scheme(
        "dynamic",
        4,
        block=32,
        meaning="as dynamic_int4, with a scale for each 32 weights of a Dense",
    ),
    "weight_only_int4": Scheme(
        "weight_only", 4, meaning="weights in int4, computed in float"
    ),
    "dynamic_int4": Scheme(
        "dynamic",
        4,
        meaning="weights in int4, activations rounded to int8 as they come",
    ),
}


@dataclasses.dataclass(frozen=True)
class Quantization:
    """How to quantise a file, where a scheme's name doesn't say it all.

    `export_litert(quantization="int8")` means
    `export_litert(quantization=Quantization("int8"))`.

    | scheme | weights | activations | calibration |
    |---|---|---|---|
    | `float32` | float32 | float32 | – |
    | `float16` | float16 | float32 | – |
    | `weight_only_int8`, `weight_only_int4` | int8, int4 | float32 | – |
    | `dynamic_int8`, `dynamic_int4` | int8, int4 | int8, as they come | – |
    | `dynamic_int4_block32` | int4, a scale for 32 | int8, as they come | – |
    | `int8` | int8 | int8, ranges from calibration | yes |
    | `int16x8` | int8 | int16, ranges from calibration | yes |

    Formula:
        `real = scale * (integer - zero_point)`; weights are symmetric
        (`zero_point = 0`, `scale = max|w| / (2**(bits - 1) - 1)`).

    Args:
        scheme: A scheme's name.
        integer_io: Whether a static scheme's file takes and returns integers.
            It takes floats otherwise, and converts them itself.
        per_channel: Whether each output channel of a weight has a scale of its
            own, rather than one for all.
        float_layers: Names of Keras layers that stay in float.
        min_snr_db: Signal-to-noise ratio of the outputs on the calibration
            data, in dB, that a static scheme must reach. Where it doesn't, the
            layers that lose most stay in float, one after the other.
        equalize: Whether to equalise the ranges of the channels between layers
            first (cross-layer equalisation), which loses nothing in float. It
            pays where few channels are far larger than the others.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If the scheme is unknown, or an argument doesn't fit it.

    Example:
        >>> Quantization("int8", integer_io=True).scheme
        'int8'

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for
        Efficient Integer-Arithmetic-Only Inference", CVPR 2018; Nagel et al.,
        "Data-Free Quantization Through Weight Equalization and Bias
        Correction", ICCV 2019.
    """

    scheme: str = "float32"
    integer_io: bool = False
    per_channel: bool = True
    float_layers: tuple[str, ...] = ()
    min_snr_db: float | None = None
    equalize: bool = False

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            known = ", ".join(SCHEMES)
            raise ValueError(
                "There is no such quantisation scheme. Received: "
                f"scheme={self.scheme!r}. Pass one of {known}."
            )
        if isinstance(self.float_layers, str):
            raise ValueError(
                "float_layers is a tuple of layer names. Received: "
                f"float_layers={self.float_layers!r}. Pass "
                f"({self.float_layers!r},)."
            )
        self._require_types()
        # Frozen for the caller; this is where it is made.
        object.__setattr__(self, "float_layers", tuple(self.float_layers))
        for name in ("integer_io", "min_snr_db"):
            if getattr(self, name) and self.details.kind != "static":
                raise ValueError(
                    f"{name} is for schemes whose activations are integers. "
                    f"Received: {name}={getattr(self, name)!r} with "
                    f"scheme={self.scheme!r}. Pass 'int8' or 'int16x8'."
                )
        if not self.per_channel and self.details.block:
            raise ValueError(
                "Blocks are parts of a channel. Received: per_channel=False "
                f"with scheme={self.scheme!r}. Pass 'dynamic_int4'."
            )

    def _require_types(self) -> None:
        for name, kind, text in (
            ("integer_io", bool, "True or False"),
            ("per_channel", bool, "True or False"),
            ("equalize", bool, "True or False"),
            ("float_layers", tuple | list, "a tuple of layer names"),
            ("min_snr_db", numbers.Real | None, "a number of dB, or None"),
        ):
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise TypeError(
                    f"{name} is {text}. Received: {name}={value!r}."
                )
        for layer in self.float_layers:
            if not isinstance(layer, str):
                raise TypeError(
                    "float_layers is a tuple of layer names. Received: "
                    f"{layer!r} in it. Pass `layer.name`."
                )

    @property
    def details(self) -> Scheme:
        """What the scheme's name stands for."""
        return SCHEMES[self.scheme]


def as_quantization(value: Quantization | str | None) -> Quantization:
    """A scheme's name, or None, as the `Quantization` that it stands for."""
    if isinstance(value, Quantization):
        return value
    if value is None or isinstance(value, str):
        return Quantization(value or "float32")
    raise TypeError(
        "quantization is a scheme's name or a `Quantization`. Received: "
        f"quantization={value!r}. Pass 'int8', for instance."
    )
