"""Files that commands read and write, with errors before any work."""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_distill.cli.arguments import UsageError
from keras_distill.data import Examples, load_data
from keras_distill.export.keras_file import load_keras
from keras_distill.export.placing import staged, target_of
from keras_distill.features import (
    input_names,
    select_inputs,
    symbolic_inputs,
    symbolic_output,
)

Array: TypeAlias = "np.ndarray[Any, Any]"

# How many examples are looked at at a time.
_ROWS = 1024


def load_model(path: pathlib.Path, who: str) -> keras.Model:
    """The model in a `.keras` file.

    Raises:
        ValueError: If it can't be loaded.
    """
    if path.suffix != ".keras":
        raise ValueError(
            f"The {who} is a .keras file. Received: '{path}'. Save the model "
            'with model.save("name.keras").'
        )
    return load_keras(path)


def save_model(model: keras.Model, path: pathlib.Path) -> None:
    """Write a model, whole or not at all."""
    target = target_of(path)
    with staged(target.parent) as folder:
        model.save(folder / target.name)


def require_writable(
    path: pathlib.Path, suffixes: Sequence[str], force: bool
) -> None:
    """Raise where a file can't be written, before there is something to write.

    Raises:
        ValueError: If its name ends in something else.
        FileExistsError: If it is there.
        OSError: If its folder isn't there, or can't be written to.
    """
    if path.suffix not in suffixes:
        raise ValueError(
            f"The file's name ends in {' or '.join(suffixes)}. Received: "
            f"'{path}'."
        )
    if path.is_dir():
        raise IsADirectoryError(
            f"A folder lies where the file is to be. Received: '{path}'."
        )
    if path.exists() and not force:
        raise FileExistsError(
            f"There is such a file. Received: '{path}'. Pass --force to "
            "replace it, or another name."
        )
    folder = target_of(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder to write to. Received: '{path}'. Make it "
            "first."
        )
    try:
        # A right that the system grants may still be refused by the disk.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PermissionError(
            f"The folder can't be written to. Received: '{path}': "
            f"{error.strerror}."
        ) from error


def require_cache_folder(path: pathlib.Path) -> None:
    """Raise where a cache would lie among other files, such as the images.

    Raises:
        ValueError: If it would.
    """
    if not path.exists():
        return
    others = path.is_file() or [
        file for file in path.iterdir() if not file.name.startswith(".")
    ]
    if others and not (path / "plan.json").exists():
        raise ValueError(
            f"A cache has a folder of its own. Received: '{path}', which "
            "holds something else. Pass another name."
        )


def read_data(
    parsed: argparse.Namespace,
    source: str,
    split: str | None,
    model: keras.Model,
    who: str,
) -> Examples:
    """Data for a model, checked against its inputs.

    Args:
        parsed: The arguments of `add_data_options`.
        source: What to load.
        split: Part of it.
        model: What it is for.
        who: What the model is, for errors.

    Raises:
        ValueError: If the model can't take them.
    """
    height, width, channels = _image_shape(model)
    size = None
    if parsed.resize:
        if height is None or width is None:
            raise ValueError(
                "Images are resized to the size that the model takes. "
                f"Received: --resize, and '{model.name}', which takes images "
                "of any size, or none. Leave it out."
            )
        size = (height, width)
    path = pathlib.Path(source)
    has_images = path.is_dir() or path.suffix == ".parquet"
    examples = load_data(
        source,
        split,
        label=parsed.labels,
        size=size,
        channels=channels if has_images and channels in (1, 3, 4) else None,
        scale=parsed.scale,
        data_dir=parsed.data_dir,
    )
    require_inputs(model, who, examples)
    require_finite(examples)
    return examples


def require_chosen_part(parsed: argparse.Namespace, data: Examples) -> None:
    """Raise where training examples would judge because nobody said which.

    Raises:
        UsageError: If data have parts, and none was chosen.
    """
    if data.part and parsed.split is None:
        raise UsageError(
            "These data have parts, and what judges is better none that "
            f"something was learned from. Received: '{data.source}' without "
            "--split. Pass --split test, or another part."
        )


def require_finite(examples: Examples) -> None:
    """Raise where one example would make the whole training NaN.

    Raises:
        ValueError: If an input isn't finite.
    """
    for array in keras.tree.flatten(examples.inputs):
        if array.dtype.kind != "f":
            continue
        # In parts: it may be a file that is larger than memory.
        for start in range(0, len(array), _ROWS):
            rows = np.asarray(array[start : start + _ROWS])
            finite = np.isfinite(rows).reshape(len(rows), -1).all(1)
            if not finite.all():
                raise ValueError(
                    "Inputs are finite numbers. Received: NaN or infinity in "
                    f"example {start + finite.argmin()} of "
                    f"'{examples.source}'. Leave such examples out."
                )


def _image_shape(
    model: keras.Model,
) -> tuple[int | None, int | None, int | None]:
    """Height, width and channels of a model of images; else None."""
    inputs = keras.tree.flatten(symbolic_inputs(model))
    if len(inputs) != 1 or inputs[0] is None or len(inputs[0].shape) != 4:
        return None, None, None
    _, height, width, channels = inputs[0].shape
    return height, width, channels


def require_inputs(model: keras.Model, who: str, examples: Examples) -> None:
    """Raise where a model can't take the inputs.

    Raises:
        ValueError: If their number, shapes or dtypes aren't the model's.
    """
    wanted = symbolic_inputs(model)
    if wanted is None:  # a subclassed model, which doesn't tell
        return
    specs = keras.tree.flatten(wanted)
    arrays = keras.tree.flatten(select_inputs(model, examples.inputs))
    names = input_names(model) or [str(i) for i in range(len(specs))]
    if len(specs) != len(arrays):
        raise ValueError(
            f"The {who} '{model.name}' has {len(specs)} inputs. Received: "
            f"{len(arrays)} array(s) from '{examples.source}'. Save them by "
            "the inputs' names: np.savez(path, y=labels, "
            f"{', '.join(f'{name}=...' for name in names)})."
        )
    for spec, array in zip(specs, arrays, strict=True):
        given = tuple(array.shape[1:])
        if not _fits(tuple(spec.shape[1:]), given):
            hint = " Pass --resize for images of files." * (len(given) == 3)
            raise ValueError(
                f"The {who} '{model.name}' takes examples of shape "
                f"{tuple(spec.shape[1:])}. Received: examples of shape "
                f"{given} from '{examples.source}'.{hint}"
            )
        if array.dtype.kind not in "biuf":
            raise ValueError(
                f"A model takes numbers. Received: inputs of {array.dtype} "
                f"from '{examples.source}'."
            )
        if "int" in spec.dtype and array.dtype.kind == "f":
            raise ValueError(
                f"The {who} '{model.name}' takes {spec.dtype}, and Keras would "
                f"cut fractions off. Received: {array.dtype} from "
                f"'{examples.source}'."
            )


def _fits(wanted: tuple[int | None, ...], given: tuple[int, ...]) -> bool:
    # As Keras does, whatever the last axis, if it is one.
    shapes = {given, (*given, 1), given[:-1] if given[-1:] == (1,) else given}
    return any(
        len(wanted) == len(shape)
        and all(w in (None, g) for w, g in zip(wanted, shape, strict=True))
        for shape in shapes
    )


def arrays_for(model: keras.Model, examples: Examples) -> Any:
    """The inputs in memory, in a model's own structure and shapes."""
    chosen = select_inputs(model, examples.inputs)
    arrays = keras.tree.map_structure(np.asarray, chosen)
    wanted = symbolic_inputs(model)
    if wanted is None:
        return arrays

    def shaped(spec: Any, array: Array) -> Array:
        # A last axis of one is one that Keras adds or takes away itself.
        if array.ndim < len(spec.shape):
            return array[..., None]
        return array[..., 0] if array.ndim > len(spec.shape) else array

    flat = zip(
        keras.tree.flatten(wanted), keras.tree.flatten(arrays), strict=True
    )
    return keras.tree.pack_sequence_as(arrays, [shaped(*one) for one in flat])


def classes_of(model: keras.Model) -> int | None:
    """How many classes a classifier with one output tells apart, else None."""
    output = symbolic_output(model)
    if output is None or keras.tree.is_nested(output):
        return None
    size = output.shape[-1]
    return 2 if size == 1 else size


def require_labels(model: keras.Model, who: str, examples: Examples) -> None:
    """Raise where labels are no classes of a model's.

    Raises:
        ValueError: If they aren't.
    """
    classes, labels = classes_of(model), examples.labels
    if classes is None or labels is None:
        return
    shape = symbolic_output(model).shape
    if labels.dtype.kind not in "biuf":
        raise ValueError(
            "Labels are numbers of classes, or one-hot rows. Received: labels "
            f"of {labels.dtype} from '{examples.source}'."
        )
    knows = f"The {who} '{model.name}' tells {classes} classes apart"
    names = len(examples.class_names)
    if names not in (0, classes):
        raise ValueError(
            f"{knows}. Received: {names} classes from '{examples.source}'."
        )
    if labels.ndim < len(shape) or labels.shape[-1] == 1:
        whole = bool((labels == np.round(labels)).all())
        if labels.min() < -1 or labels.max() >= classes or not whole:
            raise ValueError(
                f"{knows}, and labels are numbers from 0 to {classes - 1}, or "
                f"-1 for none. Received: labels from {labels.min()} to "
                f"{labels.max()} from '{examples.source}'."
            )
    elif labels.shape[-1] != shape[-1]:
        raise ValueError(
            f"{knows}. Received: labels of {labels.shape[-1]} columns from "
            f"'{examples.source}'."
        )
