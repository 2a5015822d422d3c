"""Standardized logits: any loss on logits of the same mean and spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerName, LogitLoss, Shape, Tensor


@keras.saving.register_keras_serializable("keras_distill")
class StandardizedLogits(LogitLoss):
    """Another loss, on logits with mean 0 and standard deviation 1 (LSKD).

    A student is too small for logits as large as the teacher's, and needn't
    have them: what counts is how the logits lie to each other. The base
    temperature of the paper, 2, is that of the loss inside.

    What the loss inside needs, such as hard labels, this one needs. Its weight
    in a `Distiller` is the authors' for soft targets and for decoupled soft
    targets; that of the hard labels is the one of `loss`, whose temperature is
    `self.loss.temperature`.

    Formula:
        `loss(s(teacher), s(student))` with `s(z) = (z - mean(z)) / (1e-7 +
        std(z))` over the classes, with `classes - 1` in the divisor of the
        variance. Logits that are all equal become zeros.

    Args:
        loss: A `LogitLoss`, such as `SoftTargets(2.0)`. Its reduction and name
            aren't used.
        teacher_layer_name: As in `DistillationLoss`; here and in the next
            four, `None` takes that of `loss`.
        student_layer_name: As in `DistillationLoss`.
        projector: As in `DistillationLoss`.
        from_logits: As in `LogitLoss`.
        class_map: As in `LogitLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: That of `loss`, or `None` for it.

    Shapes:
        Those of `loss`, but no stored targets of few classes, whose mean and
        spread aren't known.

    Raises:
        TypeError: If `loss` isn't a `LogitLoss`.
        ValueError: If `dtype` isn't that of `loss`, or the two have not the
            same classes, or only one.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.StandardizedLogits(kd.losses.SoftTargets(2.0))
        >>> value = loss([[2.0, 0.0, -2.0]], [[2.0, 1.0, -1.0]])
        >>> round(float(value), 4)
        0.0123

        Only the scale differs:

        >>> round(float(loss([[2.0, 0.0, -2.0]], [[1.0, 0.0, -1.0]])), 4)
        0.0

    Reference:
        Sun et al., "Logit Standardization in Knowledge Distillation", CVPR
        2024.
    """

    default_weight = 9.0

    def __init__(
        self,
        loss: LogitLoss,
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        projector: Any = None,
        from_logits: bool | None = None,
        class_map: Sequence[int] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        if not isinstance(loss, LogitLoss):
            raise TypeError(
                "Logits are standardized for a loss that compares logits. "
                f"Received: loss={loss!r}. Pass a LogitLoss, such as "
                "SoftTargets(2.0)."
            )
        if dtype not in (None, loss.dtype):
            raise ValueError(
                "Both losses compute in one dtype. Received: "
                f"dtype={dtype!r}, and a loss with dtype={loss.dtype!r}. Give "
                "the dtype to the loss inside."
            )
        self.default_hard_label_weight = loss.default_hard_label_weight
        self.uses_labels = loss.uses_labels
        self.uses_sample_ids = loss.uses_sample_ids
        self.relates_examples = loss.relates_examples
        self.has_parts = loss.has_parts
        self.per_position = loss.per_position
        self.activation = loss.activation
        super().__init__(
            _given(teacher_layer_name, loss.teacher_layer_name),
            _given(student_layer_name, loss.student_layer_name),
            _given(projector, loss.projector),
            _given(from_logits, loss.from_logits),
            _given(class_map, loss.class_map),
            reduction=reduction,
            name=name,
            dtype=loss.dtype,
        )
        self.loss = loss

    def compare(self, teacher: Tensor, student: Tensor, *labels: Any) -> Tensor:
        """Values of the loss inside."""
        return self.loss.compare(
            _standardized(teacher), _standardized(student), *labels
        )

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise where there are fewer than two classes, or not the same."""
        super().check_shapes(teacher_shape, student_shape)
        if student_shape[-1] == 1:
            raise ValueError(
                "A single logit has no spread, so it can't be standardized. "
                f"Received: logits of shape {student_shape}. Use the loss "
                "inside by itself."
            )

    def make_parts(self, teacher_shape: Any, student_shape: Any) -> None:
        """Make the parts of the loss inside."""
        if self.has_parts:
            self.loss.build(teacher_shape, student_shape)

    def make_projector(
        self, teacher_shape: Shape, student_shape: Shape
    ) -> keras.Layer | None:
        """The layer that `projector="auto"` stands for in the loss inside."""
        return self.loss.make_projector(teacher_shape, student_shape)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "loss": keras.saving.serialize_keras_object(self.loss),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> StandardizedLogits:
        """Make the loss that `get_config` describes."""
        made = {
            key: keras.saving.deserialize_keras_object(config.get(key))
            for key in ("loss", "projector")
        }
        return cls(**{**config, **made})


def _given(mine: Any, inside: Any) -> Any:
    return inside if mine is None else mine


def _standardized(logits: Tensor) -> Tensor:
    classes = logits.shape[-1]
    centred = logits - ops.sum(logits, axis=-1, keepdims=True) / classes
    variance = ops.sum(ops.square(centred), axis=-1, keepdims=True) / (
        classes - 1
    )
    # The slope of a root is infinite at zero.
    deviation = ops.sqrt(ops.where(variance == 0, 1.0, variance))
    return centred / (1e-7 + deviation)
