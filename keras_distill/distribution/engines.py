"""What several devices need that one doesn't, told by the engine in use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from keras import ops

from keras_distill.distribution.shares import Share

Tensor: TypeAlias = Any


class OneDevice:
    """The engine where there is one device: everything is as it is.

    Attributes:
        replicas: How many models see a part of each global batch.
        share: What this process loads of each global batch.
        splits_arrays: Whether arrays have to be made into batches of which
            each process loads its share; Keras does it elsewhere.
        trains_in_fit_alone: Whether each process would train by itself
            elsewhere.
        sums_metrics: Whether a metric's result is that of the sums, over all
            replicas, of what each replica's metric keeps.
    """

    replicas = 1
    share = Share()
    splits_arrays = False
    sums_metrics = False
    trains_in_fit_alone = False

    def note_labels(self, labels: Any) -> None:
        """See what is known of the labels that `fit` or `evaluate` meets.

        Args:
            labels: Arrays, and None where they aren't known.
        """

    def check(self, model: Any) -> None:
        """Refuse what can't be right."""

    def prepare(self, model: Any) -> None:
        """Make ready what a `fit`, `evaluate` or `predict` will use."""

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where variables are made."""
        return contextlib.nullcontext()

    def batch_size(self, size: int, examples: int, trains: bool) -> int:
        """Examples in a batch of arrays that the engine can take."""
        return size

    def each(self, number: int) -> list[int]:
        """A number of each process."""
        return [number]

    @contextlib.contextmanager
    def training(self, model: Any) -> Iterator[None]:
        """Surrounds `fit`."""
        yield

    @contextlib.contextmanager
    def step(
        self, model: Any, data: Any, count: int | None, trains: bool
    ) -> Iterator[None]:
        """Surrounds a step on a batch of which `count` rows are real."""
        yield

    def mean(self, values: Tensor) -> Tensor:
        """The mean of what the examples of the global batch have."""
        return ops.mean(values)

    def gather(self, tensors: Any) -> Any:
        """Tensors of the whole global batch, from those of this replica.

        Gradients reach this replica's rows alone, and are of the size that
        makes the mean over replicas right.
        """
        return tensors

    def pieces(self, rows: Any) -> list[slice]:
        """Where in the batch of a step each replica's rows are."""
        return [slice(None)]

    def whole(self, value: Tensor) -> Tensor:
        """A loss that Keras has divided by the replicas, as it was."""
        return value

    def divided(self, value: Tensor) -> Tensor:
        """A penalty, divided as Keras divides losses."""
        return value

    def weighted(self, loss: Tensor, rows: Any) -> Tensor:
        """The same loss, with the gradient that this replica's rows weigh."""
        return loss

    def metrics_result(
        self, model: Any, result: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Results of metrics over all replicas."""
        return result()

    def callbacks(self, user: list[Any]) -> list[Any]:
        """Callbacks that `fit` needs after the user's."""
        return []
