"""Batches of a transfer set of which the teacher has already spoken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np

from keras_distill.cache.transfer_set import TransferSet
from keras_distill.cache.views import Views
from keras_distill.distribution.batches import GlobalBatches

if TYPE_CHECKING:
    from keras_distill.cache.teacher_cache import TeacherCache

Array: TypeAlias = "np.ndarray[Any, Any]"


class CachedBatches(GlobalBatches):
    """What `TeacherCache.batches` returns; pass it to `fit` as `x`.

    It owns the order of the examples: a new one in each epoch, which follows
    from `(seed, epoch)` alone, whatever `fit` does and however many workers
    there are. Each batch holds the examples' numbers, and their records are
    looked up by number. Of several processes, each reads its own rows.

    Attributes:
        epoch: The epoch that comes next, or is going on. Set it, or pass it
            to `TeacherCache.batches`, where an interrupted training goes on
            with `initial_epoch`; after `BackupAndRestore`, it is skipped to.
        temperature: For which stored targets of few classes are made. A
            callback may set it between epochs, together with the loss's.
    """

    def __init__(
        self,
        cache: TeacherCache,
        data: TransferSet,
        views: Views | None,
        batch_size: int,
        shuffle: bool,
        seed: int,
        epoch: int,
        temperature: float | None,
        as_logits: bool,
        workers: int,
    ) -> None:
        super().__init__(data.size, batch_size, shuffle, seed, epoch, workers)
        self.cache = cache
        self.data = data
        self.views = views
        self.temperature = temperature
        self.as_logits = as_logits

    def __repr__(self) -> str:
        return (
            f"CachedBatches({len(self)} batches of {self.batch_size}, epoch "
            f"{self.epoch}{', shuffled' * self.shuffle}, of {self.cache})"
        )

    def labels(self) -> Any:
        """All hard labels."""
        return self.data.parts[1]

    def examples(self, ids: Array, epoch: int) -> tuple[Any, Any, Any]:
        """What the teacher said, labels and sample weights."""
        batch = self.cache.read(
            ids, epoch, self.temperature, as_logits=self.as_logits
        )
        inputs, labels, weights = self._examples(ids, epoch)
        return batch._replace(inputs=inputs), labels, weights

    def _examples(self, ids: Array, epoch: int) -> tuple[Any, Any, Any]:
        if self.views is None:
            return self.data.take(ids)
        _, labels, weights = self.data.take(ids)
        inputs, partners, shares = self.views.make(
            self.data, ids, epoch % self.views.epochs
        )
        if partners is not None and labels is not None:
            others = self.data.take(partners)[1]
            labels = self._mixed(labels, others, shares)
        return inputs, labels, weights

    def _mixed(self, labels: Any, others: Any, shares: Any) -> Array:
        if keras.tree.is_nested(labels):
            raise ValueError(
                "Labels of several outputs can't be mixed. Received: labels of "
                f"{len(keras.tree.flatten(labels))} arrays. Leave labels out, "
                "or pass Views(mix=None)."
            )
        classes = self.cache.plan.fields[0].shape[-1]
        mine, theirs = (_one_hot(y, classes) for y in (labels, others))
        share = shares.reshape(-1, *[1] * (mine.ndim - 1))
        blend: Array = share * mine + (1 - share) * theirs
        return blend.astype(np.float32)


def _one_hot(labels: Array, classes: int) -> Array:
    if labels.ndim > 1 and labels.shape[-1] == classes:
        return labels
    flat = labels.reshape(-1)
    if labels.dtype.kind not in "biuf" or len(flat) != len(labels):
        raise ValueError(
            "Labels are mixed as one-hot rows of the teacher's classes. "
            f"Received: labels of shape {labels.shape} and dtype "
            f"{labels.dtype} for {classes} classes. Pass class numbers or "
            "one-hot rows."
        )
    if flat.min() < 0 or flat.max() >= classes or (flat % 1 != 0).any():
        raise ValueError(
            "Labels are mixed as one-hot rows of the teacher's classes. "
            f"Received: labels from {flat.min()} to {flat.max()} for "
            f"{classes} classes. Pass class numbers or one-hot rows."
        )
    return np.eye(classes, dtype=np.float32)[flat.astype(np.int64)]
