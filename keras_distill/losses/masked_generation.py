"""Masked generation: the teacher's map, made from parts of the student's."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerNames, Tensor
from keras_distill.losses.feature_loss import FeatureLoss

# Which part to hide, and the weight of the loss, as the authors have them.
_DEFAULTS = {"channel": (0.15, 7e-5), "spatial": (0.65, 2e-5)}


@keras.saving.register_keras_serializable("keras_distill")
class MaskedGeneration(FeatureLoss):
    """Squared error of a teacher's map, made from a masked student's (MGD).

    Some channels, or some places, of the student's feature map are hidden at
    random, and a small network makes the teacher's whole map from the rest.
    What is left then has to say something about what is hidden. The network
    is trained with the student and thrown away afterwards.

    Formula:
        `sum (teacher - generate(mask * student))**2` over places and channels,
        summed over the pairs of layers: `generate` is two 3x3 convolutions
        with a ReLU between them, `mask` is 0 with probability `masked_share`,
        else 1, drawn anew in each call. Where channels differ, a 1x1
        convolution goes first: `projector="auto"`.

    Args:
        teacher_layer_name: As in `DistillationLoss`.
        student_layer_name: As in `DistillationLoss`.
        mask: `"channel"` hides whole channels of an example, as for
            classifiers; `"spatial"` places, as for detection and segmentation.
        masked_share: Probability to be hidden, at least 0 and below 1. By
            default 0.15 of the channels, or 0.65 of the places.
        seed: Seed of the masks, an integer, or `None` for a random one.
        projector: As in `FeatureLoss`.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher `(batch, height, width, channels)`, student the same behind the
        projector, values `(batch,)`.

    Raises:
        ValueError: If `mask` is another word, `masked_share` is out of range,
            or the shapes differ and no projector mends it.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.MaskedGeneration(mask="spatial", seed=0)
        >>> loss.build((None, 8, 8, 16), (None, 8, 8, 16))
        >>> loss.masked_share, loss.default_weight
        (0.65, 2e-05)
        >>> [tuple(w.shape) for w in loss.generators[0].get_weights()]
        [(3, 3, 16, 16), (16,), (3, 3, 16, 16), (16,)]

    Reference:
        Yang et al., "Masked Generative Distillation", ECCV 2022. The default
        weights go with the sum: 7e-5 for `"channel"` and 2e-5 for
        `"spatial"`, which for two-stage detectors is 5e-7, with a share of
        0.45.
    """

    default_weight = _DEFAULTS["channel"][1]
    has_parts = True
    axes = (4,)

    def __init__(
        self,
        teacher_layer_name: LayerNames = None,
        student_layer_name: LayerNames = None,
        mask: str = "channel",
        masked_share: float | None = None,
        seed: int | None = None,
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
        if mask not in _DEFAULTS:
            raise ValueError(
                f"A mask hides channels or places. Received: mask={mask!r}. "
                "Pass 'channel' or 'spatial'."
            )
        share, self.default_weight = _DEFAULTS[mask]
        if masked_share is not None:
            share = masked_share
        if not 0 <= share < 1:
            raise ValueError(
                "Something must be left to generate from. Received: "
                f"masked_share={masked_share!r}. Pass a number from 0 to less "
                "than 1."
            )
        self.mask = mask
        self.masked_share = share
        self.seed = seed

    def make_parts(self, teacher_shape: Any, student_shape: Any) -> None:
        """Make a generator for each pair of layers."""
        several = isinstance(self.teacher_layer_name, list)
        shapes = teacher_shape if several else [teacher_shape]
        self.generators = [
            self._generator(self.shape_last(shape)[-1]) for shape in shapes
        ]
        self.random = keras.random.SeedGenerator(self.seed)

    def _generator(self, channels: Any) -> keras.Layer:
        layers = keras.layers
        convolutions = [
            layers.Conv2D(
                channels,
                3,
                padding="same",
                activation=activation,
                data_format="channels_last",
                dtype=self.dtype,
            )
            for activation in ("relu", None)
        ]
        generator = keras.Sequential(convolutions, name="generator")
        generator.build((None, None, None, channels))
        return generator

    def call(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        pairs = self.pairs(teacher, student)
        values = [
            self._generate(generator, t, s)
            for generator, (t, s) in zip(self.generators, pairs, strict=True)
        ]
        return sum(values[1:], start=values[0])

    def _generate(
        self, generator: Any, teacher: Tensor, student: Tensor
    ) -> Tensor:
        batch, height, width, channels = ops.shape(student)
        shape = (
            (batch, 1, 1, channels)
            if self.mask == "channel"
            else (batch, height, width, 1)
        )
        drawn = keras.random.uniform(shape, dtype=self.dtype, seed=self.random)
        seen = ops.where(drawn < self.masked_share, 0.0, student)
        generated = generator(seen, training=True)
        return ops.sum(ops.square(teacher - generated), axis=(1, 2, 3))

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "mask": self.mask,
            "masked_share": self.masked_share,
            "seed": self.seed,
        }
