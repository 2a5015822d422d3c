"""What teachers have in common whose file names its inputs and outputs."""

from __future__ import annotations

import abc
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill.export.signature import TensorInfo
from keras_distill.teachers import fingerprints
from keras_distill.teachers.base import Array, Teacher


class FileTeacher(Teacher):
    """A file that takes arrays by name, and returns such.

    Args:
        path: Where the file, or folder, is.
        probabilities: Whether the output is probabilities; `None` if unknown.
        input_names: The inputs' names, in the structure of the batches. By
            default an array for one input, and a list in the file's order or a
            dict for several.
        output_names: The outputs' names, in the structure of what `label`
            returns. By default an array for one output, a dict for several.

    Raises:
        FileNotFoundError: If it isn't there.
    """

    kind = "file"

    def __init__(
        self,
        path: str | os.PathLike[str],
        probabilities: bool | None = None,
        input_names: Any = None,
        output_names: Any = None,
    ) -> None:
        self.path = pathlib.Path(path)
        if not self.path.exists():
            raise FileNotFoundError(
                f"There is no teacher at '{self.path}'. Received: "
                f"path='{self.path}'. Pass the path of a file that is there."
            )
        self.probabilities = probabilities
        self.input_names = input_names
        self.output_names = output_names
        self._fingerprint = {
            "kind": self.kind,
            "name": self.path.name,
            "sha256": self._checksum(),
            "input_names": _listed(input_names),
            "output_names": _listed(output_names),
        }

    def label(self, inputs: Any) -> tuple[Any, dict[str, Array]]:
        """Run the file on a batch."""
        outputs = self._run(self._by_name(inputs))
        names = self.output_names
        if names is None:
            names = {name: name for name in outputs}
            names = next(iter(outputs)) if len(outputs) == 1 else names
        return keras.tree.map_structure(outputs.__getitem__, names), {}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The file's name and checksum."""
        return self._fingerprint

    def _checksum(self) -> str:
        return fingerprints.of_file(self.path)

    @abc.abstractmethod
    def _inputs(self) -> Sequence[TensorInfo]:
        """The file's inputs, in its order."""

    @abc.abstractmethod
    def _run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """The outputs by name, for inputs by name."""

    def _by_name(self, inputs: Any) -> dict[str, Array]:
        infos = {info.name: info for info in self._inputs()}
        given = self._named(inputs, list(infos))
        missing = sorted(set(infos) - set(given))
        if missing:
            raise ValueError(
                f"'{self.path.name}' has inputs {sorted(infos)}. Received: a "
                f"batch with {sorted(given)}. Pass a dict with {missing}, too."
            )
        return {
            # A float where integers belong is a mistake, and raises.
            name: np.asarray(given[name]).astype(
                info.dtype, casting="same_kind"
            )
            for name, info in infos.items()
        }

    def _named(self, inputs: Any, names: list[str]) -> dict[str, Any]:
        if self.input_names is None and isinstance(inputs, dict):
            return inputs
        wanted = keras.tree.flatten(self.input_names or names)
        arrays = keras.tree.flatten(inputs)
        if len(arrays) != len(wanted):
            raise ValueError(
                f"'{self.path.name}' has inputs {wanted}. Received: a batch of "
                f"{len(arrays)} arrays. Pass one for each."
            )
        return dict(zip(wanted, arrays, strict=True))


def _listed(names: Any) -> Any:
    """Names as JSON has them, in which there are no tuples."""
    return json.loads(json.dumps(names))
