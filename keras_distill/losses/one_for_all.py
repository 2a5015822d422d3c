"""One for all: logits of any layer learn a label-enhanced teacher."""

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
    of_label,
)


@keras.saving.register_keras_serializable("keras_distill")
class OneForAll(TemperedLogitLoss):
    """Soft cross-entropy with more weight on the label (OFA).

    Features of a transformer and of a convolutional network don't compare;
    logits do. A projector takes a layer of the student to logits, and a
    power of the label's probability trusts a teacher more that is sure. Not 0
    where the student equals the teacher.

    Formula:
        `-sum_c ((p_c + [c = y])**modulation - [c = y]) * log q_c`, with `p`
        the softmax of the teacher's logits over the temperature and `q` that
        of the student's. A modulation of 1 gives the cross-entropy of `p` and
        `q`. As in the official code there is no square of the temperature.

    Args:
        modulation: The paper's gamma, above 0. It takes 1 to 1.5.
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
        ValueError: If modulation or temperature isn't positive, or the two
            have not the same classes, or only one.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.OneForAll(modulation=1.5)
        >>> value = loss(
        ...     {"teacher": [[2.0, 0.0, -2.0]], "labels": [0]},
        ...     [[2.0, 1.0, -1.0]])
        >>> round(float(value), 4)
        0.6021

        One for each stage of the student, as in the paper:

        >>> import keras
        >>> def to_logits():
        ...     return keras.Sequential([
        ...         keras.layers.GlobalAveragePooling2D(),
        ...         keras.layers.Dense(10)])
        >>> losses = [kd.losses.OneForAll(student_layer_name=stage,
        ...                               projector=to_logits())
        ...           for stage in ("stage1", "stage2")]

    Reference:
        Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous
        Architectures in Knowledge Distillation", NeurIPS 2023.
    """

    uses_labels = True
    default_hard_label_weight = 1.0

    def __init__(
        self,
        modulation: float = 1.0,
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
        if not 0 < modulation < math.inf:
            raise ValueError(
                "Modulation is a power of probabilities, so it must be a "
                f"positive number. Received: modulation={modulation!r}. Pass 1 "
                "for a plain cross-entropy."
            )
        self.modulation = modulation

    def compare(
        self, teacher: Tensor, student: Tensor, labels: Tensor
    ) -> Tensor:
        """Values of shape `(batch, ...)`."""
        log_p = ops.log_softmax(teacher / self.temperature, axis=-1)
        log_q = ops.log_softmax(student / self.temperature, axis=-1)
        weights = ops.exp(self.modulation * log_p)
        # A class that is masked with -inf has a share of zero.
        shares = ops.where(weights == 0, 0.0, weights * log_q)
        p, own = ops.exp(of_label(log_p, labels)), of_label(weights, labels)
        # Exact for small probabilities, as (1 + p)**e - 1 isn't.
        more = ops.expm1(self.modulation * ops.log1p(p)) - own
        label = ops.where(more == 0, 0.0, more * of_label(log_q, labels))
        return -ops.sum(shares, axis=-1) - label

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {**super().get_config(), "modulation": self.modulation}
