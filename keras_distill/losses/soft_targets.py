"""Soft targets: the student learns the teacher's tempered probabilities."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill.losses.base import (
    TemperedLogitLoss,
    Tensor,
    divergence,
    relative_entropy,
)


@keras.saving.register_keras_serializable("keras_distill")
class SoftTargets(TemperedLogitLoss):
    """Divergence of tempered class probabilities (knowledge distillation, KD).

    A high temperature shows how the teacher ranks the wrong classes: which
    "2" looks like a "3" and which like a "7". The square of the temperature
    makes up for the gradient that it takes away, so that the balance with the
    hard labels holds when the temperature changes.

    Formula:
        `T**2 * sum_c p_c * (log p_c - log q_c)`, with `p` the softmax of the
        teacher's logits over `T` and `q` that of the student's.

    Args:
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
        Teacher and student `(batch, ..., classes)`, values `(batch, ...)`, in
        nats times `T**2`.

    Raises:
        ValueError: If the temperature isn't positive, or the two have not the
            same classes, or only one class (see `BinarySoftTargets`).

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.SoftTargets(temperature=2.0)
        >>> value = loss([[2.0, 0.0, -2.0]], [[2.0, 1.0, -1.0]])
        >>> round(float(value), 4)
        0.1166

    Reference:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural
        Network", 2015.
    """

    default_weight = 0.9

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`."""
        log_p = ops.log_softmax(teacher / self.temperature, axis=-1)
        log_q = ops.log_softmax(student / self.temperature, axis=-1)
        return self.temperature**2 * divergence(log_p, log_q)


@keras.saving.register_keras_serializable("keras_distill")
class BinarySoftTargets(TemperedLogitLoss):
    """Divergence of tempered yes-or-no probabilities.

    For models that end in sigmoids: one logit that tells two classes apart, or
    one logit for each of many labels. Softmax over them would be wrong: a
    single logit's is always 1, and labels don't exclude each other.

    Formula:
        `T**2 * mean_l (p_l * log(p_l / q_l) + (1 - p_l) * log((1 - p_l) /
        (1 - q_l)))`, with `p` the sigmoid of the teacher's logits over `T` and
        `q` that of the student's; the mean over labels is that of
        `keras.losses.BinaryCrossentropy`. For one label it equals
        `SoftTargets` on the logits `[0, z]`.

    Args:
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
        Teacher and student `(batch, ..., labels)`, values `(batch, ...)`, in
        nats times `T**2`.

    Raises:
        ValueError: If the temperature isn't positive, or the two have not the
            same labels.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.BinarySoftTargets(temperature=1.0)
        >>> round(float(loss([[2.0]], [[0.0]])), 4)
        0.3278

    Reference:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural
        Network", 2015, for two classes.
    """

    default_weight = 0.9
    activation = "sigmoid"

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`."""
        teacher = teacher / self.temperature
        student = student / self.temperature
        yes = relative_entropy(
            ops.log_sigmoid(teacher), ops.log_sigmoid(student)
        )
        no = relative_entropy(
            ops.log_sigmoid(-teacher), ops.log_sigmoid(-student)
        )
        return self.temperature**2 * ops.mean(yes + no, axis=-1)
