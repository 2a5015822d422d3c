"""Factor transfer: a translated student's factors, a paraphrased teacher's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerName, Shape, Tensor
from keras_distill.losses.feature_loss import (
    FeatureLoss,
    flatten,
    frozen_copy,
    pool_to_smaller,
    unit,
)


@keras.saving.register_keras_serializable("keras_distill")
class FactorTransfer(FeatureLoss):
    """Distance of normalized factors of both networks' features (FT).

    Networks that differ say the same in different features. A paraphraser, an
    autoencoder that first learned the teacher's features, puts them into fewer
    channels, the factors; a translator, trained with the student, makes the
    same of the student's.

    The paper compares whole factors, `power=None`; the default averages a
    power over channels first, as does the code that the default weight comes
    from (RepDistiller).

    Formula:
        `mean_j |u(F_t)_j - u(F_s)_j|**distance_power`, with `F` the factors,
        `u(F)` the mean of `F**power` over channels, divided by its L2 norm,
        and `j` its places.

    Args:
        paraphraser: A built model, trained on the teacher's features, channels
            last: the first of what `paraphraser` gives. The loss runs a frozen
            copy.
        power: What factors are raised to before channels are averaged, an
            integer from 1; `None` compares the factors as they are.
        distance_power: 1 or 2.
        teacher_layer_name: As in `FeatureLoss`, one layer.
        student_layer_name: As in `FeatureLoss`, one layer.
        projector: As in `FeatureLoss`. None is needed.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher `(batch, height, width, channels)`, student the same but for
        channels, height and width: the larger factors are averaged to the
        smaller. Values `(batch,)`. The translator is three 3x3 convolutions
        with batch normalization, so that a value depends on the whole batch.

    Raises:
        ValueError: If a power is none of those, several layers are named, the
            paraphraser isn't built, or the tensors aren't feature maps.

    Example:
        >>> import keras
        >>> import keras_distill as kd
        >>> import numpy as np
        >>> def network(width):
        ...     return keras.Sequential([
        ...         keras.Input((8, 8, 1)),
        ...         keras.layers.Conv2D(width, 3, name="conv"),
        ...         keras.layers.GlobalAveragePooling2D(),
        ...         keras.layers.Dense(3)])
        >>> x, y = np.ones((6, 8, 8, 1), "float32"), np.arange(6) % 3
        >>> teacher, student = network(8), network(4)

        First the paraphraser learns the teacher's features:

        >>> conv = teacher.get_layer("conv").output
        >>> features = keras.Model(teacher.inputs, conv).predict(x, verbose=0)
        >>> encoder, autoencoder = kd.losses.paraphraser(features.shape)
        >>> autoencoder.compile("sgd", "mse")
        >>> history = autoencoder.fit(features, features, epochs=1, verbose=0)

        Then the student learns its factors:

        >>> loss = kd.losses.FactorTransfer(
        ...     encoder, teacher_layer_name="conv", student_layer_name="conv")
        >>> distiller = kd.Distiller(teacher, student, loss)
        >>> history = distiller.fit(x, y, epochs=1, verbose=0)

    Reference:
        Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression
        via Factor Transfer", NeurIPS 2018.
    """

    default_weight = 200.0
    # Through the translator's batch normalization.
    relates_examples = True
    same_channels = False
    same_size = False
    axes = (4,)
    has_parts = True

    def __init__(
        self,
        paraphraser: keras.Model,
        power: int | None = 2,
        distance_power: int = 1,
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
        if isinstance(self.teacher_layer_name, list):
            raise ValueError(
                "A paraphraser belongs to one layer. Received: "
                f"teacher_layer_name={teacher_layer_name!r}. Make a "
                "FactorTransfer for each layer."
            )
        if power is not None and (not isinstance(power, int) or power < 1):
            raise ValueError(
                "Factors are raised to an integer from 1. Received: "
                f"power={power!r}. Pass 2, or None to compare them as they "
                "are."
            )
        if distance_power not in (1, 2):
            raise ValueError(
                "Factors are compared by absolute or squared differences. "
                f"Received: distance_power={distance_power!r}. Pass 1 or 2."
            )
        self.paraphraser = frozen_copy(paraphraser)
        self.power = power
        self.distance_power = distance_power
        self.translator: Any = None

    def make_parts(self, teacher_shape: Any, student_shape: Any) -> None:
        """Make the student's translator."""
        teacher = keras.KerasTensor(self.shape_last(teacher_shape))
        student = self.shape_last(student_shape)
        factors = self.paraphraser(teacher).shape[-1]
        self.translator = keras.Sequential(
            _convolutions([student[-1], factors, factors], dtype=self.dtype),
            name="translator",
        )
        self.translator.build(student)

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        factors = pool_to_smaller(
            ops.cast(self.paraphraser(teacher, training=False), self.dtype),
            self.translator(student, training=True),
        )
        t, s = map(self._normalized, factors)
        difference = ops.abs(t - s)
        return ops.mean(difference**self.distance_power, axis=-1)

    def _normalized(self, factors: Tensor) -> Tensor:
        if self.power is not None:
            factors = ops.mean(factors**self.power, axis=-1)
        return unit(flatten(factors))

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss, but for a model's weights."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "paraphraser": serialize(self.paraphraser),
            "power": self.power,
            "distance_power": self.distance_power,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FactorTransfer:
        """Make the loss that `get_config` describes."""
        # Keras empties the config of a model that it makes.
        made = keras.saving.deserialize_keras_object(
            copy.deepcopy(config["paraphraser"])
        )
        loss = super().from_config({**config, "paraphraser": made})
        assert isinstance(loss, FactorTransfer)
        return loss


def paraphraser(
    teacher_shape: Shape, rate: float = 0.5
) -> tuple[keras.Model, keras.Model]:
    """An autoencoder of a teacher's features, for `FactorTransfer`.

    Three 3x3 convolutions put the features into fewer channels, three
    transposed ones take them back, each with batch normalization and a leaky
    ReLU. Train the second model to give what it gets, by mean squared error
    (the paper: 30 epochs on CIFAR); the first learns with it.

    Args:
        teacher_shape: Shape of the teacher's feature maps, batch first and
            channels last.
        rate: Channels of the factors, as a share of the teacher's.

    Returns:
        Two models that share weights: features to factors, and features to
        features.

    Raises:
        ValueError: If the shape isn't that of feature maps, or the rate isn't
            above 0 or leaves no channel.
    """
    channels = teacher_shape[-1] if len(teacher_shape) == 4 else None
    if channels is None:
        raise ValueError(
            "A paraphraser takes feature maps, (batch, height, width, "
            f"channels). Received: teacher_shape={teacher_shape}. Name another "
            "layer."
        )
    factors = int(channels * rate)
    if factors < 1:
        raise ValueError(
            f"Of {channels} channels, this rate leaves none. Received: "
            f"rate={rate!r}. Pass the factors' share of the channels, such as "
            "0.5."
        )
    features = keras.Input(tuple(teacher_shape[1:]))
    x = features
    for layer in _convolutions([channels, factors, factors]):
        x = layer(x)
    encoder = keras.Model(features, x, name="paraphraser")
    y = encoder(features)
    for layer in _convolutions([factors, channels, channels], transposed=True):
        y = layer(y)
    return encoder, keras.Model(features, y, name="paraphraser_autoencoder")


def _convolutions(
    widths: Sequence[int | None], transposed: bool = False, dtype: Any = None
) -> list[keras.Layer]:
    kinds = keras.layers.Conv2D, keras.layers.Conv2DTranspose
    convolution = kinds[transposed]
    return [
        layer
        for width in widths
        for layer in (
            convolution(
                width,
                3,
                padding="same",
                data_format="channels_last",
                dtype=dtype,
            ),
            keras.layers.BatchNormalization(dtype=dtype),
            keras.layers.LeakyReLU(0.1, dtype=dtype),
        )
    ]
