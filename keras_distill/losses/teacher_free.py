"""Teacher-free: soft targets of a teacher that is made up from the label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import (
    LayerName,
    Shape,
    TemperedLogitLoss,
    Tensor,
    of_label,
)


@keras.saving.register_keras_serializable("keras_distill")
class TeacherFree(TemperedLogitLoss):
    """Soft targets of a virtual teacher that is always right (Tf-KD_reg).

    Much of what soft targets do is to regularise, which takes no teacher: one
    that gives the label nearly all probability, softened, does it too. Of the
    teacher's tensor only the shape is used, so any model with these classes
    will do. The other form, Tf-KD_self, is a `Distiller` with `SoftTargets`
    and a trained copy of the student as teacher. Not 0 where the student
    equals the teacher.

    The official code takes the softmax of the virtual probabilities, not of
    their logarithms, and leaves the student at temperature 1. Here, as in the
    paper, both are tempered as in `SoftTargets`, with the square of `T`.

    Formula:
        `T**2 * KL(v || q)`, with `v` the softmax over `T` of the logarithms
        of `correct_probability` for the label and `(1 - correct_probability) /
        (classes - 1)` for each other class, and `q` the softmax of the
        student's logits over `T`.

    Args:
        correct_probability: Of the label, between `1 / classes` and 1.
        temperature: `T`, above 0. `self.temperature` is a variable: a callback
            may set it between epochs.
        teacher_layer_name: As in `DistillationLoss`.
        student_layer_name: As in `DistillationLoss`.
        projector: As in `DistillationLoss`.
        from_logits: As in `LogitLoss`.
        class_map: As in `LogitLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ..., classes)`, labels without the last
        axis, or one-hot; values `(batch, ...)`.

    Raises:
        ValueError: If `correct_probability` isn't between `1 / classes` and 1,
            the temperature isn't positive, or the two have not the same
            classes, or only one.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.TeacherFree(temperature=2.0)
        >>> value = loss(
        ...     {"teacher": [[0.0, 0.0, 0.0]], "labels": [0]},
        ...     [[2.0, 1.0, -1.0]])
        >>> round(float(value), 4)
        1.0665

    Reference:
        Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing
        Regularization", CVPR 2020.
    """

    default_weight = 0.1
    default_hard_label_weight = 0.9
    uses_labels = True

    def __init__(
        self,
        correct_probability: float = 0.99,
        temperature: float = 20.0,
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        projector: Any = None,
        from_logits: bool | None = None,
        class_map: Sequence[int] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            temperature,
            teacher_layer_name,
            student_layer_name,
            projector,
            from_logits,
            class_map,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        if not 0 < correct_probability < 1:
            raise ValueError(
                "The virtual teacher gives the label a probability between 0 "
                f"and 1. Received: correct_probability={correct_probability!r}."
                " Pass 0.99, the paper's."
            )
        self.correct_probability = correct_probability

    def compare(
        self, teacher: Tensor, student: Tensor, labels: Tensor
    ) -> Tensor:
        """Values of shape `(batch, ...)`."""
        classes = student.shape[-1]
        lead = math.log(
            self.correct_probability
            * (classes - 1)
            / (1 - self.correct_probability)
        )
        # The virtual teacher says two numbers: of the label, of any other. To
        # take the differences before their sum loses less in rounding.
        lead = lead / self.temperature
        log_other = -ops.log(ops.exp(lead) + (classes - 1))
        log_label = lead + log_other
        ahead = log_other - ops.log_softmax(student / self.temperature, axis=-1)
        own = of_label(ahead, labels)
        others = ops.exp(log_other) * (ops.sum(ahead, axis=-1) - own)
        return self.temperature**2 * (
            others + ops.exp(log_label) * (lead + own)
        )

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise where the label wouldn't be the likeliest of the classes."""
        super().check_shapes(teacher_shape, student_shape)
        classes = student_shape[-1]
        if classes and self.correct_probability * classes <= 1:
            raise ValueError(
                "The virtual teacher must prefer the label to other classes. "
                f"Received: correct_probability={self.correct_probability!r} "
                f"for {classes} classes. Pass more than 1 / {classes}."
            )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "correct_probability": self.correct_probability,
        }
