"""What an export returns, whatever the format."""

from __future__ import annotations

import abc
import dataclasses
import pathlib
from typing import Any

import keras
import numpy as np

from keras_distill.export.examples import as_examples
from keras_distill.export.signature import TensorInfo


@dataclasses.dataclass(frozen=True)
class ExportArtifact(abc.ABC):
    """A file that was checked against its student.

    `print(artifact)` shows it in a few lines.

    Attributes:
        path: Where the file, or the folder, is.
        size: The size in bytes of all that belongs to it.
        inputs: The inputs' names, shapes and dtypes.
        outputs: The outputs' names, shapes and dtypes.
        input_names: Names of the inputs, in the structure of the student's
            inputs.
        output_names: Names of the outputs, in the structure of the student's
            outputs.
        max_error: Largest absolute difference from Keras that the check saw,
            relative to the range of the output that it was seen in.
    """

    path: pathlib.Path
    size: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    input_names: Any
    output_names: Any
    max_error: float

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.size / 1024:.1f} KB, {self._kind()}"]
        for kind, infos in (("in", self.inputs), ("out", self.outputs)):
            for name, shape, dtype, *_ in infos:
                lines.append(f"{kind:<3}  {name} {shape} {dtype}")
        return "\n".join(lines)

    def _kind(self) -> str:
        return f"within {self.max_error:.1e} of Keras"

    @property
    def batch_size(self) -> int | None:
        """The file's batch size; None if it takes any."""
        return self.inputs[0].shape[0]

    def float_inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs as the user has them: quantised ones as float32."""
        return tuple(
            info if info.scale is None else info._replace(dtype="float32")
            for info in self.inputs
        )

    def predict(self, x: Any) -> Any:
        """Run the file, on the CPU.

        The counterpart of `student.predict`, so that the two can be compared
        on data of the user's. A file with a batch of 1 runs the examples one
        after the other. Of a file with integer inputs and outputs, floats are
        converted on the way in and out.

        Args:
            x: A batch of any size: an array, or arrays in the structure of the
                student's inputs; or a data set of batches.

        Returns:
            NumPy arrays, in the structure of the student's outputs.

        Raises:
            ValueError: If `x` isn't of the structure or shapes of `inputs`.
            TypeError: If an array would lose values as the input's dtype.
        """
        batch = as_examples(x, self.input_names, self.float_inputs())
        outputs = self._run(batch)
        return keras.tree.map_structure(outputs.__getitem__, self.output_names)

    @abc.abstractmethod
    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name, for inputs by name."""
