"""Training for `keras-distill distill`: with the teacher, and alone."""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import Any

import keras

from keras_distill.cache import TeacherCache
from keras_distill.cli.arguments import UsageError
from keras_distill.cli.console import progress
from keras_distill.cli.distill_data import Data
from keras_distill.cli.method_options import losses_of
from keras_distill.data import Examples
from keras_distill.defaults import default_hard_loss, default_metrics
from keras_distill.distiller import Distiller
from keras_distill.distribution.batches import GlobalBatches
from keras_distill.distribution.callbacks import Resumed
from keras_distill.features import select_inputs
from keras_distill.losses import DistillationLoss


def chosen_losses(parsed: argparse.Namespace) -> list[DistillationLoss] | None:
    """The chosen losses, made anew; None for the student's default."""
    chosen = parsed.method or []
    if not chosen and (parsed.temperature is not None or parsed.layers):
        chosen = [["SoftTargets"]]
    if not chosen:
        return None
    return losses_of(chosen, parsed.temperature, parsed.layers)


def make_distiller(
    parsed: argparse.Namespace, teacher: Any, student: keras.Model
) -> Distiller:
    """A distiller as the arguments say, of losses of its own."""
    distiller = Distiller(
        teacher,
        student,
        chosen_losses(parsed),
        parsed.weight,
        parsed.hard_label_weight,
    )
    distiller.compile(optimizer=_optimizer(parsed))
    return distiller


def _optimizer(parsed: argparse.Namespace) -> keras.optimizers.Optimizer:
    if not 0 < parsed.learning_rate < math.inf:
        raise UsageError(
            "A learning rate is more than 0. Received: --learning-rate "
            f"{parsed.learning_rate}."
        )
    return keras.optimizers.Adam(parsed.learning_rate)


def train_distilled(
    parsed: argparse.Namespace,
    teacher: keras.Model,
    distiller: Distiller,
    data: Data,
) -> Distiller:
    """Train with a teacher, or with what it said; return what was trained."""
    if parsed.cache is not None:
        return _replay(parsed, teacher, distiller, data)
    losses = distiller.distillation_losses.values()
    batches = data.train.batches(
        parsed.batch_size,
        shuffle=True,
        seed=parsed.seed,
        numbered=any(loss.uses_sample_ids for loss in losses),
    )
    _fit(parsed, distiller, batches, data)
    return distiller


def _replay(
    parsed: argparse.Namespace,
    teacher: keras.Model,
    live: Distiller,
    data: Data,
) -> Distiller:
    """Let the teacher speak once, and train on what it said."""
    with progress() as verbose:
        cache = TeacherCache.write(
            parsed.cache,
            teacher,
            data.train.arrays(),
            live.teacher_layers,
            verbose=verbose,
        )
    distiller = make_distiller(parsed, cache.teacher, live.student)
    batches = cache.batches(
        parsed.batch_size, shuffle=True, seed=parsed.seed, as_logits=False
    )
    _fit(parsed, distiller, batches, data)
    return distiller


def _fit(
    parsed: argparse.Namespace,
    model: keras.Model,
    batches: GlobalBatches,
    data: Data,
) -> None:
    # Whatever came before, distilled and alone draw the same numbers.
    keras.utils.set_random_seed(parsed.seed)
    validation = data.validation
    with progress() as verbose:
        history = model.fit(
            batches,
            epochs=parsed.epochs,
            # The batches have an order: live, cached and alone are taught in
            # the same one, which Keras would shuffle, and begin an epoch late.
            shuffle=False,
            callbacks=[Resumed(batches, initial_epoch=0)],
            validation_data=None
            if validation is None
            else validation.batches(parsed.batch_size),
            verbose=verbose,
        )
    loss = history.history["loss"][-1]
    if not math.isfinite(loss):
        raise RuntimeError(
            f"The training came to nothing: its loss is {loss} after "
            f"{parsed.epochs} epochs. Received: --learning-rate "
            f"{parsed.learning_rate}. Pass a smaller one, or smaller weights."
        )


def train_alone(
    parsed: argparse.Namespace, student: keras.Model, data: Data
) -> None:
    """Train a student on the labels, as a distiller would."""
    student.compile(
        _optimizer(parsed),
        default_hard_loss(student),
        metrics=default_metrics(student),
    )
    train = selected(student, data.train)
    test = selected(student, data.test)
    _fit(
        parsed,
        student,
        train.batches(parsed.batch_size, shuffle=True, seed=parsed.seed),
        dataclasses.replace(data, train=train, test=test),
    )


def selected(model: keras.Model, examples: Examples) -> Examples:
    """Examples with the inputs in a model's own structure."""
    return dataclasses.replace(
        examples, inputs=select_inputs(model, examples.inputs)
    )
