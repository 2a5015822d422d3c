"""Activation boundaries: the same neurons of both networks are active."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerNames, Tensor
from keras_distill.losses.feature_loss import FeatureLoss, flatten


@keras.saving.register_keras_serializable("keras_distill")
class ActivationBoundary(FeatureLoss):
    """Squared hinge on which neurons the teacher activates (AB).

    Where a neuron turns from silent to active is what separates the classes;
    how active it is matters less. So the student learns the signs of the
    teacher's neurons, with a margin, before it learns the task.

    Name layers before their ReLU: behind it no neuron is below zero.

    Formula:
        `sum_i 2**(i - n) * sum_j max(0, margin - sign(t_ij) * s_ij)**2` over
        layers `i` from 1 to `n` and their elements `j`, with `sign` of the
        teacher's value 1 above zero and -1 elsewhere.

    Args:
        teacher_layer_name: As in `FeatureLoss`.
        student_layer_name: As in `FeatureLoss`.
        margin: How far from zero the student's neurons shall be, above 0.
        projector: As in `FeatureLoss`; `"auto"` makes a 1x1 convolution with
            batch normalization, as the paper has it, whatever the channels.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher and student `(batch, ..., channels)`, feature maps, tokens or
        vectors, the same for both; values `(batch,)`. A sum over elements:
        the default weight is the official code's 3/1000 for CIFAR, and larger
        maps want a smaller one.

    Raises:
        ValueError: If the margin isn't positive, or the shapes differ.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.ActivationBoundary()
        >>> float(loss([[2.0, -1.0]], [[0.5, 1.0]]))  # 0.5**2 + 2**2
        4.25

        In the paper it comes first, alone, and then the labels do:

        >>> import keras
        >>> import numpy as np
        >>> def network(width):
        ...     return keras.Sequential([
        ...         keras.Input((8, 8, 1)),
        ...         keras.layers.Conv2D(width, 3, name="conv"),
        ...         keras.layers.ReLU(),
        ...         keras.layers.GlobalAveragePooling2D(),
        ...         keras.layers.Dense(3)])
        >>> x, y = np.ones((6, 8, 8, 1), "float32"), np.arange(6) % 3
        >>> teacher, student = network(8), network(4)
        >>> first = kd.Distiller(
        ...     teacher, student, hard_label_weight=0.0,
        ...     losses=kd.losses.ActivationBoundary(
        ...         teacher_layer_name="conv", student_layer_name="conv",
        ...         projector="auto"))
        >>> history = first.fit(x, y, epochs=1, verbose=0)
        >>> second = kd.Distiller(teacher, student)  # the same student
        >>> history = second.fit(x, y, epochs=1, verbose=0)

    Reference:
        Heo, Lee, Yun and Choi, "Knowledge Transfer via Distillation of
        Activation Boundaries Formed by Hidden Neurons", AAAI 2019.
    """

    default_weight = 0.003
    normalizes_projection = True

    def __init__(
        self,
        teacher_layer_name: LayerNames = None,
        student_layer_name: LayerNames = None,
        margin: float = 1.0,
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
        if not 0 < margin < math.inf:
            raise ValueError(
                "The margin keeps neurons away from their boundary, so it "
                f"must be a positive number. Received: margin={margin!r}. "
                "Pass 1 for the paper's."
            )
        self.margin = margin

    def call(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Later layers weigh more, `(batch,)` values."""
        pairs = self.pairs(teacher, student)
        last = len(pairs) - 1
        values = [
            2.0 ** (i - last) * self.compare(t, s)
            for i, (t, s) in enumerate(pairs)
        ]
        return sum(values[1:], start=values[0])

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        wanted = ops.where(teacher > 0, student, -student)
        return ops.sum(
            ops.square(ops.relu(self.margin - flatten(wanted))), axis=-1
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {**super().get_config(), "margin": self.margin}
