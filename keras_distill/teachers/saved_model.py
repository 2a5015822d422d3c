"""A SavedModel of TensorFlow as a teacher."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from keras_distill.export.format_runners import in_chunks
from keras_distill.export.signature import TensorInfo
from keras_distill.teachers.base import Array
from keras_distill.teachers.files import FileTeacher
from keras_distill.teachers.packages import require_package
from keras_distill.teachers.process import TeacherProcess


class SavedModelFolder(FileTeacher):
    """The folder of a SavedModel, which TensorFlow runs in its own process.

    Args:
        path: Where the folder is.
        probabilities: Whether the output is probabilities; `None` if unknown.
        input_names: The inputs' names, in the structure of the batches. By
            default an array for one input, and a dict for several.
        output_names: The outputs' names, in the structure of what `label`
            returns. By default an array for one output, a dict for several.
        signature: Name of the signature to call.

    Raises:
        FileNotFoundError: If it isn't there.
        ValueError: If it isn't a SavedModel.
        ImportError: If TensorFlow isn't installed.
    """

    kind = "saved_model"
    runtime = "tensorflow"

    def __init__(
        self,
        path: str | os.PathLike[str],
        probabilities: bool | None = None,
        input_names: Any = None,
        output_names: Any = None,
        signature: str = "serving_default",
    ) -> None:
        what = "A SavedModel as a teacher"
        require_package("tensorflow", what, "tensorflow")
        path = pathlib.Path(path)
        if path.exists() and not (path / "saved_model.pb").exists():
            raise ValueError(
                "A SavedModel is a folder with a saved_model.pb. Received: "
                f"path='{path}'. Pass the folder of one."
            )
        super().__init__(path, probabilities, input_names, output_names)
        self.signature = signature
        self._fingerprint["signature"] = signature
        self._process: TeacherProcess | None = None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.close()
        self._process = None

    def _started(self) -> TeacherProcess:
        if self._process is None or not self._process.alive:
            request = {
                "kind": "saved_model",
                "path": str(self.path.absolute()),
                "signature": self.signature,
            }
            self._process = TeacherProcess("tensorflow", request)
        return self._process

    def _inputs(self) -> Sequence[TensorInfo]:
        rows = self._started().facts["inputs"]
        return [TensorInfo(name, tuple(s), dtype) for name, s, dtype in rows]

    def _run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        batch_size = self._inputs()[0].shape[0]

        def run(chunk: dict[str, Array]) -> dict[str, Array]:
            outputs: dict[str, Array]
            outputs = self._started().ask({"inputs": chunk})["output"]
            return outputs

        # A chunk is a copy of the batch.
        return in_chunks(run, inputs, batch_size) if batch_size else run(inputs)
