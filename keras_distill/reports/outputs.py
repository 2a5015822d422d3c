"""What a teacher or a student says of the test examples, as logits."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_distill.distiller import Distiller
from keras_distill.features import select_inputs
from keras_distill.heads import output_activations
from keras_distill.predictions import predict
from keras_distill.teachers import Teacher

Array = np.ndarray[Any, Any]

_BATCH = 256
# Sums of float16 probabilities are as far from 1 as this.
_ROUNDING = 1e-2
# A probability that was rounded to 0 was no smaller than float32 can say.
_SMALLEST = float(np.finfo("float32").tiny)


def student_logits(student: keras.Model, x: Any) -> Array:
    """Logits of a student, or of the student in a distiller."""
    if isinstance(student, Distiller):
        output = student.predict(x, batch_size=_BATCH, verbose=0)
        return as_logits(output, student.student.name, student.student)
    inputs = select_inputs(student, x)
    output = predict(student, inputs, _BATCH)
    return as_logits(output, student.name, student)


def teacher_logits(teacher: Any, x: Any, distiller: Distiller | None) -> Array:
    """Logits of whatever a teacher is.

    Args:
        teacher: A model, a `teachers.Teacher`, or what it said of the examples.
        x: The examples.
        distiller: A distiller that knows how the teacher's inputs are made;
            None if there is none.

    Raises:
        TypeError: If it is no teacher.
    """
    if isinstance(teacher, np.ndarray):
        return as_logits(teacher, "teacher", None)
    made = None if distiller is None else distiller.teacher_inputs
    if made is not None:
        function = made
        x = _in_batches(lambda batch: _to_numpy(function(batch)), x)
    if isinstance(teacher, Teacher):
        output = _in_batches(lambda batch: teacher.label(batch)[0], x)
        return as_logits(output, "teacher", None)
    if not isinstance(teacher, keras.Model):
        raise TypeError(
            "A report asks the teacher what it says of the test examples. "
            f"Received: teacher={type(teacher).__name__}. Pass a Keras model, "
            "a kd.teachers.Teacher, or a NumPy array of its logits for these "
            "examples."
        )
    inputs = select_inputs(teacher, x)
    output = predict(teacher, inputs, _BATCH)
    return as_logits(output, teacher.name, teacher)


def as_logits(output: Any, name: str, model: keras.Model | None) -> Array:
    """Logits of two classes or more, from whatever a model ends in.

    Rows of numbers from 0 on that sum to 1 are probabilities: no model's
    logits are such for each example. One value is the logit, or the sigmoid,
    of the second of two classes.

    Raises:
        ValueError: If it isn't one row of values for each example.
    """
    if not isinstance(output, np.ndarray) or output.ndim != 2:
        raise ValueError(
            "A report compares classifiers with one row of values for each "
            f"example. Received: '{name}' returns {_described(output)}. Wrap "
            "the output to compare in a keras.Model of its own."
        )
    values: Array = output.astype("float64")
    activations = [] if model is None else output_activations(model)
    activation = activations[0] if activations else None
    if values.shape[-1] == 1:
        return _two_classes(values, name, activation)
    shares = bool(((values >= 0) & (values <= 1)).all())
    if shares and np.allclose(values.sum(-1), 1, rtol=0, atol=_ROUNDING):
        return np.log(np.maximum(values, _SMALLEST))
    if activation == "sigmoid" or (activation is None and shares):
        raise ValueError(
            "A report compares classifiers that tell one class of several. "
            f"Received: '{name}', whose {values.shape[-1]} values for an "
            "example are from 0 to 1 and don't sum to 1, as sigmoids. Pass a "
            "model that returns logits, or ends in a softmax."
        )
    return values


def _two_classes(values: Array, name: str, activation: str | None) -> Array:
    if activation is None and ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            "One value from 0 to 1 may be a probability or a logit. Received: "
            f"'{name}', which doesn't show its last activation. End it with a "
            'keras.layers.Activation("sigmoid"), or "linear" for logits.'
        )
    if activation == "sigmoid":
        yes, no = (np.maximum(p, _SMALLEST) for p in (values, 1 - values))
        values = np.log(yes) - np.log(no)
    return np.concatenate([np.zeros_like(values), values], -1)


def _described(output: Any) -> str:
    shapes = keras.tree.map_structure(np.shape, output)
    return f"{type(output).__name__} {shapes}"


def _to_numpy(structure: Any) -> Any:
    return keras.tree.map_structure(keras.ops.convert_to_numpy, structure)


def _in_batches(function: Any, x: Any) -> Any:
    count = len(keras.tree.flatten(x)[0])
    parts = [
        function(keras.tree.map_structure(lambda a, i=i: a[i : i + _BATCH], x))
        for i in range(0, count, _BATCH)
    ]
    return keras.tree.map_structure(lambda *p: np.concatenate(p), *parts)
