"""How good a model is on examples, and how good a guess would be."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_distill.data import Examples
from keras_distill.defaults import default_metrics
from keras_distill.export.decisions import decisions, thresholds_of
from keras_distill.features import select_inputs
from keras_distill.heads import final_activation

Array: TypeAlias = "np.ndarray[Any, Any]"

_BATCH = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """What a model said of examples.

    Attributes:
        parameters: Number of the model's weights.
        accuracy: Share of the labelled examples that it gets right; None if
            that isn't known.
        decided: What it decides of each example; None if that isn't known.
    """

    parameters: int
    accuracy: float | None
    decided: Array | None

    def agreement(self, other: Score) -> float | None:
        """Share of the examples of which both decide the same."""
        if self.decided is None or other.decided is None:
            return None
        if self.decided.shape != other.decided.shape:
            return None
        return float((self.decided == other.decided).mean())


def score(model: keras.Model, examples: Examples) -> Score:
    """Ask a model about examples."""
    inputs = dataclasses.replace(
        examples, inputs=select_inputs(model, examples.inputs), labels=None
    )
    outputs = model.predict(inputs.batches(_BATCH), verbose=0)
    parameters = int(model.count_params())
    if keras.tree.is_nested(outputs):
        return Score(parameters, None, None)
    # Sigmoids tell each class for itself, one on its own as well.
    apart = final_activation(model) == "sigmoid" and outputs.shape[-1] > 1
    threshold = thresholds_of(model, ["output"], None)["output"]
    return Score(
        parameters,
        _accuracy(model, examples.labels, outputs),
        decisions(outputs[..., None] if apart else outputs, threshold),
    )


def _accuracy(
    model: keras.Model, labels: Array | None, outputs: Array
) -> float | None:
    metrics = default_metrics(model)
    if labels is None or not metrics:
        return None
    if (labels < 0).all():  # -1 stands for no label
        return None
    (metric,) = metrics
    metric.update_state(labels, outputs)
    return float(keras.ops.convert_to_numpy(metric.result()))


def chance(examples: Examples) -> float | None:
    """Accuracy of naming the most frequent class; None if it isn't known."""
    labels = examples.labels
    if labels is None or labels.dtype.kind not in "biuf":
        return None
    if labels.ndim == 2 and labels.shape[-1] > 1:
        if not (labels.sum(-1) == 1).all():  # several labels an example
            return None
        labels = labels.argmax(-1)
    known = labels[labels >= 0]
    if not known.size:
        return None
    return float(np.unique(known, return_counts=True)[1].max() / known.size)
