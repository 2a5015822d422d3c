"""One function that makes a teacher of whatever can be one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill.teachers.base import Teacher
from keras_distill.teachers.keras_model import KerasTeacher


def as_teacher(
    teacher: Any,
    layers: Sequence[str] = (),
    runtime: str = "keras",
    example: Any = None,
) -> Teacher:
    """Make something that labels batches of a Keras model.

    Args:
        teacher: A built `keras.Model`, or a `Teacher`.
        layers: Names of hidden layers whose outputs are wanted, too.
        runtime: What runs a Keras model.
        example: A batch of inputs.

    Raises:
        TypeError: If it isn't a teacher.
    """
    if isinstance(teacher, Teacher):
        layers = tuple(layers)
        if layers in ((), teacher.layers):
            return teacher
        return teacher.with_layers(layers)
    if isinstance(teacher, keras.Model):
        return KerasTeacher(teacher, layers)
    raise TypeError(
        "A teacher is a `keras.Model` or a `kd.teachers.Teacher`. Received: "
        f"teacher={teacher!r}."
    )
