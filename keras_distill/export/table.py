"""What `inspect` found, as text for a person."""

from __future__ import annotations

from typing import Any

# The facts in the order in which they are shown, by what a person calls them.
# What isn't here comes last, under its own name.
_LABELS = {
    "note": "note",
    "name": "name",
    "description": "description",
    "size": "size",
    "quantization": "quantization",
    "snr_db": "signal to noise",
    "max_error": "largest error",
    "inputs": "inputs",
    "outputs": "outputs",
    "normalization": "normalization",
    "labels": "labels",
    "figures": "figures",
    "student": "student",
    "teacher": "teacher",
    "data": "data",
    "operations": "operations",
    "layers": "layers",
    "signature": "signature",
    "keras_distill": "keras-distill",
    "keras": "Keras",
    "saved": "saved",
}
# For `LiteRTArtifact.predict`; the inputs and outputs say the same.
_HIDDEN = ("input_names", "output_names")
_CHECKSUM = 12


def as_table(facts: dict[str, Any]) -> str:
    r"""Facts by name as a table of two columns, without what isn't known.

    Whatever a file says comes out as printable characters.

    Example:
        >>> print(as_table({"size": 2048, "snr_db": 40.0, "name": "a\x1b[2J"}))
        name             a\x1b[2J
        size             2,048 bytes (2.0 KB)
        signal to noise  40.0 dB
    """
    names = [name for name in _LABELS if name in facts]
    names += [name for name in facts if name not in (*_LABELS, *_HIDDEN)]
    rows = [
        (_printable(_LABELS.get(name, name)), _printable(_text(name, value)))
        for name in names
        if (value := facts[name]) not in ("", [], {}, None)
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(name, value)
    if isinstance(value, list):
        return ", ".join(_text("", v) for v in value)
    if isinstance(value, dict):
        return _entries(name, value)
    if name == "sha256":
        return f"{str(value)[:_CHECKSUM]}..."
    return str(value)


def _number(name: str, value: float) -> str:
    if name == "size":
        return f"{value:,} bytes ({value / 1024:.1f} KB)"
    if name == "snr_db":
        return f"{value:.1f} dB"
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}"


def _entries(name: str, value: dict[str, Any]) -> str:
    if name == "operations":
        return ", ".join(f"{count} {kind}" for kind, count in value.items())
    if {"name", "shape", "dtype"} <= set(value):
        sizes = ["any" if size is None else size for size in value["shape"]]
        shape = f"[{', '.join(map(str, sizes))}]"
        return f"{value['name']} {shape} {value['dtype']}"
    return ", ".join(
        f"{key}: {_text(key, v)}"
        for key, v in value.items()
        # What is off, or as it usually is, goes without saying.
        if v not in ("", [], {}, None)
        and v is not False
        and (key, v) != ("per_channel", True)
    )


def _printable(text: str) -> str:
    """A text whose control characters a terminal doesn't obey."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in text
    )
