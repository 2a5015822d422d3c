"""The model to export of a student with two heads: their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill.features import symbolic_output


def average_heads(
    model: keras.Model, names: Sequence[str | int] | None = None
) -> keras.Model:
    """One model of a student's heads: the mean of what they give.

    A student with a distillation token has a head that learns the hard labels
    and one that learns the teacher (see `losses.HardTargets`). After training,
    the mean of both is used. The heads should give logits, or both
    probabilities. Where there are metrics, Keras asks for labels of all
    outputs: `y`, or `{"class": y, "distillation": y}`.

    Args:
        model: A Functional model with several outputs, in a dict or list.
        names: Keys, or indices, of the outputs to average, two at least; by
            default all.

    Returns:
        An ordinary Keras model with one output. It shares the layers and
        weights of `model`, and goes on to learn with it.

    Raises:
        ValueError: If the model has no graph or only one output, or the heads
            aren't there or don't have the same shape.

    Example:
        >>> import keras, numpy as np, keras_distill as kd
        >>> teacher = keras.Sequential([keras.Input((4,)),
        ...                             keras.layers.Dense(3)])
        >>> x = keras.Input((4,))
        >>> hidden = keras.layers.Dense(8, activation="relu")(x)
        >>> student = keras.Model(x, {
        ...     "class": keras.layers.Dense(3)(hidden),
        ...     "distillation": keras.layers.Dense(3)(hidden)})
        >>> distiller = kd.Distiller(
        ...     teacher, student, losses=kd.losses.HardTargets(
        ...         student_layer_name="distillation"))
        >>> distiller.compile(loss={"class": kd.HardLabels()}, metrics=None)
        >>> inputs = np.random.default_rng(0).normal(size=(8, 4))
        >>> _ = distiller.fit(inputs, {"class": np.arange(8) % 3}, verbose=0)
        >>> kd.average_heads(student).output_shape
        (None, 3)

    Reference:
        Touvron et al., "Training Data-Efficient Image Transformers &
        Distillation through Attention", ICML 2021.
    """
    output = symbolic_output(model)
    if not isinstance(output, (dict, list, tuple)):
        raise ValueError(
            "Heads are the outputs of a Functional model with several. "
            f"Received: model='{model.name}' with output {output}. Make it "
            "with keras.Model(inputs, {'class': ..., 'distillation': ...})."
        )
    heads = _heads(output, names)
    if len({tuple(head.shape) for head in heads}) != 1 or len(heads) < 2:
        raise ValueError(
            "Only heads of the same shape, two at least, have a mean. "
            f"Received: outputs of shapes {[head.shape for head in heads]}. "
            "Name those to average in names=[...]."
        )
    # In the heads' dtype, which may be more exact than that of the policy.
    mean = keras.layers.Average(dtype=heads[0].dtype, name="average_heads")
    return keras.Model(model.input, mean(heads), name=model.name)


def _heads(output: Any, names: Sequence[str | int] | None) -> list[Any]:
    there = list(output) if isinstance(output, dict) else range(len(output))
    chosen = list(there if names is None else names)
    if not set(chosen) <= set(there) or len(set(chosen)) < len(chosen):
        raise ValueError(
            "Heads are different outputs of the model. Received: "
            f"names={chosen} for outputs {list(there)}. Pass some of these."
        )
    return [output[name] for name in chosen]
