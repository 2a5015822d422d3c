"""Hard targets: the student learns the teacher's decision."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill.losses.base import (
    LogitLoss,
    Shape,
    Tensor,
    of_label,
    refuse_one_class,
)


@keras.saving.register_keras_serializable("keras_distill")
class HardTargets(LogitLoss):
    """Cross-entropy with the class that the teacher decides for (DeiT).

    A teacher that sees the augmented image labels what is left in it. In DeiT
    a head of its own learns it; `keras_distill.average_heads` makes the model
    to export of both. Not 0 where the student equals the teacher.

    Formula:
        `-log q_k`, with `q` the softmax of the student's logits and `k` the
        teacher's first class.

    Args:
        teacher_layer_name: As in `DistillationLoss`.
        student_layer_name: As in `DistillationLoss`.
        projector: As in `DistillationLoss`.
        from_logits: As in `LogitLoss`.
        class_map: As in `LogitLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ..., classes)`, values `(batch, ...)`, in
        nats.

    Raises:
        ValueError: If the two have not the same classes, or only one.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.HardTargets(student_layer_name="distillation")
        >>> value = loss([[2.0, 0.0, -2.0]], [[2.0, 1.0, -1.0]])
        >>> round(float(value), 4)
        0.349

    Reference:
        Touvron et al., "Training Data-Efficient Image Transformers &
        Distillation through Attention", ICML 2021.
    """

    default_weight = 0.5
    default_hard_label_weight = 0.5

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`."""
        decision = ops.argmax(teacher, axis=-1)
        return -of_label(ops.log_softmax(student, axis=-1), decision)

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise where there are fewer than two classes, or not the same."""
        super().check_shapes(teacher_shape, student_shape)
        refuse_one_class(student_shape)
