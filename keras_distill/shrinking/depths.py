"""Which parts of a model repeat, and the model with fewer of them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import keras

from keras_distill.model_graphs import has_graph
from keras_distill.shrinking.graphs import (
    CallGraph,
    Tensor,
    tensors_of,
    trace_calls,
)
from keras_distill.shrinking.units import scaled

# They follow a layer with a kernel, and have the statistics of what it makes.
_NORMS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)
# They join branches that are no repetitions of each other.
_SUMS = ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")


class Part(NamedTuple):
    """Calls with one way in and one way out.

    Attributes:
        entry: The tensor that they read.
        calls: Their positions in the graph.
        exit: The tensor that is read behind them.
    """

    entry: Tensor
    calls: tuple[int, ...]
    exit: Tensor


@dataclasses.dataclass(frozen=True)
class Repetition:
    """Parts in a row that are alike.

    Attributes:
        parts: Each a sequence of `Part`, such as a convolution, its
            normalisation and its activation.
    """

    parts: tuple[tuple[Part, ...], ...]

    def dropped(self, depth: float) -> list[tuple[Part, ...]]:
        """The parts that go: of 4 and a depth of a half, the 2nd and 4th."""
        count = len(self.parts)
        left = scaled(count, depth)
        kept = {math.floor(i * count / left + 0.5) for i in range(left)}
        return [p for i, p in enumerate(self.parts) if i not in kept]


class Thinning(NamedTuple):
    """What became of a graph.

    Attributes:
        graph: The graph with a share of what repeats.
        counts: How often something repeated, for each repetition.
        repeated: The operations in what repeated, by id.
    """

    graph: CallGraph
    counts: list[int]
    repeated: set[int]


def thinned(graph: CallGraph, depth: float) -> Thinning:
    """A graph with a share of what repeats in it."""
    found = _repetitions(graph)
    calls: set[int] = set()
    renamed: dict[int, Tensor] = {}
    repeated: set[int] = set()
    for repetition in found:
        for parts in repetition.parts:
            for part in parts:
                repeated |= {id(graph.calls[i].operation) for i in part.calls}
        for parts in repetition.dropped(depth):
            calls |= {i for part in parts for i in part.calls}
            renamed[parts[-1].exit.number] = parts[0].entry
    counts = [len(repetition.parts) for repetition in found]
    return Thinning(graph.without(calls, renamed), counts, repeated)


def _repetitions(graph: CallGraph) -> list[Repetition]:
    found: list[Repetition] = []
    done: set[int] = set()
    finder = _Parts(graph)
    for first in finder.tensors:
        tensor, chain = first, []
        while tensor.number not in done:
            done.add(tensor.number)
            part = finder.part_from(tensor)
            if part is None:
                break
            chain.append(part)
            if finder.is_block(part):
                # What repeats within a block isn't thinned, too.
                done |= finder.inside(part)
            tensor = part.exit
        for repetition in _in_chain(graph, chain):
            found.append(repetition)
            # What repeats as a whole isn't thinned within, either.
            for part in (p for parts in repetition.parts for p in parts):
                done |= finder.inside(part)
    return found


class _Parts:
    """Finds the smallest part behind each tensor of a graph."""

    def __init__(self, graph: CallGraph) -> None:
        self._graph = graph
        self.tensors = [
            *tensors_of(graph.inputs),
            *(t for call in graph.calls for t in call.outputs),
        ]
        self._outputs = {t.number for t in tensors_of(graph.outputs)}
        self._readers: dict[int, set[int]] = {}
        for i, call in enumerate(graph.calls):
            for tensor in call.inputs:
                self._readers.setdefault(tensor.number, set()).add(i)

    def part_from(self, entry: Tensor) -> Part | None:
        """The smallest part that reads a tensor."""
        waiting = set(self._readers.get(entry.number, ()))
        calls: set[int] = set()
        unread = {entry.number}
        while waiting:
            i = min(waiting)
            calls.add(i)
            call = self._graph.calls[i]
            for tensor in call.outputs:
                unread.add(tensor.number)
                waiting |= self._readers.get(tensor.number, set())
            waiting -= calls
            unread -= {
                t.number
                for t in call.inputs
                if self._readers[t.number] <= calls
            } - (self._outputs - {entry.number})
            if unread == {call.outputs[0].number} and len(call.outputs) == 1:
                return Part(entry, tuple(sorted(calls)), call.outputs[0])
        return None

    def is_block(self, part: Part) -> bool:
        """Whether branches of a part end in a sum."""
        last = self._graph.calls[part.calls[-1]].operation
        return len(part.calls) > 1 and type(last).__name__ in _SUMS

    def inside(self, part: Part) -> set[int]:
        """The tensors within a part, by number."""
        return {
            t.number
            for i in part.calls[:-1]
            for t in self._graph.calls[i].outputs
        }


def _in_chain(graph: CallGraph, chain: list[Part]) -> list[Repetition]:
    """What repeats in a row of parts, from its beginning."""
    signatures = [_signature(graph, part) for part in chain]
    outputs = {t.number for t in tensors_of(graph.outputs)}
    starts = [_has_kernel(graph, part) for part in chain]
    # What a model returns comes from a layer that stays.
    heads = [part.exit.number in outputs for part in chain]
    found = []
    i = 0
    while i < len(chain):
        best = (0, 0)
        for period in range(1, (len(chain) - i) // 2 + 1 if starts[i] else 0):
            end = i + period
            if chain[i].entry.shape != chain[end - 1].exit.shape:
                continue
            while (
                end + period <= len(chain)
                and signatures[end : end + period] == signatures[i : i + period]
                and not any(heads[end : end + period])
            ):
                end += period
            if end > i + period:
                best = max(best, (end - i, -period))
        length, period = best[0], -best[1]
        if length:
            found.append(
                Repetition(
                    tuple(
                        tuple(chain[k : k + period])
                        for k in range(i, i + length, period)
                    )
                )
            )
        i += length or 1
    return found


def _has_kernel(graph: CallGraph, part: Part) -> bool:
    operations = [graph.calls[i].operation for i in part.calls]
    return any(
        isinstance(v, keras.Layer) and v.weights and not isinstance(v, _NORMS)
        for v in operations
    )


def _signature(graph: CallGraph, part: Part) -> Any:
    """What is the same of two parts that are alike."""
    rows = _rows(graph, part.calls, [part.entry])
    return rows, part.exit.shape


def _rows(graph: CallGraph, calls: Iterable[int], inputs: list[Tensor]) -> Any:
    positions = {t.number: i for i, t in enumerate(inputs)}

    def reference(leaf: Any) -> str:
        if isinstance(leaf, Tensor):
            # What comes from elsewhere is alike only if it is the same.
            place = positions.get(leaf.number, f"outside {leaf.number}")
            return f"tensor {place} {leaf.shape}"
        return repr(leaf)

    rows = []
    for i in calls:
        call = graph.calls[i]
        arguments = keras.tree.map_structure(reference, call.arguments)
        rows.append((_description(call.operation), repr(arguments)))
        for tensor in call.outputs:
            positions[tensor.number] = len(positions)
    return rows


def _description(operation: Any) -> Any:
    """What is the same of two layers that are alike."""
    kind = type(operation).__name__
    if isinstance(operation, keras.Model) and has_graph(operation):
        inner = trace_calls(operation)
        inputs = tensors_of(inner.inputs)
        return kind, _rows(inner, range(len(inner.calls)), inputs)
    shapes = [tuple(w.shape) for w in getattr(operation, "weights", [])]
    config = _without_names(operation.get_config())
    return kind, shapes, json.dumps(config, default=repr, sort_keys=True)


def _without_names(config: Any) -> Any:
    if isinstance(config, list | tuple):
        return [_without_names(value) for value in config]
    if not isinstance(config, dict):
        return config
    return {
        key: _without_names(value)
        for key, value in config.items()
        if not _is_of_one(key)
    }


def _is_of_one(key: str) -> bool:
    """Whether an entry may differ between layers that are alike."""
    names = ("name", "seed", "trainable", "build_config")
    # Rates of dropout often rise from block to block.
    is_rate = key.endswith("rate") and key != "dilation_rate"
    return key in names or is_rate
