"""Soft targets of few classes, for vocabularies too large to store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill.losses.base import (
    LayerName,
    Shape,
    TemperedLogitLoss,
    Tensor,
    divergence,
    fits,
    to_logits,
)

_MISSING = ("tail", "spread", "teacher_renormalized", "renormalized")
# Far below any logarithm of a probability, and yet finite in float32.
_LEAST = -1e30
# Keras casts targets to float32, which holds no greater integer exactly.
_MOST_CLASSES = 2**24


class SparseTargets(NamedTuple):
    """A teacher's greatest logits, and what it gives to all other classes.

    `SparseSoftTargets.targets` makes them. Store these four arrays instead of
    the teacher's logits, and pass `TransferBatch(x, SparseTargets(...))`.

    Attributes:
        indices: Classes `(batch, ..., k)`, no two the same.
        logits: Their logits `(batch, ..., k)`, not yet divided by the
            temperature.
        log_rest: Logarithm of the sum of `exp(logit / temperature)` over all
            other classes, `(batch, ...)`.
        temperature: The temperature that it holds for, `(batch, ...)`. Where
            a loss that needs `log_rest` has another, its value is NaN.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.SparseSoftTargets(k=2)
        >>> targets = loss.targets([[0.0, 3.0, 1.0, 0.0]])
        >>> [[int(i) for i in row] for row in targets.indices]
        [[1, 2]]
    """

    indices: Tensor
    logits: Tensor
    log_rest: Tensor
    temperature: Tensor


class SampledTargets(NamedTuple):
    """Classes drawn from a teacher's probabilities.

    `SampledSoftTargets.targets` makes them.

    Attributes:
        indices: Classes `(batch, ..., samples)`. The weights of a class that
            is there more than once add up.
        weights: Their weights `(batch, ..., samples)`, which sum to 1.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.SampledSoftTargets(samples=2)
        >>> targets = loss.targets([[0.0, 300.0, 0.0]])
        >>> [[int(i) for i in row] for row in targets.indices]
        [[1, 1]]
    """

    indices: Tensor
    weights: Tensor


class _FewClasses(TemperedLogitLoss):
    """A loss that sees few of the teacher's classes, live or stored."""

    def targets(self, teacher: Tensor) -> Any:
        """What to store of a teacher's output, for this loss.

        Args:
            teacher: The teacher's output `(batch, ..., classes)`. `class_map`,
                and `from_logits=False`, are applied to it.

        Returns:
            Tensors to pass to the loss, or in a `TransferBatch`, instead of
            the output.
        """
        teacher = ops.convert_to_tensor(teacher, self.dtype)
        shape = tuple(teacher.shape)
        classes = shape[-1] if self.class_map is None else len(self.class_map)
        self.check_shapes(shape, (*shape[:-1], classes))
        if self.from_logits is False:
            teacher = to_logits(teacher, self.activation)
        if self.class_map is not None:
            teacher = ops.take(teacher, self.class_map, axis=-1)
        return self._few(teacher)

    def call(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`."""
        if not isinstance(teacher, self.stored_types):
            return super().call(teacher, student)
        self._check_stored(teacher, tuple(student.shape))
        return self._compare_few(teacher, student)

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`."""
        return self._compare_few(self._few(teacher), student)

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise where there are too many classes, or not the same."""
        super().check_shapes(teacher_shape, student_shape)
        self._check_classes(student_shape)

    def _few(self, teacher: Tensor) -> Any:
        raise NotImplementedError

    def _compare_few(self, targets: Any, student: Tensor) -> Tensor:
        raise NotImplementedError

    def _wanted(self, places: Shape) -> tuple[Shape, ...]:
        """Shapes of stored targets for that many places."""
        raise NotImplementedError

    def _check_classes(self, student_shape: Shape) -> None:
        if (student_shape[-1] or 0) > _MOST_CLASSES:
            raise ValueError(
                f"{type(self).__name__} keeps the numbers of classes in "
                f"float32. Received: logits of shape {student_shape}. It "
                f"takes at most {_MOST_CLASSES} classes."
            )

    def _check_stored(self, targets: Any, student_shape: Shape) -> None:
        self._check_classes(student_shape)
        wanted = self._wanted(student_shape[:-1])
        shapes = [tuple(part.shape) for part in targets]
        if all(map(fits, shapes, wanted)):
            return
        raise ValueError(
            f"{type(self).__name__} takes {', '.join(targets._fields)} of "
            f"shapes {list(wanted)} for a student's logits of shape "
            f"{student_shape}. Received: shapes {shapes}. Make them with the "
            "`targets` of an equal loss."
        )


@keras.saving.register_keras_serializable("keras_distill")
class SparseSoftTargets(_FewClasses):
    """Soft targets that know the teacher's `k` greatest logits only.

    A teacher's logits over a vocabulary of 100,000 tokens can't be stored for
    each token of a corpus. The greatest few hold nearly all probability; what
    becomes of the rest is `missing`. All but one of the ways are biased:

    - `"tail"`: the other classes are one more class, on both sides. At most
      `SoftTargets`, and zero where the student equals the teacher.
    - `"spread"`: the other classes share it equally, as in fast knowledge
      distillation (FKD) and TinyViT. For thousands of classes and more, it
      asks for much where the teacher says next to nothing.
    - `"teacher_renormalized"`: it goes to the `k` in proportion, so that the
      student is asked to be surer than the teacher.
    - `"renormalized"`: that, and the student's probabilities of the `k` are
      renormalised too. To be avoided: how much probability the student gives
      to all other classes then costs nothing, and it may give them any.

    With a live teacher it takes the `k` itself. `targets` makes what to store
    instead, for a `TransferBatch`. Where the other classes count, it is made
    for one temperature: a callback that sets it needs a live teacher.

    Formula:
        `T**2 * sum_c p_c * (log p_c - log q_c)`, with `p` the softmax of the
        teacher's logits over `T`, `q` that of the student's. The sum is over
        the `k` and, as above, the other classes together (`"tail"`), each
        (`"spread"`), or not at all.

    Args:
        k: How many classes to keep, at least 1.
        temperature: `T`, above 0. `self.temperature` is a variable.
        missing: What becomes of the other classes' probability: `"tail"`,
            `"spread"`, `"teacher_renormalized"` or `"renormalized"`.
        teacher_layer_name: As in `DistillationLoss`.
        student_layer_name: As in `DistillationLoss`.
        projector: As in `DistillationLoss`.
        from_logits: As in `LogitLoss`.
        class_map: As in `LogitLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher `(batch, ..., classes)`, or `SparseTargets` of shapes `(batch,
        ..., k)` and `(batch, ...)`, twice each; student `(batch, ...,
        classes)`; values `(batch, ...)`. Stored targets are never made as large
        as the student's logits.

    Raises:
        ValueError: If `k` is below 1 or above the number of classes, `missing`
            is none of the four, the temperature isn't positive, the two have
            not the same classes, or stored targets have other shapes.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.SparseSoftTargets(k=2)
        >>> teacher, student = [[2.0, 0.0, -2.0, 0.5]], [[2.0, 1.0, -1.0, 0.0]]
        >>> round(float(loss(teacher, student)), 4)
        0.0899
        >>> round(float(loss(loss.targets(teacher), student)), 4)
        0.0899

    Reference:
        Shen and Xing, "A Fast Knowledge Distillation Framework for Visual
        Recognition", ECCV 2022, for stored targets of few classes; Anshumann
        et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in
        LLMs", ACL 2025, for what they leave out.
    """

    stored_types = (SparseTargets,)

    def __init__(
        self,
        k: int,
        temperature: float = 1.0,
        missing: str = "tail",
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        projector: Any = None,
        from_logits: bool | None = None,
        class_map: Sequence[int] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            temperature,
            teacher_layer_name,
            student_layer_name,
            projector,
            from_logits,
            class_map,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        if not isinstance(k, int) or k < 1:
            raise ValueError(
                "The number of classes to keep must be a whole number, at "
                f"least 1. Received: k={k!r}. Pass 50, or as many as hold "
                "nearly all of the teacher's probability."
            )
        if missing not in _MISSING:
            raise ValueError(
                "There are four ways to treat the other classes. Received: "
                f"missing={missing!r}. Pass one of {list(_MISSING)}."
            )
        self.k = k
        self.missing = missing

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {**super().get_config(), "k": self.k, "missing": self.missing}

    def _check_classes(self, student_shape: Shape) -> None:
        super()._check_classes(student_shape)
        classes = student_shape[-1]
        if classes is not None and self.k > classes:
            raise ValueError(
                f"There are fewer classes than are to be kept. Received: "
                f"k={self.k} for logits of shape {student_shape}. Pass at "
                f"most {classes}."
            )

    def _wanted(self, places: Shape) -> tuple[Shape, ...]:
        return (*places, self.k), (*places, self.k), places, places

    def _few(self, teacher: Tensor) -> SparseTargets:
        logits, indices = ops.top_k(teacher, self.k)
        # One less the sum of what was kept would be lost in rounding.
        others = _without(teacher / self.temperature, indices)
        rest = ops.logsumexp(others, axis=-1)
        temperature = ops.ones_like(rest) * self.temperature
        return SparseTargets(indices, logits, rest, temperature)

    def _compare_few(self, targets: SparseTargets, student: Tensor) -> Tensor:
        indices = ops.cast(targets.indices, "int32")
        teacher = _finite(targets.logits / self.temperature)
        logits = student / self.temperature
        kept = _finite(ops.take_along_axis(logits, indices, axis=-1))
        if self.missing in ("renormalized", "teacher_renormalized"):
            counted = kept if self.missing == "renormalized" else logits
            log_all = ops.logsumexp(counted, axis=-1, keepdims=True)
            log_p = ops.log_softmax(teacher, axis=-1)
            return self.temperature**2 * divergence(log_p, kept - log_all)
        others = _without(logits, indices)
        log_others = ops.logsumexp(others, axis=-1)
        log_p = _with_rest(teacher, _finite(targets.log_rest))
        value = divergence(log_p, _with_rest(kept, log_others))
        if self.missing == "spread":
            uneven = _unevenness(others, log_others, self.k)
            value = value + ops.exp(log_p[..., -1]) * uneven
        # As exact as a temperature that was stored in float16.
        apart = ops.abs(targets.temperature / self.temperature - 1) > 1e-3
        return self.temperature**2 * ops.where(apart, math.nan, value)


@keras.saving.register_keras_serializable("keras_distill")
class SampledSoftTargets(_FewClasses):
    """Soft targets that know classes drawn from the teacher (RS-KD).

    Drawn as often as the teacher gives them probability, few classes stand for
    all without bias: on average, the gradient is that of `SoftTargets`. The
    greatest few, as `SparseSoftTargets` takes them, give another one.

    With a live teacher it draws anew in each step. `targets` draws what to
    store instead, for a `TransferBatch`, at this loss's temperature.

    Formula:
        `-T**2 * sum_n w_n * log q_(c_n)`, with `q` the softmax of the student's
        logits over `T` and `c_n` drawn from that of the teacher's, each with
        the weight `w_n = 1 / samples`. Unlike a divergence, it isn't zero
        where the student equals the teacher.

    Args:
        samples: How many classes to draw, at least 1; the same may be drawn
            more than once.
        temperature: `T`, above 0. `self.temperature` is a variable.
        seed: Seed of the draws, an integer, or `None` for a random one.
        teacher_layer_name: As in `DistillationLoss`.
        student_layer_name: As in `DistillationLoss`.
        projector: As in `DistillationLoss`.
        from_logits: As in `LogitLoss`.
        class_map: As in `LogitLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher `(batch, ..., classes)`, or `SampledTargets` of shape `(batch,
        ..., samples)`; student `(batch, ..., classes)`; values `(batch, ...)`.
        Stored targets are never made as large as the student's logits.

    Raises:
        ValueError: If `samples` is below 1, the temperature isn't positive,
            the two have not the same classes, or stored targets have other
            shapes.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.SampledSoftTargets(samples=4, seed=0)
        >>> sure = [[300.0, 0.0, 0.0]]
        >>> round(float(loss(sure, [[2.0, 1.0, -1.0]])), 4)
        0.349
        >>> stored = kd.losses.SampledTargets([[0, 1, 0, 0]], [[0.25] * 4])
        >>> round(float(loss(stored, [[2.0, 1.0, -1.0]])), 4)
        0.599

    Reference:
        Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge
        Distillation in LLMs", ACL 2025.
    """

    stored_types = (SampledTargets,)

    def __init__(
        self,
        samples: int = 50,
        temperature: float = 1.0,
        seed: int | None = None,
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        projector: Any = None,
        from_logits: bool | None = None,
        class_map: Sequence[int] | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            temperature,
            teacher_layer_name,
            student_layer_name,
            projector,
            from_logits,
            class_map,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(
                "The number of draws must be a whole number, at least 1. "
                f"Received: samples={samples!r}. Pass 50, as the authors do."
            )
        self.samples = samples
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "samples": self.samples,
            "seed": self.seed,
        }

    def _wanted(self, places: Shape) -> tuple[Shape, ...]:
        return (*places, self.samples), (*places, self.samples)

    def _few(self, teacher: Tensor) -> SampledTargets:
        rows = ops.reshape(teacher, (-1, teacher.shape[-1]))
        indices = keras.random.categorical(
            rows / self.temperature,
            self.samples,
            dtype="int32",
            seed=self.seed_generator,
        )
        places = ops.shape(teacher)[:-1]
        indices = ops.reshape(indices, (*places, self.samples))
        weights = ops.ones_like(indices, dtype=teacher.dtype) / self.samples
        return SampledTargets(indices, weights)

    def _compare_few(self, targets: SampledTargets, student: Tensor) -> Tensor:
        indices = ops.cast(targets.indices, "int32")
        log_all = ops.log_softmax(student / self.temperature, axis=-1)
        log_q = _finite(ops.take_along_axis(log_all, indices, axis=-1))
        return -(self.temperature**2) * ops.sum(
            targets.weights * log_q, axis=-1
        )


def _finite(logs: Tensor) -> Tensor:
    """What minus infinity would make of a gradient is NaN."""
    return ops.where(logs < _LEAST, _LEAST, logs)


def _with_rest(kept: Tensor, rest: Tensor) -> Tensor:
    """Log probabilities of the kept classes, and of all others as one more."""
    rest = ops.expand_dims(rest, axis=-1)
    return ops.log_softmax(ops.concatenate([kept, rest], axis=-1), axis=-1)


def _without(logits: Tensor, indices: Tensor) -> Tensor:
    """The same logits, those of some classes as good as minus infinity."""
    rows = ops.reshape(logits, (-1, logits.shape[-1]))
    columns = ops.reshape(indices, (-1, indices.shape[-1]))
    places = ops.expand_dims(ops.arange(ops.shape(rows)[0]), axis=-1)
    places = ops.cast(places, "int32") + ops.zeros_like(columns)
    where = ops.stack(
        [ops.reshape(places, (-1,)), ops.reshape(columns, (-1,))], axis=-1
    )
    least = ops.full_like(where[:, 0], _LEAST, dtype=logits.dtype)
    rows = ops.scatter_update(rows, where, least)
    return ops.reshape(rows, ops.shape(logits))


def _unevenness(others: Tensor, log_sum: Tensor, k: int) -> Tensor:
    """Divergence from equal shares of the others to what the student gives."""
    count = others.shape[-1] - k
    if count == 0:
        return ops.zeros_like(log_sum)
    # Those that were kept would weigh in.
    logits = ops.where(others > _LEAST, others, 0.0)
    return log_sum - math.log(count) - ops.sum(logits, axis=-1) / count
