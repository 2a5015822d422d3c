"""Loss and metric of a student that wasn't compiled."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill.labels import (
    are_indices,
    as_indices,
    weight_of_known,
    without_padding,
)
from keras_distill.losses.base import Tensor, align_weights


@keras.saving.register_keras_serializable("keras_distill")
class HardLabels(keras.losses.Loss):  # type: ignore[misc]  # keras is untyped
    """Cross-entropy with the hard labels, in the form that they come in.

    Takes class indices `(batch,)` or `(batch, 1)`, or one-hot rows, for a
    model with a softmax or its logits; and zeros and ones, for a model with
    sigmoids or theirs. An index of -1, or a row with a -1 in it, stands for an
    example without a label: it counts for nothing, and the mean is taken over
    the others. The value of an index beyond the classes is NaN.

    Args:
        activation: `"softmax"` or `"sigmoid"`: what the output is, or would be
            if it weren't logits.
        from_logits: Whether the model gives logits.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.

    Shapes:
        Predictions `(batch, ..., classes)`, values `(batch, ...)`, in nats.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.HardLabels()
        >>> value = loss([0, -1], [[0.0, 0.0], [5.0, 0.0]])
        >>> round(float(value), 4)
        0.6931
    """

    def __init__(
        self,
        activation: str = "softmax",
        from_logits: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "hard_labels",
    ) -> None:
        dtype = keras.backend.result_type(keras.config.floatx(), "float32")
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if activation not in ("softmax", "sigmoid"):
            raise ValueError(
                "Hard labels are compared with a softmax or with sigmoids. "
                f"Received: activation={activation!r}. Pass 'softmax' or "
                "'sigmoid'."
            )
        self.activation = activation
        self.from_logits = from_logits

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> Tensor:
        """Weighted mean of `call` over the labelled examples."""
        # Keras would take a list of numbers for a list of tensors.
        y_true = ops.convert_to_tensor(y_true)
        y_pred = _columns(ops.convert_to_tensor(y_pred), self.activation)
        y_true, y_pred = without_padding(y_true, y_pred, self.dtype)
        if sample_weight is not None:
            places = ops.shape(y_pred)[:-1]
            sample_weight = align_weights(sample_weight, places, self)
        if self.reduction == "mean_with_sample_weight":
            known = ops.cast(self._known(y_true, y_pred), self.dtype)
            sample_weight = known * (
                1 if sample_weight is None else sample_weight
            )
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`, 0 where there is no label."""
        if self.activation == "sigmoid":
            return self._binary(y_true, y_pred)
        if not are_indices(y_true, y_pred):
            values = keras.losses.categorical_crossentropy(
                ops.maximum(y_true, 0), y_pred, from_logits=self.from_logits
            )
        else:
            values = self._sparse(as_indices(y_true, y_pred), y_pred)
        return self._of_known(values, y_true, y_pred)

    def _sparse(self, indices: Tensor, y_pred: Tensor) -> Tensor:
        beyond = indices >= y_pred.shape[-1]
        values = keras.losses.sparse_categorical_crossentropy(
            ops.where((indices >= 0) & ~beyond, indices, 0),
            y_pred,
            from_logits=self.from_logits,
        )
        # Backends would raise, or take no notice.
        return ops.where(beyond, math.nan, values)

    def _binary(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        labels = y_true
        if len(y_true.shape) < len(y_pred.shape):
            labels = ops.expand_dims(y_true, axis=-1)
        values = keras.losses.binary_crossentropy(
            ops.maximum(labels, 0), y_pred, from_logits=self.from_logits
        )
        return self._of_known(values, y_true, y_pred)

    def _of_known(self, values: Tensor, *labels: Tensor) -> Tensor:
        known = self._known(*labels)
        return values * weight_of_known(known, values.dtype, self.reduction)

    def _known(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Where there is a label."""
        if self.activation == "softmax" and are_indices(y_true, y_pred):
            return as_indices(y_true, y_pred) >= 0
        if len(y_true.shape) < len(y_pred.shape):
            y_true = ops.expand_dims(y_true, axis=-1)
        return ops.all(y_true >= 0, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "activation": self.activation,
            "from_logits": self.from_logits,
        }


def _columns(y_pred: Tensor, activation: str) -> Tensor:
    """Outputs with a last axis: one sigmoid an example may come without."""
    if activation == "sigmoid" and len(y_pred.shape) == 1:
        return ops.expand_dims(y_pred, axis=-1)
    return y_pred


@keras.saving.register_keras_serializable("keras_distill")
class HardLabelAccuracy(keras.metrics.Mean):  # type: ignore[misc]
    """Share of the labelled examples that the model gets right.

    The companion of `HardLabels`: takes labels in the same forms, and leaves
    out the examples that have none. Rows of several labels, with sigmoids,
    count label by label.

    Args:
        activation: As in `HardLabels`.
        from_logits: As in `HardLabels`.
        name: As in `keras.metrics.Metric`.
        dtype: As in `keras.metrics.Metric`.

    Example:
        >>> import keras_distill as kd
        >>> metric = kd.HardLabelAccuracy()
        >>> metric.update_state([0, 1, -1], [[2.0, 0.0]] * 3)
        >>> float(metric.result())
        0.5
    """

    def __init__(
        self,
        activation: str = "softmax",
        from_logits: bool = True,
        name: str = "accuracy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.activation = activation
        self.from_logits = from_logits

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Any = None
    ) -> None:
        """Add a batch."""
        y_true, y_pred = without_padding(
            ops.convert_to_tensor(y_true),
            _columns(ops.convert_to_tensor(y_pred), self.activation),
            self.dtype,
        )
        if self.activation == "sigmoid":
            right, known = self._binary(y_true, y_pred)
        else:
            indices = as_indices(y_true, y_pred)
            right = indices == ops.argmax(y_pred, axis=-1)
            known = indices >= 0
        weights = ops.cast(known, self.dtype)
        if sample_weight is not None:
            sample_weight = ops.convert_to_tensor(sample_weight, self.dtype)
            if len(sample_weight.shape) > 1 and sample_weight.shape[-1] == 1:
                sample_weight = ops.squeeze(sample_weight, axis=-1)
            while len(sample_weight.shape) < len(weights.shape):
                sample_weight = ops.expand_dims(sample_weight, axis=-1)
            weights = weights * sample_weight
        super().update_state(ops.cast(right, self.dtype), weights)

    def _binary(self, y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
        if len(y_true.shape) < len(y_pred.shape):
            y_true = ops.expand_dims(y_true, axis=-1)
        y_true = ops.cast(y_true, self.dtype)
        threshold = 0.0 if self.from_logits else 0.5
        known = ops.all(y_true >= 0, axis=-1, keepdims=True)
        right = (y_true > 0.5) == (y_pred > threshold)
        return right, ops.broadcast_to(known, ops.shape(right))

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal metric."""
        return {
            **super().get_config(),
            "activation": self.activation,
            "from_logits": self.from_logits,
        }
