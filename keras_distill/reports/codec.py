"""Frozen dataclasses as JSON and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any


def encode(value: Any) -> Any:
    """Dicts, lists, texts and numbers of a dataclass."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: encode(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    return value


def decode(kind: Any, value: Any) -> Any:
    """The value of a type, from what `encode` made of it.

    Args:
        kind: A dataclass, a tuple or dict of these, one of
            them or None, or a plain type.
        value: What JSON has of it.

    Raises:
        KeyError: If a field is missing.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (known,) = (part for part in inner if part is not types.NoneType)
        return None if value is None else decode(known, value)
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        return tuple(map(decode, kinds, value))
    if origin is dict:
        return {key: decode(inner[1], item) for key, item in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(
            **{name: decode(hints[name], value[name]) for name in hints}
        )
    return value
