"""Runs a LiteRT file on TensorFlow Lite Micro, as a microcontroller would.

That runtime has fewer operations than LiteRT, computes some of what it takes
differently, and gets all its memory at once, as an "arena". Its interpreter is
native code that can crash, so it runs in processes of its own.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from keras_distill.export import processes, runner
from keras_distill.export.artifact import LiteRTArtifact
from keras_distill.export.decisions import has_one_value
from keras_distill.export.examples import as_examples
from keras_distill.export.flatbuffer import operations, read_model
from keras_distill.export.processes import WorkerError
from keras_distill.export.quantized_file import snr_db

# More than any microcontroller has. What isn't used of it costs nothing.
_LARGE_ARENA = 2**28
_ALIGNMENT = 16
# Kernels round in their own ways, which was seen to make a step or two.
_STEPS = 4
_FLOAT_ERROR = 1e-4


@dataclasses.dataclass(frozen=True)
class MicroCheck:
    """A file on TensorFlow Lite Micro against the same file on LiteRT.

    Attributes:
        arena: Bytes of the smallest arena that the file runs in, on a 64-bit
            machine with the reference kernels. A 32-bit chip needs less for the
            same; kernels made for a chip may need more.
        snr_db: Lowest signal-to-noise ratio of an output, in dB; infinite if
            all are equal.
        max_error: Largest absolute difference, relative to the range of the
            output that it was seen in.
        agreement: Lowest fraction of decisions that are the same: of the
            largest of several values, or of one value's side of the middle.
        operations: How often the file has each operation.

    Example:
        >>> check = MicroCheck(5904, float("inf"), 0.0, 1.0, {"CONV_2D": 2})
        >>> check.arena
        5904
    """

    arena: int
    snr_db: float
    max_error: float
    agreement: float
    operations: dict[str, int]


class Port(NamedTuple):
    """An input or output of the main graph.

    Attributes:
        name: Its name in the file's signature.
        position: The interpreter's number for it.
        details: Its "dtype", and the "quantization" as `(scale, zero_point)`,
            with a scale of 0 for none.
    """

    name: str
    position: int
    details: dict[str, Any]


def check_on_micro(
    artifact: LiteRTArtifact | str | os.PathLike[str], x: Any
) -> MicroCheck:
    """Run a file on TensorFlow Lite Micro, and compare it with LiteRT.

    What LiteRT runs may not run there, or, with weights in int8 and activations
    in float, run to wrong results without a word. This finds both.

    Args:
        artifact: What `export_litert` returned, or the path of such a file.
        x: Some examples, as for `artifact.predict`.

    Returns:
        The check, with the arena that the file needs.

    Raises:
        ImportError: If tflite-micro isn't installed.
        RuntimeError: If it doesn't run the file; or if it returns something
            else than LiteRT, by more than some quantisation steps and by more
            than quantising itself did.
        ValueError: If `x` isn't of the structure or shapes of the inputs.

    Reference:
        David et al., "TensorFlow Lite Micro: Embedded Machine Learning for
        TinyML Systems", MLSys 2021.
    """
    require_tflite_micro()
    artifact = LiteRTArtifact.of(artifact)
    model = artifact.model()
    batch = as_examples(x, artifact.input_names, artifact.float_inputs())
    with _explained(artifact):
        arena = smallest_arena(model)
        seen = processes.call(run, model, batch, arena)
    expected = processes.call(runner.run, model, batch, artifact.batch_size)
    check = _compare(model, expected, seen, arena)
    # In a deep student a step grows on its way.
    if not (
        _within_steps(model, expected, seen) or check.snr_db >= artifact.snr_db
    ):
        raise RuntimeError(_difference(artifact, check))
    return check


def require_tflite_micro() -> None:
    """Refuse to start without the package that runs the file."""
    if find_spec("tflite_micro") is None:
        raise ImportError(
            "A file is checked for microcontrollers on TensorFlow Lite Micro's "
            "interpreter. Received: no tflite-micro. Run `pip install --pre "
            "tflite-micro` (it only has pre-releases)."
        )


@contextlib.contextmanager
def _explained(artifact: LiteRTArtifact) -> Iterator[None]:
    """Tell what it is that TensorFlow Lite Micro doesn't take.

    Raises:
        RuntimeError: In place of a `WorkerError`.
    """
    try:
        yield
    except WorkerError as error:
        raise RuntimeError(
            f"{_explain(error.message)} Received: path='{artifact.path}', "
            f"quantization={artifact.quantization.scheme!r}. {error}"
        ) from error


def _explain(log: str) -> str:
    missing = re.search(r"builtin opcode '(\w+)'", log)
    if missing:
        return (
            f"tflite-micro has no kernel for {missing[1]}. Replace the layer "
            "that needs it, for instance a GELU by a ReLU, and train again."
        )
    if "Hybrid models" in log:
        return (
            "tflite-micro doesn't run weights in int8 with activations in "
            "float. Export with quantization='int8'."
        )
    if "DEQUANTIZE" in log and "kTfLiteInt8" in log:
        return (
            "tflite-micro doesn't run weights in float16. Export with "
            "quantization='int8'."
        )
    return (
        "tflite-micro can't run the file. Replace what its log names, or "
        "export with quantization='int8'."
    )


def smallest_arena(content: bytes) -> int:
    """Bytes of the smallest arena that the file runs in.

    The runtime reports what it used of a large arena, and many files run in
    just that. Others need more for a moment, while the interpreter prepares,
    and how much is found by halving. In an arena that is too small the
    interpreter may crash, so each is tried in a process of its own.

    Args:
        content: The file's content.

    Returns:
        The size, at most 15 bytes too large.

    Raises:
        WorkerError: If the interpreter doesn't take the file.
    """
    used: int = processes.call(_reported_arena, content)
    # In units of the alignment, since nothing smaller makes a difference.
    low = -(-used // _ALIGNMENT) - 1
    high = low + 1
    while high < _LARGE_ARENA // _ALIGNMENT and not _fits(content, high):
        low, high = high, high + 2 * (high - low)
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(content, middle):
            high = middle
        else:
            low = middle
    return high * _ALIGNMENT


def _fits(content: bytes, units: int) -> bool:
    try:
        fits: bool = processes.call(_runs_in, content, units * _ALIGNMENT)
    except WorkerError as error:
        if error.killed:
            return False
        raise
    return fits


def _reported_arena(content: bytes) -> int:
    interpreter = _open(content, _LARGE_ARENA)
    _invoke_on_zeros(interpreter, content)
    report = _log_of(interpreter.print_allocations)
    found = re.search(r"Arena allocation total (\d+) bytes", report)
    if found is None:
        raise RuntimeError(
            "tflite-micro didn't report its memory. Received: "
            f"{report!r}. Install a newer tflite-micro."
        )
    return int(found[1])


def _runs_in(content: bytes, arena_size: int) -> bool:
    try:
        _invoke_on_zeros(_interpreter(content, arena_size), content)
    except RuntimeError:
        return False
    return True


def _invoke_on_zeros(interpreter: Any, content: bytes) -> None:
    for port in ports(content)[0]:
        shape = interpreter.get_input_details(port.position)["shape"]
        zeros = np.zeros(shape, port.details["dtype"])
        interpreter.set_input(zeros, port.position)
    interpreter.invoke()


def run(
    content: bytes, inputs: dict[str, np.ndarray], arena_size: int
) -> dict[str, np.ndarray]:
    """The outputs for a batch of any size, with floats in and floats out.

    Args:
        content: The file's content.
        inputs: Arrays by the names of the file's inputs. What the file has as
            quantised integers may be floats.
        arena_size: Bytes that the interpreter gets for all it needs.

    Returns:
        Arrays by the names of the file's outputs; integers of a quantised
        output as the floats that they stand for.

    Raises:
        RuntimeError: If the interpreter doesn't take the file.
    """
    outputs = run_as_is(content, to_file_dtypes(content, inputs), arena_size)
    details = {port.name: port.details for port in ports(content)[1]}
    return {n: runner.to_floats(x, details[n]) for n, x in outputs.items()}


def to_file_dtypes(
    content: bytes, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The inputs as the file has them, quantised ones as integers."""
    return {
        port.name: runner.to_integers(inputs[port.name], port.details).astype(
            port.details["dtype"]
        )
        for port in ports(content)[0]
    }


def run_as_is(
    content: bytes, inputs: dict[str, np.ndarray], arena_size: int
) -> dict[str, np.ndarray]:
    """As `run`, with the file's own dtypes in and out."""
    ins, outs = ports(content)
    interpreter = _open(content, arena_size)
    chunk = interpreter.get_input_details(0)["shape"][0]
    size = len(next(iter(inputs.values())))
    rows: dict[str, list[np.ndarray]] = {port.name: [] for port in outs}
    for start in range(0, size, chunk):
        for port in ins:
            part = _chunk(inputs[port.name], start, chunk)
            interpreter.set_input(part, port.position)
        interpreter.invoke()
        for port in outs:
            # The next run writes to the same memory.
            rows[port.name].append(interpreter.get_output(port.position).copy())
    return {name: np.concatenate(parts)[:size] for name, parts in rows.items()}


def _chunk(array: np.ndarray, start: int, size: int) -> np.ndarray:
    # The last chunk repeats the last example.
    rows = np.arange(start, start + size).clip(max=len(array) - 1)
    return np.ascontiguousarray(array[rows])


def ports(content: bytes) -> tuple[list[Port], list[Port]]:
    """The main graph's inputs and outputs, in the interpreter's order."""
    model = read_model(content)
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    return (
        _ports(graph, list(graph.inputs), signature.inputs),
        _ports(graph, list(graph.outputs), signature.outputs),
    )


def _ports(graph: Any, order: list[int], named: Any) -> list[Port]:
    found = [
        Port(
            entry.name.decode(),
            order.index(entry.tensorIndex),
            _details(graph.tensors[entry.tensorIndex]),
        )
        for entry in named
    ]
    return sorted(found, key=lambda port: port.position)


def _details(tensor: Any) -> dict[str, Any]:
    from ai_edge_litert import schema_py_generated as schema

    names = {v: k.lower() for k, v in vars(schema.TensorType).items()}
    scale, zero_point = 0.0, 0
    quantization = tensor.quantization
    if quantization is not None and quantization.scale is not None:
        scale = float(quantization.scale[0])
        zero_point = int(quantization.zeroPoint[0])
    return {
        "dtype": np.dtype(names[tensor.type]),
        "quantization": (scale, zero_point),
    }


def _open(content: bytes, arena_size: int) -> Any:
    """The interpreter; what it doesn't take is an error with its log."""
    try:
        return _interpreter(content, arena_size)
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n{_why(content, arena_size)}") from error


def _interpreter(content: bytes, arena_size: int) -> Any:
    from tflite_micro.python.tflite_micro import runtime

    return runtime.Interpreter.from_bytes(content, arena_size=arena_size)


def _why(content: bytes, arena_size: int) -> str:
    """Why it fails: only the log of the native code says that."""

    def fail() -> None:
        with contextlib.suppress(RuntimeError):
            _interpreter(content, arena_size)

    return _log_of(fail)


def _log_of(function: Callable[[], Any]) -> str:
    """What a function's native code writes to the standard error."""
    with tempfile.TemporaryFile() as file, _standard_error_in(file.fileno()):
        function()
        file.seek(0)
        return file.read().decode(errors="replace").strip()


@contextlib.contextmanager
def _standard_error_in(descriptor: int) -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _compare(
    model: bytes,
    expected: dict[str, np.ndarray],
    seen: dict[str, np.ndarray],
    arena: int,
) -> MicroCheck:
    pairs = [(expected[name], seen[name]) for name in expected]
    return MicroCheck(
        arena=arena,
        snr_db=snr_db(expected, seen),
        max_error=max(_error(e, s) / _range(e) for e, s in pairs),
        agreement=min(_agreement(e, s) for e, s in pairs),
        operations=dict(collections.Counter(o.name for o in operations(model))),
    )


def _error(expected: np.ndarray, seen: np.ndarray) -> float:
    difference = np.abs(expected.astype("float64") - seen)
    difference[expected == seen] = 0.0
    return float(np.nan_to_num(difference, nan=np.inf).max())


def _range(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)].astype("float64")
    return float(np.ptp(finite)) if finite.size and np.ptp(finite) else 1.0


def _agreement(expected: np.ndarray, seen: np.ndarray) -> float:
    if not has_one_value(expected):
        same = expected.argmax(-1) == seen.argmax(-1)
    else:
        middle = 0.5 if expected.min() >= 0 and expected.max() <= 1 else 0.0
        same = (expected > middle) == (seen > middle)
    return float(same.mean())


def _within_steps(
    model: bytes,
    expected: dict[str, np.ndarray],
    seen: dict[str, np.ndarray],
) -> bool:
    steps = output_steps(model)
    return all(
        _error(array, seen[name])
        # Between two steps, since floats aren't exact.
        <= max((_STEPS + 0.5) * steps[name], _FLOAT_ERROR * _range(array))
        for name, array in expected.items()
    )


def output_steps(content: bytes) -> dict[str, float]:
    """The quantisation step that each output was rounded to, or 0."""
    graph = read_model(content).subgraphs[0]
    makers = {
        index: operator
        for operator in graph.operators
        for index in operator.outputs
    }
    steps = {}
    for port in ports(content)[1]:
        scale = port.details["quantization"][0]
        maker = makers.get(graph.outputs[port.position])
        if not scale and maker is not None:
            # A file with float outputs dequantises at its end.
            before = graph.tensors[maker.inputs[0]]
            scale = _details(before)["quantization"][0]
        steps[port.name] = scale
    return steps


def _difference(artifact: LiteRTArtifact, check: MicroCheck) -> str:
    return (
        "tflite-micro runs the file and returns something else than LiteRT. "
        f"Received: path='{artifact.path}', "
        f"quantization={artifact.quantization.scheme!r}, with outputs that "
        f"differ by {check.max_error:.1e} of their range (accepted: "
        f"{_STEPS} quantisation steps, or {_FLOAT_ERROR:.0e} without), a "
        f"signal-to-noise ratio of {check.snr_db:.1f} dB, and "
        f"{check.agreement:.0%} of the decisions in common. Export with "
        "quantization='int8': its integers are computed there as here."
    )
