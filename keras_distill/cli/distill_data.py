"""The data of `keras-distill distill`, checked against both models."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

import keras
import numpy as np

from keras_distill.cli.arguments import UsageError, number
from keras_distill.cli.files import (
    Array,
    classes_of,
    read_data,
    require_inputs,
    require_labels,
)
from keras_distill.data import Examples
from keras_distill.features import symbolic_output
from keras_distill.heads import final_activation
from keras_distill.losses import DistillationLoss


@dataclasses.dataclass(frozen=True)
class Data:
    """What is learned from, and what is judged by."""

    train: Examples
    test: Examples
    held_out: bool

    @property
    def validation(self) -> Examples | None:
        """What Keras can evaluate on in each epoch."""
        usable = self.held_out and self.test.labels is not None
        return self.test if usable else None


def load(parsed: argparse.Namespace, teacher: keras.Model) -> Data:
    """Load what is learned from, and what is judged by."""

    def read(source: str, split: str | None) -> Examples:
        return read_data(parsed, source, split, teacher, "teacher")

    train = read(parsed.data, parsed.split)
    share = _share(parsed.validation)
    if share is not None:
        if parsed.validation_split is not None:
            raise UsageError(
                "Validation data are a share of the data, or a part of some. "
                f"Received: --validation {parsed.validation} and "
                f"--validation-split {parsed.validation_split}. Leave one out."
            )
        test, train = train.split(share, parsed.seed)
        return Data(train, test, held_out=True)
    if parsed.validation is None and parsed.validation_split is None:
        return Data(train, train, held_out=False)
    source = parsed.data if parsed.validation is None else parsed.validation
    split = parsed.validation_split
    test = read(source, split)
    _require_others(train, test)
    _require_same_names(train, test)
    return Data(train, test, held_out=True)


def _require_others(train: Examples, test: Examples) -> None:
    """Raise where the students would be judged by what they learned from."""
    same = pathlib.Path(train.source).resolve() == (
        pathlib.Path(test.source).resolve()
    )
    if same and train.part == test.part:
        raise UsageError(
            "Validation data are examples that nothing is learned from. "
            f"Received: '{test.source}' for both. Pass other data, another "
            "--validation-split, or a share such as --validation 0.1."
        )


def _require_same_names(train: Examples, test: Examples) -> None:
    """Raise where a class has another number in the validation data."""
    if () not in (train.class_names, test.class_names) and (
        train.class_names != test.class_names
    ):
        raise ValueError(
            "Classes are numbered by the order of their names, so both data "
            f"have the same ones. Received: {', '.join(train.class_names)} "
            f"from '{train.source}' and {', '.join(test.class_names)} from "
            f"'{test.source}'. Pass data with the same classes, or labels "
            "that are numbers."
        )


def _share(given: str | None) -> float | None:
    try:
        return None if given is None else number(given)
    except argparse.ArgumentTypeError:
        return None  # it names data


def require_fitting(
    parsed: argparse.Namespace,
    teacher: keras.Model,
    student: keras.Model,
    data: Data,
) -> None:
    """Raise where the data aren't the models'."""
    same = classes_of(teacher) == classes_of(student)
    if parsed.report is not None and not same:
        raise UsageError(
            "A report compares what teacher and student say of the same "
            f"classes. Received: --report, and {classes_of(teacher)} and "
            f"{classes_of(student)} classes. Leave it out."
        )
    for examples in (data.train, data.test):
        require_inputs(student, "student", examples)
        require_labels(student, "student", examples)
        _require_one_class(student, "student", examples)
        if same:  # else they are those of the student, by a class_map
            require_labels(teacher, "teacher", examples)
            _require_one_class(teacher, "teacher", examples)


def _require_one_class(
    model: keras.Model, who: str, examples: Examples
) -> None:
    """Raise where a softmax is to learn several classes of one example."""
    labels = examples.labels
    if labels is None or not _have_columns(labels, model):
        return
    if final_activation(model) == "sigmoid":
        return
    sums = labels[(labels >= 0).all(-1)].sum(-1)
    if not np.allclose(sums, 1):
        raise ValueError(
            f"The {who} '{model.name}' ends in no sigmoid, and is taken for "
            "one that tells a single class. Received: labels whose rows sum "
            f"to {sums.min():g} to {sums.max():g} from '{examples.source}'. "
            "Let the model end in a sigmoid, or pass one class for each "
            "example."
        )


def _have_columns(labels: Array, model: keras.Model) -> bool:
    """Whether labels have a column for each class, not its number."""
    if classes_of(model) is None:
        return False
    rank = len(symbolic_output(model).shape)
    return labels.ndim == rank and labels.shape[-1] > 1


def require_what_needs_labels(
    parsed: argparse.Namespace,
    losses: Sequence[DistillationLoss],
    data: Data,
) -> None:
    """Raise where something that was asked for needs labels, and has none."""
    train = {
        "--alone": parsed.alone,
        **{type(loss).__name__: loss.uses_labels for loss in losses},
    }
    test = {"--report": parsed.report is not None}
    for examples, needs in ((data.train, train), (data.test, test)):
        for name, needed in needs.items():
            if needed and examples.labels is None:
                raise UsageError(
                    f"{name} needs labels. Received: '{examples.source}' "
                    "without any. Leave it out, or pass data with labels."
                )
