"""Curriculum temperature: soft targets at a temperature that is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import (
    LayerName,
    LogitLoss,
    Shape,
    Tensor,
    divergence,
    refuse_one_class,
)


@keras.saving.register_keras_serializable("keras_distill")
class CurriculumTemperature(LogitLoss):
    """Soft targets whose temperature is trained against the student (CTKD).

    The temperature is learned with the student, but up the loss: it finds
    what the student can't do yet. `reversal` says how much, and a callback
    that lowers it makes lessons harder little by little.

    Formula:
        `T**2 * sum_c p_c * (log p_c - log q_c)` as in `SoftTargets`, with `T =
        minimum + span * sigmoid(theta)`. `theta` is trained, from 1, with its
        gradient times `reversal`.

    Args:
        minimum: The least temperature, above 0.
        span: The greatest temperature less the least, above 0.
        reversal: What multiplies the gradient of `theta`: -1 trains it up the
            loss, 0 leaves it. `self.reversal` is a variable: a callback may
            set it between epochs.
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
        ValueError: If `minimum` or `span` isn't positive, `reversal` isn't
            finite, or the two have not the same classes, or only one.

    Example:
        >>> from keras import ops
        >>> import keras_distill as kd
        >>> loss = kd.losses.CurriculumTemperature()
        >>> round(float(loss.temperature), 4)
        15.6212
        >>> value = loss([[20.0, 0.0, -20.0]], [[20.0, 10.0, -10.0]])
        >>> round(float(ops.convert_to_numpy(value)), 4)
        10.5718

        The authors lower `reversal` from 0 to -1 over 10 epochs:

        >>> import keras, math
        >>> def harder(epoch, logs=None):
        ...     share = min(epoch / 10, 1.0)
        ...     loss.reversal = (math.cos(math.pi * share) - 1) / 2
        >>> callback = keras.callbacks.LambdaCallback(on_epoch_begin=harder)
        >>> callback.on_epoch_begin(5)
        >>> round(float(loss.reversal.value), 4)
        -0.5

    Reference:
        Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI
        2023.
    """

    default_weight = 0.9

    def __init__(
        self,
        minimum: float = 1.0,
        span: float = 20.0,
        reversal: float = -1.0,
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
        for argument, value in (("minimum", minimum), ("span", span)):
            if not 0 < value < math.inf:
                raise ValueError(
                    "Temperatures are positive numbers. Received: "
                    f"{argument}={value!r}. Pass 1 and 20, the paper's "
                    "minimum and span."
                )
        if not math.isfinite(reversal):
            raise ValueError(
                "The reversal multiplies a gradient, so it must be finite. "
                f"Received: reversal={reversal!r}. Pass -1 to train the "
                "temperature up the loss, or 0 to leave it."
            )
        self.minimum = minimum
        self.span = span
        self.theta: Any = keras.Variable(
            1.0, dtype=self.dtype, autocast=False, name="theta"
        )
        self._reversal: Any = keras.Variable(
            reversal,
            dtype=self.dtype,
            trainable=False,
            autocast=False,
            name="reversal",
        )

    @property
    def reversal(self) -> Any:
        """What multiplies the gradient of `theta`; assign a number to it."""
        return self._reversal

    @reversal.setter
    def reversal(self, value: float) -> None:
        self._reversal.assign(value)

    @property
    def temperature(self) -> Tensor:
        """The temperature that `theta` stands for, without a gradient."""
        return ops.stop_gradient(self._temperature())

    def _temperature(self) -> Tensor:
        still = ops.stop_gradient(ops.convert_to_tensor(self.theta))
        # Equal to theta, but with a gradient of its own.
        theta = still + self.reversal * (self.theta - still)
        return self.minimum + self.span * ops.sigmoid(theta)

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`."""
        temperature = self._temperature()
        log_p = ops.log_softmax(teacher / temperature, axis=-1)
        log_q = ops.log_softmax(student / temperature, axis=-1)
        return temperature**2 * divergence(log_p, log_q)

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise where there are fewer than two classes, or not the same."""
        super().check_shapes(teacher_shape, student_shape)
        refuse_one_class(student_shape)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "minimum": self.minimum,
            "span": self.span,
            "reversal": float(ops.convert_to_numpy(self.reversal.value)),
        }
