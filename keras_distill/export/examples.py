"""Examples for a LiteRT file, from whatever Keras takes as data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_distill.export.signature import TensorInfo


def as_examples(
    data: Any, input_names: Any, inputs: tuple[TensorInfo, ...]
) -> dict[str, np.ndarray]:
    """Arrays by the names of the file's inputs.

    Args:
        data: Arrays in the structure of the student's inputs, or a data set of
            such batches: `tf.data`, `PyDataset`, `DataLoader`, a generator. A
            batch that is a tuple is `(inputs, ...)`; the rest isn't used.
        input_names: The inputs' names, in the structure of the student's.
        inputs: The file's inputs.

    Raises:
        ValueError: If a shape or the structure isn't that of the inputs.
        TypeError: If an array would lose values as the input's dtype.
    """
    if is_arrays(data):
        batches = [_as_batch(data, input_names, inputs)]
    else:
        parts = map(keras.utils.unpack_x_y_sample_weight, _batches(data))
        batches = [_as_batch(x, input_names, inputs) for x, *_ in parts]
    if not batches or not len(next(iter(batches[0].values()))):
        raise ValueError(
            "There are no examples to run. Received: an empty data set. A "
            "generator that was used up is empty, too: pass a new one."
        )
    return {n: np.concatenate([b[n] for b in batches]) for n in batches[0]}


def require_finite(examples: dict[str, np.ndarray]) -> None:
    """Refuse examples of which nothing can be learned.

    Raises:
        ValueError: If a value is NaN or infinite.
    """
    for name, array in examples.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            finite = np.isfinite(array).reshape(len(array), -1).all(1)
            raise ValueError(
                f"Input '{name}' has values that are NaN or infinite. "
                f"Received: example {int(np.argmin(finite))} and "
                f"{int((~finite).sum()) - 1} others. Leave them out."
            )


def as_inputs_and_labels(data: Any) -> tuple[Any, Any]:
    """The inputs, and the labels or None, of data that may have some.

    Args:
        data: `(x, y)`, inputs alone, or a data set of such batches.
    """
    if isinstance(data, tuple):
        batches = [data]
    elif is_arrays(data):
        batches = [(data,)]
    else:
        batches = list(_batches(data))
    parts = [keras.utils.unpack_x_y_sample_weight(batch) for batch in batches]
    if not parts:
        raise ValueError(
            "There are no examples to run. Received: an empty data set. A "
            "generator that was used up is empty, too: pass a new one."
        )
    x = _concatenated([x for x, _, _ in parts])
    if any(y is None for _, y, _ in parts):
        return x, None
    return x, _concatenated([y for _, y, _ in parts])


def _concatenated(parts: list[Any]) -> Any:
    return keras.tree.map_structure(
        lambda *leaves: np.concatenate([_as_array(leaf) for leaf in leaves]),
        *parts,
    )


def is_arrays(data: Any) -> bool:
    """Whether data is arrays, rather than a data set that yields them."""
    if isinstance(data, list) and all(isinstance(v, tuple) for v in data):
        # Keras' inputs are in lists, and its batches are tuples.
        return False
    if isinstance(data, keras.utils.PyDataset):
        return False
    # An array of NumPy, or of whichever library the user has.
    shapes = [getattr(v, "shape", None) for v in keras.tree.flatten(data)]
    return all(shape is not None for shape in shapes)


def _batches(data: Any) -> Iterator[Any]:
    if isinstance(data, keras.utils.PyDataset):
        count = data.num_batches
        if count is None:
            raise ValueError(
                "A `PyDataset` without an end can't be run through. Received: "
                "num_batches=None. Pass one with a length."
            )
        return (data[i] for i in range(count))
    try:
        return iter(data)
    except TypeError as error:
        raise TypeError(
            "Examples are arrays in the structure of the student's inputs, or "
            f"a data set of such batches. Received: {type(data).__name__}."
        ) from error


def _as_batch(
    x: Any, input_names: Any, inputs: tuple[TensorInfo, ...]
) -> dict[str, np.ndarray]:
    # A file that was read knows lists only.
    keras.tree.assert_same_structure(_as_lists(input_names), _as_lists(x))
    arrays = [_as_array(leaf) for leaf in keras.tree.flatten(x)]
    return {
        info.name: as_input(array, info)
        for info, array in zip(inputs, arrays, strict=True)
    }


def _as_lists(structure: Any) -> Any:
    if isinstance(structure, dict):
        return {key: _as_lists(value) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        return [_as_lists(value) for value in structure]
    return structure


def _as_array(leaf: Any) -> np.ndarray:
    # A tensor may be on an accelerator, and NumPy can't take it from there.
    if keras.ops.is_tensor(leaf):
        leaf = keras.ops.convert_to_numpy(leaf)
    return np.asarray(leaf)


def as_input(array: np.ndarray, info: TensorInfo) -> np.ndarray:
    """An array as one that the file's input takes.

    Raises:
        ValueError: If its shape is another.
        TypeError: If it would lose values as the input's dtype.
    """
    if array.shape[1:] != info.shape[1:]:
        raise ValueError(
            f"The file's input '{info.name}' takes examples of shape "
            f"{info.shape[1:]}. Received: a batch of shape {array.shape}. "
            "Pass `(batch, *example)`."
        )
    return array.astype(info.dtype, casting="same_kind")
