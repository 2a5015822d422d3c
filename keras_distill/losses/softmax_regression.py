"""Softmax regression: the teacher's classifier judges the student."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerName, Tensor
from keras_distill.losses.feature_loss import FeatureLoss, frozen_copy


@keras.saving.register_keras_serializable("keras_distill")
class SoftmaxRegression(FeatureLoss):
    """Pooled features, and what the teacher's head makes of them (SRRL).

    Features needn't be equal, they need to be as good. So the student's go
    through the teacher's own classifier, which stays as it is, and should give
    the teacher's logits. A connector brings them to the teacher's channels; it
    is trained with the student and thrown away afterwards.

    Formula:
        `mean (a - b)**2 + mean (head(a) - head(b))**2`, the first over
        channels, the second over classes, of `a = pool(teacher)` and `b =
        pool(connect(student))`: `pool` averages over the places, `connect` is
        a 1x1 convolution, batch normalisation and a ReLU.

    Args:
        teacher_head: The teacher's layer, or a model of its last layers, that
            makes logits of its pooled features. The loss keeps a copy, which
            runs in inference mode.
        teacher_layer_name: The teacher's last feature map, or the vector it
            pools it to, behind its last ReLU.
        student_layer_name: The same of the student.
        projector: As in `FeatureLoss`.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher `(batch, ..., teacher_channels)`, student `(batch, ...,
        student_channels)` with as many axes, sizes may differ; values
        `(batch,)`. Tokens are averaged as places are. The batch
        normalisation makes the values depend on the rest of the batch.

    Raises:
        ValueError: If the head isn't built, doesn't take the teacher's
            features, or lists of layers are given.

    Example:
        >>> import keras
        >>> import keras_distill as kd
        >>> teacher = keras.Sequential(
        ...     [keras.Input((8, 8, 3)),
        ...      keras.layers.Conv2D(16, 3, activation="relu", name="last"),
        ...      keras.layers.GlobalAveragePooling2D(),
        ...      keras.layers.Dense(10, name="head")])
        >>> loss = kd.losses.SoftmaxRegression(
        ...     teacher.get_layer("head"), "last", "last")
        >>> loss.build((None, 6, 6, 16), (None, 6, 6, 4))
        >>> loss.connector.output_shape[-1], loss.teacher_head.trainable
        (16, False)

    Reference:
        Yang et al., "Knowledge Distillation via Softmax Regression
        Representation Learning", ICLR 2021.
    """

    has_parts = True
    relates_examples = True
    same_channels = False
    same_size = False

    def __init__(
        self,
        teacher_head: keras.Layer,
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
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
        self.refuse_lists()
        if not isinstance(teacher_head, keras.Layer):
            raise ValueError(
                "The teacher's head makes logits of its features. Received: "
                f"teacher_head={teacher_head!r}. Pass a keras.Layer or model."
            )
        self.teacher_head = frozen_copy(teacher_head)

    def make_parts(self, teacher_shape: Any, student_shape: Any) -> None:
        """Make the connector, and see that the head fits."""
        teacher, student = map(self.shape_last, (teacher_shape, student_shape))
        # Raises where it takes another number of channels.
        self.teacher_head(keras.KerasTensor((None, teacher[-1])))
        layers = keras.layers
        # On the last axis, as a convolution of 1x1 is.
        self.connector = keras.Sequential(
            [
                layers.Dense(teacher[-1], use_bias=False, dtype=self.dtype),
                layers.BatchNormalization(
                    momentum=0.9, epsilon=1e-5, dtype=self.dtype
                ),
                layers.ReLU(dtype=self.dtype),
            ],
            name="connector",
        )
        places = [None] * (len(student) - 2)
        self.connector.build((None, *places, student[-1]))

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        student = self.connector(student, training=True)
        vectors = [pooled(teacher), pooled(student)]
        logits = [self.teacher_head(x, training=False) for x in vectors]
        logits = [ops.cast(x, self.dtype) for x in logits]
        return distance(*vectors) + distance(*logits)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        head = keras.saving.serialize_keras_object(self.teacher_head)
        return {**super().get_config(), "teacher_head": head}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SoftmaxRegression:
        """Make the loss that `get_config` describes."""
        head = keras.saving.deserialize_keras_object(config["teacher_head"])
        loss = super().from_config({**config, "teacher_head": head})
        assert isinstance(loss, SoftmaxRegression)
        return loss


def pooled(x: Tensor) -> Tensor:
    """Averages over the places, if there are any."""
    places = tuple(range(1, len(x.shape) - 1))
    return ops.mean(x, axis=places) if places else x


def distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean squared difference of vectors."""
    return ops.mean(ops.square(teacher - student), axis=-1)
