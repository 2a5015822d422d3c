"""Semantic calibration: which layer of the teacher suits one of the student."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerNames, Tensor
from keras_distill.losses.feature_loss import (
    FeatureLoss,
    pool_to_smaller,
    unit,
)


@keras.saving.register_keras_serializable("keras_distill")
class SemanticCalibration(FeatureLoss):
    """Squared difference to the teacher's layers, by attention (SemCKD).

    Which layers of two networks mean the same isn't known, and tying the wrong
    ones does harm. Here attention weighs the teacher's layers for each of the
    student's, and for each example, and is learned with the student.

    The paper makes queries and keys from the rows of the batch's similarity
    matrices, so that their size is the batch's and no other batch fits. Here
    they are made from each layer's pooled features, whose similarities these
    are.

    Formula:
        `mean_i sum_j a_ij * mean (teacher_j - project_ij(student_i))**2`, the
        last mean over places and channels, the larger map averaged to the
        smaller; `a_i = softmax_j(query_i . key_j)`, of unit vectors
        `query_i = unit(mlp_i(unit(pool(student_i))))` and `key_j` alike of
        the teacher. `project_ij` is three convolutions of 1x1, 3x3 and 1x1,
        with batch normalisation and ReLU between them.

    Args:
        teacher_layer_name: A layer, or a list of layers.
        student_layer_name: A layer, or a list of layers, as many as you like.
        attention: Size of queries and keys, at least 1. With one layer of the
            teacher there are none: its weight is 1.
        projector: `None`: the loss makes one for each pair.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher's and student's layers `(batch, height, width, channels)`,
        which may differ in all but the batch, values `(batch,)`. The batch
        normalisation makes the values depend on the rest of the batch.

    Raises:
        ValueError: If `attention` isn't a positive integer, or a layer doesn't
            give feature maps.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.SemanticCalibration(
        ...     teacher_layer_name=["stage2", "stage3", "stage4"],
        ...     student_layer_name=["block2", "block4"])
        >>> loss.build(
        ...     [(None, 8, 8, 16), (None, 4, 4, 32), (None, 2, 2, 64)],
        ...     [(None, 8, 8, 8), (None, 4, 4, 8)])
        >>> len(loss.projectors)
        6

    Reference:
        Chen et al., "Cross-Layer Distillation with Semantic Calibration",
        AAAI 2021. The default weight, 400, is that of the authors' scripts.
    """

    default_weight = 400.0
    pairs_layers = False
    has_parts = True
    relates_examples = True
    same_channels = False
    same_size = False
    axes = (4,)

    def __init__(
        self,
        teacher_layer_name: LayerNames = None,
        student_layer_name: LayerNames = None,
        attention: int = 16,
        projector: Any = None,
        data_format: str | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        if isinstance(teacher_layer_name, (list, tuple)):
            student_layer_name = _as_list(student_layer_name)
        elif isinstance(student_layer_name, (list, tuple)):
            teacher_layer_name = _as_list(teacher_layer_name)
        super().__init__(
            teacher_layer_name,
            student_layer_name,
            projector,
            data_format,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        if not isinstance(attention, int) or attention < 1:
            raise ValueError(
                "Queries and keys are vectors. Received: "
                f"attention={attention!r}. Pass an integer of at least 1."
            )
        self.attention = attention

    def make_parts(self, teacher_shape: Any, student_shape: Any) -> None:
        """Make a projector for each pair, queries and keys."""
        teachers = _listed(teacher_shape, self.teacher_layer_name)
        students = _listed(student_shape, self.student_layer_name)
        for teacher in teachers:
            for student in students:
                self.check_shapes(tuple(teacher), tuple(student))
        theirs = [self.shape_last(shape)[-1] for shape in teachers]
        ours = [self.shape_last(shape)[-1] for shape in students]
        self.projectors = [self._projector(s, t) for s in ours for t in theirs]
        weighed = len(theirs) > 1
        self.queries = [self._embedding(s) for s in ours] if weighed else []
        self.keys = [self._embedding(t) for t in theirs] if weighed else []

    def _projector(self, channels: Any, filters: Any) -> Any:
        layers: list[keras.Layer] = []
        for count, size in ((2 * filters, 1), (2 * filters, 3)):
            layers += [
                self._convolution(count, size),
                keras.layers.BatchNormalization(
                    momentum=0.9, epsilon=1e-5, dtype=self.dtype
                ),
                keras.layers.ReLU(dtype=self.dtype),
            ]
        layers.append(self._convolution(filters, 1))
        projector = keras.Sequential(layers)
        projector.build((None, None, None, channels))
        return projector

    def _convolution(self, filters: int, size: int) -> Any:
        return keras.layers.Conv2D(
            filters,
            size,
            padding="same",
            use_bias=False,
            data_format="channels_last",
            dtype=self.dtype,
        )

    def _embedding(self, channels: Any) -> Any:
        dense, size = keras.layers.Dense, self.attention
        embedding = keras.Sequential(
            [
                dense(2 * size, activation="relu", dtype=self.dtype),
                dense(size, dtype=self.dtype),
            ]
        )
        embedding.build((None, channels))
        return embedding

    def call(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        teachers = _listed(teacher, self.teacher_layer_name)
        students = _listed(student, self.student_layer_name)
        for t in teachers:
            for s in students:
                self.check_shapes(tuple(t.shape), tuple(s.shape))
        teachers = [self.channels_last(t) for t in teachers]
        students = [self.channels_last(s) for s in students]
        projectors = iter(self.projectors)
        distances = ops.stack(
            [
                ops.stack(
                    [_distance(t, s, next(projectors)) for t in teachers],
                    axis=-1,
                )
                for s in students
            ],
            axis=1,
        )
        weights = self.weights(teachers, students)
        return ops.mean(ops.sum(weights * distances, axis=-1), axis=-1)

    def weights(self, teachers: list[Tensor], students: list[Tensor]) -> Tensor:
        """How much each of the teacher's layers counts for the student's.

        Args:
            teachers: Feature maps, channels last.
            students: Feature maps, channels last.

        Returns:
            `(batch, student layers, teacher layers)`, 1 in sum over the last.
        """
        if not self.keys:
            return 1.0
        queries, keys = (
            ops.stack(
                [
                    unit(embed(unit(ops.mean(x, axis=(1, 2)))))
                    for embed, x in zip(embeddings, maps, strict=True)
                ],
                axis=1,
            )
            for embeddings, maps in (
                (self.queries, students),
                (self.keys, teachers),
            )
        )
        return ops.softmax(queries @ ops.swapaxes(keys, 1, 2))

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {**super().get_config(), "attention": self.attention}


def _as_list(names: Any) -> list[Any]:
    return list(names) if isinstance(names, (list, tuple)) else [names]


def _listed(given: Any, names: Any) -> list[Any]:
    return list(given) if isinstance(names, list) else [given]


def _distance(teacher: Tensor, student: Tensor, projector: Any) -> Tensor:
    teacher, student = pool_to_smaller(teacher, student)
    student = projector(student, training=True)
    return ops.mean(ops.square(teacher - student), axis=(1, 2, 3))
