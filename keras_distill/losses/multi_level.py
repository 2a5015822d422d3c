"""Multi-level logits: examples, classes and the batch at many temperatures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import (
    LayerName,
    LogitLoss,
    Tensor,
    divergence,
)


@keras.saving.register_keras_serializable("keras_distill")
class MultiLevelLogits(LogitLoss):
    """Soft targets, and the correlations of classes and of examples (MLKD).

    Next to each example's probabilities, the student learns which classes the
    teacher takes for one another and which examples it finds alike, each at
    several temperatures.

    The authors run each image in a weak and in a strong augmentation, which
    are two examples here. Their code multiplies the mean of the divergence by
    a mask of confident examples, which scales it and picks nothing; takes the
    weak view's logits for the strong view at two of the temperatures; and
    never adds the strong view's correlations. None of it is done here.

    The part of the classes grows with `(batch / classes)**2`. The authors
    weighed it on batches of 64 for 100 classes: with few classes, take smaller
    batches or another loss, as it outweighs the rest.

    Each place of a sequence, or of a map, is an example of its own. A mask
    leaves places out of the mean, but not out of the correlations.

    Formula:
        `sum_T (T**2 * sum_c p_ic * (log p_ic - log q_ic) + sum_cd (P'P -
        Q'Q)_cd**2 / C + sum_j (PP' - QQ')_ij**2)` for example `i`, with `P`
        the batch's softmax of the teacher's logits over `T`, `Q` that of the
        student's, and `C` classes.

    Args:
        temperatures: All `T`, above 0, or one number.
        teacher_layer_name: As in `DistillationLoss`.
        student_layer_name: As in `DistillationLoss`.
        projector: As in `DistillationLoss`.
        from_logits: As in `LogitLoss`.
        class_map: As in `LogitLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ..., classes)`, values `(batch, ...)`.
        The part of the classes is the same in each. Takes memory for
        `places**2` and `classes**2` numbers a few times for each temperature,
        where `places` counts all of the batch.

    Raises:
        ValueError: If there is no temperature, or one that isn't positive, or
            the two have not the same classes.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.MultiLevelLogits()
        >>> teacher = [[2.0, 0.0, -2.0], [0.0, 1.0, 3.0]]
        >>> value = loss(teacher, [[2.0, 1.0, -1.0], [3.0, 1.0, 2.0]])
        >>> round(float(value), 4)
        3.8704

    Reference:
        Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023.
    """

    default_weight = 0.9
    relates_examples = True

    def __init__(
        self,
        temperatures: float | Sequence[float] = (4.0, 3.0, 5.0, 2.0, 6.0),
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
        self.temperatures: list[float] = (
            [temperatures]
            if isinstance(temperatures, (int, float))
            else list(temperatures)
        )
        if not self.temperatures or not all(
            0 < temperature < math.inf for temperature in self.temperatures
        ):
            raise ValueError(
                "Temperatures divide the logits, so they must be positive "
                f"numbers, and at least one. Received: "
                f"temperatures={temperatures!r}. Pass (4, 3, 5, 2, 6), as the "
                "authors do."
            )

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`."""
        rows = (-1, student.shape[-1])
        values = sum(
            _level(
                ops.reshape(teacher, rows) / temperature,
                ops.reshape(student, rows) / temperature,
                temperature,
            )
            for temperature in self.temperatures
        )
        return ops.reshape(values, ops.shape(student)[:-1])

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {**super().get_config(), "temperatures": self.temperatures}


def _level(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    log_p = ops.log_softmax(teacher, axis=-1)
    log_q = ops.log_softmax(student, axis=-1)
    p, q = ops.exp(log_p), ops.exp(log_q)
    return (
        temperature**2 * divergence(log_p, log_q)
        + class_correlation(p, q)
        + batch_correlation(p, q)
    )


def class_correlation(p: Tensor, q: Tensor) -> Tensor:
    """How far apart the correlations of the classes are, a scalar.

    Args:
        p: The teacher's probabilities `(batch, classes)`.
        q: The student's.
    """
    difference = ops.einsum("ic,id->cd", p, p) - ops.einsum("ic,id->cd", q, q)
    return ops.sum(ops.square(difference)) / p.shape[-1]


def batch_correlation(p: Tensor, q: Tensor) -> Tensor:
    """How far apart each example's correlations with the batch are, `(batch,)`.

    Args:
        p: The teacher's probabilities `(batch, classes)`.
        q: The student's.
    """
    difference = ops.einsum("ic,jc->ij", p, p) - ops.einsum("ic,jc->ij", q, q)
    return ops.sum(ops.square(difference), axis=-1)
