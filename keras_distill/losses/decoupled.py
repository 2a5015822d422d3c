"""Decoupled soft targets: target class and the others, each with a weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import (
    LayerName,
    TemperedLogitLoss,
    Tensor,
    divergence,
    of_label,
    of_others,
    relative_entropy,
)


@keras.saving.register_keras_serializable("keras_distill")
class DecoupledSoftTargets(TemperedLogitLoss):
    """Soft targets in two parts with weights of their own (DKD).

    `SoftTargets` is the sum of how sure the teacher is of the label and, times
    what it leaves to the others, of how it ranks these. A teacher that is sure
    so hides its ranking; with a weight of its own it counts.

    Formula:
        `T**2 * (target_weight * KL(b) + non_target_weight * KL(r))`, both of
        teacher and student over `T`: `b` the two probabilities of label and
        not label, `r` those of the other classes, which sum to 1 among
        themselves. With `1 - p_label` of the teacher for the second weight,
        and 1 for the first, it is `SoftTargets`.

    Args:
        target_weight: The paper's alpha, weight of the label's part, not
            negative.
        non_target_weight: Its beta, weight of the other classes' part, not
            negative. On CIFAR-100 the paper takes 2, 6 or 8, more for more
            different models.
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
        ValueError: If a weight is negative, the temperature isn't positive, or
            the two have not the same classes, or only one.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.DecoupledSoftTargets(temperature=1.0)
        >>> value = loss(
        ...     {"teacher": [[2.0, 0.0, -2.0]], "labels": [0]},
        ...     [[2.0, 1.0, -1.0]])
        >>> round(float(value), 4)
        0.0729

        The authors let its weight grow over 20 epochs:

        >>> import keras
        >>> distiller = kd.Distiller(
        ...     keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]),
        ...     keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]),
        ...     loss)
        >>> def warm_up(epoch, logs=None):
        ...     distiller.loss_weights = [min(epoch / 20, 1.0)]
        >>> callback = keras.callbacks.LambdaCallback(on_epoch_begin=warm_up)
        >>> callback.on_epoch_begin(5)
        >>> float(distiller.loss_weights[0].value)
        0.25

    Reference:
        Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.
    """

    uses_labels = True
    default_hard_label_weight = 1.0

    def __init__(
        self,
        target_weight: float = 1.0,
        non_target_weight: float = 8.0,
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
        for argument, value in (
            ("target_weight", target_weight),
            ("non_target_weight", non_target_weight),
        ):
            if not 0 <= value < math.inf:
                raise ValueError(
                    "The weight of a part must be a finite number, not "
                    f"negative. Received: {argument}={value!r}. Pass 0 to "
                    "leave the part out."
                )
        self.target_weight = target_weight
        self.non_target_weight = non_target_weight

    def compare(
        self, teacher: Tensor, student: Tensor, labels: Tensor
    ) -> Tensor:
        """Values of shape `(batch, ...)`."""
        teacher = teacher / self.temperature
        student = student / self.temperature
        teacher_rest = of_others(teacher, labels)
        student_rest = of_others(student, labels)
        # The logit of the label against all others together.
        p = of_label(teacher, labels) - ops.logsumexp(teacher_rest, axis=-1)
        q = of_label(student, labels) - ops.logsumexp(student_rest, axis=-1)
        target = relative_entropy(
            ops.log_sigmoid(p), ops.log_sigmoid(q)
        ) + relative_entropy(ops.log_sigmoid(-p), ops.log_sigmoid(-q))
        non_target = divergence(
            ops.log_softmax(teacher_rest, axis=-1),
            ops.log_softmax(student_rest, axis=-1),
        )
        return self.temperature**2 * (
            self.target_weight * target + self.non_target_weight * non_target
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "target_weight": self.target_weight,
            "non_target_weight": self.non_target_weight,
        }
