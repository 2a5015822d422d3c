"""What every teacher is: something that labels a batch."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

Array = np.ndarray[Any, Any]


class Teacher(abc.ABC):
    """Labels batches of a transfer set.

    `as_teacher` makes one of a model, a file, a function or a list of these.
    A subclass with `label` and `fingerprint` is a teacher of a new kind.

    A teacher stays as it is while it labels: its fingerprint is that of when
    it was made.

    Attributes:
        layers: Names of the hidden layers whose outputs `label` returns.
        runtime: What computes: `"keras"`, `"onnxruntime"`, `"torch"`, ...
        probabilities: Whether the output is known to be probabilities: `True`
            after a softmax or sigmoids, `False` for logits, `None` where
            nobody knows.

    Example:
        >>> import numpy as np
        >>> import keras_distill as kd
        >>> class Brightness(kd.teachers.Teacher):
        ...     runtime = "numpy"
        ...     probabilities = False
        ...     def label(self, inputs):
        ...         mean = inputs.mean((1, 2, 3))
        ...         return np.stack([-mean, mean], 1), {}
        ...     @property
        ...     def fingerprint(self):
        ...         return {"kind": "brightness", "version": 1}
        >>> output, features = Brightness().label(np.ones((5, 8, 8, 1)))
        >>> output.shape
        (5, 2)
    """

    layers: tuple[str, ...] = ()
    runtime: str = "python"
    probabilities: bool | None = None

    @abc.abstractmethod
    def label(self, inputs: Any) -> tuple[Any, dict[str, Array]]:
        """Say what the teacher thinks of a batch, in inference mode.

        Args:
            inputs: A batch: an array, or a list, tuple or dict of arrays.

        Returns:
            The output, arrays in the structure that the teacher returns, and
            the outputs of `layers` by name.
        """

    @property
    @abc.abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """JSON values that change whenever what the teacher says does."""

    def with_layers(self, layers: Sequence[str]) -> Teacher:
        """The same teacher, with other hidden layers to look at.

        Raises:
            ValueError: If its layers can't be seen.
        """
        raise ValueError(
            f"The hidden layers of a {type(self).__name__} can't be seen. "
            f"Received: layers={tuple(layers)}. Pass no layers, or the model "
            "that it was made from."
        )

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Let go of processes and sessions; `label` starts them again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
