"""TensorFlow: a strategy runs each step on several devices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeAlias

import keras
from keras import ops

from keras_distill.distribution.engines import OneDevice

Tensor: TypeAlias = Any


def tensorflow_engine(model: Any) -> OneDevice:
    """The engine for the strategy in whose scope the model was made."""
    import tensorflow as tf

    if tf.distribute.has_strategy():
        strategy = tf.distribute.get_strategy()
    else:
        strategy = model.distribute_strategy
    cluster = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if strategy.num_replicas_in_sync == 1 and not cluster:
        return OneDevice()
    return TensorFlowReplicas(strategy)


class TensorFlowReplicas(OneDevice):
    """Replicas of a `tf.distribute.Strategy`.

    Keras divides losses by the number of replicas, and the strategy sums
    gradients. That is the mean over the global batch where all replicas have
    as many examples; where they don't, gradients are weighted here.
    """

    sums_metrics = True

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy
        self.replicas = strategy.num_replicas_in_sync

    def check(self, model: Any) -> None:
        """Refuse what can't be right."""
        import tensorflow as tf

        if isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise ValueError(
                "Keras 3 doesn't train on several TensorFlow processes: `fit` "
                "fails, or doesn't average "
                "(https://github.com/keras-team/keras/issues/20585). Received: "
                "MultiWorkerMirroredStrategy. Use KERAS_BACKEND=jax with "
                "keras.distribution, or KERAS_BACKEND=torch with torchrun; on "
                "one machine, MirroredStrategy."
            )
        created_here = self.strategy.extended.variable_created_in_scope
        outside = [
            v.path
            for v in model.trainable_variables
            if not created_here(v.value)
        ]
        if outside:
            raise ValueError(
                "The student was made outside of the strategy's scope, so "
                "there is one of it, not one for each device. Received: "
                f"variables {outside[:3]}. Make the student and the distiller "
                "in `with strategy.scope():`."
            )
        compiled = [*model.metrics_variables]
        if model.optimizer is not None:
            compiled += model.optimizer.variables
        if any(not created_here(v.value) for v in compiled):
            raise ValueError(
                "The distiller was compiled outside of the strategy's scope. "
                "Received: an optimizer, or metrics, for one device. Call "
                "`compile` in `with strategy.scope():`, with an optimizer and "
                "metrics that were made there."
            )

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where variables are made."""
        scope: contextlib.AbstractContextManager[Any] = self.strategy.scope()
        return scope

    def batch_size(self, size: int, examples: int, trains: bool) -> int:
        """One whose first batch all replicas have as much of.

        Keras averages the first batch over replicas, to see its shapes, and
        can't where they differ. Later ones may be ragged.
        """
        first = min(size, examples)
        if first % self.replicas == 0:
            return size
        if not trains and first > self.replicas:
            return first - first % self.replicas
        raise ValueError(
            "Keras needs a first batch that the replicas can share equally. "
            f"Received: a first batch of {first} examples for {self.replicas} "
            "replicas. Pass another batch_size."
        )

    @contextlib.contextmanager
    def training(self, model: Any) -> Iterator[None]:
        """Refuse optimizers that Keras doesn't get right on replicas."""
        optimizer = model.optimizer
        while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = optimizer.inner_optimizer
        wrong = {
            name: getattr(optimizer, name)
            for name in (
                "gradient_accumulation_steps",
                "clipnorm",
                "clipvalue",
                "global_clipnorm",
            )
            if getattr(optimizer, name) is not None
        }
        if optimizer.use_ema and optimizer.ema_overwrite_frequency:
            wrong["ema_overwrite_frequency"] = optimizer.ema_overwrite_frequency
        if wrong:
            raise ValueError(
                "Keras clips and accumulates gradients on each replica before "
                "they are summed: it clips other gradients than one device "
                "does, and can't accumulate at all, nor overwrite weights by "
                "their moving average. Received: an optimizer of "
                f"{wrong} in {self.replicas} replicas. Leave it out, or use "
                "KERAS_BACKEND=jax or torch, where it is exact."
            )
        yield

    def gather(self, tensors: Any) -> Any:
        """Tensors of the whole global batch."""
        return keras.tree.map_structure(self._gathered, tensors)

    def _gathered(self, tensor: Any) -> Any:
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if tensor is None or context is None:
            return tensor
        mine = tf.stop_gradient(tensor)
        count = tf.shape(mine)[0]
        counts = context.all_gather(count[None], axis=0)
        rows = context.all_gather(mine, axis=0)
        if not tensor.dtype.is_floating:
            return rows
        total = tf.reduce_sum(counts)
        place = context.replica_id_in_sync_group
        before = tf.reduce_sum(counts[:place])
        # Zero, with a gradient that is larger by as much as `weighted` will
        # make it smaller.
        own = (tensor - mine) * tf.cast(
            total / tf.maximum(count, 1), mine.dtype
        )
        around = [[before, total - before - count]]
        around += [[0, 0]] * (len(tensor.shape) - 1)
        return rows + tf.pad(own, around)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of what the examples of all replicas have."""
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is None:
            return ops.mean(values)
        size = tf.cast(tf.size(values), values.dtype)
        sums = context.all_reduce(
            tf.distribute.ReduceOp.SUM, [tf.reduce_sum(values), size]
        )
        return sums[0] / sums[1]

    def whole(self, value: Tensor) -> Tensor:
        """A loss that Keras has divided by the replicas, as it was."""
        return value * self.replicas

    def divided(self, value: Tensor) -> Tensor:
        """A penalty, divided as Keras divides losses."""
        return value / self.replicas

    def weighted(self, loss: Tensor, rows: Any) -> Tensor:
        """The same loss, with the gradient that this replica's rows weigh."""
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is None:
            return loss
        rows = tf.cast(rows, loss.dtype)
        total = context.all_reduce(tf.distribute.ReduceOp.SUM, rows)
        value = ops.stop_gradient(loss)
        return value + (loss - value) * (rows * self.replicas / total)
