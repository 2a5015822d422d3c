"""Soft targets: the student learns the teacher's tempered probabilities."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerName, LogitLoss, Tensor


class _Tempered(LogitLoss):
    """A logit loss with a temperature that a callback can set."""

    default_weight = 0.9

    def __init__(
        self,
        temperature: float = 4.0,
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
            teacher_layer_name,
            student_layer_name,
            projector,
            from_logits,
            class_map,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        if not isinstance(temperature, numbers.Real) or not (
            0 < temperature < math.inf
        ):
            raise ValueError(
                "A temperature divides the logits, so it must be a positive "
                f"number. Received: temperature={temperature!r}. Pass 1 for "
                "none, or more to soften the targets."
            )
        self._temperature: Any = keras.Variable(
            temperature,
            dtype=self.dtype,
            trainable=False,
            autocast=False,
            name="temperature",
        )

    @property
    def temperature(self) -> Any:
        """The variable that divides the logits; assign a number to set it."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature.assign(value)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        temperature = float(ops.convert_to_numpy(self.temperature.value))
        return {**super().get_config(), "temperature": temperature}


@keras.saving.register_keras_serializable("keras_distill")
class SoftTargets(_Tempered):
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

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`."""
        log_p = ops.log_softmax(teacher / self.temperature, axis=-1)
        log_q = ops.log_softmax(student / self.temperature, axis=-1)
        return self.temperature**2 * ops.sum(_relative(log_p, log_q), axis=-1)

    def check_shapes(self, teacher_shape: Any, student_shape: Any) -> None:
        """Raise where there are fewer than two classes, or not the same."""
        super().check_shapes(teacher_shape, student_shape)
        if student_shape[-1] == 1:
            raise ValueError(
                "The softmax of a single logit is always 1, so there is "
                f"nothing to learn from it. Received: logits of shape "
                f"{student_shape}. Use BinarySoftTargets for a model with one "
                "logit."
            )


@keras.saving.register_keras_serializable("keras_distill")
class BinarySoftTargets(_Tempered):
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

    activation = "sigmoid"

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`."""
        teacher = teacher / self.temperature
        student = student / self.temperature
        yes = _relative(ops.log_sigmoid(teacher), ops.log_sigmoid(student))
        no = _relative(ops.log_sigmoid(-teacher), ops.log_sigmoid(-student))
        return self.temperature**2 * ops.mean(yes + no, axis=-1)


def _relative(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`p * (log p - log q)`, zero where `p` is zero even if both logs are -inf.

    In log space throughout: the logarithm of a probability that has been
    rounded, or clipped, has a wrong gradient.
    """
    p = ops.exp(log_p)
    # Not `p > 0`, which would hide a teacher that gives NaN.
    return ops.where(p == 0, 0.0, p * (log_p - log_q))
