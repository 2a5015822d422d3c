"""A `.keras` file as a teacher, in a process with a backend of its own."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill.export.keras_file import describe_keras
from keras_distill.teachers.base import Array, Teacher
from keras_distill.teachers.process import TeacherProcess

_BACKENDS = ("jax", "tensorflow", "torch")


class KerasFile(Teacher):
    """A `.keras` file that labels in a process with a backend of its own.

    So a teacher can run where it is fastest, and a student learn on another
    backend. The process starts when it is needed, which takes seconds, and
    ends with `close`. The file is loaded in Keras' safe mode. Its fingerprint
    is that of the model in it, on any backend.

    Args:
        path: Where the file is.
        backend: `"jax"`, `"tensorflow"` or `"torch"`; by default that of this
            process.
        layers: Names of hidden layers, such as `"backbone/conv4"`.
        imports: Names of modules that register the model's custom layers.

    Raises:
        DamagedFileError: If it isn't a `.keras` file.
        FileNotFoundError: If it isn't there.
        ValueError: If there is no such backend.
    """

    runtime = "keras"

    def __init__(
        self,
        path: str | os.PathLike[str],
        backend: str | None = None,
        layers: Sequence[str] = (),
        imports: Sequence[str] = (),
    ) -> None:
        self.path = pathlib.Path(path)
        self.backend = backend or keras.backend.backend()
        self.layers = tuple(layers)
        self.imports = tuple(imports)
        self._process: TeacherProcess | None = None
        if self.backend not in _BACKENDS:
            raise ValueError(
                f"A teacher runs on one of {_BACKENDS}. Received: "
                f"backend={backend!r}."
            )
        if not self.path.exists():
            raise FileNotFoundError(
                f"There is no teacher at '{self.path}'. Received: "
                f"path='{self.path}'. Pass the path of a `.keras` file."
            )
        describe_keras(self.path)

    def label(self, inputs: Any) -> tuple[Any, dict[str, Array]]:
        """Send a batch to the process, and wait for what it says."""
        arrays = keras.tree.map_structure(np.asarray, inputs)
        answer = self._started().ask({"inputs": arrays})
        return answer["output"], answer["features"]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """That of the model in the file."""
        facts: dict[str, Any] = self._started().facts["fingerprint"]
        return facts

    @property
    def probabilities(self) -> bool | None:  # type: ignore[override]
        """Whether the model ends in a softmax or sigmoids, if it shows."""
        known: bool | None = self._started().facts["probabilities"]
        return known

    def with_layers(self, layers: Sequence[str]) -> KerasFile:
        """The same file, with other hidden layers to look at."""
        return KerasFile(self.path, self.backend, layers, self.imports)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.close()
        self._process = None

    def _started(self) -> TeacherProcess:
        if self._process is None or not self._process.alive:
            self._process = TeacherProcess(
                self.backend,
                {
                    "kind": "keras",
                    "path": str(self.path.absolute()),
                    "layers": list(self.layers),
                    "imports": list(self.imports),
                },
            )
        return self._process
