"""Logit correlation: the student ranks as the teacher, in rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerName, TemperedLogitLoss, Tensor


@keras.saving.register_keras_serializable("keras_distill")
class LogitCorrelation(TemperedLogitLoss):
    """One minus the correlation of the probabilities (DIST).

    A strong teacher is too sure for a small student to match it exactly. What
    counts is how it ranks: the classes of an example (a row of the batch), and
    the examples for a class (a column).

    Each place of a sequence, or of a map, is a row of its own. A mask leaves
    rows out of the mean, but not out of the columns.

    Formula:
        `T**2 * (row_weight * (1 - r(p_i, q_i)) + column_weight * mean_c (1 -
        r(p_c, q_c)))`, with `p` the softmax of the teacher's logits over `T`,
        `q` that of the student's, and `r` Pearson's correlation: of the row
        `i`, and of the columns `c`.

    Args:
        row_weight: Weight of the rows' part, not negative.
        column_weight: Weight of the columns' part, not negative.
        temperature: `T`, above 0; the authors take 4 on CIFAR-100.
            `self.temperature` is a variable: a callback may set it between
            epochs.
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
        The columns' part is the same in each.

    Raises:
        ValueError: If a weight is negative, the temperature isn't positive, or
            the two have not the same classes, or only one.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.LogitCorrelation()
        >>> teacher = [[2.0, 0.0, -2.0], [0.0, 1.0, 3.0]]
        >>> value = loss(teacher, [[2.0, 1.0, -1.0], [3.0, 1.0, 2.0]])
        >>> round(float(value), 4)
        0.6805

    Reference:
        Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS
        2022.
    """

    default_weight = 2.0
    default_hard_label_weight = 1.0
    relates_examples = True

    def __init__(
        self,
        row_weight: float = 1.0,
        column_weight: float = 1.0,
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
        for argument, value in (
            ("row_weight", row_weight),
            ("column_weight", column_weight),
        ):
            if not 0 <= value < math.inf:
                raise ValueError(
                    "The weight of a part must be a finite number, not "
                    f"negative. Received: {argument}={value!r}. Pass 0 to "
                    "leave the part out."
                )
        self.row_weight = row_weight
        self.column_weight = column_weight

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`."""
        p, q = (
            ops.reshape(
                ops.softmax(logits / self.temperature, axis=-1),
                (-1, student.shape[-1]),
            )
            for logits in (teacher, student)
        )
        rows = 1 - _correlation(p, q)
        columns = 1 - _correlation(ops.transpose(p), ops.transpose(q))
        values = self.row_weight * rows + self.column_weight * (
            ops.sum(columns) / student.shape[-1]
        )
        return self.temperature**2 * ops.reshape(
            values, ops.shape(student)[:-1]
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "row_weight": self.row_weight,
            "column_weight": self.column_weight,
        }


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of the rows of two matrices, 0 for constants."""
    x, y = _centred(x), _centred(y)
    return ops.sum(x * y, axis=-1) / (_norm(x) * _norm(y) + 1e-8)


def _centred(x: Tensor) -> Tensor:
    count = ops.cast(ops.shape(x)[-1], x.dtype)
    return x - ops.sum(x, axis=-1, keepdims=True) / count


def _norm(x: Tensor) -> Tensor:
    squared = ops.sum(ops.square(x), axis=-1)
    # The slope of a root is infinite at zero, even where it isn't used.
    zero = squared == 0
    return ops.where(zero, 0.0, ops.sqrt(ops.where(zero, 1.0, squared)))
