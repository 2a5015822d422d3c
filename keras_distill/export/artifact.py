"""What an export returns: a file, and what is known of it."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from keras_distill.export import runner
from keras_distill.export.base_artifact import ExportArtifact
from keras_distill.export.facts import check_facts
from keras_distill.export.flatbuffer import (
    DamagedFileError,
    Operation,
    damage_is_named,
    operations,
    split,
)
from keras_distill.export.schemes import Quantization
from keras_distill.export.signature import TensorInfo

# A model for a device; what is larger would only fill the memory.
_LARGEST_FILE = 2**31


@dataclasses.dataclass(frozen=True)
class LiteRTArtifact(ExportArtifact):
    """A LiteRT file that was checked against its student.

    `print(artifact)` shows it in a few lines.

    Attributes:
        path: Where the file is.
        size: The file's size in bytes.
        inputs: The inputs' names, shapes and dtypes.
        outputs: The outputs' names, shapes and dtypes.
        input_names: Names of the inputs, in the structure of the student's
            inputs.
        output_names: Names of the outputs, in the structure of the student's
            outputs.
        max_error: Largest absolute difference from Keras that the check saw,
            relative to the range of the output that it was seen in. Of a
            quantised file, that of the float32 file it was made from.
        snr_db: Signal-to-noise ratio of a quantised file's worst output
            against the float32 file, in dB: on the calibration data if there
            was any, else on random inputs. Infinite without quantisation.
        quantization: How the file is quantised. Its `float_layers` are those
            that did stay in float.
        facts: What else the file says of itself: labels, normalisation,
            fingerprints, figures.
    """

    snr_db: float
    quantization: Quantization
    facts: dict[str, Any] = dataclasses.field(repr=False)

    @classmethod
    def of(
        cls, artifact: LiteRTArtifact | str | os.PathLike[str]
    ) -> LiteRTArtifact:
        """An artifact as it is, or that of the file at a path.

        Raises:
            TypeError: If it is neither.
            DamagedFileError: If the file isn't as it was written.
            ValueError: If another program wrote it.
        """
        if isinstance(artifact, LiteRTArtifact):
            return artifact
        if isinstance(artifact, str | os.PathLike):
            return cls.load(artifact)
        raise TypeError(
            "A LiteRT file is what `export_litert` returned, or a path. "
            f"Received: artifact={artifact!r}."
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LiteRTArtifact:
        """Read a file that `export_litert` wrote, here or elsewhere.

        Raises:
            DamagedFileError: If it isn't as it was written.
            ValueError: If another program wrote it.
        """
        path = pathlib.Path(path)
        content = read_file(path)
        _, facts = split(content)
        if facts is None:
            raise ValueError(
                "The LiteRT file doesn't say what its student was. Received: "
                f"path='{path}', from another program. Export the student "
                "with `export_litert`."
            )
        return cls.from_facts(path, len(content), facts)

    @classmethod
    def from_facts(
        cls, path: pathlib.Path, size: int, facts: Any
    ) -> LiteRTArtifact:
        """The artifact of a file, by the facts inside it."""
        with damage_is_named():
            return cls._from_facts(path, size, facts)

    @classmethod
    def _from_facts(
        cls, path: pathlib.Path, size: int, facts: dict[str, Any]
    ) -> LiteRTArtifact:
        check_facts(facts)
        quantization = dict(facts["quantization"])
        quantization["float_layers"] = tuple(quantization["float_layers"])
        snr_db = facts["snr_db"]
        return cls(
            path=path,
            size=size,
            inputs=_infos(facts["inputs"]),
            outputs=_infos(facts["outputs"]),
            max_error=facts["max_error"],
            # JSON has no infinity.
            snr_db=float("inf") if snr_db is None else snr_db,
            quantization=Quantization(**quantization),
            input_names=facts["input_names"],
            output_names=facts["output_names"],
            facts=facts,
        )

    @property
    def operations(self) -> list[Operation]:
        """The file's operations, in the order in which they run."""
        return operations(self.model())

    def model(self) -> bytes:
        """The model in the file, without the facts about it."""
        return split(read_file(self.path))[0]

    def _kind(self) -> str:
        if self.quantization.scheme == "float32":
            return f"float32, {super()._kind()}"
        return f"{self.quantization.scheme}, {self.snr_db:.1f} dB to float32"

    def _run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return runner.run(self.model(), inputs, self.batch_size)


def _infos(rows: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(**{**row, "shape": tuple(row["shape"])}) for row in rows
    )


def read_file(path: pathlib.Path) -> bytes:
    """The content of a file that claims to be a LiteRT model.

    Raises:
        DamagedFileError: If it is too large to be one.
    """
    if path.exists() and not path.is_file():
        raise DamagedFileError(
            f"A LiteRT file is a file. Received: '{path}', which isn't one."
        )
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise DamagedFileError(
            f"A LiteRT file has at most {_LARGEST_FILE} bytes. Received: "
            f"'{path}' of {size} bytes."
        )
    return path.read_bytes()


def with_details(info: TensorInfo, details: dict[str, Any]) -> TensorInfo:
    """An input or output with the dtype and scale that a file gives it."""
    dtype = np.dtype(details["dtype"]).name
    scale, zero_point = details["quantization"]
    if not scale:
        return info._replace(dtype=dtype)
    return TensorInfo(info.name, info.shape, dtype, float(scale), zero_point)
