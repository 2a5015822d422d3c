"""What a Distiller makes sure of, so that mistakes show early."""

from __future__ import annotations

from typing import Any, Protocol

import keras

from keras_distill.defaults import default_losses
from keras_distill.features import TransferBatch, sublayers
from keras_distill.losses.base import DistillationLoss


class Looks(Protocol):
    """A loss or metric that looks at one of the student's outputs."""

    name: str
    student_layer_name: Any


def check_models(teacher: Any, student: Any) -> None:
    """Raise unless both are built models that share no weights."""
    for who, model in (("teacher", teacher), ("student", student)):
        if model is None and who == "teacher":
            continue
        if not isinstance(model, keras.Model):
            raise TypeError(
                f"The {who} must be a keras.Model. Received: {who}={model!r} "
                f"of type {type(model).__name__}. Arguments come in the order "
                "teacher, student; of a TeacherCache, pass cache.teacher."
            )
        if not model.built:
            raise ValueError(
                f"The {who} isn't built, so it has no weights yet. Received: "
                f"{who}='{model.name}'. Call it on a batch, or begin it with "
                "keras.Input."
            )
    if teacher is None:
        return
    theirs = {id(v): v.path for v in teacher.variables}
    shared = [theirs[id(v)] for v in student.variables if id(v) in theirs]
    if teacher is student or shared:
        raise ValueError(
            "Teacher and student share weights, so training the student would "
            f"change the teacher. Received: teacher='{teacher.name}', "
            f"student='{student.name}', which share {shared[:5]}. Copy the "
            "layers, for instance with keras.models.clone_model and "
            "set_weights."
        )


def as_losses(losses: Any, student: keras.Model) -> list[DistillationLoss]:
    """Losses as a list, however they were given."""
    if losses is None:
        return default_losses(student)
    chosen = list(losses) if isinstance(losses, (list, tuple)) else [losses]
    if not chosen:
        raise ValueError(
            "Without a loss there is nothing to learn from the teacher. "
            "Received: losses=[]. Pass losses, or None for soft targets."
        )
    for loss in chosen:
        if not isinstance(loss, DistillationLoss):
            raise TypeError(
                "A distiller takes losses between a teacher and a student. "
                f"Received: losses={losses!r}. Pass keras_distill.losses "
                "objects; the loss on hard labels goes to compile(loss=...)."
            )
        if loss.reduction in (None, "none"):
            raise ValueError(
                "A distiller adds up losses that are one number for a batch. "
                f"Received: {type(loss).__name__}(reduction=None). Leave out "
                "reduction."
            )
    return chosen


def supports_jit(model: keras.Model | None) -> bool:
    """Whether XLA can compile all layers of a model."""
    if model is None:
        return True
    return bool(model.supports_jit) and all(
        supports_jit(layer) for layer in sublayers(model)
    )


def labels_for(loss: Looks, y: Any) -> Any:
    """The labels of the output that a loss or metric looks at."""
    if y is None:
        raise ValueError(
            f"{type(loss).__name__} needs hard labels. Received: a batch "
            "without labels. Pass y, or use a loss that needs none."
        )
    return _of_output(loss, y, "labels")


def sample_ids_for(loss: DistillationLoss, batch: TransferBatch) -> Any:
    """Which examples these are, for a loss that needs to know."""
    if not keras.tree.flatten(batch.sample_ids):
        raise ValueError(
            f"{type(loss).__name__} needs to know which examples a batch "
            "holds. Received: a batch without sample_ids. Pass "
            "TransferBatch(x, sample_ids=numpy.arange(len(x))) as x."
        )
    if len(batch.sample_ids.shape) != 1:
        raise ValueError(
            "Each example has one number. Received: sample_ids of shape "
            f"{tuple(batch.sample_ids.shape)}. Pass shape (batch,)."
        )
    return batch.sample_ids


def weights_for(loss: Looks, sample_weight: Any) -> Any:
    """The sample weights of the output that a loss or metric looks at."""
    return _of_output(loss, sample_weight, "sample_weight")


def _of_output(loss: Looks, given: Any, what: str) -> Any:
    if not keras.tree.is_nested(given):
        return given
    name = loss.student_layer_name
    inside = (
        name in given
        if isinstance(given, dict)
        else isinstance(name, int) and name < len(given)
    )
    if not inside:
        raise ValueError(
            f"{loss.name} looks at {name!r}, and {what} are given by output. "
            f"Received: {what} of {len(given)} arrays. Pass one array for all "
            "outputs, or name an output in student_layer_name."
        )
    return given[name]
