"""Neuron selectivity: which places the channels of a layer pick out."""

from __future__ import annotations

import math

import keras
from keras import ops

from keras_distill.losses.base import Tensor
from keras_distill.losses.feature_loss import (
    FeatureLoss,
    pool_to_smaller,
    unit,
)


@keras.saving.register_keras_serializable("keras_distill")
class NeuronSelectivity(FeatureLoss):
    """Discrepancy of the channels' distributions over the places (NST).

    Each channel picks out some places of an image. The channels of teacher and
    student are taken as samples of two distributions, whose maximum mean
    discrepancy is the loss, so that there may be any number of each. The
    larger map is averaged to the size of the smaller.

    Formula:
        With `u_c` the unit vector over the places of channel `c`, and `k(a, b)`
        the mean of `(u_a * u_b)**2` over all channels `a` and `b`:
        `k(teacher, teacher) + k(student, student) - 2 * k(teacher, student)`.
        Summed over the pairs of layers.

    Args:
        teacher_layer_name: As in `FeatureLoss`.
        student_layer_name: As in `FeatureLoss`.
        projector: As in `FeatureLoss`.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ..., channels)`, feature maps or tokens of
        any number of channels and places, values `(batch,)`. Memory is of the
        order of `batch * min(places, max(channels))**2`, where the sizes are
        known, and else of `batch * max(channels)**2`.

    Raises:
        ValueError: If the two have not the same number of axes.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.NeuronSelectivity()
        >>> teacher = [[[2.0, 0.0], [0.0, 3.0]]]
        >>> student = [[[1.0], [1.0]]]
        >>> round(float(loss(teacher, student)), 4)
        0.5

    Reference:
        Huang and Wang, "Like What You Like: Knowledge Distill via Neuron
        Selectivity Transfer", 2017, with the polynomial kernel. The default
        weight, 50, is that of Tian et al., "Contrastive Representation
        Distillation", ICLR 2020.
    """

    default_weight = 50.0
    same_channels = False
    same_size = False
    axes = (3, 4, 5)

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        teacher, student = pool_to_smaller(teacher, student)
        teacher, student = _channels(teacher), _channels(student)
        places = teacher.shape[1]
        channels = max(teacher.shape[-1], student.shape[-1])
        if places is not None and places <= channels:
            # The squares of all products of channels add up to those of all
            # products of places.
            difference = _of_places(teacher) - _of_places(student)
            return ops.sum(ops.square(difference), axis=(1, 2))
        return (
            _kernel(teacher, teacher)
            + _kernel(student, student)
            - 2 * _kernel(teacher, student)
        )


def _channels(x: Tensor) -> Tensor:
    """A unit vector over the places in each channel."""
    places = (ops.shape(x)[0], -1, x.shape[-1])
    if None not in x.shape[1:-1]:
        places = (places[0], math.prod(x.shape[1:-1]), places[2])
    return unit(ops.reshape(x, places), axis=1)


def _of_places(x: Tensor) -> Tensor:
    return x @ ops.swapaxes(x, 1, 2) / x.shape[-1]


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    products = ops.swapaxes(x, 1, 2) @ y
    return ops.mean(ops.square(products), axis=(1, 2))
