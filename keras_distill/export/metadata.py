"""What a file says of itself besides what runs."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What whoever finds a file on a device needs to know.

    It lies in the file, as JSON in a zip archive that follows the model:
    `LiteRTArtifact.load(path).facts` reads it, and so do `keras-distill
    inspect` and `unzip -p student.tflite keras_distill.json`. The labels are a
    `labels.txt` in that archive, where Android's tools look for them.

    Args:
        labels: Names of the classes, in the order of the logits.
        normalization: What is done to an input before the file gets it, by
            input name, as a person says it: `{"image": "pixels / 255"}`.
        description: What the student does, and what it mustn't be used for.
        teacher: The teacher, whose name, size and weights' checksum are noted.
        data: Arrays that the student learned from, whose shapes and checksum
            are noted.
        figures: Figures of a report, such as `{"test accuracy": 0.981}`.

    Raises:
        ValueError: If a label has a line break, or two are equal.

    Example:
        >>> metadata = Metadata(labels=("cat", "dog"))
        >>> metadata.labels
        ('cat', 'dog')

    Reference:
        Mitchell et al., "Model Cards for Model Reporting", FAT* 2019.
    """

    labels: tuple[str, ...] = ()
    normalization: Mapping[str, str] = dataclasses.field(default_factory=dict)
    description: str = ""
    teacher: keras.Model | None = None
    data: Any = None
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.labels, str):
            raise ValueError(
                "labels is a tuple of names. Received: "
                f"labels={self.labels!r}. Pass ({self.labels!r},)."
            )
        if any(len(f"{label}.".splitlines()) > 1 for label in self.labels):
            raise ValueError(
                "A label is one line of a text file. Received: "
                f"labels={self.labels!r}."
            )
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(
                "Each class has a label of its own. Received: "
                f"labels={self.labels!r}."
            )

    def facts(self, student: keras.Model) -> dict[str, Any]:
        """The facts as JSON has them."""
        facts = {
            "keras_distill": _version(),
            "keras": keras.version(),
            "student": fingerprint(student),
            "description": self.description,
            "normalization": dict(self.normalization),
            "figures": {k: float(v) for k, v in self.figures.items()},
        }
        if self.teacher is not None:
            facts["teacher"] = fingerprint(self.teacher)
        if self.data is not None:
            facts["data"] = _data_fingerprint(self.data)
        return facts


def _version() -> str:
    try:
        return importlib.metadata.version("keras-distill")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def fingerprint(model: keras.Model) -> dict[str, Any]:
    """A model's name, size, and the checksum of its weights."""
    digest = hashlib.sha256()
    # Without the state of random layers, which isn't part of what they learned.
    for variable in model.weights:
        array = keras.ops.convert_to_numpy(variable)
        if array.dtype.name == "bfloat16":
            # As a backend has it to whom NumPy's bfloat16 is unknown.
            array = array.astype("float32")
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return {
        "name": model.name,
        "parameters": model.count_params(),
        "sha256": digest.hexdigest(),
    }


def _data_fingerprint(data: Any) -> dict[str, Any]:
    digest = hashlib.sha256()
    arrays = [np.asarray(leaf) for leaf in keras.tree.flatten(data)]
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return {
        "shapes": [list(array.shape) for array in arrays],
        "sha256": digest.hexdigest(),
    }
