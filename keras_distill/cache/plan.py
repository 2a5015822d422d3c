"""What a cache is of: said before the first shard, never changed."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from keras_distill.cache.storage import Storage, as_storage

FORMAT = 1


class DamagedCacheError(ValueError):
    """A cache's files aren't what was written."""


class StaleCacheError(ValueError):
    """A cache is of another teacher, transfer set or way of seeing it."""


@dataclass(frozen=True)
class Field:
    """One of the teacher's tensors.

    Attributes:
        file: Name of its file in each shard.
        layer: The hidden layer's name, or `None` for the output.
        shape: Of one example.
        storage: The storage's name.
    """

    file: str
    layer: str | None
    shape: tuple[int, ...]
    storage: str

    @functools.cached_property
    def stored(self) -> Storage:
        """The storage."""
        return as_storage(self.storage)

    @functools.cached_property
    def record(self) -> np.dtype[Any]:
        """The dtype of one example's record."""
        return self.stored.record(self.shape)


# What an error says where two plans differ in an entry.
DIFFERENT = {
    "format": "another format",
    "size": "another number of examples",
    "epochs": "another number of views",
    "shard_rows": "another shard_rows",
    "batch_size": "another batch_size",
    "output": "another output",
    "fields": "other tensors or another storage",
    "probabilities": "another way of ending (probabilities)",
    "teacher": "another teacher",
    "transfer_set": "another transfer set",
    "preprocessing": "other teacher_inputs",
    "views": "other views",
}


def said(name: str, entry: Any) -> str:
    """A plan's entry, for an error."""
    if name == "fields":
        tensors = (f"{f['layer'] or 'output'} as {f['storage']}" for f in entry)
        return ", ".join(tensors)
    if isinstance(entry, dict):
        return ", ".join(
            f"{key} {value[:12] if key == 'sha256' else value}"
            for key, value in entry.items()
        )
    return f"{name}={entry!r}"


@dataclass(frozen=True)
class Plan:
    """All that a cache's content follows from.

    Attributes:
        size: How many examples there are; `None` while a stream isn't read.
        epochs: How many views of each.
        shard_rows: Records of each shard, but for the last.
        batch_size: Examples that the teacher sees at a time.
        output: The structure of the teacher's output, with the indices of
            fields as leaves.
        fields: The teacher's tensors.
        probabilities: The activation that the teacher ends in, `"softmax"` or
            `"sigmoid"`, or `None` if it gives logits. Stored are logits.
        teacher: Fingerprint.
        transfer_set: Fingerprint.
        preprocessing: Fingerprint of what makes the teacher's inputs.
        views: How views are made, or `None`.
        versions: Of the libraries that were at work, and the runtime.
    """

    size: int | None
    epochs: int
    shard_rows: int
    batch_size: int
    output: Any
    fields: tuple[Field, ...]
    probabilities: str | None
    teacher: dict[str, Any]
    transfer_set: dict[str, Any]
    preprocessing: dict[str, Any] | None
    views: dict[str, Any] | None
    versions: dict[str, str]

    @property
    def rows(self) -> int:
        """Records in all."""
        return (self.size or 0) * self.epochs

    @property
    def shards(self) -> int:
        """Shards in all."""
        return -(-self.rows // self.shard_rows)

    def shard_range(self, shard: int) -> range:
        """The rows of a shard."""
        first = shard * self.shard_rows
        return range(first, min(first + self.shard_rows, self.rows))

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"format": FORMAT, **facts}

    @property
    def digest(self) -> str:
        """What each shard says that it is of.

        Without the size, which a stream's shards don't know.
        """
        facts = {**self.facts(), "size": None}
        text = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def shard_name(shard: int) -> str:
    """Where a shard's files are."""
    return f"shards/{shard:06d}"


def to_bytes(facts: dict[str, Any]) -> bytes:
    """JSON, with a checksum of itself."""
    body = json.dumps(facts, sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    text = json.dumps({**facts, "sha256": digest}, indent=1, sort_keys=True)
    return text.encode() + b"\n"


def from_bytes(data: bytes, name: str) -> dict[str, Any]:
    """The facts of such JSON.

    Raises:
        DamagedCacheError: If it isn't what was written.
    """
    try:
        facts = json.loads(data)
        digest = facts.pop("sha256")
    except (
        AttributeError,
        KeyError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise _damaged(name) from error
    if to_bytes(facts) != data or not isinstance(digest, str):
        raise _damaged(name)
    result: dict[str, Any] = facts
    return result


def as_plan(facts: Any, name: str) -> Plan:
    """The plan that these facts are of, which anybody may have written.

    Raises:
        ValueError: If it is of another version.
        DamagedCacheError: If it isn't one that a cache can have.
    """
    if not isinstance(facts, dict) or "format" not in facts:
        raise _damaged(name)
    if facts["format"] != FORMAT:
        raise ValueError(
            f"'{name}' has a format that this version doesn't know. "
            f"Received: format={facts['format']!r}, known is {FORMAT}. Use the "
            "keras_distill that wrote it, or label anew."
        )
    try:
        given = {k: v for k, v in facts.items() if k != "format"}
        fields = tuple(
            Field(**{**field, "shape": tuple(field["shape"])})
            for field in given.pop("fields")
        )
        plan = Plan(**given, fields=fields)
        sound = _is_sound(plan)
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        raise _damaged(name) from error
    except ValueError as error:  # no such storage
        raise _damaged(name) from error
    if not sound:
        raise _damaged(name)
    return plan


def _is_sound(plan: Plan) -> bool:
    """Whether each entry is of its type and range."""
    leaves = [i for i, field in enumerate(plan.fields) if field.layer is None]
    numbers = (plan.epochs, plan.shard_rows, plan.batch_size)
    return (
        all(_is_count(number) for number in numbers)
        and (plan.size is None or _is_count(plan.size))
        and all(_is_sound_field(field) for field in plan.fields)
        and bool(leaves)
        and _leaves_of(plan.output) == leaves
        and plan.probabilities in (None, "softmax", "sigmoid")
        and isinstance(plan.teacher, dict)
        and isinstance(plan.transfer_set, dict)
        and isinstance(plan.versions, dict)
        and isinstance(plan.preprocessing, (dict, type(None)))
        and isinstance(plan.views, (dict, type(None)))
    )


def _is_sound_field(field: Field) -> bool:
    # A path would lead out of the folder.
    return (
        re.fullmatch(r"(output|feature)_\d+\.npy", field.file) is not None
        and isinstance(field.layer, (str, type(None)))
        and all(_is_count(size) for size in field.shape)
        and field.record.itemsize > 0
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _leaves_of(structure: Any) -> list[int]:
    if type(structure) is int:
        return [structure]
    ((kind, parts),) = structure.items()
    inner = {"dict": dict, "list": list, "tuple": list}[kind]
    if not isinstance(parts, inner):
        raise TypeError(kind)
    values = parts.values() if isinstance(parts, dict) else parts
    return [leaf for part in values for leaf in _leaves_of(part)]


def check_shard(plan: Plan, shard: int, facts: Any) -> None:
    """Raise unless facts are those of this shard of this plan.

    Raises:
        DamagedCacheError: If they aren't.
    """
    names = {field.file for field in plan.fields}
    files = facts.get("files") if isinstance(facts, dict) else None
    rows = plan.shard_range(shard) if plan.size else None
    sound = (
        isinstance(files, dict)
        and set(files) == names
        and all(isinstance(entry, dict) for entry in files.values())
        and all(_is_count(entry.get("bytes")) for entry in files.values())
        and all(isinstance(e.get("sha256"), str) for e in files.values())
        and isinstance(facts.get("inputs"), str)
    )
    if not sound:
        raise _damaged(shard_name(shard))
    if facts.get("plan") != plan.digest or facts.get("shard") != shard:
        raise DamagedCacheError(
            f"'{shard_name(shard)}' isn't of this cache, or at another place. "
            f"Received: shard {facts.get('shard')} of plan "
            f"{str(facts.get('plan'))[:12]}, for shard {shard} of plan "
            f"{plan.digest[:12]}. Remove 'manifest.json' and this folder, and "
            "write again: what is missing is labelled."
        )
    if rows is not None and facts.get("rows") != len(rows):
        raise _damaged(shard_name(shard))


def _damaged(name: str) -> DamagedCacheError:
    return DamagedCacheError(
        f"'{name}' was altered, or isn't of a teacher's cache. Received: "
        "content that its checksum doesn't fit. Label anew, into an empty "
        "folder."
    )


def structure_of(output: Any) -> tuple[Any, list[Any]]:
    """A structure with numbers for leaves, which JSON can hold; the leaves."""
    leaves: list[Any] = []

    def describe(part: Any) -> Any:
        if isinstance(part, dict):
            # In the order in which JSON gives them back.
            return {"dict": {key: describe(part[key]) for key in sorted(part)}}
        if isinstance(part, (list, tuple)):
            kind = "list" if isinstance(part, list) else "tuple"
            return {kind: [describe(p) for p in part]}
        leaves.append(part)
        return len(leaves) - 1

    return describe(output), leaves


def rebuild(structure: Any, leaves: list[Any]) -> Any:
    """The structure that `structure_of` described, of these leaves."""
    if isinstance(structure, int):
        return leaves[structure]
    ((kind, parts),) = structure.items()
    if kind == "dict":
        return {key: rebuild(part, leaves) for key, part in parts.items()}
    made = [rebuild(part, leaves) for part in parts]
    return made if kind == "list" else tuple(made)


def library_versions() -> dict[str, str]:
    """Versions of what a teacher's numbers may depend on."""
    return {
        "keras": keras.__version__,
        "numpy": np.__version__,
        "backend": keras.backend.backend(),
    }
