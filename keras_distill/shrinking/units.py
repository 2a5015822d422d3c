"""Units (channels, heads) that only stay or go together, and which stay."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TypeAlias

import numpy as np

# The unit behind each position along an axis, or None for an axis that isn't
# one of units, whatever its size.
Labels: TypeAlias = "np.ndarray | None"
# The labels of each axis of a tensor.
Axes: TypeAlias = "tuple[Labels, ...]"

# The unit that stays in any case: whatever is tied to it does, too.
KEPT = 0


class Units:
    """Units of a model, and which of them are tied to each other.

    An addition ties the units of its two sides, position by position. What is
    tied forms a class, which stays or goes as a whole. Classes that come from
    the same layers are alike: the width is that of each such kind.
    """

    def __init__(self) -> None:
        self._owners = [np.zeros(1, "int64")]
        self.count = KEPT + 1
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []

    def new(self, count: int) -> np.ndarray:
        """Units that a layer makes."""
        labels = np.arange(self.count, self.count + count)
        self._owners.append(np.full(count, len(self._owners)))
        self.count += count
        return labels

    def tie(self, first: Labels, second: Labels) -> None:
        """Let units at the same positions stay or go together."""
        if first is None or second is None:
            self.keep(second if first is None else first)
        else:
            first, second = np.broadcast_arrays(first, second)
            self._ties.append((first, second))

    def keep(self, labels: Labels) -> None:
        """Let units stay in any case."""
        if labels is not None:
            self.tie(labels, np.full_like(labels, KEPT))

    def classes(self) -> np.ndarray:
        """The smallest unit of the class of each unit."""
        smallest = np.arange(self.count)
        if not self._ties:
            return smallest
        pairs = [
            np.concatenate([side.ravel() for side in sides])
            for sides in zip(*self._ties, strict=True)
        ]
        while True:
            before = smallest.copy()
            least = np.minimum(smallest[pairs[0]], smallest[pairs[1]])
            for side in pairs:
                np.minimum.at(smallest, smallest[side], least)
                np.minimum.at(smallest, side, least)
            smallest = smallest[smallest]
            if (smallest == before).all():
                return smallest

    def stay(
        self, width: float, multiple_of: int, norms: np.ndarray | None
    ) -> np.ndarray:
        """Whether each unit stays.

        Args:
            width: The share of each kind that does.
            multiple_of: What numbers of units are rounded to.
            norms: The squared norm of each unit, to keep the largest ones; the
                first ones stay without.
        """
        classes = self.classes()
        owners = np.concatenate(self._owners)
        members = defaultdict(list)
        for unit, root in enumerate(classes):
            members[root].append(owners[unit])
        kinds = defaultdict(list)
        for root, found in members.items():
            # How often an owner is in it matters: it is the number of units
            # that stay with each class.
            kinds[tuple(sorted(found))].append(root)
        sums = np.zeros(self.count)
        if norms is not None:
            np.add.at(sums, classes, norms)
        stays = np.zeros(self.count, bool)
        for kind, roots in kinds.items():
            if KEPT in roots:
                stays[roots] = True
                continue
            times = max(kind.count(owner) for owner in set(kind))
            count = scaled(
                len(roots), width, multiple_of // math.gcd(multiple_of, times)
            )
            order = np.argsort(-sums[roots], kind="stable")
            stays[np.array(roots)[order[:count]]] = True
        return np.asarray(stays[classes])


def scaled(count: int, factor: float, multiple_of: int = 1) -> int:
    """A share of a number, to the nearest multiple, from one of it up."""
    steps = math.floor(count * factor / multiple_of + 0.5)
    return min(count, max(1, steps) * multiple_of)


def reshaped(
    units: Units,
    axes: Axes,
    shape: tuple[int | None, ...],
    target: tuple[int | None, ...],
) -> Axes:
    """The axes after a reshape of all but the batch.

    Units along an axis that becomes several (channels that become heads of
    channels) are tied so that only the last of them loses positions.
    """
    result: list[Labels] = [None] * len(target)
    labelled = [i for i in range(1, len(shape)) if axes[i] is not None]
    if not labelled:
        return tuple(result)
    if labelled == [len(shape) - 1] and shape[-1] == target[-1]:
        result[-1] = axes[-1]
        return tuple(result)
    if len(labelled) > 1 or None in (*shape[1:], *target[1:]):
        for labels in axes:
            units.keep(labels)
        return tuple(result)
    (axis,) = labelled
    spread = [1] * (len(shape) - 1)
    spread[axis - 1] = -1
    spaces, places = _known(shape), _known(target)
    units_there = np.asarray(axes[axis]).reshape(spread)
    moved = np.broadcast_to(units_there, spaces).reshape(places)
    varying = [
        i for i in range(moved.ndim) if (moved != moved.take([0], axis=i)).any()
    ]
    # A single unit varies along no axis, and stays.
    if not varying:
        units.keep(axes[axis])
        return tuple(result)
    last = varying[-1]
    first = moved
    for i in range(moved.ndim):
        if i != last:
            first = first.take([0], axis=i)
    if len(varying) > 1:
        units.tie(moved, first)
    result[last + 1] = first.ravel()
    return tuple(result)


def _known(shape: tuple[int | None, ...]) -> list[int]:
    """A shape without its batch, of which all sizes are known."""
    return [size for size in shape[1:] if size is not None]
