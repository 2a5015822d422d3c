"""Runs a LiteRT file on the interpreter, with floats in and floats out.

An unknown file can abort the process, so it is run through `processes` first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_distill.export.flatbuffer import operations


def run(
    content: bytes,
    inputs: dict[str, np.ndarray],
    batch_size: int | None,
    threads: int = 1,
) -> dict[str, np.ndarray]:
    """The outputs for a batch of any size, in chunks that the file takes.

    Args:
        content: The file's content.
        inputs: Arrays by the names of the file's inputs. What the file has as
            quantised integers may be floats.
        batch_size: The file's batch size; None if it takes any.
        threads: Threads of the interpreter.

    Returns:
        Arrays by the names of the file's outputs; integers of a quantised
        output as the floats that they stand for.
    """
    return run_signature(open_signature(content, threads), inputs, batch_size)


def run_signature(
    signature: Any, inputs: dict[str, np.ndarray], batch_size: int | None
) -> dict[str, np.ndarray]:
    """The same, with the runner of a file that was opened."""
    size = len(next(iter(inputs.values())))
    chunk = batch_size or max(size, 1)
    inputs = {
        name: to_integers(array, signature.get_input_details()[name])
        for name, array in inputs.items()
    }
    rows = [
        signature(**{n: chunk_of(x, i, chunk) for n, x in inputs.items()})
        for i in range(0, size, chunk)
    ]
    details = signature.get_output_details()
    return {
        name: to_floats(
            np.concatenate([row[name] for row in rows])[:size], details[name]
        )
        for name in rows[0]
    }


def open_signature(content: bytes, threads: int = 1) -> Any:
    """The runner of the file's one signature, its memory allocated."""
    return open_interpreter(content, threads).get_signature_runner()


def open_interpreter(content: bytes, threads: int = 1) -> Any:
    """LiteRT's interpreter for a file.

    Raises:
        RuntimeError: If the file has operations of TensorFlow.
    """
    from ai_edge_litert.interpreter import Interpreter

    if any(o.name.startswith("Flex") for o in operations(content)):
        raise RuntimeError(
            "No interpreter for Python runs operations of TensorFlow. "
            "Received: a file that was exported with allow_flex=True. Run it "
            "on the device."
        )
    return Interpreter(model_content=content, num_threads=threads)


def chunk_of(array: np.ndarray, start: int, size: int) -> np.ndarray:
    """A batch of a size, of which the last examples may be repeated."""
    chunk = array[start : start + size]
    # The last chunk repeats its last example.
    missing: np.ndarray = chunk[-1:].repeat(size - len(chunk), 0)
    return np.concatenate([chunk, missing])


def to_integers(array: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """An array as the integers of a quantised tensor, if it is one."""
    scale, zero_point = details["quantization"]
    if not scale or array.dtype.kind != "f":
        return array
    limits = np.iinfo(details["dtype"])
    integers = np.round(array / scale) + zero_point
    clipped: np.ndarray = integers.clip(limits.min, limits.max)
    return clipped.astype(details["dtype"])


def to_floats(array: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """The floats that a quantised tensor's integers stand for."""
    scale, zero_point = details["quantization"]
    if not scale or array.dtype.kind == "f":
        return array
    floats: np.ndarray = (array.astype("int64") - zero_point) * float(scale)
    return floats.astype("float32")
