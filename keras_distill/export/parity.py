"""Whether a LiteRT file returns what Keras returns."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_distill.export.signature import TensorInfo
from keras_distill.model_graphs import has_graph, id_limits, layers_of

# Largest difference between the file and Keras, relative to the output's range.
# What converted well was seen to stay below 2e-5.
_TOLERANCE = 1e-4
# As many batches are compared.
_BATCHES = 4


def run_on_examples(
    student: keras.Model,
    reference: keras.Model,
    input_names: Any,
    inputs: tuple[TensorInfo, ...],
) -> tuple[dict[str, np.ndarray], Any]:
    """The same random inputs each time, by name, and the outputs for them."""
    # A student that divides pixels by 255 returns the same for all small
    # inputs, and such a check would find no fault.
    for scale in (1, 255):
        batch = random_batch(student, inputs, scale)
        try:
            expected = _predict(reference, input_names, batch)
        except Exception as error:
            raise ValueError(
                "The student doesn't run on random inputs of its shapes. "
                f"Received: student='{student.name}', inputs={inputs}. If it "
                "takes other inputs, wrap it in a `keras.Model` that begins "
                f"with `keras.Input`: {type(error).__name__}: {error}"
            ) from error
        if any(_varies(output) for output in keras.tree.flatten(expected)):
            break
    return batch, expected


def random_batch(
    student: keras.Model, inputs: tuple[TensorInfo, ...], scale: int = 1
) -> dict[str, np.ndarray]:
    """Some random inputs by name, the same each time, as large as `scale`."""
    random = np.random.default_rng(0)
    sizes = [
        layer.input_dim
        for layer in layers_of(student)
        if isinstance(layer, keras.layers.Embedding)
    ]
    limits: list[int | None] = [None] * len(inputs)
    if has_graph(student):
        limits = id_limits(student)
    return {
        info.name: _random(random, info, scale, sizes, limit)
        for info, limit in zip(inputs, limits, strict=True)
    }


def _random(
    random: np.random.Generator,
    info: TensorInfo,
    scale: int,
    sizes: list[int],
    limit: int | None,
) -> np.ndarray:
    batch, *example = (size or 1 for size in info.shape)
    shape = (_BATCHES * batch, *example)
    if limit is not None:
        return random.integers(0, limit, shape).astype(info.dtype)
    if info.dtype == "float32":
        values = random.standard_normal(shape, "float32")
        # Half the examples are like images, and have a logarithm.
        values[::2] = random.random(values[::2].shape, "float32")
        return values * np.float32(scale)
    # Which Embedding an input goes to is unknown: ids that all of them have.
    # Without one the integers are pixels, or flags of some kind.
    limit = min(sizes, default=256 if info.dtype == "uint8" else 2)
    return random.integers(0, limit, shape).astype(info.dtype)


def _predict(
    model: keras.Model, input_names: Any, batch: dict[str, np.ndarray]
) -> Any:
    """The model's outputs on the CPU, with its variables left alone."""
    rows = []
    with keras.device("cpu"):
        copies = [(v, keras.ops.convert_to_numpy(v)) for v in model.variables]
        parts = {n: np.split(x, _BATCHES) for n, x in batch.items()}
        for i in range(_BATCHES):
            row = {name: part[i] for name, part in parts.items()}
            x = keras.tree.map_structure(row.__getitem__, input_names)
            with keras.StatelessScope(state_mapping=copies):
                rows.append(model(x, training=False))
    return keras.tree.map_structure(
        lambda *parts: np.concatenate(
            [keras.ops.convert_to_numpy(part) for part in parts]
        ),
        *rows,
    )


def _varies(output: np.ndarray) -> bool:
    # Infinities are the same in each example, or on purpose.
    output = np.where(np.isfinite(output), output, 0).astype("float64")
    spread = np.ptp(output, axis=0).max()
    return bool(spread > 1e-3 * np.abs(output).max())


def require_parity(
    student: keras.Model,
    output_names: Any,
    expected: Any,
    seen: dict[str, np.ndarray],
) -> float:
    """The outputs' largest error, relative to their range, if it is small."""
    pairs = zip(
        keras.tree.flatten(output_names),
        keras.tree.flatten(expected),
        strict=True,
    )
    errors = {name: _relative_error(array, seen[name]) for name, array in pairs}
    worst = max(errors, key=errors.__getitem__)
    if errors[worst] > _TOLERANCE:
        raise RuntimeError(
            "The file doesn't return what Keras returns, so it wasn't written. "
            f"Received: student='{student.name}', whose output '{worst}' "
            f"differs by {errors[worst]:.1e} of its range (accepted: "
            f"{_TOLERANCE:.0e}). Look for randomness at inference, for NaN "
            "and infinite constants, and for a `get_config` that forgets an "
            "argument."
        )
    return errors[worst]


def _relative_error(expected: np.ndarray, seen: np.ndarray) -> float:
    finite = np.isfinite(expected)
    if expected.shape != seen.shape or not finite.any():
        return np.inf
    others = (expected[~finite], seen[~finite])
    if not np.isfinite(seen[finite]).all() or not np.array_equal(
        *others, equal_nan=True
    ):
        return np.inf
    values = expected[finite].astype("float64")
    # An almost constant output, such as an untrained sigmoid, differs by the
    # rounding of its magnitude and not of its range.
    scale = max(np.ptp(values), np.abs(values).max() / 100) or 1.0
    return float(np.abs(values - seen[finite]).max() / scale)
