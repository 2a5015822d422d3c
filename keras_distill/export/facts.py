"""Whether what a file says of itself can be what an exporter wrote."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_distill.export.flatbuffer import DamagedFileError

_NUMBER = (int, float)
_NAMES = (str, list, dict)
_NOTHING = type(None)
# The types of values, as JSON has them.
_FACTS: dict[str, tuple[type, ...]] = {
    "inputs": (list,),
    "outputs": (list,),
    "input_names": _NAMES,
    "output_names": _NAMES,
    "signature": (str,),
    "quantization": (dict,),
    "max_error": _NUMBER,
    "snr_db": (*_NUMBER, _NOTHING),
    "student": (dict,),
    "description": (str,),
    "normalization": (dict,),
    "figures": (dict,),
}
_STUDENT: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "parameters": (int,),
    "sha256": (str,),
}
_TENSOR: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "shape": (list,),
    "dtype": (str,),
    "scale": (*_NUMBER, _NOTHING),
    "zero_point": (int, _NOTHING),
}


def check_facts(facts: dict[str, Any]) -> None:
    """Refuse facts of other types, or that contradict each other.

    Raises:
        DamagedFileError: If they do.
    """
    _require_types(facts, _FACTS, "")
    _require_types(facts["student"], _STUDENT, "student: ")
    for kind in ("inputs", "outputs"):
        for row in facts[kind]:
            _require_types(row, _TENSOR, f"{kind}: ")
            np.dtype(row["dtype"])
            for size in row["shape"]:
                _require_type(size, (int, _NOTHING), f"{kind}: shape")
    for kind, names in (("inputs", "input_names"), ("outputs", "output_names")):
        given = [row["name"] for row in facts[kind]]
        if not given or keras.tree.flatten(facts[names]) != given:
            raise DamagedFileError(
                "The LiteRT file contradicts itself. Received: "
                f"{names}={facts[names]} for {kind} {given}. Export the "
                "student again."
            )


def _require_types(
    facts: dict[str, Any], types: dict[str, tuple[type, ...]], where: str
) -> None:
    for name, kinds in types.items():
        _require_type(facts[name], kinds, f"{where}{name}")


def _require_type(value: Any, kinds: tuple[type, ...], where: str) -> None:
    # JSON's true is no number, though Python's is.
    if not isinstance(value, kinds) or isinstance(value, bool):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise DamagedFileError(
            "The LiteRT file says of itself what no exporter writes. Received: "
            f"{where}={value!r} (expected: {names}). Export the student again."
        )
