"""The inputs and outputs of a LiteRT file, as its student tells them."""

from __future__ import annotations

import contextlib
import re
from typing import Any, NamedTuple

import keras

from keras_distill.model_graphs import has_graph, id_limits, layers_of


class TensorInfo(NamedTuple):
    """An input or output of a LiteRT file.

    Attributes:
        name: Its name in the file's signature.
        shape: Its shape, with the batch size first; None is any.
        dtype: Its NumPy dtype's name.
        scale: Of a quantised tensor, the float that an integer step stands for.
        zero_point: Of a quantised tensor, the integer that stands for 0.0.

    Example:
        >>> TensorInfo("image", (1, 32, 32, 3), "float32").name
        'image'
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None


def describe_inputs(
    student: keras.Model, batch_size: int | None
) -> tuple[Any, tuple[TensorInfo, ...]]:
    """What the file's inputs will be, with a batch size of its own or any.

    Returns:
        The inputs' names in the structure of the student's inputs, and the
        inputs in the order of that structure's leaves.
    """
    tensors = _symbolic_inputs(student)
    names = name_tensors(tensors, "input")
    flat = zip(
        keras.tree.flatten(names), keras.tree.flatten(tensors), strict=True
    )
    return names, tuple(
        _describe_input(name, tensor, batch_size) for name, tensor in flat
    )


def _describe_input(
    name: str, tensor: keras.KerasTensor, batch_size: int | None
) -> TensorInfo:
    batch, *shape = tensor.shape
    if None in shape:
        raise ValueError(
            "An exported file has examples of one shape. Received: input "
            f"'{name}' of shape {tensor.shape}. Give the student one shape: "
            "`keras.Sequential([keras.Input((224, 224, 3)), student])`."
        )
    if batch not in (None, batch_size):
        raise ValueError(
            f"The student has a batch of {batch}. Received: input '{name}' of "
            f"shape {tensor.shape} and batch_size={batch_size}. Pass "
            f"batch_size={batch}, or build the student without one."
        )
    if tensor.dtype == "string":
        raise ValueError(
            "An exported file doesn't read text. Received: input "
            f"'{name}' of dtype string. Export the part of the student that "
            "takes token ids."
        )
    return TensorInfo(name, (batch_size, *shape), float32_name(tensor.dtype))


def _symbolic_inputs(student: keras.Model) -> Any:
    if isinstance(student, keras.Sequential):
        return student.inputs[0]
    # A Functional model has it, and a subclassed one that was called on
    # symbolic inputs.
    with contextlib.suppress(AttributeError, ValueError):
        return student.input
    shape = (student.get_build_config() or {}).get("input_shape")
    has_ids = any(
        isinstance(v, keras.layers.Embedding) for v in layers_of(student)
    )
    if shape is None or has_ids:
        raise ValueError(
            "Keras doesn't know all inputs of a subclassed model: not those "
            "after the first argument, and not that an Embedding takes "
            f"integers. Received: student='{student.name}'. Wrap it: `inputs = "
            'keras.Input((128,), dtype="int32")`, then `keras.Model(inputs, '
            "student(inputs))`."
        )
    return keras.tree.map_shape_structure(
        lambda s: keras.KerasTensor((None, *s[1:]), "float32"), shape
    )


def name_tensors(structure: Any, prefix: str) -> Any:
    """The structure with a name in the place of each tensor.

    Names are the user's: keys of a dict, names of `keras.Input`. Keras' own
    names count up with the session, so tensors without a name get a position.
    """
    wanted: list[str] = []
    names: list[str] = []
    for path, tensor in keras.tree.flatten_with_path(structure):
        name = "_".join(key for key in path if isinstance(key, str))
        if not name and isinstance(tensor, keras.KerasTensor):
            name = re.sub(r"^keras_tensor(_\d+)?$", "", tensor.name)
        name = re.sub(r"\W", "_", name)
        # A runner of Python takes the inputs as arguments of a method.
        wanted.append("self_" if name == "self" else name)
    for i, name in enumerate(wanted):
        # A made-up name mustn't be one that the user gave another tensor.
        free = f"{prefix}_{i}"
        while free in wanted or free in names:
            free += "_"
        names.append(free if name in ["", *names] else name)
    return keras.tree.pack_sequence_as(structure, names)


def float32_name(name: str) -> str:
    """The name of a dtype or policy, with float32 for every other float."""
    floats = {"float16", "bfloat16", "float64"}
    policies = {"mixed_float16", "mixed_bfloat16"}
    return "float32" if name in floats | policies else name


def require_whole_ids(student: keras.Model) -> None:
    """Refuse inputs that would become integers, but are ids in floats.

    Raises:
        ValueError: If there is one.
    """
    limits = id_limits(student) if has_graph(student) else []
    for number, limit in enumerate(limits):
        tensor = student.inputs[number]
        if limit is not None and keras.backend.is_float_dtype(tensor.dtype):
            raise ValueError(
                "Floats that are ids of an Embedding can't become integers of "
                f"8 bits. Received: integer_io=True, input '{tensor.name}' of "
                f"{tensor.dtype}. Begin the student with `keras.Input(..., "
                "dtype='int32')`, which stays as it is."
            )
