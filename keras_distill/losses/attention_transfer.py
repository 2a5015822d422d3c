"""Attention transfer: the student looks where the teacher looks."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerNames, Tensor
from keras_distill.losses.feature_loss import (
    FeatureLoss,
    flatten,
    length,
    pool_to_smaller,
    unit,
)


@keras.saving.register_keras_serializable("keras_distill")
class AttentionTransfer(FeatureLoss):
    """Difference of where two layers are active (AT).

    A map of attention is what a layer's activations say together, all channels
    of a place added up. It has no channels, so that layers of any two widths
    can be compared. Features of the larger map are averaged to the size of
    the smaller one first.

    The authors' code takes the mean over the places, so that the value falls
    with the number of places; their paper takes the distance. `form` chooses.

    Formula:
        With `a = unit(sum_c |feature_c|**power)`, over all places a vector of
        length 1:

        - `form="mean"`: `mean (a_teacher - a_student)**2` over the places;
        - `form="distance"`: `|a_teacher - a_student|`.

        Summed over the pairs of layers.

    Args:
        teacher_layer_name: As in `FeatureLoss`.
        student_layer_name: As in `FeatureLoss`.
        power: Exponent of the activations, at least 1. The higher, the more
            the strongest channels count.
        form: `"mean"` as in the authors' code, or `"distance"` as in the
            paper.
        projector: As in `FeatureLoss`.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ..., channels)`, feature maps or tokens of
        any number of channels and places, values `(batch,)`.

    Raises:
        ValueError: If `power` is less than 1, `form` is another, or the two
            have not the same number of axes.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.AttentionTransfer()
        >>> teacher = [[[2.0, 0.0], [1.0, 1.0]]]
        >>> student = [[[1.0], [-1.0]]]
        >>> round(float(loss(teacher, student)), 4)
        0.0513

    Reference:
        Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR
        2017. The default weight, 1000, is that of `form="mean"` on CIFAR-100
        in Tian et al., "Contrastive Representation Distillation", ICLR 2020.
    """

    default_weight = 1000.0
    same_channels = False
    same_size = False
    axes = (3, 4, 5)

    def __init__(
        self,
        teacher_layer_name: LayerNames = None,
        student_layer_name: LayerNames = None,
        power: float = 2.0,
        form: str = "mean",
        projector: Any = None,
        data_format: str | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            teacher_layer_name,
            student_layer_name,
            projector,
            data_format,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        if not 1 <= power < math.inf:
            raise ValueError(
                "Below a power of 1, an activation of 0 has an infinite "
                f"gradient. Received: power={power!r}. Pass 2, as the paper, "
                "or another finite number from 1."
            )
        if form not in ("mean", "distance"):
            raise ValueError(
                "Maps of attention are compared in two ways. Received: "
                f"form={form!r}. Pass 'mean' or 'distance'."
            )
        self.power = power
        self.form = form

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        teacher, student = pool_to_smaller(teacher, student)
        difference = self._attention(teacher) - self._attention(student)
        if self.form == "distance":
            return length(difference)
        return ops.mean(ops.square(difference), axis=-1)

    def _attention(self, x: Tensor) -> Tensor:
        powers = ops.square(x) if self.power == 2 else ops.abs(x) ** self.power
        # A mean keeps more room below the largest float than a sum, and the
        # unit vector is the same.
        return unit(flatten(ops.mean(powers, axis=-1)))

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "power": self.power,
            "form": self.form,
        }
