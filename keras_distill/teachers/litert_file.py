"""A LiteRT file as a teacher."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_distill.export import runner
from keras_distill.export.artifact import read_file
from keras_distill.export.flatbuffer import split
from keras_distill.export.signature import TensorInfo
from keras_distill.teachers.base import Array
from keras_distill.teachers.files import FileTeacher
from keras_distill.teachers.packages import require_package


class LiteRTFile(FileTeacher):
    """A LiteRT (TFLite) file, which the interpreter runs on the CPU.

    Quantised inputs and outputs are floats outside. The file has one
    signature, as those of `export_litert` and of TensorFlow's converter.

    Args:
        path: Where the file is.
        probabilities: Whether the output is probabilities; `None` if unknown.
        input_names: The inputs' names, in the structure of the batches. By
            default an array for one input, and a dict for several.
        output_names: The outputs' names, in the structure of what `label`
            returns. By default an array for one output, a dict for several.

    Raises:
        FileNotFoundError: If it isn't there.
        ValueError: If it has no signature.
        ImportError: If LiteRT isn't installed.
    """

    kind = "litert"
    runtime = "litert"

    def __init__(
        self,
        path: str | os.PathLike[str],
        probabilities: bool | None = None,
        input_names: Any = None,
        output_names: Any = None,
    ) -> None:
        require_package(
            "ai_edge_litert", "A LiteRT file as a teacher", "litert"
        )
        super().__init__(path, probabilities, input_names, output_names)
        self._signature: Any = None
        self._open()

    def close(self) -> None:
        """Let go of the interpreter."""
        self._signature = None

    def _open(self) -> Any:
        if self._signature is None:
            content, _ = split(read_file(self.path))
            threads = os.cpu_count() or 1
            interpreter = runner.open_interpreter(content, threads)
            if len(interpreter.get_signature_list()) != 1:
                raise ValueError(
                    "A teacher's file says what its inputs and outputs are "
                    f"called, in one signature. Received: '{self.path}' with "
                    f"signatures {list(interpreter.get_signature_list())}. "
                    "Convert the model again, with a signature."
                )
            self._signature = interpreter.get_signature_runner()
        return self._signature

    def _inputs(self) -> Sequence[TensorInfo]:
        return [
            TensorInfo(name, _shape(details), _dtype(details))
            for name, details in self._open().get_input_details().items()
        ]

    def _run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        batch_size = self._inputs()[0].shape[0]
        return runner.run_signature(self._open(), inputs, batch_size)


def _shape(details: dict[str, Any]) -> tuple[int | None, ...]:
    # A size that may be any is -1.
    return tuple(None if n < 0 else int(n) for n in details["shape_signature"])


def _dtype(details: dict[str, Any]) -> str:
    scale, _ = details["quantization"]
    return "float32" if scale else np.dtype(details["dtype"]).name
