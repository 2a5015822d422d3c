"""What is inside a LiteRT file: operations, tensors, and a signed archive.

A file of this library is a model followed by a zip archive with what else is
to be known of it. Runtimes read the model and ignore the archive, and any zip
program reads the archive: the layout in which Android's tools look for
`labels.txt`. The archive's comment is a checksum of all that comes before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

_CHECKSUM = re.compile(rb"sha256:[0-9a-f]{64}\Z")
_CHECKSUM_LENGTH = len(b"sha256:") + 64
_FACTS = "keras_distill.json"
_LABELS = "labels.txt"
# No facts are this long; what claims to be may be made to fill the memory.
_LARGEST_ENTRY = 2**24


class DamagedFileError(ValueError):
    """A file isn't what a LiteRT exporter wrote."""


class Operation(NamedTuple):
    """An operation of a LiteRT file.

    Attributes:
        name: The operation's name, such as "CONV_2D".
        inputs: Names of the tensors that it reads.
        outputs: Names of the tensors that it writes.
        subgraph: Number of the subgraph that it is in; 0 is the main one.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    subgraph: int


def operations(content: bytes) -> list[Operation]:
    """The file's operations, in the order in which they run.

    Raises:
        DamagedFileError: If the content isn't a LiteRT model.
    """
    model = read_model(content)
    with damage_is_named():
        return [
            Operation(
                name,
                tuple(_names(graph, operator.inputs)),
                tuple(_names(graph, operator.outputs)),
                number,
            )
            for number, graph in enumerate(model.subgraphs)
            for name, operator in zip(
                operation_names(model, number),
                graph.operators or [],
                strict=True,
            )
        ]


@contextlib.contextmanager
def damage_is_named() -> Iterator[None]:
    """Whatever goes wrong inside is the file's fault."""
    try:
        yield
    except DamagedFileError:
        raise
    # Every kind of nonsense is possible in a damaged file.
    except Exception as error:
        raise DamagedFileError(
            "The LiteRT file is damaged. Received: "
            f"{type(error).__name__}: {error}. Get the file again."
        ) from error


def operation_names(model: Any, subgraph: int = 0) -> list[str]:
    """The names of a subgraph's operations."""
    codes = [_operation_name(code) for code in model.operatorCodes]
    operators = model.subgraphs[subgraph].operators or []
    return [codes[operator.opcodeIndex] for operator in operators]


def output_tensors(content: bytes) -> dict[str, str]:
    """Names of the tensors that a file's outputs are, by the outputs' names.

    Raises:
        DamagedFileError: If the content isn't a LiteRT model.
    """
    model = read_model(content)
    with damage_is_named():
        return {
            entry.name.decode(): model.subgraphs[signature.subgraphIndex]
            .tensors[entry.tensorIndex]
            .name.decode()
            for signature in model.signatureDefs or []
            for entry in signature.outputs
        }


def interface(
    content: bytes,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A file's inputs and outputs: names, shapes and dtypes, as JSON has them.

    A length that may be any is None.

    Raises:
        DamagedFileError: If the content isn't a LiteRT model.
    """
    model = read_model(content)
    with damage_is_named():
        graph = model.subgraphs[0]
        if not model.signatureDefs:
            return (
                [_port(graph.tensors[i]) for i in graph.inputs],
                [_port(graph.tensors[i]) for i in graph.outputs],
            )
        signature = model.signatureDefs[0]
        inputs, outputs = (
            [
                _port(graph.tensors[entry.tensorIndex], entry.name)
                for entry in entries
            ]
            for entries in (signature.inputs, signature.outputs)
        )
        return inputs, outputs


def _port(tensor: Any, name: bytes | None = None) -> dict[str, Any]:
    from ai_edge_litert import schema_py_generated as schema

    dtypes = {v: k for k, v in vars(schema.TensorType).items()}
    found = (tensor.shapeSignature, tensor.shape)
    shape = next((s for s in found if s is not None), ())
    return {
        "name": (name or tensor.name).decode(),
        "shape": [None if size < 0 else int(size) for size in shape],
        "dtype": dtypes[tensor.type].lower(),
    }


def _names(graph: Any, indices: Any) -> list[str]:
    # An absent bias has the index -1.
    return [graph.tensors[i].name.decode() for i in indices if i >= 0]


def _operation_name(code: Any) -> str:
    from ai_edge_litert import schema_py_generated as schema

    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    if number == schema.BuiltinOperator.CUSTOM:
        return str(code.customCode.decode())
    names = {v: k for k, v in vars(schema.BuiltinOperator).items()}
    return str(names[number])


def read_model(content: bytes) -> Any:
    """The file as an object of LiteRT's schema.

    Raises:
        DamagedFileError: If the content isn't a LiteRT model.
    """
    from ai_edge_litert import schema_py_generated as schema

    if content[4:8] != b"TFL3":
        raise DamagedFileError(
            "A LiteRT file has 'TFL3' at its fifth byte. Received: "
            f"{content[4:8]!r} there, in {len(content)} bytes. Pass a whole "
            "`.tflite` file."
        )
    with damage_is_named():
        return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))


def with_facts(
    model: bytes, facts: dict[str, Any], labels: tuple[str, ...]
) -> bytes:
    """A file of a model, of facts about it, and of a checksum."""
    file = io.BytesIO(model)
    with zipfile.ZipFile(file, "a") as archive:
        # A fixed date: the same export twice is the same file.
        _add(archive, _FACTS, json.dumps(facts, indent=1, sort_keys=True))
        if labels:
            _add(archive, _LABELS, "".join(f"{label}\n" for label in labels))
        archive.comment = b"0" * _CHECKSUM_LENGTH
    content = file.getvalue()[:-_CHECKSUM_LENGTH]
    return content + _checksum(content)


def _add(archive: zipfile.ZipFile, name: str, text: str) -> None:
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, text)


def _checksum(content: bytes) -> bytes:
    return b"sha256:" + hashlib.sha256(content).hexdigest().encode()


def split(content: bytes) -> tuple[bytes, dict[str, Any] | None]:
    """The model in a file, and the facts that the library put there.

    Returns:
        The model's bytes, and its facts, or None if another program wrote the
        file.

    Raises:
        DamagedFileError: If the checksum isn't the file's, or is gone.
    """
    ours = f"PK\x03\x04.{{26}}{re.escape(_FACTS)}".encode()
    found = re.search(ours, content, re.DOTALL)
    if not _CHECKSUM.search(content[-_CHECKSUM_LENGTH:]):
        if found:
            raise DamagedFileError(
                "The LiteRT file has lost its end, where its checksum was. "
                f"Received: {len(content)} bytes. Get the file again."
            )
        return content, None
    body, checksum = content[:-_CHECKSUM_LENGTH], content[-_CHECKSUM_LENGTH:]
    if checksum != _checksum(body) or not found:
        raise DamagedFileError(
            "The LiteRT file isn't as it was written: its checksum differs. "
            f"Received: {len(content)} bytes. Get the file again."
        )
    with (
        damage_is_named(),
        zipfile.ZipFile(io.BytesIO(content)) as archive,
    ):
        entries = {e.filename: e for e in archive.infolist()}
        for entry in entries.values():
            _require_small(entry)
        facts = json.loads(archive.read(_FACTS))
        if _LABELS in entries:
            lines = archive.read(_LABELS).decode().split("\n")
            facts["labels"] = lines[:-1]
    return content[: found.start()], facts


def _require_small(entry: zipfile.ZipInfo) -> None:
    if entry.file_size > _LARGEST_ENTRY:
        raise DamagedFileError(
            "The LiteRT file's archive has an entry that no exporter writes. "
            f"Received: '{entry.filename}' of {entry.file_size} bytes. Don't "
            "use the file."
        )
