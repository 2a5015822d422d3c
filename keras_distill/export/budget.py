"""What a student may cost on its device, and what it must keep."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from typing import Any, NamedTuple

# A share is rounded: 0.95 - 0.94 is a little more than 0.01.
_ROUNDING = 1e-9
_UNITS = {"": 1, "B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30}


class Board(NamedTuple):
    """A development board, as its maker's documents describe it.

    Attributes:
        flash: Bytes of program memory.
        ram: Bytes of on-chip memory.
        source: The document that says so.
    """

    flash: int
    ram: int
    source: str


def _board(flash: str, ram: str, source: str) -> Board:
    return Board(parse_size(flash), parse_size(ram), source)


def parse_size(value: int | str) -> int:
    """A size in bytes: a number, or text such as "256KB" (1 KB = 1,024 bytes).

    Letters may be small: "256kb".

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    text = str(value).upper()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(I?)(B?)", text)
    if match is None or not isinstance(value, str) or not float(match[1]):
        raise ValueError(
            "A size is a number of bytes, or text like '256KB' or '1MB'. "
            f"Received: {value!r}."
        )
    unit = f"{match[2]}B" if match[2] else ""
    return int(float(match[1]) * _UNITS[unit])


BOARDS = {
    "arduino-nano-33-ble": _board(
        "1MB", "256KB", "Nordic Semiconductor, nRF52840 Product Specification"
    ),
    "arduino-portenta-h7": _board(
        "2MB", "1MB", "STMicroelectronics, STM32H747xI/G datasheet (DS12930)"
    ),
    "esp32-devkitc": _board(
        "4MB", "520KB", "Espressif, ESP32-WROOM-32E datasheet"
    ),
    "esp32-s3-devkitc-1": _board(
        "8MB", "512KB", "Espressif, ESP32-S3-WROOM-1 datasheet (N8)"
    ),
    "microbit-v2": _board(
        "512KB", "128KB", "Nordic Semiconductor, nRF52833 Product Specification"
    ),
    "nucleo-h743zi2": _board(
        "2MB", "1MB", "STMicroelectronics, STM32H743xI/G datasheet (DS12110)"
    ),
    "raspberry-pi-pico": _board(
        "2MB", "264KB", "Raspberry Pi, Pico datasheet and RP2040 datasheet"
    ),
    "raspberry-pi-pico-2": _board(
        "4MB", "520KB", "Raspberry Pi, Pico 2 datasheet and RP2350 datasheet"
    ),
    "sparkfun-edge": _board("1MB", "384KB", "Ambiq, Apollo3 Blue datasheet"),
    "stm32f746g-disco": _board(
        "1MB", "340KB", "STMicroelectronics, STM32F746xx datasheet (DS10916)"
    ),
}


class Costs(NamedTuple):
    """What a file costs and keeps; None is what wasn't measured."""

    flash: int
    arena: int | None = None
    latency_ms: float | None = None
    accuracy_drop: float | None = None
    agreement: float | None = None
    snr_db: float | None = None


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a student may cost on its device, and what it must keep.

    Args:
        flash: Largest file, in bytes or as "256KB" (1 KB is 1,024 bytes). On a
            microcontroller the file lies in flash memory.
        arena: Most working memory on a microcontroller, as TensorFlow Lite
            Micro needs it; in bytes or as "64KB".
        latency_ms: Longest median time of one inference, in milliseconds, on
            the machine that measures.
        accuracy_drop: Most accuracy that the file may lose against Keras, as a
            fraction: 0.01 is one point.
        agreement: Smallest fraction of examples on which the file decides as
            Keras does.
        snr_db: Smallest signal-to-noise ratio of the outputs, in dB.

    Raises:
        TypeError: If a limit isn't a number.
        ValueError: If a limit can't be one, or none is given.

    Example:
        >>> budget = Budget(flash="256KB", accuracy_drop=0.01)
        >>> budget.flash
        262144
        >>> Budget.for_board("raspberry-pi-pico", share=0.5).arena
        135168
    """

    flash: int | str | None = None
    arena: int | str | None = None
    latency_ms: float | None = None
    accuracy_drop: float | None = None
    agreement: float | None = None
    snr_db: float | None = None

    def __post_init__(self) -> None:
        for name in ("flash", "arena"):
            if getattr(self, name) is not None:
                # Frozen for the caller; this is where it is made.
                size = parse_size(getattr(self, name))
                object.__setattr__(self, name, size)
        for name in ("latency_ms", "accuracy_drop", "agreement", "snr_db"):
            _require_number(name, getattr(self, name))
        if self.latency_ms is not None and self.latency_ms <= 0:
            raise ValueError(
                "A latency is more than nothing. Received: "
                f"latency_ms={self.latency_ms}."
            )
        for name in ("accuracy_drop", "agreement"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(
                    f"{name} is a fraction: 0.01 is one in a hundred. "
                    f"Received: {name}={value}."
                )
        if all(value is None for value in dataclasses.astuple(self)):
            raise ValueError(
                "A budget limits something. Received: no limit. Pass "
                "flash='256KB', for instance."
            )

    def __str__(self) -> str:
        limits = ", ".join(
            f"{name}={as_text(name, value)}"
            for name, value in dataclasses.asdict(self).items()
            if value is not None
        )
        return f"Budget({limits})"

    @property
    def needs_data(self) -> bool:
        """Whether it takes examples to judge by: sizes and times take any."""
        kept = (self.accuracy_drop, self.agreement, self.snr_db)
        return any(limit is not None for limit in kept)

    @classmethod
    def for_board(
        cls,
        name: str,
        share: float = 0.5,
        accuracy_drop: float | None = None,
    ) -> Budget:
        """The budget of a well-known board.

        The student isn't alone there, so it gets a share of the memory.

        Args:
            name: One of `kd.export.BOARDS`, which also says where its figures
                are from.
            share: Fraction of flash and RAM that the student may have.
            accuracy_drop: As for `Budget`.

        Raises:
            ValueError: If the board is unknown, or the share isn't one.
        """
        if name not in BOARDS:
            raise ValueError(
                "There is no such board. Received: "
                f"name={name!r}. Pass one of {', '.join(BOARDS)}, or a "
                "`Budget` with your board's flash and arena."
            )
        if not 0 < share <= 1:
            raise ValueError(
                f"A share is more than 0 and at most 1. Received: {share}."
            )
        board = BOARDS[name]
        return cls(
            flash=int(board.flash * share),
            arena=int(board.ram * share),
            accuracy_drop=accuracy_drop,
        )

    def excesses(self, costs: Costs) -> dict[str, float]:
        """How far costs are over the budget, by the limit's name.

        Returns:
            Relative excesses, such as 0.1 for a tenth too much; infinite for
            what the file can't do at all. Empty if all limits hold.
        """
        excesses = {}
        for name in ("flash", "arena", "latency_ms", "accuracy_drop"):
            limit, cost = getattr(self, name), getattr(costs, name)
            if limit is not None and (cost is None or cost > limit + _ROUNDING):
                over = float("inf") if cost is None else cost - limit
                # A drop of a hundredth counts as much as a size of a tenth.
                scale = 0.1 if name == "accuracy_drop" else limit
                excesses[name] = over / scale
        for name in ("agreement", "snr_db"):
            limit, kept = getattr(self, name), getattr(costs, name)
            if limit is not None and (kept is None or kept < limit - _ROUNDING):
                under = float("inf") if kept is None else limit - kept
                excesses[name] = under / (abs(limit) or 1)
        return excesses

    def describe(self, excesses: dict[str, float], costs: Costs) -> str:
        """The limits that don't hold, as text."""
        return ", ".join(
            f"{name}={as_text(name, getattr(costs, name))} "
            f"(asked for: {as_text(name, getattr(self, name))})"
            for name in excesses
        )


def _require_number(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} is a number. Received: {name}={value!r}.")
    if math.isnan(value):
        raise ValueError(f"{name} is a number. Received: {name}={value!r}.")


def as_text(name: str, value: float | None) -> str:
    """A limit, or what was measured against it, with its unit."""
    if value is None:
        return "unknown"
    if name in ("flash", "arena"):
        return f"{value:,} bytes"
    if name in ("accuracy_drop", "agreement"):
        return f"{100 * value:.4g} %"
    return f"{value:.4g} {'ms' if name == 'latency_ms' else 'dB'}"
