"""Examples that can be had by number, and batches of them."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_distill.distribution.batches import GlobalBatches
from keras_distill.features import TransferBatch

Array: TypeAlias = "np.ndarray[Any, Any]"


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """What `load_data` returns: inputs, and labels where there are some.

    Attributes:
        inputs: An array, or a dict of arrays by the inputs' names. What lies
            on disk stays there, and is read by `inputs[numbers]`.
        labels: Class numbers, one-hot rows or other targets; None without.
        class_names: Names of the classes, in the order of their numbers; empty
            where they have none.
        source: What was loaded.
        part: Which part of it, such as `"test"`; empty where it has none.

    Raises:
        ValueError: If there are no examples, or not as many of each.

    Example:
        >>> data = Examples(np.zeros((5, 2)), np.arange(5))
        >>> first, rest = data.split(0.4, seed=0)
        >>> len(first), len(rest)
        (2, 3)
        >>> x, y = first.batches(8)[0]
        >>> x.shape, y.shape
        ((2, 2), (2,))
    """

    inputs: Any
    labels: Array | None = None
    class_names: tuple[str, ...] = ()
    source: str = ""
    part: str = ""

    def __post_init__(self) -> None:
        sizes = {len(array) for array in keras.tree.flatten(self.inputs)}
        if self.labels is not None:
            sizes.add(len(self.labels))
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                "Inputs and labels have one row for each example. Received: "
                f"arrays of {sorted(sizes)} rows from '{self.source}'."
            )

    def __len__(self) -> int:
        return len(keras.tree.flatten(self.inputs)[0])

    def take(self, numbers: Array) -> Examples:
        """Some of the examples; what lies on disk stays there."""
        return dataclasses.replace(
            self,
            inputs=keras.tree.map_structure(
                lambda array: rows_of(array, numbers), self.inputs
            ),
            labels=None if self.labels is None else self.labels[numbers],
        )

    def arrays(self) -> tuple[Any, Array | None]:
        """Inputs and labels, read into memory."""
        return keras.tree.map_structure(np.asarray, self.inputs), self.labels

    def split(self, share: float, seed: int) -> tuple[Examples, Examples]:
        """A share of the examples, drawn at random, and the others.

        Args:
            share: Above 0 and below 1.
            seed: What is drawn follows from it.

        Raises:
            ValueError: If one of the two would be empty.
        """
        count = round(share * len(self))
        if not 0 < count < len(self):
            raise ValueError(
                "Both parts of a split hold examples. Received: share="
                f"{share} of {len(self)} examples. Pass a number between 0 "
                "and 1 that leaves some to both."
            )
        order = np.random.default_rng(seed).permutation(len(self))
        # Sorted: what lies on disk is read from front to back.
        return (
            self.take(np.sort(order[:count])),
            self.take(np.sort(order[count:])),
        )

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        numbered: bool = False,
    ) -> Batches:
        """A data set for `fit`, `evaluate` and `predict`.

        Args:
            batch_size: Examples in a batch; the last one has what is left.
            shuffle: Whether each epoch has an order of its own.
            seed: What the orders follow from.
            numbered: Whether batches are `TransferBatch`es with the examples'
                numbers, for losses that keep something for each.
        """
        return Batches(self, batch_size, shuffle, seed, numbered)


class Batches(GlobalBatches):
    """What `Examples.batches` returns."""

    def __init__(
        self,
        data: Examples,
        batch_size: int,
        shuffle: bool,
        seed: int,
        numbered: bool,
    ) -> None:
        super().__init__(len(data), batch_size, shuffle, seed, 0, 1)
        self.data = data
        self.numbered = numbered

    def examples(self, ids: Array, epoch: int) -> tuple[Any, Any, Any]:
        """Inputs and labels of some examples."""
        inputs, labels = self.data.take(ids).arrays()
        if self.numbered:
            inputs = TransferBatch(inputs, sample_ids=ids)
        return inputs, labels, None


class Rows:
    """Some rows of what is read when it is indexed.

    Args:
        array: What has `shape`, `dtype` and takes numbers in brackets.
        numbers: Which rows.
    """

    def __init__(self, array: Any, numbers: Array) -> None:
        self._array = array
        self._numbers = numbers
        self.dtype = array.dtype
        self.shape = (len(numbers), *array.shape[1:])

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, numbers: Any) -> Array:
        """Read some of the rows."""
        return np.asarray(self._array[self._numbers[numbers]])

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        """Read all rows."""
        return self[:] if dtype is None else self[:].astype(dtype)


def rows_of(array: Any, numbers: Array) -> Any:
    """Rows of an array in memory, or a view of those of another."""
    if type(array) is np.ndarray:
        return array[numbers]
    return Rows(array, numbers)


def number_labels(labels: Array | None) -> tuple[Array | None, tuple[str, ...]]:
    """Labels as numbers: of words, their places in order; and these words."""
    if labels is None or labels.dtype.kind != "U":
        return labels, ()
    names, numbers = np.unique(labels, return_inverse=True)
    return numbers, tuple(map(str, names))
