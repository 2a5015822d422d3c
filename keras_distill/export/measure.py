"""What a LiteRT file costs on this machine: time, memory, operations.

Runs in the process of `processes`: it runs the file.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np

from keras_distill.export.flatbuffer import operations, read_model
from keras_distill.export.layer_names import layer_path
from keras_distill.export.runner import open_interpreter, to_integers

_WARM_UP = 5


class Latency(NamedTuple):
    """Time of one inference with the file's batch size (1 if it takes any).

    Attributes:
        median_ms: Median, in milliseconds.
        p90_ms: 90th percentile, in milliseconds.
        threads: Threads of the interpreter.
        runs: Number of inferences that were timed.
    """

    median_ms: float
    p90_ms: float
    threads: int
    runs: int


class OperationTime(NamedTuple):
    """Time of one operation, run alone.

    Attributes:
        operation: The operation's name.
        output: The tensor that it writes.
        median_ms: Median, in milliseconds.
        share: Its part in the sum over all operations.
    """

    operation: str
    output: str
    median_ms: float
    share: float

    def __str__(self) -> str:
        place = layer_path(self.output.split(";")[0]) or self.output
        return f"{self.operation} '{place}', {self.median_ms:.4f} ms"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a file costs.

    Attributes:
        latency: Time of one inference.
        peak_memory: Bytes that loading and running it took at most, on Linux;
            else None.
        fully_accelerated: Whether XNNPACK, LiteRT's fast kernels for CPUs,
            runs every operation. None if LiteRT couldn't say.
        profile: Time of each operation, if that was asked for.
    """

    latency: Latency
    peak_memory: int | None
    fully_accelerated: bool | None
    profile: tuple[OperationTime, ...]


def measure(
    content: bytes,
    inputs: dict[str, np.ndarray],
    threads: int,
    runs: int,
    profile: bool,
) -> Measurement:
    """Load a file, and run it many times on the same inputs, given by name."""
    with _peak_memory() as peak:
        interpreter = open_interpreter(content, threads)
        latency = _latency(interpreter, _by_index(interpreter, inputs), runs)
    return Measurement(
        Latency(*latency, threads, runs),
        peak[0] if peak else None,
        _fully_accelerated(content, threads),
        _profile(content, threads, runs) if profile else (),
    )


def _by_index(
    interpreter: Any, inputs: dict[str, np.ndarray]
) -> dict[int, np.ndarray]:
    details = interpreter.get_signature_runner().get_input_details()
    return {
        details[name]["index"]: to_integers(array, details[name])
        for name, array in inputs.items()
    }


def _latency(
    interpreter: Any, inputs: dict[int, np.ndarray], runs: int
) -> tuple[float, float]:
    """Median and 90th percentile of the time of one run, in milliseconds."""
    for index, array in inputs.items():
        interpreter.resize_tensor_input(index, array.shape)
    interpreter.allocate_tensors()
    for index, array in inputs.items():
        interpreter.set_tensor(index, array)
    times = []
    for _ in range(_WARM_UP + runs):
        started = time.perf_counter()
        interpreter.invoke()
        times.append(1000 * (time.perf_counter() - started))
    times = times[_WARM_UP:]
    return statistics.median(times), float(np.percentile(times, 90))


def _some_input(details: dict[str, Any]) -> np.ndarray:
    """An input that any operation takes."""
    shape, dtype = details["shape"], np.dtype(details["dtype"])
    if dtype.kind == "f":
        random: np.ndarray = np.random.default_rng(0).random(shape)
        return random.astype(dtype)
    # An index of zero is in every table. A quantised zero divides by zero.
    values: np.ndarray = np.full(shape, dtype.itemsize < 4, dtype)
    return values


@contextlib.contextmanager
def _peak_memory() -> Any:
    """A list that gets the bytes by which this process grew at most."""
    grown: list[int] = []
    if sys.platform != "linux":
        yield grown
        return
    try:
        before = _status("VmRSS")
        # Resets the peak to what there is now.
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        _status("VmHWM")
    except (OSError, StopIteration):  # some sandboxes have none of it
        yield grown
        return
    yield grown
    grown.append(max(_status("VmHWM") - before, 0))


def _status(key: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _fully_accelerated(content: bytes, threads: int) -> bool | None:
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.options import CpuOptions, Options

    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        file.write(content)
        file.flush()
        # A file with operations of TensorFlow isn't for this runtime.
        with contextlib.suppress(RuntimeError, ValueError):
            options = Options(cpu_options=CpuOptions(num_threads=threads))
            model = CompiledModel.from_file(file.name, options=options)
            return bool(model.is_fully_accelerated())
    return None


def _profile(
    content: bytes, threads: int, runs: int
) -> tuple[OperationTime, ...]:
    model = read_model(content)
    main = [o for o in operations(content) if o.subgraph == 0]
    times = []
    for number in range(len(main)):
        interpreter = open_interpreter(_alone(model, number), threads)
        inputs = {
            details["index"]: _some_input(details)
            for details in interpreter.get_input_details()
        }
        times.append(_latency(interpreter, inputs, runs)[0])
    total = sum(times) or 1.0
    return tuple(
        OperationTime(operation.name, operation.outputs[0], t, t / total)
        for operation, t in zip(main, times, strict=True)
    )


def _alone(model: Any, index: int) -> bytes:
    """A model of one operation of another model."""
    from ai_edge_litert.tools import flatbuffer_utils

    alone, graph = copy.copy(model), copy.copy(model.subgraphs[0])
    operator = graph.operators[index]
    used = [i for i in operator.inputs if i >= 0]
    constant = [i for i in used if _has_data(model, graph.tensors[i])]
    kept = {graph.tensors[i].buffer for i in constant}
    # Subgraphs that a loop runs have constants of their own.
    kept |= {t.buffer for g in model.subgraphs[1:] for t in g.tensors}
    graph.operators = [operator]
    graph.inputs = [i for i in used if i not in constant]
    graph.outputs = list(operator.outputs)
    alone.subgraphs = [graph, *model.subgraphs[1:]]
    alone.signatureDefs = []
    empty = type(model.buffers[0])()
    alone.buffers = [
        buffer if i in kept else empty for i, buffer in enumerate(model.buffers)
    ]
    alone.metadata = []
    return bytes(flatbuffer_utils.convert_object_to_bytearray(alone))


def _has_data(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0
