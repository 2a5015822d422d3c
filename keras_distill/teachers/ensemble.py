"""Several teachers that speak as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill.teachers.base import Array, Teacher
from keras_distill.teachers.log_space import (
    as_float,
    floored_log,
    log_mean,
    log_sigmoid,
    log_softmax,
    logit,
)

_COMBINE = ("probabilities", "geometric", "logits")


class Ensemble(Teacher):
    """Teachers of any kinds, whose opinions are averaged.

    Computed in log space, in float32, or float64 where a member gives that.
    Of members that return probabilities the logarithm is taken, where 0
    counts as the smallest float32.

    Formula:
        With the logits `z_m` of `M` members, `p_m = softmax(z_m)`:

        - `"probabilities"`: `log(mean_m p_m)`, what the members think on
          average;
        - `"geometric"`: `mean_m log(p_m)`, what all of them agree on;
        - `"logits"`: `mean_m z_m`.

        With sigmoids, `log(p) - log(1 - p)` of the mean `p`, and in the other
        two cases `mean_m z_m`.

    Shapes:
        Members and ensemble: `(..., classes)`, or the same structure of such.

    Args:
        members: The teachers, whatever `as_teacher` takes.
        combine: `"probabilities"`, `"geometric"` or `"logits"`.
        activation: `"softmax"`, or `"sigmoid"` where there are several labels,
            or one logit.

    Raises:
        ValueError: If there are no members, or another word is passed; when
            labelling, if the members' outputs don't fit together.

    Example:
        >>> import numpy as np
        >>> import keras_distill as kd
        >>> def sure(x):
        ...     return np.log([[0.9, 0.1]])
        >>> def unsure(x):
        ...     return np.log([[0.5, 0.5]])
        >>> teacher = kd.teachers.Ensemble([sure, unsure])
        >>> output, _ = teacher.label(np.zeros((1, 4)))
        >>> np.exp(output).round(6).tolist()
        [[0.7, 0.3]]

    Reference:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural
        Network", 2015: arithmetic or geometric mean.
    """

    probabilities = False

    def __init__(
        self,
        members: Sequence[Any],
        combine: str = "probabilities",
        activation: str = "softmax",
    ) -> None:
        # `as_teacher` makes an Ensemble of a list.
        from keras_distill.teachers.factory import as_teacher

        if combine not in _COMBINE or activation not in ("softmax", "sigmoid"):
            raise ValueError(
                "An ensemble averages 'probabilities', in 'geometric' mean, or "
                "'logits', after a 'softmax' or 'sigmoid'. Received: "
                f"combine={combine!r}, activation={activation!r}."
            )
        if not members:
            raise ValueError(
                "An ensemble has members. Received: members=[]. Pass at least "
                "one teacher."
            )
        self.members = tuple(as_teacher(member) for member in members)
        self.combine = combine
        self.activation = activation
        self.runtime = ", ".join(sorted({m.runtime for m in self.members}))

    def label(self, inputs: Any) -> tuple[Any, dict[str, Array]]:
        """Ask each member, and average."""
        outputs = [member.label(inputs)[0] for member in self.members]
        _require_same_shapes(outputs)
        combined = keras.tree.map_structure(
            lambda *arrays: self._combined(arrays), *outputs
        )
        return combined, {}

    def _combined(self, arrays: Sequence[Array]) -> Array:
        _require_classes(arrays[0], self.activation)
        logits = np.stack(
            [
                self._logits(array, member, i)
                for i, (array, member) in enumerate(
                    zip(arrays, self.members, strict=True)
                )
            ]
        )
        if self.combine == "probabilities":
            if self.activation == "softmax":
                return log_mean(log_softmax(logits))
            yes, no = log_sigmoid(logits), log_sigmoid(-logits)
            return log_mean(yes) - log_mean(no)
        if self.combine == "geometric" and self.activation == "softmax":
            logits = log_softmax(logits)
        mean: Array = logits.mean(0)
        return mean

    def _logits(self, array: Array, member: Teacher, index: int) -> Array:
        array = as_float(array)
        if member.probabilities:
            softmax = self.activation == "softmax"
            return floored_log(array) if softmax else logit(array)
        if member.probabilities is None and self._may_be_probabilities(array):
            raise ValueError(
                "An ensemble must know what its members give, and what one "
                f"says looks like probabilities. Received: member {index} with "
                "probabilities=None. Say what it is, for instance "
                "`NumpyTeacher(function, probabilities=True)`."
            )
        return array

    def _may_be_probabilities(self, array: Array) -> bool:
        if array.min() < 0 or array.max() > 1:
            return False
        sums = array.sum(-1)
        return self.activation == "sigmoid" or np.allclose(sums, 1, atol=1e-2)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The members' fingerprints, and how they are averaged."""
        return {
            "kind": "ensemble",
            "combine": self.combine,
            "activation": self.activation,
            "members": [member.fingerprint for member in self.members],
        }

    def close(self) -> None:
        """Close all members."""
        for member in self.members:
            member.close()


def _require_same_shapes(outputs: list[Any]) -> None:
    shapes = [keras.tree.map_structure(np.shape, o) for o in outputs]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                "An ensemble's members return outputs of one shape. Received: "
                f"{shapes[0]} from member 0 and {shape} from member {i}. Leave "
                "one out, or wrap it in a function that returns the others' "
                "classes in their order."
            )


def _require_classes(array: Array, activation: str) -> None:
    if activation == "softmax" and (array.ndim < 2 or array.shape[-1] == 1):
        raise ValueError(
            "A softmax needs two classes. Received: members with outputs of "
            f"shape {array.shape}. Pass activation='sigmoid' for one logit."
        )
