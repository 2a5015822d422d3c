"""Class activation maps: where in an image each class is seen."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerNames, Tensor
from keras_distill.losses.feature_loss import FeatureLoss, average_pool, unit


@keras.saving.register_keras_serializable("keras_distill")
class ClassAttention(FeatureLoss):
    """Difference of class activation maps (CAT-KD).

    A class activation map says how much each place of an image speaks for a
    class. Passed on coarsely, it tells the student where to look, and needs no
    translation: both models have the same classes.

    The maps are the output of a 1x1 convolution with a channel for each class,
    whose averages over the places are the logits. A model that ends in pooling
    and a dense layer gives the same logits with a convolution of the same
    kernel before the pooling, and has the maps then.

    Formula:
        `mean (unit(pool(teacher)) - unit(pool(student)))**2` over places and
        classes: `pool` averages to `size` places in height and in width,
        `unit` makes each class's map a vector of length 1.

    Args:
        teacher_layer_name: As in `DistillationLoss`.
        student_layer_name: As in `DistillationLoss`.
        size: Height and width to pool to, at least 1.
        normalize: Whether each class's map is made a unit vector, so that only
            its shape counts.
        projector: As in `FeatureLoss`.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher `(batch, height, width, classes)`, student the same but for
        height and width, values `(batch,)`.

    Raises:
        ValueError: If `size` isn't a positive integer, or the two have not the
            same number of channels.

    Example:
        >>> import numpy as np
        >>> import keras_distill as kd
        >>> loss = kd.losses.ClassAttention()
        >>> teacher = np.array([[1.0, 0.0], [0.0, 0.0]]).reshape(1, 2, 2, 1)
        >>> student = np.array([[0.0, 0.0], [0.0, 3.0]]).reshape(1, 2, 2, 1)
        >>> float(loss(teacher, student))
        0.5

    Reference:
        Guo et al., "Class Attention Transfer Based Knowledge Distillation",
        CVPR 2023. The default weight, 400, is that of the authors' code; for
        maps that aren't normalised they take down to 15.
    """

    default_weight = 400.0
    same_size = False
    axes = (4,)

    def __init__(
        self,
        teacher_layer_name: LayerNames = None,
        student_layer_name: LayerNames = None,
        size: int = 2,
        normalize: bool = True,
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
        if not isinstance(size, int) or size < 1:
            raise ValueError(
                "Class activation maps are pooled to a number of places. "
                f"Received: size={size!r}. Pass an integer of at least 1."
            )
        self.size = size
        self.normalize = normalize

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        difference = self._maps(teacher) - self._maps(student)
        return ops.mean(ops.square(difference), axis=(1, 2, 3))

    def _maps(self, x: Tensor) -> Tensor:
        for axis in (1, 2):
            x = average_pool(x, axis, self.size)
        return unit(x, axis=(1, 2)) if self.normalize else x

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "size": self.size,
            "normalize": self.normalize,
        }
