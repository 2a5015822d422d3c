"""Examples for a LiteRT file, from whatever Keras takes as data."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_distill.export.signature import TensorInfo
from keras_distill.model_graphs import has_graph, id_limits, layers_of

# More arrays than these of a list say nothing new in a message.
_SHOWN = 3


class Examples(NamedTuple):
    """Examples that were read.

    Attributes:
        arrays: Arrays by the names of the file's inputs.
        x: The same arrays, in the structure that they came in.
        y: The labels, or None.
        weighted: Whether examples have different weights, which nothing here
            counts by.
    """

    arrays: dict[str, np.ndarray]
    x: Any
    y: Any
    weighted: bool = False


def as_examples(
    data: Any,
    input_names: Any,
    inputs: tuple[TensorInfo, ...],
    student: keras.Model | None = None,
) -> dict[str, np.ndarray]:
    """Arrays by the names of the file's inputs; `read_examples` for the rest.

    Raises:
        ValueError: If a shape, a value or the structure isn't that of the
            inputs.
        TypeError: If an array would lose values as the input's dtype.
    """
    return read_examples(data, input_names, inputs, student).arrays


def read_examples(
    data: Any,
    input_names: Any,
    inputs: tuple[TensorInfo, ...],
    student: keras.Model | None = None,
) -> Examples:
    """All examples in some data, with their labels if there are any.

    Args:
        data: A batch: arrays in the structure of the student's inputs, or a
            tuple `(inputs, labels)`. Or batches: a list, `tf.data`,
            `PyDataset`, `DataLoader`, a generator, or a function that returns
            one.
        input_names: The inputs' names, in the structure of the student's.
        inputs: The file's inputs.
        student: The student, if integers that its floats may not be meant for
            are worth a warning.

    Raises:
        ValueError: If a shape, a value or the structure isn't that of the
            inputs.
        TypeError: If an array would lose values as the input's dtype.
    """
    batches = _batches(data, input_names)
    rows = [_as_row(batch.x, inputs) for batch in batches]
    if not rows or not sum(len(row[inputs[0].name]) for row in rows):
        raise ValueError(
            "There are no examples to run. Received: an empty data set. A "
            "generator that was used up is empty, too: pass a new one."
        )
    given = {n: np.concatenate([row[n] for row in rows]) for n in rows[0]}
    if student is not None and not _scales_inputs(student):
        _warn_of_integers(given, _without_ids(student, inputs))
    arrays = {info.name: as_input(given[info.name], info) for info in inputs}
    # A file that was read knows lists only, and a student may want a tuple.
    x = keras.tree.pack_sequence_as(batches[0].x, list(arrays.values()))
    labels = [batch.y for batch in batches]
    y = None if any(y is None for y in labels) else _concatenated(labels)
    return Examples(arrays, x, y, _are_weighted(batches))


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


def _concatenated(labels: list[Any]) -> Any:
    return keras.tree.map_structure(
        lambda *leaves: np.concatenate([as_array(leaf) for leaf in leaves]),
        *map(_without_numbers, labels),
    )


def _without_numbers(labels: Any) -> Any:
    """Labels in which a list of numbers is an array."""
    if isinstance(labels, list) and not any(
        is_array(leaf) for leaf in keras.tree.flatten(labels)
    ):
        return np.asarray(labels)
    return labels


def is_array(leaf: Any) -> bool:
    """Whether data is an array, rather than a data set that yields some."""
    if isinstance(leaf, keras.utils.PyDataset):
        return False
    # An array of NumPy, or of whichever library the user has.
    return getattr(leaf, "shape", None) is not None


def _fits(x: Any, names: Any) -> bool:
    """Whether arrays are in the structure of the inputs."""
    if isinstance(names, dict):
        return (
            isinstance(x, dict)
            and x.keys() == names.keys()
            and all(_fits(x[key], names[key]) for key in names)
        )
    if isinstance(names, list | tuple):
        # A file that was read knows lists only.
        return (
            isinstance(x, list | tuple)
            and len(x) == len(names)
            and all(map(_fits, x, names))
        )
    return is_array(x)


class _Batch(NamedTuple):
    x: Any
    y: Any = None
    weights: Any = None


def _split(batch: Any, names: Any) -> _Batch | None:
    """A batch's inputs and labels; None if it is no batch of the student's."""
    x = _structured(batch, names)
    if _fits(x, names):
        return _Batch(x)
    # A `DataLoader` has lists in the place of tuples.
    is_row = isinstance(batch, list | tuple) and 0 < len(batch) <= 3
    x, *others = batch if is_row else (batch,)
    x = _structured(x, names)
    return _Batch(x, *others) if _fits(x, names) else None


def _are_weighted(batches: list[_Batch]) -> bool:
    """Whether some examples count for more than others."""
    weights = keras.tree.flatten([batch.weights for batch in batches])
    arrays = [np.ravel(as_array(w)) for w in weights if w is not None]
    return len(np.unique(np.concatenate(arrays))) > 1 if arrays else False


def _structured(x: Any, names: Any) -> Any:
    """Arrays in the structure of the inputs, where Keras would find it, too."""
    if isinstance(names, list | tuple):
        if isinstance(x, dict) and x.keys() == set(keras.tree.flatten(names)):
            return keras.tree.map_structure(x.__getitem__, names)
        return [x] if len(names) == 1 and is_array(x) else x
    if not isinstance(names, str) or is_array(x) or not keras.tree.is_nested(x):
        return x
    if isinstance(x, dict):
        return x.get(names, x) if len(x) == 1 else x
    return x[0] if len(x) == 1 and is_array(x[0]) else x


def _batches(data: Any, names: Any) -> list[_Batch]:
    """The inputs and labels of each batch in some data."""
    if callable(data) and not is_array(data):
        # As TensorFlow Lite has it: a function that returns a generator.
        data = data()
    # In a list are batches, and not inputs and labels.
    if is_array(data) or isinstance(data, dict | tuple) or _fits(data, names):
        return [_as_batch(data, data, names)]
    if isinstance(data, list):
        return [_as_batch(batch, data, names) for batch in data]
    return [_as_batch(batch, batch, names) for batch in _iterate(data)]


def _as_batch(batch: Any, data: Any, names: Any) -> _Batch:
    found = _split(batch, names)
    if found is None:
        wanted = str(names).replace("'", "")
        raise ValueError(
            "The data isn't in the structure of the student's inputs. "
            f"Received: {_describe(data)} for inputs {wanted}. Pass arrays in "
            "that structure, a tuple of them and labels, or a data set of such "
            "batches."
        )
    return found


def _iterate(data: Any) -> Iterator[Any]:
    if isinstance(data, keras.utils.PyDataset):
        count = data.num_batches
        if count is None:
            raise ValueError(
                "A `PyDataset` without an end can't be run through. Received: "
                "num_batches=None. Pass one with a length."
            )
        return (data[i] for i in range(count))
    try:
        return iter(_require_end(data))
    except TypeError as error:
        raise TypeError(
            "Examples are arrays in the structure of the student's inputs, or "
            f"a data set of such batches. Received: {type(data).__name__}."
        ) from error


def _require_end(data: Any) -> Any:
    """Refuse a `tf.data.Dataset` that repeats for ever."""
    # Whoever has made one has imported TensorFlow; nobody else needs it here.
    tf = sys.modules.get("tensorflow")
    if tf is None or not isinstance(data, tf.data.Dataset):
        return data
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "A data set without an end can't be run through. Received: "
            f"{type(data).__name__} that repeats for ever. Pass "
            "data.take(batches)."
        )
    return data


def _describe(data: Any) -> str:
    """Data's structure, with dtypes and shapes in the place of arrays."""
    if isinstance(data, dict):
        parts = [f"{key!r}: {_describe(data[key])}" for key in data]
        return "{" + ", ".join(parts) + "}"
    if isinstance(data, list | tuple):
        parts = [_describe(value) for value in data[:_SHOWN]]
        if len(data) > _SHOWN:
            parts.append(f"... {len(data)} in all")
        text = ", ".join(parts)
        return f"[{text}]" if isinstance(data, list) else f"({text})"
    if is_array(data):
        return f"{data.dtype} {tuple(data.shape)}"
    return type(data).__name__


def _as_row(x: Any, inputs: tuple[TensorInfo, ...]) -> dict[str, np.ndarray]:
    """A batch's arrays by name, in the dtypes that they came in."""
    arrays = [as_array(leaf) for leaf in keras.tree.flatten(x)]
    row = {}
    for info, array in zip(inputs, arrays, strict=True):
        _require_shape(array, info)
        row[info.name] = array
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(
            "Each example has all inputs. Received: "
            f"{ {name: len(array) for name, array in row.items()} } examples."
        )
    return row


def _require_shape(array: np.ndarray, info: TensorInfo) -> None:
    example = info.shape[1:]
    if array.shape == example:
        raise ValueError(
            f"The file's input '{info.name}' takes batches of examples. "
            f"Received: a single example of shape {array.shape}. Pass "
            "`x[None]`, or of a data set the batches, such as `data.batch(32)`."
        )
    if array.shape[1:] != example:
        raise ValueError(
            f"The file's input '{info.name}' takes examples of shape "
            f"{example}. Received: a batch of shape {array.shape}. "
            "Pass `(batch, *example)`."
        )


def as_array(leaf: Any) -> np.ndarray:
    """A tensor of any backend, or what NumPy takes, as an array."""
    # A tensor may be on an accelerator, and NumPy can't take it from there.
    if keras.ops.is_tensor(leaf):
        leaf = keras.ops.convert_to_numpy(leaf)
    return np.asarray(leaf)


def as_input(array: np.ndarray, info: TensorInfo) -> np.ndarray:
    """An array as one that the file's input takes.

    Raises:
        ValueError: If a value doesn't fit into the input's dtype.
        TypeError: If it would lose values as the input's dtype.
    """
    if array.dtype.kind in "biu" and np.dtype(info.dtype).kind in "iu":
        limits = np.iinfo(info.dtype)
        lowest, highest = int(array.min()), int(array.max())
        if lowest < limits.min or highest > limits.max:
            raise ValueError(
                f"The file's input '{info.name}' is {info.dtype}, from "
                f"{limits.min} to {limits.max}. Received: {array.dtype} values "
                f"from {lowest} to {highest}. Pass values that fit."
            )
    elif not np.can_cast(array.dtype, info.dtype, "same_kind"):
        raise TypeError(
            f"The file's input '{info.name}' is {info.dtype}. Received: an "
            f"array of {array.dtype}, which would lose values. Pass "
            f"{info.dtype}."
        )
    return array.astype(info.dtype)


def _scales_inputs(student: keras.Model) -> bool:
    scaling = keras.layers.Rescaling | keras.layers.Normalization
    return any(isinstance(layer, scaling) for layer in layers_of(student))


def _without_ids(
    student: keras.Model, inputs: tuple[TensorInfo, ...]
) -> tuple[TensorInfo, ...]:
    """The inputs that aren't looked up in a table."""
    if not has_graph(student):
        return inputs
    limits = zip(inputs, id_limits(student), strict=True)
    return tuple(info for info, limit in limits if limit is None)


def _warn_of_integers(
    arrays: dict[str, np.ndarray], inputs: tuple[TensorInfo, ...]
) -> None:
    """Tell of integers for floats: images that weren't scaled, most often."""
    for info in inputs:
        array = arrays[info.name]
        is_float = np.dtype(info.dtype).kind == "f"
        # 0 and 1 are flags, which nobody scales.
        if is_float and array.dtype.kind in "iu" and array.max() > 1:
            warnings.warn(
                f"Input '{info.name}' takes floats, and these are integers. "
                f"Received: {array.dtype} from {array.min()} to {array.max()}. "
                "If the student learned from scaled values, scale these alike, "
                'such as `x / 255`; if not, pass `x.astype("float32")`.',
                stacklevel=4,
            )
