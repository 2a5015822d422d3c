"""How a teacher's numbers are put into records of a fixed width."""

from __future__ import annotations

import functools
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from keras_distill.losses.sparse import SampledTargets, SparseTargets

Array: TypeAlias = "np.ndarray[Any, Any]"
Shape: TypeAlias = tuple[int, ...]

# At these inverse temperatures the weight of the classes that were left out
# is stored; at 0 it is the logarithm of their number.
INVERSE_TEMPERATURES = (1.0, 0.75, 0.5, 0.25, 0.125, 0.03125)


class Storage(ABC):
    """What one example's output becomes in a file.

    `name` says it all: `from_name(storage.name)` is an equal storage.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The string that stands for it."""

    @abstractmethod
    def record(self, shape: Shape) -> np.dtype[Any]:
        """The dtype of one example's record, for an output of that shape."""

    @abstractmethod
    def encode(self, values: Array, shape: Shape, rows: Array) -> Array:
        """Records `(rows,)` of float values `(rows, *shape)`.

        Args:
            values: What the teacher said.
            shape: Of one example.
            rows: The numbers of the records in the cache, from which what is
                drawn at random derives.
        """

    def check_temperature(self, temperature: float) -> None:
        """Raise unless targets can be made for that temperature."""
        raise ValueError(
            "Outputs that are stored densely are of any temperature: it is the "
            f"loss's alone. Received: temperature={temperature} for "
            f"storage='{self.name}'. Leave it out."
        )

    @abstractmethod
    def decode(self, records: Array, shape: Shape, temperature: float) -> Any:
        """What a batch holds in place of the teacher's output."""


# The greatest numbers that don't become infinite.
_LARGEST = {
    "float32": float(np.finfo(np.float32).max),
    "float16": 65504.0,
    "bfloat16": float(np.array([0x7F7F0000], np.uint32).view(np.float32)[0]),
}


@dataclass(frozen=True)
class Dense(Storage):
    """Every number, as `"float32"`, `"float16"` or `"bfloat16"`."""

    dtype: str

    @property
    def name(self) -> str:
        """The dtype."""
        return self.dtype

    def record(self, shape: Shape) -> np.dtype[Any]:
        """An array of numbers."""
        # NumPy has no bfloat16: it is the upper half of a float32.
        kind = "<u2" if self.dtype == "bfloat16" else f"<f{self._bytes()}"
        return np.dtype([("values", kind, shape)])

    def _bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2

    def encode(self, values: Array, shape: Shape, rows: Array) -> Array:
        """Round each number."""
        records = np.empty(len(values), self.record(shape))
        largest = float(np.max(np.abs(values), initial=0.0))
        if largest > _LARGEST[self.dtype]:
            raise ValueError(
                f"A number of the teacher's is too large for {self.dtype}. "
                f"Received: {largest:.4g}; the largest is "
                f"{_LARGEST[self.dtype]:.6g}. Pass storage='bfloat16' or "
                "'float32', or a finite number for what is masked."
            )
        is_short = self.dtype == "bfloat16"
        records["values"] = _to_bfloat16(values) if is_short else values
        return records

    def decode(self, records: Array, shape: Shape, temperature: float) -> Array:
        """Numbers as they are stored; bfloat16 in float32.

        Losses compute in float32, and their device converts faster.
        """
        values: Array = records["values"]
        if self.dtype == "bfloat16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values


@dataclass(frozen=True)
class Scaled(Storage):
    """Eight bits a number, between the row's smallest and its largest.

    A row is what lies along the last axis, such as an example's logits.
    """

    @property
    def name(self) -> str:
        """`"uint8"`."""
        return "uint8"

    def record(self, shape: Shape) -> np.dtype[Any]:
        """Codes, and each row's smallest value and step."""
        return np.dtype(
            [
                ("low", "<f4", (*shape[:-1], 1)),
                ("step", "<f4", (*shape[:-1], 1)),
                ("codes", "u1", shape),
            ]
        )

    def encode(self, values: Array, shape: Shape, rows: Array) -> Array:
        """Round each number to the nearest of 256."""
        wide = values.astype(np.float64)
        low = wide.min(axis=-1, keepdims=True)
        step = (wide.max(axis=-1, keepdims=True) - low) / 255
        if (step * 255 > _LARGEST["float32"]).any():
            raise ValueError(
                "A row's numbers are too far apart for 256 steps. Received: "
                f"{low.min():.4g} to {wide.max():.4g}. Pass storage='float32', "
                "or a finite number for what is masked."
            )
        records = np.empty(len(values), self.record(shape))
        records["low"], records["step"] = low, step
        steps = np.where(step > 0, step, 1)
        records["codes"] = np.rint((wide - low) / steps)
        return records

    def decode(self, records: Array, shape: Shape, temperature: float) -> Array:
        """Numbers in float32."""
        values: Array = records["codes"].astype(np.float32)
        values *= records["step"]
        values += records["low"]
        return values


@dataclass(frozen=True)
class TopK(Storage):
    """The greatest `k` logits, and how much all other classes weigh.

    That weight is stored at several temperatures, so that
    `losses.SparseSoftTargets` may have any from 1 upwards.
    """

    k: int

    @property
    def name(self) -> str:
        """`"top-10"`."""
        return f"top-{self.k}"

    def record(self, shape: Shape) -> np.dtype[Any]:
        """Classes, logits, and the weights of the others."""
        places, classes = shape[:-1], shape[-1]
        if not 1 <= self.k < classes:
            raise ValueError(
                "The classes to keep must be fewer than there are. Received: "
                f"storage='{self.name}' for outputs of shape {shape}. Pass a "
                "smaller number, or storage='float16'."
            )
        weights = (*places, len(INVERSE_TEMPERATURES))
        return np.dtype(
            [
                ("classes", _whole_number(classes), (*places, self.k)),
                ("logits", "<f2", (*places, self.k)),
                ("log_rest", "<f4", weights),
            ]
        )

    def encode(self, values: Array, shape: Shape, rows: Array) -> Array:
        """Keep the greatest, in falling order."""
        wide = values.astype(np.float64)
        kept = _greatest(wide, self.k)
        # One number for all classes changes nothing, and float16 has most of
        # its precision near 0.
        wide -= wide.max(axis=-1, keepdims=True)
        records = np.empty(len(values), self.record(shape))
        records["classes"] = kept
        floor = float(np.finfo(np.float16).min)
        logits = np.take_along_axis(wide, kept, axis=-1)
        records["logits"] = np.maximum(logits, floor)
        np.put_along_axis(wide, kept, -np.inf, axis=-1)
        records["log_rest"] = _log_sums(wide)
        return records

    def check_temperature(self, temperature: float) -> None:
        """Raise below 1."""
        if not temperature >= 1:
            raise ValueError(
                "The weight of the classes that were left out is stored for "
                "temperatures from 1 upwards. Received: temperature="
                f"{temperature}. Store dense outputs for lower ones."
            )

    def decode(
        self, records: Array, shape: Shape, temperature: float
    ) -> SparseTargets:
        """Targets for that temperature."""
        self.check_temperature(temperature)
        rest = _at_temperature(
            records["log_rest"], shape[-1] - self.k, temperature
        )
        return SparseTargets(
            records["classes"].astype(np.int32),
            records["logits"].astype(np.float32),
            rest,
            np.full_like(rest, temperature),
        )


@dataclass(frozen=True)
class Sampled(Storage):
    """Classes drawn from the teacher's probabilities, at one temperature."""

    samples: int
    temperature: float = 1.0

    @property
    def name(self) -> str:
        """`"sampled-50"`, or `"sampled-50@2.0"` at a temperature."""
        at = "" if self.temperature == 1 else f"@{self.temperature}"
        return f"sampled-{self.samples}{at}"

    def record(self, shape: Shape) -> np.dtype[Any]:
        """Classes."""
        drawn = (*shape[:-1], self.samples)
        return np.dtype([("classes", _whole_number(shape[-1]), drawn)])

    def encode(self, values: Array, shape: Shape, rows: Array) -> Array:
        """Draw classes, the same ones for the same row."""
        wide = values.astype(np.float64) / self.temperature
        weights = np.exp(wide - wide.max(axis=-1, keepdims=True))
        heights = weights.cumsum(axis=-1)
        records = np.empty(len(values), self.record(shape))
        places = int(np.prod(shape[:-1]))
        for record, height, row in zip(records, heights, rows, strict=True):
            random = np.random.default_rng([int(row), self.samples])
            drawn = random.random((places, self.samples))
            flat = height.reshape(places, -1)
            found = [
                np.searchsorted(line, points * line[-1], side="right")
                for line, points in zip(flat, drawn, strict=True)
            ]
            record["classes"] = np.reshape(found, record["classes"].shape)
        return records

    def check_temperature(self, temperature: float) -> None:
        """Raise for another one than classes were drawn at."""
        if temperature != self.temperature:
            raise ValueError(
                "Classes were drawn at one temperature, for which alone they "
                f"hold. Received: temperature={temperature}, stored at "
                f"{self.temperature}. Pass temperature={self.temperature}."
            )

    def decode(
        self, records: Array, shape: Shape, temperature: float
    ) -> SampledTargets:
        """Targets, all of the same weight."""
        self.check_temperature(temperature)
        classes = records["classes"].astype(np.int32)
        weights = np.full(classes.shape, 1 / self.samples, np.float32)
        return SampledTargets(classes, weights)


def as_storage(storage: Any) -> Storage:
    """A storage, however it was named.

    Raises:
        ValueError: If there is none of that name.
    """
    if isinstance(storage, Storage):
        return storage
    name = str(storage)
    if name in ("float32", "float16", "bfloat16"):
        return Dense(name)
    if name == "uint8":
        return Scaled()
    if found := re.fullmatch(r"top-([1-9]\d*)", name):
        return TopK(int(found[1]))
    if found := re.fullmatch(r"sampled-([1-9]\d*)(?:@(\d+\.?\d*))?", name):
        temperature = float(found[2] or 1)
        if temperature > 0:
            return Sampled(int(found[1]), temperature)
    raise ValueError(
        f"There is no such storage. Received: storage={storage!r}. Pass "
        "'float32', 'float16', 'bfloat16', 'uint8', 'top-10' (or another "
        "number of classes), 'sampled-50' or, drawn at temperature 2, "
        "'sampled-50@2.0'."
    )


def for_features(storage: Storage) -> Storage:
    """How a hidden layer is stored, beside an output of that storage."""
    few = isinstance(storage, (TopK, Sampled))
    return Dense("float16") if few else storage


def _whole_number(classes: int) -> str:
    return "<u2" if classes <= 2**16 else "<u4"


def _to_bfloat16(values: Array) -> Array:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # To the nearest, and to the even one in the middle between two.
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    upper: Array = (bits >> 16).astype(np.uint16)
    return upper


def _greatest(values: Array, k: int) -> Array:
    """Classes of the greatest values; of equal ones, the first is greater."""
    kept = np.argpartition(-values, k - 1, axis=-1)[..., :k]
    least = np.take_along_axis(values, kept, axis=-1).min(-1, keepdims=True)
    # Which of several that equal the least were kept is left to the machine.
    tied = (values >= least).sum(axis=-1) > k
    kept[tied] = np.argsort(-values[tied], axis=-1, kind="stable")[..., :k]
    kept.sort(axis=-1)
    chosen = np.take_along_axis(values, kept, axis=-1)
    order = np.argsort(-chosen, axis=-1, kind="stable")
    return np.take_along_axis(kept, order, axis=-1)


def _log_sums(logs: Array) -> Array:
    """Logarithms of the sums of `exp(logs * t)` for the stored `t`."""
    top = logs.max(axis=-1, keepdims=True)
    eighth = np.exp((logs - top) / 8)  # products are cheaper than powers
    quarter = np.square(eighth)
    half = np.square(quarter)
    low = np.exp((logs - top) * INVERSE_TEMPERATURES[-1])
    powers = (np.square(half), half * quarter, half, quarter, eighth, low)
    return np.stack(
        [
            top[..., 0] * inverse + np.log(power.sum(axis=-1))
            for inverse, power in zip(INVERSE_TEMPERATURES, powers, strict=True)
        ],
        axis=-1,
    )


# Inverse temperatures at which the others' weight is known.
_POINTS = np.array([0.0, *reversed(INVERSE_TEMPERATURES)])


def _at_temperature(log_rest: Array, others: int, temperature: float) -> Array:
    """The logarithm of the others' weight at a temperature between stored ones.

    As a function of the inverse temperature it is smooth: the polynomial
    through the stored points, and the logarithm of the number of classes at 0,
    is as good as exact for logits as networks give them. It is convex too, so
    it lies between the chords of the stored points: where some classes are
    masked, and the curve bends sharply, these keep it near.
    """
    wide = log_rest[..., ::-1].astype(np.float64)
    known = np.full((*wide.shape[:-1], 1), math.log(others))
    values = np.concatenate([known, wide], axis=-1)
    inverse = 1 / temperature
    place = min(int(np.searchsorted(_POINTS, inverse)), len(_POINTS) - 1)
    upper = _line(values, place - 1, inverse)
    lower = np.full_like(upper, -np.inf)
    for neighbour in (place - 2, place):
        if 0 <= neighbour < len(_POINTS) - 1:
            chord = _line(values, neighbour, inverse)
            lower = np.maximum(lower, chord)
    # Rounding may let the bounds cross by a hair.
    between = np.clip(values @ _weights(inverse), lower, upper)
    return np.asarray(between, np.float32)


# Batch after batch is read for one temperature.
@functools.lru_cache(64)
def _weights(inverse: float) -> Array:
    """What each point's value weighs in the polynomial's value."""
    return np.array(
        [
            math.prod((inverse - q) / (p - q) for q in _POINTS if q != p)
            for p in _POINTS
        ]
    )


def _line(values: Array, left: int, at: float) -> Array:
    """The chord from a point to the next one, there or beyond."""
    share = (at - _POINTS[left]) / (_POINTS[left + 1] - _POINTS[left])
    left_part = (1 - share) * values[..., left]
    return np.asarray(left_part + share * values[..., left + 1])
