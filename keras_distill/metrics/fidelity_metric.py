"""What the metrics between a teacher and a student share."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerName, Shape, Tensor, fits
from keras_distill.metrics.rows import (
    Rows,
    as_tensor,
    check_activation,
    class_labels,
    class_logits,
    place_weights,
    rows_of,
    summing_dtype,
)


class FidelityMetric(keras.metrics.Metric):  # type: ignore[misc]
    """Base of the metrics between a teacher and a student.

    They say how faithful the student is, which its accuracy doesn't. Alone,
    `metric.update_state(teacher, student)`; while a student is distilled,
    `Distiller.compile(fidelity_metrics=[...])`; or in the `metrics` of a
    model's `compile`, with the teacher's outputs in the place of labels.

    Args:
        teacher_layer_name: What a `Distiller` compares of the teacher: the key
            or index of an output, a layer's name, or `None` for its only
            output.
        student_layer_name: The same for the student.
        name: As in `keras.metrics.Metric`.
        dtype: Dtype of the sums, by default `keras.config.floatx()`, but at
            least float32.
    """

    #: Whether `update_state` needs the hard labels too.
    uses_labels: bool = False
    #: Whether each position, as of a sequence of logits, counts by itself.
    per_position: bool = False
    #: Whether the sums of several devices, added up, are those of one device.
    adds_up: bool = True

    def __init__(
        self,
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=summing_dtype(dtype))
        given = (teacher_layer_name, student_layer_name)
        if not all(isinstance(x, (str, int, type(None))) for x in given):
            raise TypeError(
                f"{type(self).__name__} compares one layer or output with one. "
                f"Received: teacher_layer_name={teacher_layer_name!r}, "
                f"student_layer_name={student_layer_name!r}. Pass a name or an "
                "index for each, and a metric for each pair."
            )
        self.teacher_layer_name = teacher_layer_name
        self.student_layer_name = student_layer_name
        # As in a layer: whether all that it keeps exists. Keras' files ask it.
        self.built = True

    def update_state(
        self,
        teacher: Any,
        student: Any,
        sample_weight: Any = None,
        labels: Any = None,
    ) -> None:
        """Add a batch.

        Args:
            teacher: What the teacher computed.
            student: What the student computed.
            sample_weight: A weight for each example.
            labels: Hard labels, where the metric needs them.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define `update_state(teacher, "
            "student, sample_weight, labels)`."
        )

    def check_labels(self, labels: Any) -> None:
        """Raise where labels are missing, or would be ignored."""
        if self.uses_labels == (labels is not None):
            return
        if self.uses_labels:
            raise ValueError(
                f"{type(self).__name__} needs hard labels. Received: "
                "labels=None. Pass labels=..., -1 for an example without one."
            )
        raise ValueError(
            f"{type(self).__name__} compares the teacher with the student "
            "alone. Received: labels. Leave them out."
        )

    def build(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Check the shapes that will come, and make what depends on them.

        A `Distiller` calls it where it knows the shapes.

        Args:
            teacher_shape: Shape of the teacher's tensor, batch first.
            student_shape: The same of the student.

        Raises:
            ValueError: If the metric can't compare them.
        """

    @property
    def log_names(self) -> list[str]:
        """The names under which a `Distiller` logs the result."""
        return [self.name]

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal metric."""
        return {
            **super().get_config(),
            "teacher_layer_name": self.teacher_layer_name,
            "student_layer_name": self.student_layer_name,
        }


class LogitFidelityMetric(FidelityMetric):
    """Base of the metrics between the outputs of two classifiers.

    Outputs are `(batch, ..., classes)`: each place of a sequence or map counts
    by itself, and those that Keras masked in the student count for nothing.
    Each sigmoid is a classifier of its own, with the classes 0 and 1.

    A subclass defines `add(rows)`, which adds a batch to its sums.

    Args:
        teacher_layer_name: As in `FidelityMetric`.
        student_layer_name: As in `FidelityMetric`.
        activation: `"softmax"` or `"sigmoid"`: what the outputs are, or would
            be if they weren't logits.
        teacher_from_logits: Whether the teacher gives logits, not
            probabilities. `None` means logits, unless a `Distiller` sees a
            softmax or sigmoid at its end.
        student_from_logits: The same for the student.
        class_map: For each class of the student, the index of the teacher's
            class that it stands for, as in `losses.LogitLoss`.
        name: As in `keras.metrics.Metric`.
        dtype: As in `FidelityMetric`.

    Example:
        >>> import keras, keras_distill as kd
        >>> from keras import ops
        >>> class LogitDistance(kd.metrics.LogitFidelityMetric):
        ...     def __init__(self):
        ...         super().__init__(name="logit_distance")
        ...         self.mean = keras.metrics.Mean()
        ...     def add(self, rows):
        ...         teacher, student = rows.logits
        ...         distance = ops.norm(teacher - student, axis=-1)
        ...         self.mean.update_state(distance, rows.weights)
        ...     def result(self):
        ...         return self.mean.result()
        >>> metric = LogitDistance()
        >>> metric.update_state([[3.0, 4.0]], [[0.0, 0.0]])
        >>> float(metric.result())
        5.0
    """

    per_position = True

    def __init__(
        self,
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        activation: str = "softmax",
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        class_map: Sequence[int] | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(teacher_layer_name, student_layer_name, name, dtype)
        check_activation(activation)
        self.activation = activation
        self.teacher_from_logits = teacher_from_logits
        self.student_from_logits = student_from_logits
        self.class_map = None if class_map is None else list(class_map)
        if not all(_is_index(i) for i in self.class_map or []):
            raise ValueError(
                "class_map holds the teacher's class for each of the "
                f"student's. Received: class_map={class_map!r}. Pass whole "
                "numbers from 0."
            )

    def update_state(
        self,
        teacher: Any,
        student: Any,
        sample_weight: Any = None,
        labels: Any = None,
    ) -> None:
        """Add a batch.

        Args:
            teacher: The teacher's output.
            student: The student's output.
            sample_weight: A weight for each example, or for each place.
            labels: Hard labels, as in `LabelMetric`, where the metric needs
                them.
        """
        self.check_labels(labels)
        teacher, student = as_tensor(teacher), as_tensor(student)
        self.build(tuple(teacher.shape), tuple(student.shape))
        weights = place_weights(sample_weight, student, self.activation, self)
        if labels is not None:
            labels = class_labels(labels, student, self.activation)
        sides = [
            class_logits(
                output, self.activation, from_logits is not False, self.dtype
            )
            for output, from_logits in (
                (self._of_students_classes(teacher), self.teacher_from_logits),
                (student, self.student_from_logits),
            )
        ]
        self.add(rows_of(sides, labels, weights, self))

    def _of_students_classes(self, teacher: Tensor) -> Tensor:
        if self.class_map is None:
            return teacher
        return ops.take(teacher, self.class_map, axis=-1)

    def add(self, rows: Rows) -> None:
        """Add a batch's rows, of teacher and student, to the sums."""
        raise NotImplementedError(
            f"{type(self).__name__} must define `add(rows)`."
        )

    def result(self) -> Any:
        """What `add` has added up to."""
        raise NotImplementedError(
            f"{type(self).__name__} must define `result()`."
        )

    def build(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise where the two don't have the same classes."""
        classes = teacher_shape[-1] if teacher_shape else None
        missing = [i for i in self.class_map or [] if i >= (classes or i + 1)]
        if missing:
            raise ValueError(
                f"class_map names classes {missing} that the teacher, with "
                f"{classes} classes, doesn't have. Received: "
                f"class_map={self.class_map}. Name indices below {classes}."
            )
        if self.class_map is not None:
            teacher_shape = (*teacher_shape[:-1], len(self.class_map))
        if len(teacher_shape) < 2 or not fits(teacher_shape, student_shape):
            raise ValueError(
                f"{type(self).__name__} compares outputs of the teacher with "
                "outputs of the student, over the same classes. Received: "
                f"shapes {teacher_shape} and {student_shape}. Pass a row of "
                "logits for each; where the teacher has other classes, "
                "class_map=[...]. A Distiller takes the metric in compile("
                "fidelity_metrics=[...])."
            )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal metric."""
        return {
            **super().get_config(),
            "activation": self.activation,
            "teacher_from_logits": self.teacher_from_logits,
            "student_from_logits": self.student_from_logits,
            "class_map": self.class_map,
        }


def _is_index(value: Any) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and int(value) >= 0
