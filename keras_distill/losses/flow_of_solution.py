"""Flow of solution: how a network gets from one layer to the next."""

from __future__ import annotations

import itertools
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerNames, Tensor
from keras_distill.losses.feature_loss import FeatureLoss, pool_to_smaller


@keras.saving.register_keras_serializable("keras_distill")
class FlowOfSolution(FeatureLoss):
    """Difference of the products of consecutive layers (FSP).

    The products of two layers' channels say how the network goes from one to
    the other, and the student learns to go the same way. The authors train with
    this loss alone first, then with the labels: a first stage that gives the
    student's weights a start.

    Formula:
        With `g_ab` the mean of `first_a * second_b` over the places, for
        channel `a` of a layer and channel `b` of the next in the list, the
        larger of the two averaged to the size of the smaller: `mean_ab
        (g_teacher_ab - g_student_ab)**2`, summed over the steps from layer to
        layer.

    Args:
        teacher_layer_name: A list of two layers or more, in their order.
        student_layer_name: The student's layer for each of the teacher's, with
            as many channels.
        projector: As in `FeatureLoss`, with `"auto"` for one that gives the
            teacher's channels.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Lists of teacher's and student's `(batch, ..., channels)`, feature maps
        or tokens with any number of places, values `(batch,)`. Memory is of
        the order of `batch * channels**2`.

    Raises:
        ValueError: If fewer than two layers are named, the lists have not the
            same length, or channels differ.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.FlowOfSolution(["conv1", "conv2"], ["a", "b"])
        >>> teacher = [[[[1.0], [3.0]]], [[[1.0, 0.0], [0.0, 2.0]]]]
        >>> student = [[[[1.0], [1.0]]], [[[1.0, 0.0], [0.0, 2.0]]]]
        >>> import keras
        >>> teacher, student = (
        ...     [keras.ops.convert_to_tensor(x) for x in layers]
        ...     for layers in (teacher, student)
        ... )
        >>> float(loss(teacher, student))
        2.0

        The two stages, with models of which both have layers `"conv1"` and
        `"conv2"`:

        >>> def two_stages(teacher, student, x, y):
        ...     names = ["conv1", "conv2"]
        ...     loss = kd.losses.FlowOfSolution(names, names)
        ...     first = kd.Distiller(
        ...         teacher, student, losses=loss, hard_label_weight=0
        ...     )
        ...     first.compile(optimizer="sgd", loss=None)
        ...     first.fit(x, y)
        ...     second = kd.Distiller(
        ...         teacher, student, losses=kd.losses.SoftTargets()
        ...     )
        ...     second.compile(
        ...         optimizer="sgd",
        ...         loss=keras.losses.SparseCategoricalCrossentropy(
        ...             from_logits=True
        ...         ),
        ...     )
        ...     second.fit(x, y)

    Reference:
        Yim et al., "A Gift from Knowledge Distillation: Fast Optimization,
        Network Minimization and Transfer Learning", CVPR 2017. The default
        weight, 50, is that of Tian et al., "Contrastive Representation
        Distillation", ICLR 2020.
    """

    default_weight = 50.0
    same_size = False
    axes = (3, 4, 5)

    def __init__(
        self,
        teacher_layer_name: LayerNames = None,
        student_layer_name: LayerNames = None,
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
        names = self.teacher_layer_name
        if not isinstance(names, list) or len(names) < 2:
            raise ValueError(
                "FlowOfSolution compares the way from one layer to the next. "
                f"Received: teacher_layer_name={teacher_layer_name!r}, "
                f"student_layer_name={student_layer_name!r}. Pass lists of two "
                "layers or more."
            )

    def call(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The sum over the steps from layer to layer, `(batch,)` values."""
        pairs = self.pairs(teacher, student)
        values = [
            self.compare(_flow(t, next_t), _flow(s, next_s))
            for (t, s), (next_t, next_s) in itertools.pairwise(pairs)
        ]
        return sum(values[1:], start=values[0])

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`, of two steps' products."""
        squares = ops.sum(ops.square(student - teacher), axis=(1, 2))
        # On PyTorch, Keras' mean is rounded to float32.
        return squares / (teacher.shape[1] * teacher.shape[2])


def _flow(first: Tensor, second: Tensor) -> Tensor:
    first, second = map(_places, pool_to_smaller(first, second))
    places = ops.cast(ops.shape(first)[1], first.dtype)
    return ops.swapaxes(first, 1, 2) @ second / places


def _places(x: Tensor) -> Tensor:
    return ops.reshape(x, (ops.shape(x)[0], -1, x.shape[-1]))
