"""Losses from words: `--method Hint projector=auto`."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from keras_distill.cli.arguments import UsageError
from keras_distill.losses import DistillationLoss, LogitLoss, method

# What a distiller asks of its losses, or names for itself.
_NOT_OPTIONS = ("dtype", "reduction")
# Annotations of arguments, and what of Python is one.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "float": lambda value: _is_number(value, int | float),
    "int": lambda value: _is_number(value, int),
    "str": lambda value: isinstance(value, str),
    "None": lambda value: value is None,
    "LayerName": lambda value: isinstance(value, str | int | None),
    "LayerNames": lambda value: isinstance(value, str | int | None | list),
}
_WORDS = {"true": True, "false": False, "none": None}


def losses_of(
    chosen: Sequence[Sequence[str]],
    temperature: float | None,
    pairs: Sequence[str],
) -> list[DistillationLoss]:
    """Losses from what stands behind each `--method`.

    Args:
        chosen: For each, its name and options `name=value`.
        temperature: That of all which have one; None for their own.
        pairs: Layers, as `teacher=student`, for those that compare layers.

    Raises:
        ValueError: If a name or value isn't known, or one isn't used.
    """
    methods = [method(name) for name, *_ in chosen]
    given = [_split(options) for _, *options in chosen]
    kinds = [method.loss for method in methods]
    if temperature is not None:
        _for_all(kinds, given, {"temperature": temperature}, "--temperature")
    if pairs:
        of_layers = [
            (kind, options)
            for kind, options in zip(kinds, given, strict=True)
            if not issubclass(kind, LogitLoss)
        ]
        if not of_layers:
            raise UsageError(
                "Layers are for methods that compare some. Received: "
                f"--layers {' '.join(pairs)} and "
                f"--method {' '.join(m.name for m in methods)}. See "
                "keras-distill methods."
            )
        for kind, options in of_layers:
            _add(kind, options, _layers(kind, pairs), "--layers")
    return [
        _made(kind, options) for kind, options in zip(kinds, given, strict=True)
    ]


def _for_all(
    kinds: Sequence[type[DistillationLoss]],
    given: Sequence[dict[str, Any]],
    options: dict[str, Any],
    flag: str,
) -> None:
    """Give an option to all losses that have it."""
    (name,) = options
    takes = [name in _options(kind) for kind in kinds]
    if not any(takes):
        raise UsageError(
            f"No chosen method has a {name}. Received: {flag} and --method "
            f"{' '.join(kind.__name__ for kind in kinds)}. Leave it out."
        )
    for kind, own, has in zip(kinds, given, takes, strict=True):
        if has:
            _add(kind, own, options, flag)


def _add(
    kind: type[DistillationLoss],
    own: dict[str, Any],
    options: dict[str, Any],
    flag: str,
) -> None:
    for name, value in options.items():
        if name in own:
            raise UsageError(
                f"An option is given once. Received: {flag} and {name}="
                f"{own[name]} for {kind.__name__}. Leave one out."
            )
        own[name] = value


def _split(options: Sequence[str]) -> dict[str, Any]:
    """Options by name, with their values as words."""
    split: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise UsageError(
                "A method's options are written name=value. Received: "
                f"{option!r}. Files and data stand before --method."
            )
        if name in split:
            raise UsageError(
                f"An option is given once. Received: {name}={split[name]} and "
                f"{option}."
            )
        split[name] = value
    return split


def _layers(
    kind: type[DistillationLoss], pairs: Sequence[str]
) -> dict[str, Any]:
    split = [pair.partition("=") for pair in pairs]
    if any(not (teacher and student) for teacher, _, student in split):
        raise UsageError(
            "Layers come in pairs, teacher=student. Received: "
            f"--layers {' '.join(pairs)}."
        )
    teachers = [teacher for teacher, *_ in split]
    students = [student for *_, student in split]
    if len(pairs) == 1:
        teachers, students = teachers[0], students[0]  # type: ignore[assignment]
    return {"teacher_layer_name": teachers, "student_layer_name": students}


def _made(
    kind: type[DistillationLoss], options: dict[str, Any]
) -> DistillationLoss:
    inner = {
        name.removeprefix("loss."): value
        for name, value in options.items()
        if name.startswith("loss.")
    }
    values = {
        name: _value(kind, name, value, inner)
        for name, value in options.items()
        if not name.startswith("loss.")
    }
    if inner and "loss" not in values:
        raise UsageError(
            "The options of an inner loss follow its name. Received: "
            f"loss.{next(iter(inner))} without loss=... for {kind.__name__}."
        )
    for name, parameter in _options(kind).items():
        if parameter.default is parameter.empty and name not in values:
            raise UsageError(
                f"{kind.__name__} needs its {name}. Received: none. Pass "
                f"{name}=..., or use it in Python if that is a model: "
                f"keras-distill methods {kind.__name__}."
            )
    return kind(**values)


def _options(kind: type[DistillationLoss]) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(kind).parameters.items()
        if name not in _NOT_OPTIONS
    }


def _value(
    kind: type[DistillationLoss], name: str, given: Any, inner: dict[str, Any]
) -> Any:
    """An option's value, of the type that the constructor says."""
    options = _options(kind)
    if name not in options:
        close = difflib.get_close_matches(name, options, n=2)
        hint = f"It has {', '.join(options)}."
        if close:
            hint = f"Did you mean {' or '.join(close)}?"
        raise UsageError(
            f"{kind.__name__} has no such option. Received: {name}={given}. "
            f"{hint}"
        )
    if not isinstance(given, str):  # of a flag, which has its type
        return given
    types = str(options[name].annotation)
    if types == "LogitLoss":
        (loss,) = losses_of(
            [[given, *(f"{n}={v}" for n, v in inner.items())]], None, ()
        )
        return loss
    value = _parsed(given, types)
    if types != "Any" and not any(
        _is(value, part) for part in types.split(" | ")
    ):
        raise UsageError(
            f"The {name} of {kind.__name__} is of type {types}. Received: "
            f"{name}={given}."
        )
    return value


def _parsed(text: str, types: str) -> Any:
    """A word as Python has it: a number, a list, None, or the word itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        several = "Sequence" in types or types == "LayerNames"
        return text.split(",") if several and "," in text else text
    if types == "str":
        return text
    return list(value) if isinstance(value, tuple) else value


def _is(value: Any, kind: str) -> bool:
    if kind in _KINDS:
        return _KINDS[kind](value)
    # Of a sequence, the constructor looks at what is inside.
    return kind.startswith("Sequence") and isinstance(value, list)


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
