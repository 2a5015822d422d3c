"""What an output decides, and which answers are right."""

from __future__ import annotations

from collections.abc import Iterable

import keras
import numpy as np

from keras_distill.heads import output_activations

_PROBABILITY = 0.5
# From which value on a value says yes.
_THRESHOLDS = {
    "hard_sigmoid": _PROBABILITY,
    "linear": 0.0,
    "sigmoid": _PROBABILITY,
    "tanh": 0.0,
}


def thresholds_of(
    student: keras.Model, names: Iterable[str], threshold: float | None
) -> dict[str, float | None]:
    """From which value on a value of each output says yes.

    Args:
        student: The student.
        names: The file's names for its outputs.
        threshold: What the caller says; else the student's last activations
            tell. None where those aren't known.
    """
    known = [_THRESHOLDS.get(a or "") for a in output_activations(student)]
    if threshold is not None or not known:
        return dict.fromkeys(names, threshold)
    return dict(zip(names, known, strict=True))


def has_one_value(outputs: np.ndarray) -> bool:
    """Whether an output has one value an example, or a pixel."""
    return outputs.ndim < 2 or outputs.shape[-1] == 1


def decisions(values: np.ndarray, threshold: float | None) -> np.ndarray | None:
    """The class of the largest value; of one value, whether it is above.

    None where it isn't known from where on one value is a yes.
    """
    if not has_one_value(values):
        largest: np.ndarray = values.argmax(-1)
        return largest
    if threshold is None:
        return None
    above = values.reshape(_places(values)) > threshold
    return above.astype("int64")


def accuracy(
    decided: np.ndarray | None, numbers: np.ndarray | None
) -> float | None:
    """Fraction of the decisions that are right; None if it can't be told."""
    if decided is None or numbers is None:
        return None
    # As `HardLabels` has it, -1 marks an example without a label.
    labelled = numbers != -1
    if not labelled.any():
        return None
    return float((decided == numbers)[labelled].mean())


def class_numbers(
    name: str,
    labels: np.ndarray,
    outputs: np.ndarray,
    threshold: float | None,
) -> np.ndarray | None:
    """An output's labels as numbers of classes; None if they are no classes.

    Args:
        name: The output's name.
        labels: Numbers of classes, of which a single value has two, and -1 for
            none; one-hot rows, or -1 throughout for none; or targets of
            another kind.
        outputs: The outputs that they belong to.
        threshold: From which value on a single value says yes.

    Raises:
        ValueError: If there are no such classes.
    """
    places = _places(outputs)
    if labels.dtype.kind not in "biuf":
        raise ValueError(
            f"Labels of output '{name}' are numbers of classes, or one-hot "
            f"rows. Received: labels of {labels.dtype}. Number the classes."
        )
    if labels.size == np.prod(places):
        if _are_numbers(name, labels, outputs, threshold):
            return labels.reshape(places).astype("int64")
        return None
    if labels.shape != outputs.shape:
        raise ValueError(
            f"Labels of output '{name}' are numbers of classes, of shape "
            f"{places}, or one-hot rows, of shape {outputs.shape}. Received: "
            f"labels of shape {labels.shape}."
        )
    known = (labels != -1).any(-1)
    rows = labels[known]
    is_one_hot = np.isin(rows, (0, 1)).all() and (rows.sum(-1) == 1).all()
    if not is_one_hot or not len(rows):
        return None
    return np.where(known, labels.argmax(-1), -1)


def yes_or_no(labels: np.ndarray, outputs: np.ndarray) -> np.ndarray | None:
    """Labels of several classes an example: of each value, whether it's a yes.

    None where they are targets of another kind; -1 is for what isn't known.
    """
    if labels.shape == outputs.shape and np.isin(labels, (-1, 0, 1)).all():
        return labels.astype("int64")
    return None


def decide_apart(outputs: np.ndarray, labels: np.ndarray | None) -> bool:
    """Whether each value is a decision of its own, as its label is."""
    return has_one_value(outputs) or (
        labels is not None and labels.shape == outputs.shape
    )


def _places(outputs: np.ndarray) -> tuple[int, ...]:
    """The shape of what is decided: once an example, or a pixel."""
    return outputs.shape if outputs.ndim < 2 else outputs.shape[:-1]


def _are_numbers(
    name: str,
    labels: np.ndarray,
    outputs: np.ndarray,
    threshold: float | None,
) -> bool:
    classes = 2 if has_one_value(outputs) else outputs.shape[-1]
    if np.isin(labels, np.arange(-1, classes)).all():
        return True
    is_whole = bool((labels == np.round(labels)).all())
    # One value may be a quantity: of any size, or a soft label.
    if has_one_value(outputs) and not (is_whole and threshold == _PROBABILITY):
        return False
    raise ValueError(
        f"Output '{name}' has {classes} classes, and labels are numbers from 0 "
        f"to {classes - 1}, or -1 for none. Received: labels from "
        f"{labels.min()} to {labels.max()}"
        f"{'' if is_whole else ', not all of them whole'}. Count the classes "
        "from 0."
    )
