"""Which rows of a global batch are whose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any]"


@dataclass(frozen=True)
class Share:
    """What one process is to load of each global batch.

    Attributes:
        index: Which of the shares, from 0.
        count: How many shares there are.
        pieces: Into how many equal pieces a batch has to be filled up, by
            which `count` divides; 1 if shares may differ in size.
        marked: Whether batches say how many of their rows are real.
    """

    index: int = 0
    count: int = 1
    pieces: int = 1
    marked: bool = False

    def rows(self, ids: Array) -> tuple[Array, Array | None]:
        """This share of the ids of a global batch.

        Returns:
            The ids to load, and, if batches are marked, an array of which the
            second size says how many are real: of the global batch where it
            has pieces, else of this share.
        """
        if not self.marked:
            return ids, None
        if self.pieces > 1:
            size = -(-len(ids) // self.pieces) * self.pieces
            local = self.pieces // self.count
            mine = np.resize(ids, size).reshape(self.count, -1)[self.index]
            return mine, np.zeros((local, len(ids)), "uint8")
        mine = np.array_split(ids, self.count)[self.index]
        marker = np.zeros((1, len(mine)), "uint8")
        # Layers and losses can't take no example at all.
        return (mine if len(mine) else ids[:1]), marker


class Rows(NamedTuple):
    """Inputs of which the first rows are real, and the rest fills up.

    Attributes:
        inputs: What a data set would give otherwise.
        marker: Its second size is the number of real rows: a shape is known
            while a step is traced, and no value is.
    """

    inputs: Any
    marker: Any


def without_marker(x: Any) -> Any:
    """The inputs, whether they are `Rows` or not."""
    return x.inputs if isinstance(x, Rows) else x


def real_rows(data: Any) -> tuple[Any, int | None]:
    """A batch without what fills it up, and its size if it is marked.

    A batch without a real row keeps the one that stands for it.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if not isinstance(x, Rows):
        return data, None
    count = int(x.marker.shape[1])

    def real(tensor: Any) -> Any:
        if tensor is None or count in (0, tensor.shape[0]):
            return tensor
        return tensor[:count]

    parts = (x.inputs, y, sample_weight)
    return keras.tree.map_structure(real, parts), count
