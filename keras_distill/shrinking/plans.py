"""What a rule sees of a call, and what it says about the layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from keras_distill.shrinking.graphs import Call, Tensor, tensors_of
from keras_distill.shrinking.units import KEPT, Axes, Labels, Units, reshaped

# The entry of a layer's config, given what counts the units that stay.
Size: TypeAlias = "Callable[[Callable[[Labels], int]], Any]"
# A weight's axes, and along which one the units are that the layer makes.
WeightAxes: TypeAlias = "tuple[Axes, int | None]"


@dataclasses.dataclass
class Plan:
    """How a layer becomes smaller.

    Attributes:
        weights: The axes of its weights, if it was said.
        sizes: Entries of its config that depend on units.
        made: The units that it makes, by a name that the rule chose.
    """

    weights: list[WeightAxes] | None = None
    sizes: dict[str, Size] = dataclasses.field(default_factory=dict)
    made: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


class LayerCall:
    """A call, with the axes of what it reads.

    Args:
        call: The call.
        plan: What is known of the layer from calls before.
        axes: The axes of each tensor, by number.
        units: All units of the model.
    """

    def __init__(
        self, call: Call, plan: Plan, axes: dict[int, Axes], units: Units
    ) -> None:
        self.call = call
        self.operation = call.operation
        self.plan = plan
        self.units = units
        # Whether nothing is known of what the layer does with units.
        self.is_unknown = False
        self._axes = axes

    @property
    def tensors(self) -> list[Tensor]:
        """What it reads, but for masks."""
        args, kwargs = self.call.arguments
        given = {k: v for k, v in kwargs.items() if not k.endswith("mask")}
        return tensors_of((args, given))

    @property
    def inputs(self) -> list[Axes]:
        """The axes of what it reads, but for masks."""
        return [self._axes[t.number] for t in self.tensors]

    @property
    def x(self) -> Axes:
        """The axes of the first tensor that it reads."""
        return self.inputs[0]

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of the first tensor that it reads."""
        return self.tensors[0].shape

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        """The shape of the first tensor that it returns."""
        return self.call.outputs[0].shape

    def axes_of(self, tensor: Tensor) -> Axes:
        """The axes of a tensor that it reads."""
        return self._axes[tensor.number]

    def new(self, count: int, name: str = "units") -> np.ndarray:
        """The units that the layer makes: the same ones in each call."""
        if name not in self.plan.made:
            self.plan.made[name] = self.units.new(count)
        return self.plan.made[name]

    def weigh(self, *weights: WeightAxes) -> None:
        """Say what the axes of the layer's weights are, in its order.

        Raises:
            ValueError: If the layer has other weights.
        """
        shapes = [tuple(w.shape) for w in self.operation.weights]
        told = [axes for axes, _ in weights]
        fits = [len(s) for s in shapes] == [len(axes) for axes in told]
        if not fits or not all(map(_fit, shapes, told)):
            raise ValueError(
                "A layer has weights that its kind doesn't have. Received: "
                f"layer '{self.operation.name}' of type "
                f"{type(self.operation).__name__} with weights of shapes "
                f"{shapes}. Shrink the model before anything is added to its "
                "layers (states, low-rank adapters, quantisation)."
            )
        # Called again, it takes its inputs' units from the same positions.
        for (old, _), new in zip(self.plan.weights or [], told, strict=False):
            for first, second in zip(old, new, strict=True):
                self.units.tie(first, second)
        self.plan.weights = list(weights)

    def size(self, **sizes: Size) -> None:
        """Say how entries of the layer's config follow from units."""
        self.plan.sizes.update(sizes)

    def count(self, **labels: Labels) -> None:
        """Say which entries of the layer's config are numbers of units."""
        for name, units in labels.items():
            if units is not None:
                self.size(**{name: _counting(units)})

    def reshaped(
        self,
        axes: Axes,
        shape: tuple[int | None, ...],
        target: tuple[int | None, ...],
    ) -> Axes:
        """The axes after a reshape of all but the batch."""
        return reshaped(self.units, axes, shape, target)

    def unknown(self) -> list[Axes]:
        """The axes of the outputs where it isn't known what happens.

        What the layer reads stays as it is, and so does the layer.
        """
        self.is_unknown = True
        for axes in self.inputs:
            for labels in axes:
                self.units.keep(labels)
        self.plan.weights = None
        self.plan.sizes.clear()
        return [(None,) * len(t.shape) for t in self.call.outputs]


# The axes of the outputs, without a list around them if there is one output.
Rule: TypeAlias = "Callable[[LayerCall], Axes | list[Axes]]"


def bias(call: LayerCall, out: Labels) -> list[WeightAxes]:
    """The axes of a layer's bias, if it has one."""
    return [((out,), -1)] if call.operation.use_bias else []


def replaced(axes: Axes, axis: int, labels: Labels) -> Axes:
    """The axes with other labels for one of them."""
    result = list(axes)
    result[axis] = labels
    return tuple(result)


def is_kept(labels: Labels) -> bool:
    """Whether an axis keeps its size for certain."""
    return labels is None or bool((labels == KEPT).all())


def _fit(shape: tuple[int, ...], axes: Axes) -> bool:
    return all(
        labels is None or len(labels) == size
        for size, labels in zip(shape, axes, strict=True)
    )


def _counting(labels: np.ndarray) -> Size:
    return lambda count: count(labels)
