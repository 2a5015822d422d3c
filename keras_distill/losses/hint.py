"""Hints: a hidden layer of the student learns one of the teacher."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import Tensor
from keras_distill.losses.feature_loss import FeatureLoss
from keras_distill.masks import mask_of


@keras.saving.register_keras_serializable("keras_distill")
class Hint(FeatureLoss):
    """Mean squared difference of two layers' outputs (FitNets).

    The teacher's hint layer tells the student what to compute half-way. Where
    the student is narrower or coarser, a projector translates; it is trained
    with the student and thrown away afterwards.

    Formula:
        `mean (teacher - projector(student))**2` over all but the batch, summed
        over the pairs of layers.

    Args:
        teacher_layer_name: The hint layer, or a list of layers.
        student_layer_name: The guided layer, or one for each hint layer.
        projector: As in `FeatureLoss`, with `"auto"` for one that gives the
            teacher's shape.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher `(batch, ...)`, student the same behind the projector, values
        `(batch,)`.

    Raises:
        ValueError: If the shapes differ and no projector mends it.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.Hint("conv4", "conv3", projector="auto")
        >>> float(loss([[1.0, 3.0]], [[1.0, 1.0]]))
        2.0

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015. The
        default weight, 100, is the one used with this form on CIFAR-100.
    """

    default_weight = 100.0

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> Tensor:
        """Weighted mean of `call`; places that Keras masked don't count."""
        # Keras would apply the mask of a sequence to its one value.
        if isinstance(self.student_layer_name, list):
            pairs = [
                self._without_padding(t, s)
                for t, s in zip(y_true, y_pred, strict=True)
            ]
            y_true, y_pred = (list(side) for side in zip(*pairs, strict=True))
        else:
            y_true, y_pred = self._without_padding(
                self._array(y_true), self._array(y_pred)
            )
        return super().__call__(y_true, y_pred, sample_weight)

    def _without_padding(
        self, teacher: Tensor, student: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both with zeros for padding, and a mean square over the rest."""
        mask = mask_of(student)
        if mask is None:
            return teacher, student
        mask = ops.cast(mask, self.dtype)
        while len(mask.shape) < len(student.shape):
            mask = ops.expand_dims(mask, axis=-1)
        axes = tuple(range(1, len(mask.shape)))
        share = ops.mean(mask, axis=axes, keepdims=True)
        scale = mask / ops.sqrt(ops.maximum(share, 1e-12))
        # Padding may hold anything, also what isn't finite.
        teacher, student = (
            ops.where(mask > 0, scale * ops.cast(x, self.dtype), 0.0)
            for x in (teacher, student)
        )
        return teacher, student

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        squares = ops.square(student - teacher)
        return ops.mean(squares, axis=tuple(range(1, len(squares.shape))))
