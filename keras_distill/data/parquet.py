"""Examples in a `.parquet` file: images as bytes, or columns of numbers."""

from __future__ import annotations

import pathlib
from typing import Any, TypeAlias

import numpy as np

from keras_distill.data.examples import Examples, number_labels
from keras_distill.data.images import Images, require_pillow

Array: TypeAlias = "np.ndarray[Any, Any]"


def load_parquet(
    path: pathlib.Path,
    label: str | None,
    size: tuple[int, int] | None,
    channels: int | None,
) -> Examples:
    """Read a table: a column of labels, and those of the inputs.

    Args:
        path: The file.
        label: Name of the labels' column; `label`, if there is one.
        size: As for `Images`.
        channels: As for `Images`.

    Raises:
        ValueError: If it is no such file, or its columns aren't examples.
        ImportError: If pyarrow isn't there.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ImportError(
            "Parquet files are read by pyarrow. Received: no pyarrow. Run "
            "`pip install 'keras-distill[data]'`."
        ) from error
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        if not path.exists():
            raise
        raise ValueError(
            f"Examples come in a parquet file. Received: '{path}', "
            f"{type(error).__name__}: {error}"
        ) from error
    # pandas writes its index as a column, which is no input.
    index = (table.schema.pandas_metadata or {}).get("index_columns", [])
    columns = {
        name: table.column(name)
        for name in table.column_names
        if name not in index
    }
    for name, column in columns.items():
        if column.null_count:
            raise ValueError(
                "An example has all its values. Received: column "
                f"'{name}' of '{path}' with {column.null_count} empty ones."
            )
    if label is not None and label not in columns:
        raise ValueError(
            "There is no such column of labels. Received: "
            f"label={label!r}, and columns {', '.join(columns)} in '{path}'."
        )
    column = columns.pop(label or "label", None)
    labels, names = number_labels(
        None if column is None else np.array(column.to_pylist())
    )
    inputs = _inputs(path, columns, size, channels)
    return Examples(inputs, labels, names, str(path))


def _inputs(
    path: pathlib.Path,
    columns: dict[str, Any],
    size: tuple[int, int] | None,
    channels: int | None,
) -> Any:
    from pyarrow import types

    kinds = {name: column.type for name, column in columns.items()}
    if len(kinds) == 1:
        ((name, kind),) = kinds.items()
        values = columns[name].to_pylist()
        # As the `datasets` package stores images.
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            values = [value["bytes"] for value in values]
            if None in values:
                raise ValueError(
                    "An image of a table is in it. Received: row "
                    f"{values.index(None)} of '{path}' without any bytes."
                )
            kind = kind.field("bytes").type
        if types.is_binary(kind) or types.is_large_binary(kind):
            require_pillow()
            return Images(values, size, channels)
        _refuse_size(path, size)
        lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
        if not any(is_one(kind) for is_one in lists):
            values = [[value] for value in values]
        return _rows(path, values)
    numbers = all(
        types.is_integer(kind) or types.is_floating(kind)
        for kind in kinds.values()
    )
    if not kinds or not numbers:
        raise ValueError(
            "The inputs are one column of images or lists, or several of "
            f"numbers. Received: '{path}' with columns "
            f"{', '.join(f'{n} ({kind})' for n, kind in kinds.items())}. Write "
            "a file without the others, or name the column of labels."
        )
    _refuse_size(path, size)
    return np.stack([c.to_numpy() for c in columns.values()], axis=-1)


def _rows(path: pathlib.Path, values: list[Any]) -> Array:
    try:
        rows = np.array(values)
    except ValueError as error:
        raise ValueError(
            f"Examples have one shape. Received: '{path}': {error}"
        ) from error
    if rows.dtype.kind not in "biuf":
        raise ValueError(
            f"Inputs are numbers or images. Received: '{path}' with a column "
            f"of {rows.dtype}."
        )
    return rows


def _refuse_size(path: pathlib.Path, size: tuple[int, int] | None) -> None:
    if size is not None:
        raise ValueError(
            "Images can be resized, and numbers can't. Received: size="
            f"{size} for '{path}', which holds no images. Leave it out."
        )
