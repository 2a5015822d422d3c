"""A student from its teacher: the same network with less of everything."""

from __future__ import annotations

import numbers
import warnings
from typing import Any

import keras

from keras_distill.model_graphs import has_graph
from keras_distill.shrinking.depths import thinned
from keras_distill.shrinking.graphs import CallGraph, trace_calls
from keras_distill.shrinking.students import Builder
from keras_distill.shrinking.units import scaled
from keras_distill.shrinking.widths import Widths


def shrink(
    teacher: keras.Model,
    width: float = 0.5,
    depth: float = 1.0,
    initialize: str | None = None,
    multiple_of: int = 1,
) -> keras.Model:
    """A smaller model of a teacher's family, to be its student.

    Its layers have the teacher's names, arguments and dtype policies, so that
    `kd.losses.Hint("conv4", "conv4", projector="auto")` finds both. Its inputs
    and outputs have the teacher's shapes.

    **Width.** Each layer keeps a share of its units: of a dense or recurrent
    layer its units, of a convolution its filters, of an embedding its
    dimensions, of attention its heads, whose sizes stay. What additions tie
    together stays or goes together, and what leads to an output with no other
    layer in between keeps its size. Grouped convolutions keep their number of
    groups, group normalisation the size of its groups (unless it has one). Of
    custom layers and some functions nothing is known: what they read keeps its
    size, and a warning names them.

    **Depth.** Of blocks in a row that are alike and don't change the shape
    (residual blocks, the layers of a transformer, convolutions with their
    normalisation and activation) a share stays: the first one, and every other
    one for a half. Rates of dropout may differ between them.

    **Initialisation.** `"norm"` takes the teacher's weights, of the units with
    the largest norms of the weights that make them, over all layers that are
    tied (of a head, the weights that make its values). At a width of 1, a
    student's layers are its teacher's own. Otherwise all weights are drawn
    anew, as the layers' initialisers say. Statistics of a `Normalization` are
    taken over in both cases.

    Formula:
        `kept = min(n, max(1, floor(width * n / m + 1/2)) * m)` of n units that
        are alike, with `m = multiple_of`; the same with `depth` of n blocks.

    Args:
        teacher: A built Functional or Sequential model. It stays as it is.
        width: The share of the units that stays, in (0, 1].
        depth: The share of the blocks that stays, in (0, 1].
        initialize: `"norm"`, or `None` for new weights.
        multiple_of: What numbers of units are rounded to; 8 suits many devices.

    Returns:
        A new model, Functional or Sequential as the teacher, not compiled, and
        trainable throughout.

    Raises:
        TypeError: If the teacher is no model, or an argument no number.
        ValueError: If an argument is out of its range, the teacher shows no
            graph, nothing can be shrunk, or a layer can't be made again.

    Example:
        >>> import keras, keras_distill as kd
        >>> teacher = keras.Sequential([
        ...     keras.Input((8,)),
        ...     keras.layers.Dense(64, activation="relu", name="hidden"),
        ...     keras.layers.Dense(10),
        ... ])
        >>> student = kd.shrink(teacher, width=0.25, initialize="norm")
        >>> student.get_layer("hidden").units, student.output_shape
        (16, (None, 10))

    Reference:
        Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (norms);
        Sanh et al., "DistilBERT, a distilled version of BERT", 2019 (every
        other layer); Touvron et al., "Training data-efficient image
        transformers & distillation through attention", ICML 2021 (fewer heads
        of the same size).
    """
    _check_teacher(teacher)
    for name, share in (("width", width), ("depth", depth)):
        _check_share(name, share)
    _check_choices(initialize, multiple_of)
    graphs = _graphs(teacher, depth)
    widths = Widths(graphs)
    inputs = keras.tree.flatten(teacher.inputs)
    for axes in widths.walk(teacher, [(None,) * len(t.shape) for t in inputs]):
        for labels in axes:
            widths.units.keep(labels)
    layers = _layers(graphs)
    norms = widths.norms(layers) if initialize == "norm" else None
    stays = widths.units.stay(width, multiple_of, norms)
    if width < 1 and stays.all():
        raise _nothing_to_spare(teacher, width, multiple_of, widths.unknown)
    builder = Builder(graphs, widths, stays)
    student = builder.model(teacher)
    builder.copy_weights(every=initialize == "norm")
    # Also what was frozen in the teacher.
    student.trainable = True
    if width < 1:
        _warn_of_unknown(widths.unknown)
    return student


def _graphs(teacher: keras.Model, depth: float) -> dict[int, CallGraph]:
    """The graphs of a model and of those in it, without what goes."""
    graphs: dict[int, CallGraph] = {}
    counts: list[int] = []

    def collect(model: keras.Model, depth: float) -> None:
        graph, found, repeated = thinned(trace_calls(model), depth)
        counts.extend(found)
        graphs[id(model)] = graph
        for call in graph.calls:
            inner = call.operation
            # What repeats was thinned as a whole.
            left = 1.0 if id(inner) in repeated else depth
            if isinstance(inner, keras.layers.TimeDistributed):
                inner = inner.layer
            is_new = id(inner) not in graphs
            if isinstance(inner, keras.Model) and has_graph(inner) and is_new:
                collect(inner, left)

    collect(teacher, depth)
    if depth < 1 and all(scaled(n, depth) == n for n in counts):
        said = f"blocks that repeat {counts} times" if counts else "no blocks"
        raise ValueError(
            "There is nothing to make less deep: of a row of blocks that are "
            "alike and keep the shape, each kind keeps the nearest number to "
            f"its share. Received: depth={depth} for a teacher "
            f"'{teacher.name}' with {said}. Pass "
            f"{'a smaller depth' if counts else 'depth=1'}."
        )
    return graphs


def _layers(graphs: dict[int, CallGraph]) -> list[keras.Layer]:
    """Each layer in graphs once, with those in a `TimeDistributed`."""
    found: dict[int, Any] = {}
    for graph in graphs.values():
        for call in graph.calls:
            layer = call.operation
            if isinstance(layer, keras.layers.TimeDistributed):
                layer = layer.layer
            if isinstance(layer, keras.Layer) and id(layer) not in graphs:
                found[id(layer)] = layer
    return list(found.values())


def _check_teacher(teacher: Any) -> None:
    if not isinstance(teacher, keras.Model):
        raise TypeError(
            "The teacher must be a keras.Model. Received: "
            f"teacher={teacher!r} of type {type(teacher).__name__}. Load it "
            "first, with keras.saving.load_model."
        )
    if not teacher.built:
        raise ValueError(
            "The teacher isn't built, so its layers have no sizes yet. "
            f"Received: teacher='{teacher.name}'. Begin it with keras.Input."
        )


def _check_share(name: str, share: Any) -> None:
    if not isinstance(share, numbers.Real) or isinstance(share, bool):
        raise TypeError(
            f"{name} is a number. Received: {name}={share!r}. Pass 0.5, for "
            "instance."
        )
    if not 0 < float(share) <= 1:
        raise ValueError(
            f"{name} is the share that stays, above 0 and at most 1. "
            f"Received: {name}={share!r}. Pass 0.5, for instance."
        )


def _check_choices(initialize: Any, multiple_of: Any) -> None:
    if initialize not in ("norm", None):
        raise ValueError(
            "There is no such way to initialise a student. Received: "
            f"initialize={initialize!r}. Pass 'norm', or None for new weights."
        )
    is_integer = isinstance(multiple_of, numbers.Integral)
    if not is_integer or isinstance(multiple_of, bool):
        raise TypeError(
            "multiple_of is an integer. Received: "
            f"multiple_of={multiple_of!r}. Pass 1 or 8, for instance."
        )
    if multiple_of < 1:
        raise ValueError(
            "Numbers of units are rounded to multiples of 1 or more. "
            f"Received: multiple_of={multiple_of!r}. Pass 1 or 8, for instance."
        )


def _nothing_to_spare(
    teacher: keras.Model, width: float, multiple_of: int, unknown: list[str]
) -> ValueError:
    return ValueError(
        "There is nothing to make narrower: no hidden layer of the teacher "
        f"has units to spare. Received: width={width} and "
        f"multiple_of={multiple_of} for a teacher '{teacher.name}'. "
        + (
            _why_units_stay(unknown)
            if unknown
            else "Pass a smaller width or multiple_of, or width=1."
        )
    )


def _warn_of_unknown(names: list[str]) -> None:
    if names:
        warnings.warn(_why_units_stay(names), stacklevel=3)


def _why_units_stay(names: list[str]) -> str:
    shown = [*names[:5], "..."] if len(names) > 5 else names
    return (
        f"The units that {shown} read keep their number, since nothing is "
        "known of what these layers or operations do with them. Use layers "
        "of Keras in their place to shrink these, too."
    )
