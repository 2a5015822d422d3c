"""What is used where the user said nothing: losses, optimizer, metrics."""

from __future__ import annotations

from typing import Any

import keras

from keras_distill.comparison import output_spec
from keras_distill.hard_labels import HardLabelAccuracy, HardLabels
from keras_distill.heads import final_activation
from keras_distill.losses.base import DistillationLoss
from keras_distill.losses.soft_targets import BinarySoftTargets, SoftTargets

_BINARY = (
    keras.losses.BinaryCrossentropy,
    keras.losses.BinaryFocalCrossentropy,
)
_CLASSES = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
    HardLabels,
)


def default_losses(student: keras.Model) -> list[DistillationLoss]:
    """Soft targets, in the form that fits what the student ends in.

    Raises:
        ValueError: If the student isn't a classifier with one output.
    """
    head = default_kind(student)
    if head is None:
        raise ValueError(
            f"There is no default loss for '{student.name}', whose output is "
            "not one tensor of class logits. Received: losses=None. Pass "
            "losses=[...] that name the outputs to compare, such as "
            "SoftTargets(teacher_layer_name=..., student_layer_name=...)."
        )
    if head == "sigmoid":
        return [BinarySoftTargets()]
    return [SoftTargets()]


def require_same_kind(chosen: str, hard: Any) -> None:
    """Raise where the default soft targets don't fit a loss on labels.

    Args:
        chosen: The `default_kind` that they were chosen by.
        hard: The loss on the hard labels, as `compile` takes it.

    Raises:
        ValueError: If one is for classes that exclude each other, and the
            other for several labels.
    """
    kind = _kind_of_loss(hard)
    if kind not in ("softmax", "sigmoid") or kind == chosen:
        return
    other = "BinarySoftTargets" if kind == "sigmoid" else "SoftTargets"
    raise ValueError(
        "By default, the distiller compares what a "
        f"{chosen} turns into probabilities, as fits what the student ends "
        f"in. Received: a loss on the labels for a {kind}. Make the distiller "
        f"with losses=kd.losses.{other}()."
    )


def default_hard_loss(student: keras.Model) -> HardLabels | None:
    """Cross-entropy in the form that fits what the student ends in."""
    head = default_kind(student)
    if head is None:
        return None
    return HardLabels(head, from_logits=final_activation(student) is None)


def default_metrics(student: keras.Model) -> list[Any]:
    """Accuracy in the form that fits what the student ends in."""
    head = default_kind(student)
    if head is None:
        return []
    logits = final_activation(student) is None
    return [HardLabelAccuracy(head, from_logits=logits)]


def compile_arguments(student: keras.Model) -> dict[str, Any]:
    """What a student was compiled with, as objects of their own.

    Optimizer and metrics have state, so they are made anew from their configs:
    the student's own stay as they are.

    Returns:
        Arguments of `compile`; empty for a student that wasn't compiled.

    Raises:
        ValueError: If something it was compiled with can't be made anew.
    """
    if not student.compiled:
        return {}
    config = {**student.get_compile_config(), "loss": None}
    try:
        arguments = keras.saving.deserialize_keras_object(config)
    except Exception as error:
        raise ValueError(
            f"What '{student.name}' was compiled with can't be copied: "
            f"{error} Received: a compiled student. Register its functions "
            "with keras.saving.register_keras_serializable, or give "
            "distiller.compile the optimizer, loss and metrics."
        ) from error
    # Losses have no state, and may be functions that have no config.
    return {**arguments, "loss": student.loss}


def default_kind(student: keras.Model) -> str | None:
    """`"softmax"`, `"sigmoid"`, or `None` for what isn't one classifier."""
    spec = output_spec(student)
    if spec is None:
        return "softmax"
    if keras.tree.is_nested(spec):
        return None
    kind = _kind_of_loss(student.loss) if student.compiled else "unknown"
    if kind != "unknown":
        return kind
    seen = final_activation(student)
    has_one = len(spec.shape) == 1 or spec.shape[-1] == 1
    return seen or ("sigmoid" if has_one else "softmax")


def _kind_of_loss(loss: Any) -> str | None:
    if loss is None:
        return "unknown"
    if keras.tree.is_nested(loss):
        losses = keras.tree.flatten(loss)
        return _kind_of_loss(losses[0]) if len(losses) == 1 else None
    # "binary_crossentropy" gives a function, whose name is that of its class.
    loss = keras.losses.get(loss)
    name = type(loss).__name__ if isinstance(loss, keras.losses.Loss) else None
    name = name or _camel_case(loss.__name__)
    if isinstance(loss, _BINARY) or name in {c.__name__ for c in _BINARY}:
        return "sigmoid"
    if isinstance(loss, HardLabels):
        return loss.activation
    if isinstance(loss, _CLASSES) or name in {c.__name__ for c in _CLASSES}:
        return "softmax"
    # Another loss of Keras, such as that of a regression, or the user's own.
    return None if name in dir(keras.losses) else "unknown"


def _camel_case(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
