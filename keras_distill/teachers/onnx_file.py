"""An ONNX file as a teacher."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

from keras_distill.export.format_runners import in_chunks
from keras_distill.export.signature import TensorInfo
from keras_distill.teachers import fingerprints
from keras_distill.teachers.base import Array
from keras_distill.teachers.files import FileTeacher
from keras_distill.teachers.packages import require_package

# What ONNX calls differently from NumPy.
_DTYPES = {"float": "float32", "double": "float64"}


class OnnxFile(FileTeacher):
    """An ONNX file, which onnxruntime runs on the CPU.

    Args:
        path: Where the file is.
        probabilities: Whether the output is probabilities; `None` if unknown.
        input_names: The inputs' names, in the structure of the batches. By
            default an array for one input, and a list in the file's order or a
            dict for several.
        output_names: The outputs' names, in the structure of what `label`
            returns. By default an array for one output, a dict for several.

    Raises:
        FileNotFoundError: If it isn't there.
        ImportError: If onnxruntime isn't installed.
    """

    kind = "onnx"
    runtime = "onnxruntime"

    def __init__(
        self,
        path: str | os.PathLike[str],
        probabilities: bool | None = None,
        input_names: Any = None,
        output_names: Any = None,
    ) -> None:
        require_package("onnxruntime", "An ONNX file as a teacher", "onnx")
        super().__init__(path, probabilities, input_names, output_names)
        self._session: Any = None
        self._open()

    def _checksum(self) -> str:
        """Of the file, and of the files beside it that hold its weights."""
        names = [super()._checksum()]
        if b"location" in self.path.read_bytes():  # of external data
            require_package("onnx", "ONNX with weights in other files", "onnx")
            import onnx

            model = onnx.load(str(self.path), load_external_data=False)
            files = {
                entry.value
                for tensor in model.graph.initializer
                for entry in tensor.external_data
                if entry.key == "location"
            }
            names += [
                fingerprints.of_file(self.path.parent / file)
                for file in sorted(files)
            ]
        return hashlib.sha256(" ".join(names).encode()).hexdigest()

    def close(self) -> None:
        """Let go of the session."""
        self._session = None

    def _open(self) -> Any:
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # errors
            self._session = onnxruntime.InferenceSession(
                str(self.path), options, providers=["CPUExecutionProvider"]
            )
        return self._session

    def _inputs(self) -> Sequence[TensorInfo]:
        return [_info(value) for value in self._open().get_inputs()]

    def _run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        session = self._open()
        names = [output.name for output in session.get_outputs()]
        batch_size = self._inputs()[0].shape[0]

        def run(chunk: dict[str, Array]) -> dict[str, Array]:
            return dict(zip(names, session.run(names, chunk), strict=True))

        # A chunk is a copy of the batch.
        return in_chunks(run, inputs, batch_size) if batch_size else run(inputs)


def _info(value: Any) -> TensorInfo:
    dtype = re.sub(r"tensor\((.*)\)", r"\1", value.type)
    # A size that may be any has a name.
    shape = tuple(n if isinstance(n, int) else None for n in value.shape)
    return TensorInfo(value.name, shape, _DTYPES.get(dtype, dtype))
