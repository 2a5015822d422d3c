"""How a student was trained, from what Keras remembers of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_distill.distiller import Distiller
from keras_distill.losses.base import TemperedLogitLoss
from keras_distill.reports.facts import Run

History: TypeAlias = keras.callbacks.History | Mapping[str, Any]


def run_of(
    name: str,
    model: keras.Model | None,
    distilled: bool,
    history: History | None = None,
) -> Run:
    """The facts of one training.

    Args:
        name: The seed, or the run's place.
        model: What was trained; None if that failed.
        distilled: Whether it had a teacher.
        history: What `fit` returned, or its `history`; by default the model's
            own.

    Raises:
        TypeError: If the history is something else.
    """
    failure = "the run gave no model" if model is None else None
    if history is None:
        # Keras sets it at the end of the first epoch.
        history = getattr(model, "history", None)
    if history is None:
        return Run(name, distilled, {}, failure=failure)
    if isinstance(history, Mapping):
        curves = _curves(history)
        finished = max(map(len, curves.values()), default=0)
        return Run(name, distilled, curves, finished, failure=failure)
    if not isinstance(history, keras.callbacks.History):
        raise TypeError(
            "A history is what `fit` returned. Received: "
            f"{type(history).__name__}. Pass it, or its `.history`, which "
            "doesn't say whether all epochs were finished."
        )
    return Run(
        name,
        distilled,
        _curves(history.history),
        # A training that went on from an earlier one counts from there.
        finished=history.epoch[-1] + 1 if history.epoch else 0,
        began=history.epoch[0] if history.epoch else 0,
        planned=history.params.get("epochs"),
        stopped=bool(history.model.stop_training),
        failure=failure,
        weights=_weights(model),
    )


def _curves(history: Mapping[str, Any]) -> dict[str, tuple[float | None, ...]]:
    """The metrics that are one number an epoch."""
    return {
        name: tuple(map(_finite, values))
        for name, values in history.items()
        if all(np.ndim(value) == 0 for value in values)
    }


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _weights(model: keras.Model | None) -> dict[str, float]:
    if not isinstance(model, Distiller):
        return {}
    terms = ["hard_label", *model.distillation_losses]
    values = [model.hard_label_weight, *model.loss_weights]
    return {
        f"{term}_loss": _number(value)
        for term, value in zip(terms, values, strict=True)
    }


def temperature_of(distiller: Distiller | None) -> float | None:
    """That of the first loss with one, as it is now; None if none has."""
    if distiller is None:
        return None
    for loss in distiller.distillation_losses.values():
        if isinstance(loss, TemperedLogitLoss):
            return _number(loss.temperature)
    return None


def _number(variable: Any) -> float:
    return float(keras.ops.convert_to_numpy(variable))
