"""The examples that a teacher speaks about, by number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_distill.cache.fingerprints import arrays_digest, spread_rows

Array: TypeAlias = "np.ndarray[Any, Any]"


class TransferSet:
    """Arrays whose first axis numbers the examples.

    Args:
        inputs: An array, or a list, tuple or dict of them. A `numpy.memmap`
            stays on disk; what isn't NumPy's is read into memory.
        labels: The same for hard labels, or `None`.
        sample_weight: An array, or `None`.

    Raises:
        ValueError: If there is nothing, or not as much of each.

    Example:
        >>> import numpy as np
        >>> data = TransferSet(np.zeros((6, 2)), np.arange(6))
        >>> data.size
        6
        >>> [int(y) for y in data.take(np.array([4, 1]))[1]]
        [4, 1]
    """

    def __init__(
        self, inputs: Any, labels: Any = None, sample_weight: Any = None
    ) -> None:
        self.parts = tuple(
            keras.tree.map_structure(_as_array, part)
            for part in (inputs, labels, sample_weight)
        )
        arrays = [a for a in keras.tree.flatten(self.parts) if a is not None]
        sizes = {len(array) if array.shape else 0 for array in arrays}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                "A transfer set's arrays have one row for each example. "
                f"Received: arrays of {sorted(sizes)} rows. Pass arrays of as "
                "many rows, at least one."
            )
        self.size = sizes.pop()

    def take(self, ids: Array) -> tuple[Any, Any, Any]:
        """Inputs, labels and sample weights of some examples."""
        inputs, labels, weights = self.parts
        return _take(inputs, ids), _take(labels, ids), _take(weights, ids)

    def inputs(self, ids: Array) -> Any:
        """Inputs of some examples."""
        return _take(self.parts[0], ids)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Size, and a digest of the inputs of examples spread over all."""
        arrays = keras.tree.flatten(self.parts[0])
        row_bytes = sum(
            array.dtype.itemsize * int(np.prod(array.shape[1:]))
            for array in arrays
        )
        rows = spread_rows(self.size, row_bytes)
        return {
            "size": self.size,
            "rows": len(rows),
            "sha256": arrays_digest(self.inputs(rows)),
        }


def as_transfer_set(data: Any) -> TransferSet | None:
    """Random access to data that has it, else `None`: it can be run through.

    Raises:
        TypeError: If it is no data at all.
    """
    if isinstance(data, TransferSet):
        return data
    if isinstance(data, (dict, list)) or is_array(data):
        return TransferSet(data)
    if isinstance(data, tuple):
        if not 1 <= len(data) <= 3:
            raise TypeError(
                "Data come as (inputs,), (inputs, labels) or (inputs, labels, "
                f"sample_weight). Received: a tuple of {len(data)}. Pass "
                "several inputs as a list or a dict."
            )
        return TransferSet(*data)
    if isinstance(data, (Iterable, keras.utils.PyDataset)):
        return None
    raise TypeError(
        "A transfer set is arrays, (inputs, labels), or something that gives "
        f"batches. Received: {data!r} of type {type(data).__name__}. Pass "
        "NumPy arrays, a keras.utils.PyDataset, a tf.data.Dataset, a Grain "
        "data set or a DataLoader."
    )


def batches_of(data: Any) -> Iterator[Any]:
    """The inputs of each batch of something that gives batches.

    Raises:
        ValueError: If batches number their examples in another order.
    """
    count = 0
    if isinstance(data, keras.utils.PyDataset):
        items: Any = (data[i] for i in range(len(data)))
    else:
        items = iter(data)
    for item in items:
        first = item[0] if type(item) in (tuple, list) else item
        inputs = first.inputs if _is_transfer_batch(first) else first
        size = len(keras.tree.flatten(inputs)[0])
        if _is_transfer_batch(first) and first.sample_ids is not None:
            ids = np.ravel(_as_array(first.sample_ids))
            if not np.array_equal(ids, np.arange(count, count + size)):
                raise ValueError(
                    "A cache numbers examples in the order in which they are "
                    f"labelled. Received: sample_ids {ids[:5].tolist()}... "
                    f"where {count} comes next. Label in the order of the "
                    "numbers, without shuffling."
                )
        count += size
        yield keras.tree.map_structure(_as_array, inputs)


def _is_transfer_batch(value: Any) -> bool:
    from keras_distill.features import TransferBatch

    return isinstance(value, TransferBatch)


def _take(structure: Any, ids: Array) -> Any:
    return keras.tree.map_structure(
        lambda array: None if array is None else np.asarray(array[ids]),
        structure,
    )


def is_array(value: Any) -> bool:
    """Whether something is an array of rows, whoever's class it is of."""
    try:
        return len(value.shape) > 0 and value.dtype is not None
    except (AttributeError, TypeError):
        return False


def _as_array(value: Any) -> Any:
    """An array of rows, as it is where it is one: it may be on disk."""
    if value is None or isinstance(value, np.ndarray):
        return value
    if is_array(value):
        return keras.ops.convert_to_numpy(value)
    return np.asarray(value)
