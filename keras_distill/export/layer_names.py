"""Layers' names as TensorFlow takes them, and back from a file's tensors."""

from __future__ import annotations

import re

# Ends a layer's name in the names of the file's tensors: TensorFlow numbers
# scopes, and so do users, so "dense_1" could be either.
_END = "."
_ENDED = re.compile(rf"(.+){re.escape(_END)}(?:_\d+)?$")
# What TensorFlow takes anywhere in a scope, but for the end.
_UNSAFE = re.compile(r"^[^A-Za-z0-9]|[^A-Za-z0-9_>-]")
_ESCAPED = re.compile(r"\.([0-9a-f]+)-")


def scope_of(name: str) -> str:
    """A scope for a layer's name, whatever characters that has.

    Example:
        >>> scope_of("größe 1")
        'gr.f6-.df-e.20-1.'
    """
    safe = _UNSAFE.sub(lambda match: f".{ord(match[0]):x}-", name)
    return f"{safe}{_END}"


def layer_path(name: str) -> str:
    """The path of a layer in a tensor's name, without the outermost model.

    Example:
        >>> layer_path("model._1/block._1/gr.f6-.df-e._2/convolution")
        'block/größe'
    """
    return "/".join(_layers(name)[1:])


def is_in_model(name: str) -> bool:
    """Whether a tensor's name says that the student made it."""
    return bool(_layers(name))


def _layers(name: str) -> list[str]:
    matches = [_ENDED.match(part) for part in name.split("/")]
    return [_unescaped(match[1]) for match in matches if match]


def _unescaped(scope: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), scope)


def readable(name: str) -> str:
    """A tensor's name as a person reads it: in layers, and within the last.

    Example:
        >>> readable("model._1/grow._1/resize/ResizeBicubic")
        'model/grow/resize/ResizeBicubic'
    """
    parts = []
    for part in name.split("/"):
        match = _ENDED.match(part)
        parts.append(_unescaped(match[1]) if match else part)
    return "/".join(parts)
