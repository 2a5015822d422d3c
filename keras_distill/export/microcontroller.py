"""A student as C++ for a microcontroller, with a test that it takes along."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shutil
from importlib.util import find_spec
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_distill.export import micro_runner, processes, runner
from keras_distill.export import microcontroller_sources as sources
from keras_distill.export.artifact import LiteRTArtifact
from keras_distill.export.examples import as_examples
from keras_distill.export.flatbuffer import operations
from keras_distill.export.micro_runner import MicroCheck, Port
from keras_distill.export.placing import target_of

_SUMS = "SHA256SUMS"
# A test vector of a few says as much as one of many, and takes flash memory.
_EXAMPLES = 4
_ALIGNMENT = 16
# Other compilers order the operations of a sum otherwise.
_FLOAT_ERROR = 1e-4
# LiteRT rounds in its own way; its outputs were seen to be a step off.
_LITERT_STEPS = 2


@dataclasses.dataclass(frozen=True)
class MicrocontrollerPackage:
    """A folder with a model as C++, and an example that runs it.

    Attributes:
        folder: Where it is.
        name: What the names in the C++ code begin with.
        files: Names of the files in the folder.
        model_size: Bytes of the model in flash memory.
        arena: Bytes of working memory that `main.cc` gives the model.
        check: The file on TensorFlow Lite Micro against LiteRT; None if
            tflite-micro isn't installed.
    """

    folder: pathlib.Path
    name: str
    files: tuple[str, ...]
    model_size: int
    arena: int
    check: MicroCheck | None


class _Golden(NamedTuple):
    """Inputs and outputs as the device sees them.

    Attributes:
        runtime: What computed the outputs.
        arrays: Arrays by "input_0", "output_0" and so on, in the interpreter's
            order.
        allowed: By how much each output may differ on the device.
    """

    runtime: str
    arrays: dict[str, np.ndarray]
    allowed: dict[str, float]


def export_microcontroller(
    artifact: LiteRTArtifact | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    x: Any,
    *,
    arena: int | None = None,
) -> MicrocontrollerPackage:
    """Write a LiteRT file as C++ for TensorFlow Lite Micro.

    The folder gets the model as an array, a resolver with the operations that
    the model has, a test vector, and a `main.cc` that runs the test vector and
    prints PASS or FAIL: what is right here is then seen to be right on the
    board. `README.txt` says how to build it.

    With tflite-micro installed, the file is run on it first, as
    `check_on_micro` does; the test vector's outputs and the size of the arena
    are from there. Without it the outputs are LiteRT's.

    Args:
        artifact: What `export_litert` returned, or the path of such a file; for
            most chips that of `Quantization("int8", integer_io=True)`.
        folder: Where the package goes. It is written whole or not at all. An
            earlier package there is replaced, unless one of its files was
            changed.
        x: Some examples, as for `artifact.predict`. The first four become the
            test vector.
        arena: Bytes of working memory that `main.cc` gives the model. None is
            the smallest that it runs in, and a tenth more.

    Returns:
        The package.

    Raises:
        ImportError: If tflite-micro isn't installed and `arena` isn't given.
        RuntimeError: If tflite-micro doesn't run the file, or returns something
            else than LiteRT.
        ValueError: If the folder has something else in it; if the file takes
            batches, or has an operation that TensorFlow Lite Micro lacks; if
            `arena` is too small, or `x` isn't of the shapes of the inputs.

    Example:
        >>> import keras, numpy as np, pathlib, tempfile
        >>> import keras_distill as kd
        >>> student = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(3)]
        ... )
        >>> x = np.eye(8, dtype="float32")
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> artifact = kd.export_litert(student, folder / "student.tflite")
        >>> package = kd.export_microcontroller(
        ...     artifact, folder / "firmware", x, arena=4096
        ... )
        >>> print(*package.files)
        CMakeLists.txt README.txt SHA256SUMS main.cc student_model.cc
        student_model.h student_ops.h student_test_vector.h

    Reference:
        David et al., "TensorFlow Lite Micro: Embedded Machine Learning for
        TinyML Systems", MLSys 2021.
    """
    artifact = LiteRTArtifact.of(artifact)
    folder = pathlib.Path(folder)
    _require_free(folder)
    _require_single(artifact)
    model = artifact.model()
    sources.resolver_methods(o.name for o in operations(model))
    # Once: a generator that was read is empty.
    batch = as_examples(x, artifact.input_names, artifact.float_inputs())
    check = None
    if find_spec("tflite_micro") is not None:
        arrays = keras.tree.map_structure(
            batch.__getitem__, artifact.input_names
        )
        check = micro_runner.check_on_micro(artifact, arrays)
    arena, reason = _arena(check, arena)
    golden = _golden(artifact, model, batch, check)
    files = _files(artifact, model, golden, arena, reason)
    _write(target_of(folder), files)
    return MicrocontrollerPackage(
        folder=folder,
        name=sources.identifier(artifact.path.stem),
        files=tuple(sorted(files)),
        model_size=len(model),
        arena=arena,
        check=check,
    )


def _require_single(artifact: LiteRTArtifact) -> None:
    if artifact.batch_size not in (1, None):
        raise ValueError(
            "A microcontroller sees one example at a time. Received: "
            f"path='{artifact.path}' with a batch of {artifact.batch_size}. "
            "Export with batch_size=1."
        )


def _arena(check: MicroCheck | None, asked: int | None) -> tuple[int, str]:
    """Bytes of the arena, and for a person why it's as many."""
    if check is None:
        if asked is None:
            raise ImportError(
                "The size of the arena is measured on TensorFlow Lite Micro's "
                "interpreter. Received: no tflite-micro, and arena=None. Run "
                "`pip install --pre tflite-micro`, or pass arena=, in bytes."
            )
        return asked, (
            "The size that was asked for. It wasn't tried, since tflite-micro "
            "wasn't installed."
        )
    needed = -(-check.arena // _ALIGNMENT) * _ALIGNMENT
    if asked is not None and asked < needed:
        raise ValueError(
            f"The model needs a larger arena. Received: arena={asked}. Pass at "
            f"least {needed}, or None."
        )
    size = asked or -(-needed * 11 // (10 * _ALIGNMENT)) * _ALIGNMENT
    return size, (
        f"The model ran in {needed} bytes on a 64-bit machine with the "
        "reference kernels. A 32-bit chip needs less for its pointers; kernels "
        "made for a chip, such as CMSIS-NN or ESP-NN, need more for their "
        f"scratch memory. {size} leaves some room: see what is used of it on "
        "the board."
    )


def _golden(
    artifact: LiteRTArtifact,
    model: bytes,
    batch: dict[str, np.ndarray],
    check: MicroCheck | None,
) -> _Golden:
    few = {name: array[:_EXAMPLES] for name, array in batch.items()}
    inputs = micro_runner.to_file_dtypes(model, few)
    if check is None:
        outputs = processes.call(_run_on_litert, model, inputs)
        runtime = "LiteRT, whose kernels may round the last step otherwise"
        steps = _LITERT_STEPS
    else:
        outputs = processes.call(
            micro_runner.run_as_is, model, inputs, check.arena
        )
        runtime, steps = "TensorFlow Lite Micro's own interpreter", 0
    ins, outs = micro_runner.ports(model)
    arrays = {f"input_{p.position}": inputs[p.name] for p in ins}
    arrays |= {f"output_{p.position}": outputs[p.name] for p in outs}
    step_of = micro_runner.output_steps(model)
    allowed = {
        f"output_{p.position}": _allowed(
            p, outputs[p.name], steps, step_of[p.name]
        )
        for p in outs
    }
    return _Golden(runtime, arrays, allowed)


def _run_on_litert(
    content: bytes, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """A file's outputs on LiteRT, with the file's own dtypes in and out."""
    signature = runner.open_signature(content)
    size = len(next(iter(inputs.values())))
    rows = [
        signature(**{name: x[i : i + 1] for name, x in inputs.items()})
        for i in range(size)
    ]
    return {n: np.concatenate([row[n] for row in rows]) for n in rows[0]}


def _allowed(port: Port, values: np.ndarray, steps: int, step: float) -> float:
    if values.dtype.kind != "f":
        return float(steps if port.details["quantization"][0] else 0)
    finite = np.abs(values[np.isfinite(values)])
    return float(steps * step + _FLOAT_ERROR * finite.max(initial=0.0))


def _files(
    artifact: LiteRTArtifact,
    model: bytes,
    golden: _Golden,
    arena: int,
    reason: str,
) -> dict[str, str]:
    name = sources.identifier(artifact.path.stem)
    mark = (
        f"Written by keras-distill from {artifact.path.name} "
        f"({artifact.quantization.scheme})."
    )
    methods = sources.resolver_methods(o.name for o in operations(model))
    # An artifact that was just exported hasn't read them from its file.
    facts = LiteRTArtifact.load(artifact.path).facts
    labels = tuple(facts.get("labels", ()))
    files = {
        f"{name}_model.h": sources.model_header(name, mark),
        f"{name}_model.cc": sources.model_source(name, mark, model),
        f"{name}_ops.h": sources.ops_header(name, mark, methods),
        f"{name}_test_vector.h": sources.test_vector(
            name, mark, golden.runtime, golden.arrays, golden.allowed
        ),
        "main.cc": sources.main_source(
            name, mark, arena, reason, golden.arrays, labels
        ),
        "CMakeLists.txt": sources.cmake(name, mark),
        "README.txt": sources.readme(
            name, mark, len(model), golden.runtime, reason
        ),
    }
    sums = (
        f"{hashlib.sha256(text.encode()).hexdigest()}  {file}\n"
        for file, text in sorted(files.items())
    )
    return {**files, _SUMS: "".join(sums)}


def _require_free(folder: pathlib.Path) -> None:
    """Refuse a folder that has anything but an earlier package in it."""
    if not folder.parent.is_dir():
        raise ValueError(
            f"There is no folder '{folder.parent}'. Received: "
            f"folder='{folder}'. Make the folder first."
        )
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(
            "A package is a folder. Received: "
            f"folder='{folder}', which is a file. Pass another name."
        )
    theirs = sorted(set(os.listdir(folder)) - _unchanged(folder))
    if theirs:
        raise ValueError(
            "The folder has files that no earlier export wrote, or that were "
            f"changed since. Received: folder='{folder}' with "
            f"{', '.join(theirs)}. Pass another folder, or move them away."
        )


def _unchanged(folder: pathlib.Path) -> set[str]:
    """Names of files that are as an earlier export wrote them."""
    sums = folder / _SUMS
    if not sums.is_file():
        return set()
    found = {_SUMS}
    for line in sums.read_text(errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        file = folder / pathlib.PurePath(name).name
        if file.is_file():
            content = file.read_bytes()
            if hashlib.sha256(content).hexdigest() == digest:
                found.add(file.name)
    return found


def _write(folder: pathlib.Path, files: dict[str, str]) -> None:
    """Write all files, or leave the folder as it was."""
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        new.mkdir()
        for name, text in files.items():
            (new / name).write_bytes(text.encode())
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise
    finally:
        for rest in (new, old):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(rest)
