"""What a report is asked for, checked before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill.export.decisions import class_numbers
from keras_distill.export.verify import LiteRTCheck

Array = np.ndarray[Any, Any]


def as_models(name: str, given: Any) -> list[keras.Model | None]:
    """One model or several, as a list.

    Raises:
        TypeError: If something is no model.
    """
    models = [given] if isinstance(given, keras.Model) else list(given)
    for model in models:
        if model is not None and not isinstance(model, keras.Model):
            raise TypeError(
                f"{name} are Keras models or distillers, with None for a run "
                f"that failed. Received: {type(model).__name__}."
            )
    return models


def require_pairs(
    students: Sequence[Any],
    baselines: Sequence[Any],
    histories: Sequence[Any] | None,
    seeds: Sequence[int] | None,
) -> None:
    """Refuse what doesn't come once for each student.

    Raises:
        ValueError: If it doesn't, or there are no students.
    """
    if all(student is None for student in students):
        raise ValueError(
            "A report is of at least one student. Received: students="
            f"{list(students)}."
        )
    counts = {
        "baselines": len(baselines) or len(students),
        "histories": len(students if histories is None else histories),
        "seeds": len(students if seeds is None else seeds),
    }
    for name, count in counts.items():
        if count != len(students):
            raise ValueError(
                f"Students come in pairs, seed by seed. Received: {count} "
                f"{name} for {len(students)} students. Pass as many, in the "
                "same order, with None for a run that failed."
            )


def require_checks(exports: Sequence[Any]) -> None:
    """Refuse what isn't a check of a file.

    Raises:
        TypeError: If something isn't.
    """
    for check in exports:
        if not isinstance(check, LiteRTCheck):
            raise TypeError(
                "exports are what kd.verify_litert returned. Received: "
                f"{type(check).__name__}."
            )


def read_examples(data: Any) -> tuple[Any, Any]:
    """The inputs and the labels, as arrays.

    Raises:
        TypeError: If it isn't a pair of these.
        ValueError: If they aren't as many.
    """
    if not isinstance(data, tuple) or len(data) != 2:
        raise TypeError(
            "Test examples are arrays, `(x, y)`. Received: "
            f"{type(data).__name__}. Put the batches of a data set together "
            "with np.concatenate."
        )
    x, y = keras.tree.map_structure(np.asarray, data[0]), np.asarray(data[1])
    sizes = {len(array) for array in keras.tree.flatten(x)}
    if sizes != {len(y)}:
        raise ValueError(
            f"Each example has a label. Received: {len(y)} labels for "
            f"{sorted(sizes)} examples."
        )
    return x, y


def read_labels(y: Array, teacher: Array) -> Array:
    """Class numbers, -1 for an example without one.

    Raises:
        ValueError: If they are no classes of the teacher's, or there are none.
    """
    if len(y) != len(teacher):
        raise ValueError(
            "The teacher says one thing of each example. Received: "
            f"{len(teacher)} rows of the teacher's for {len(y)} examples."
        )
    labels = class_numbers("teacher", y, teacher, None)
    if labels is None:
        raise ValueError(
            "Labels are class numbers or one-hot rows. Received: rows of "
            f"shape {y.shape} that aren't one-hot. Pass y.argmax(-1)."
        )
    if not (labels >= 0).any():
        raise ValueError(
            "A report counts what is right. Received: no example with a label."
        )
    return labels


def read_names(names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """The classes' names, or their numbers.

    Raises:
        ValueError: If there aren't as many as classes.
    """
    if names is None:
        return tuple(map(str, range(classes)))
    if len(names) != classes:
        raise ValueError(
            f"Each class has a name. Received: {len(names)} class_names for "
            f"{classes} classes."
        )
    return tuple(map(str, names))
