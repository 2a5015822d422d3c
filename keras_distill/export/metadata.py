"""What a file says of itself besides what runs."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import math
import numbers
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_distill.export.examples import as_array, is_array
from keras_distill.export.signature import TensorInfo


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What whoever finds a file on a device needs to know.

    It lies in the file, as JSON in a zip archive that follows the model:
    `LiteRTArtifact.load(path).facts` reads it, and so do `keras-distill
    inspect` and `unzip -p student.tflite keras_distill.json`. The labels are a
    `labels.txt` in that archive, where Android's tools look for them.

    Args:
        labels: Names of the classes, in the order of the logits; of a student
            with one value, of its no and its yes.
        normalization: What is done to an input before the file gets it, by
            input name, as a person says it: `{"image": "pixels / 255"}`.
        description: What the student does, and what it mustn't be used for.
        teacher: The teacher, whose name, size and weights' checksum are noted.
        data: Arrays that the student learned from, whose shapes and checksum
            are noted.
        figures: Figures of a report, such as `{"test accuracy": 0.981}`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If a label has a line break, or two are equal; if a figure
            is NaN or infinite.

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
        if not isinstance(self.labels, tuple | list):
            raise TypeError(
                "labels is a tuple of names. Received: "
                f"labels={self.labels!r}. Pass ('cat', 'dog'), for instance."
            )
        # Frozen for the caller; this is where it is made.
        object.__setattr__(self, "labels", tuple(self.labels))
        _check_labels(self.labels)
        _check_normalization(self.normalization)
        if not isinstance(self.description, str):
            raise TypeError(
                "description is text. Received: "
                f"description={self.description!r}."
            )
        _check_figures(self.figures)
        _check_teacher(self.teacher)
        _check_data(self.data)

    def require_inputs(self, inputs: tuple[TensorInfo, ...]) -> None:
        """Refuse what is said of an input that a file doesn't have.

        Raises:
            ValueError: If there is such an input.
        """
        names = [info.name for info in inputs]
        unknown = sorted(set(self.normalization).difference(names))
        if unknown:
            raise ValueError(
                "normalization says by input name what is done to an input. "
                f"Received: {unknown} for a student with inputs {names}."
            )

    def require_classes(self, outputs: Any) -> None:
        """Refuse labels that aren't as many as the classes.

        Args:
            outputs: What the student returns for a batch. Of several outputs
                nothing is known: boxes have classes that no axis counts.

        Raises:
            ValueError: If there are too few labels, or too many.
        """
        arrays = keras.tree.flatten(outputs)
        if not self.labels or len(arrays) != 1:
            return
        shape = arrays[0].shape
        # One value decides between two.
        classes = max(shape[-1], 2) if len(shape) > 1 else 2
        if len(self.labels) != classes:
            raise ValueError(
                f"Each of the {classes} classes has a label. Received: "
                f"{len(self.labels)} labels for an output of shape "
                f"{('batch', *shape[1:])}."
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


def _check_labels(labels: tuple[str, ...]) -> None:
    if not all(isinstance(label, str) for label in labels):
        raise TypeError(
            f"A label is a name. Received: labels={labels!r}. Pass "
            "tuple(map(str, labels)), if they are names."
        )
    if any(len(f"{label}.".splitlines()) > 1 for label in labels):
        raise ValueError(
            f"A label is one line of a text file. Received: labels={labels!r}."
        )
    if len(set(labels)) < len(labels):
        raise ValueError(
            f"Each class has a label of its own. Received: labels={labels!r}."
        )


def _check_normalization(texts: Any) -> None:
    if not isinstance(texts, Mapping) or not all(
        isinstance(part, str) for item in texts.items() for part in item
    ):
        raise TypeError(
            "normalization is a dict of texts by input name. Received: "
            f"normalization={texts!r}. Pass {{'image': 'pixels / 255'}}, for "
            "instance."
        )


def _check_figures(figures: Any) -> None:
    if not isinstance(figures, Mapping) or not all(
        isinstance(name, str) and isinstance(value, numbers.Real)
        for name, value in figures.items()
    ):
        raise TypeError(
            "figures is a dict of numbers by name. Received: "
            f"figures={figures!r}. Pass {{'test accuracy': 0.981}}, for "
            "instance."
        )
    for name, value in figures.items():
        if not math.isfinite(value):
            raise ValueError(
                "JSON has no such figure. Received: "
                f"figures={{{name!r}: {value}}}. Leave it out."
            )


def _check_teacher(teacher: Any) -> None:
    if teacher is None:
        return
    if not isinstance(teacher, keras.Model):
        raise TypeError(
            "The teacher is a Keras model, of which the checksum is noted. "
            f"Received: teacher={teacher!r}. Pass a `keras.Model`, or name it "
            "in `description`."
        )
    if not teacher.built:
        raise ValueError(
            "The teacher isn't built, so it has no weights yet. Received: "
            f"teacher='{teacher.name}'. Call it on a batch, or begin it with "
            "keras.Input."
        )


def _check_data(data: Any) -> None:
    if data is not None and not all(map(is_array, keras.tree.flatten(data))):
        raise TypeError(
            "data is an array, or arrays in lists and dicts, of which the "
            f"checksum is noted. Received: data={type(data).__name__}. Pass "
            "arrays, or say in `description` what it learned from."
        )


def as_metadata(value: Any) -> Metadata:
    """Metadata, or None, as metadata.

    Raises:
        TypeError: If it is anything else.
    """
    if value is None:
        return Metadata()
    if isinstance(value, Metadata):
        return value
    raise TypeError(
        "metadata is a `Metadata`. Received: "
        f"metadata={type(value).__name__}. Pass `keras_distill.Metadata("
        "labels=...)`, or of a dict `keras_distill.Metadata(**metadata)`."
    )


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
    arrays = [as_array(leaf) for leaf in keras.tree.flatten(data)]
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return {
        "shapes": [list(array.shape) for array in arrays],
        "sha256": digest.hexdigest(),
    }
