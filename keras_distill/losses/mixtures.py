"""Divergences from a mixture of teacher and student, bounded on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import (
    LayerName,
    LogitLoss,
    TemperedLogitLoss,
    Tensor,
    divergence,
)

# Far below any logarithm of a probability, and yet finite in float32: what
# minus infinity, as of a token that is ruled out, would make of a gradient is
# NaN.
_LEAST = -1e30
_SMALLEST = 1e-37


@keras.saving.register_keras_serializable("keras_distill")
class JensenShannon(TemperedLogitLoss):
    """Generalized Jensen-Shannon divergence, as of language models (GKD).

    Between the divergence from teacher to student, which makes a student cover
    all that the teacher says, and that from student to teacher, which makes it
    keep to what the teacher says often. Bounded, so that a token on which both
    differ widely can't rule a batch; the price is a gradient that fades there.

    There is no `T**2`: with language models it is usual to leave it out. The
    ends 0 and 1 are the divergences themselves, to which the formula in
    between doesn't lead: it goes to 0.

    Formula:
        `beta * KL(p, m) + (1 - beta) * KL(q, m)` with `m = beta * p + (1 -
        beta) * q`, `KL(p, m) = sum_c p_c * (log p_c - log m_c)`, `p` the
        softmax of the teacher's logits over `T` and `q` that of the student's.
        For `beta` 0, `KL(p, q)`; for 1, `KL(q, p)`.

    Args:
        beta: The teacher's share of the mixture, from 0 to 1.
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
        nats.

    Raises:
        ValueError: If `beta` isn't from 0 to 1, the temperature isn't
            positive, or the two have not the same classes, or only one.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.JensenShannon()
        >>> value = loss([[2.0, 0.0, -2.0]], [[2.0, 1.0, -1.0]])
        >>> round(float(value), 4)
        0.0198

    Reference:
        Agarwal et al., "On-Policy Distillation of Language Models: Learning
        from Self-Generated Mistakes", ICLR 2024.
    """

    def __init__(
        self,
        beta: float = 0.5,
        temperature: float = 1.0,
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
        if not 0 <= beta <= 1:
            raise ValueError(
                "The teacher's share of the mixture must be from 0 to 1. "
                f"Received: beta={beta!r}. Pass 0 for the divergence from "
                "teacher to student, 1 for that from student to teacher."
            )
        self.beta = beta

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`."""
        log_p = _log_probabilities(teacher / self.temperature)
        log_q = _log_probabilities(student / self.temperature)
        if self.beta == 0:
            return divergence(log_p, log_q)
        if self.beta == 1:
            return divergence(log_q, log_p)
        log_m = _log_mixture(log_p, log_q, self.beta)
        return self.beta * divergence(log_p, log_m) + (
            1 - self.beta
        ) * divergence(log_q, log_m)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {**super().get_config(), "beta": self.beta}


@keras.saving.register_keras_serializable("keras_distill")
class SkewedDivergence(LogitLoss):
    """Skewed divergence of the class probabilities (DistiLLM).

    A little of one side is mixed into the other before they are compared: it
    then has no class of probability zero, so that neither value nor gradient
    grows without bound where the two have nothing in common.

    A true divergence, zero where the student equals the teacher. The authors'
    code leaves out the teacher's entropy, which changes no gradient.

    Formula:
        `sum_c p_c * (log p_c - log m_c)` with `m = skew * p + (1 - skew) * q`,
        `p` the softmax of the teacher's logits and `q` that of the student's.
        With `reverse`, `p` and `q` are exchanged.

    Args:
        skew: How much of the first side is mixed into the second, from 0 to
            below 1. With 0 it is a plain divergence.
        reverse: Whether to go from student to teacher.
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
        nats, at most `-log(skew)`.

    Raises:
        ValueError: If `skew` isn't from 0 to below 1, or the two have not the
            same classes.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.SkewedDivergence()
        >>> value = loss([[2.0, 0.0, -2.0]], [[2.0, 1.0, -1.0]])
        >>> round(float(value), 4)
        0.0608

    Reference:
        Ko et al., "DistiLLM: Towards Streamlined Distillation for Large
        Language Models", ICML 2024.
    """

    default_hard_label_weight = 1.0

    def __init__(
        self,
        skew: float = 0.1,
        reverse: bool = False,
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
        if not 0 <= skew < 1:
            raise ValueError(
                "The share that is mixed in must be from 0 to below 1. "
                f"Received: skew={skew!r}. Pass 0.1, as the authors do."
            )
        self.skew = skew
        self.reverse = reverse

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`."""
        log_p = _log_probabilities(teacher)
        log_q = _log_probabilities(student)
        if self.reverse:
            log_p, log_q = log_q, log_p
        if self.skew:
            log_q = _log_mixture(log_p, log_q, self.skew)
        return divergence(log_p, log_q)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "skew": self.skew,
            "reverse": self.reverse,
        }


def _log_probabilities(logits: Tensor) -> Tensor:
    logs = ops.log_softmax(logits, axis=-1)
    # Not `maximum`, which would hide NaN on some backends.
    return ops.where(logs < _LEAST, _LEAST, logs)


def _log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """Logarithm of `share * p + (1 - share) * q`.

    Where both underflow it is that of the smallest number: a class without
    weight in the divergence, and without a gradient.
    """
    mixture = share * ops.exp(log_p) + (1 - share) * ops.exp(log_q)
    return ops.log(mixture + _SMALLEST)
