"""What every distillation loss is: values per example, nothing reduced."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import keras
from keras import ops

from keras_distill.labels import (
    as_indices,
    known_share,
    weight_of_known,
    without_padding,
)
from keras_distill.masks import mask_of

# Tensors of three frameworks have no common type that could be imported
# without importing a framework.
Tensor: TypeAlias = Any
LayerName: TypeAlias = "str | int | None"
LayerNames: TypeAlias = "LayerName | Sequence[str | int]"
Shape: TypeAlias = "tuple[int | None, ...]"


class DistillationLoss(keras.losses.Loss):  # type: ignore[misc]
    """Base of all losses between a teacher and a student.

    A subclass says in `call` how far the student is from the teacher, one
    value for each example. Keras does the rest: dtype, masks, sample weights
    and the mean over the batch. So the same object works in a `Distiller` and
    in `model.compile(loss=...)` on teacher outputs that were computed before.

    Computes in float32 at least, whatever the models' dtype policies.

    Args:
        teacher_layer_name: Layer of the teacher to look at: its name, its path
            inside sub-models (`"backbone/conv4"`), the key or index of an
            output of a multi-output model, or `None` for the model's output.
            A list of these gives `call` a list of tensors.
        student_layer_name: The same for the student.
        projector: A `keras.Layer` through which the student's tensor goes
            before it is compared; a list of layers where several layers are
            compared; `"auto"` for one that mends the shape, in losses that can
            make one; or `None`. The `Distiller` builds, trains and saves it,
            and leaves it out of the student.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: Dtype to compute in, by default `keras.config.floatx()`, but
            at least float32.

    Example:
        >>> from keras import ops
        >>> import keras_distill as kd
        >>> class Distance(kd.losses.DistillationLoss):
        ...     def call(self, teacher, student):
        ...         return ops.norm(teacher - student, axis=-1)
        >>> loss = Distance("dense_1", "dense_2")
        >>> float(loss([[3.0, 4.0]], [[0.0, 0.0]]))
        5.0
    """

    #: Weight of the loss in a `Distiller` that isn't told another: the one of
    #: the method's paper.
    default_weight: float = 1.0
    #: Weight of the hard labels next to it, likewise.
    default_hard_label_weight: float = 1.0
    #: Whether `call` gives a value for each position, as of a sequence of
    #: logits, or one for each example.
    per_position: bool = False
    #: Whether `call` needs the hard labels too. Then its first argument is
    #: `{"teacher": ..., "labels": ...}`.
    uses_labels: bool = False
    #: Whether `call` needs to know which examples these are. Then its first
    #: argument is `{"teacher": ..., "sample_ids": ...}`.
    uses_sample_ids: bool = False
    #: Whether an example's value depends on the other examples of its batch.
    relates_examples: bool = False
    #: Whether layers are compared pair by pair, so that both lists of names
    #: have the same length.
    pairs_layers: bool = True
    #: Kinds of `NamedTuple` in which the teacher's side may come instead of as
    #: a tensor, such as one that was stored in less space.
    stored_types: tuple[Any, ...] = ()
    #: Whether `make_parts` makes layers or variables, and `build` is needed.
    has_parts: bool = False

    def __init__(
        self,
        teacher_layer_name: LayerNames = None,
        student_layer_name: LayerNames = None,
        projector: Any = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        dtype = dtype or keras.backend.result_type(
            keras.config.floatx(), "float32"
        )
        # Keras would number the instances of a class; a history's keys should
        # not depend on how many losses were made before.
        name = name or _snake_case(type(self).__name__)
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if self.dtype not in ("float32", "float64"):
            raise ValueError(
                "Losses compute in float32 at least, whatever the models do. "
                f"Received: dtype={dtype!r}. Pass 'float32', 'float64', or "
                "None."
            )
        self.teacher_layer_name = _plain(teacher_layer_name)
        self.student_layer_name = _plain(student_layer_name)
        if self.pairs_layers and _length(self.teacher_layer_name) != _length(
            self.student_layer_name
        ):
            raise ValueError(
                f"{type(self).__name__} compares layers pair by pair. "
                f"Received: teacher_layer_name={teacher_layer_name!r}, "
                f"student_layer_name={student_layer_name!r}. Give both as one "
                "name, or as lists of the same length."
            )
        self.projector = _check_projector(projector, type(self).__name__)
        # As in a layer: whether the parts exist, and Keras' files ask it.
        self.built = not self.has_parts
        self._built_for: dict[str, Any] | None = None

    def call(self, teacher: Tensor, student: Tensor) -> Tensor:
        """How far the student is from the teacher, `(batch,)` values."""
        raise NotImplementedError(
            f"{type(self).__name__} must define `call(teacher, student)`."
        )

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> Tensor:
        """Weighted mean of `call` over the batch, as Keras computes it."""
        if not self.built:
            raise ValueError(
                f"{type(self).__name__} has parts that are trained with the "
                "student, and they don't exist yet. Received: a call before "
                "`build`. Give the loss to a Distiller, which builds and "
                "trains them."
            )
        mask = None
        if not isinstance(self.teacher_layer_name, list):
            # Keras would take a list of numbers for a list of tensors.
            y_true, y_pred = self._array(y_true), self._array(y_pred)
            mask = mask_of(y_pred)
        if mask is not None:
            # Keras would apply it to the one value that other losses have of a
            # sequence, and take means over one device. A copy has no mask.
            y_pred = ops.copy(y_pred)
        if sample_weight is not None:
            student = keras.tree.flatten(y_pred)[0]
            rank = len(student.shape) - 1 if self.per_position else 1
            sample_weight = align_weights(
                sample_weight, ops.shape(student)[:rank], self
            )
        if mask is not None and self.per_position:
            masked = self._mask_weights(mask)
            if sample_weight is not None:
                masked = masked * sample_weight
            sample_weight = masked
        return super().__call__(y_true, y_pred, sample_weight)

    def _mask_weights(self, mask: Tensor) -> Tensor:
        """Weights of places, which Keras scales for means alone too."""
        if self.reduction in ("mean", "sum_over_batch_size"):
            return known_share(mask, self.dtype)
        return ops.cast(mask, self.dtype)

    def build(self, teacher_shape: Any, student_shape: Any) -> None:
        """Make the parts that are trained with the student.

        A `Distiller` calls it with what the loss compares. Call it yourself
        where all that the teacher says was stored, so that its shapes aren't
        known. Its parts keep what they learned: a loss that is given to a
        second `Distiller` goes on from there.

        Args:
            teacher_shape: Shape of the teacher's tensor, batch first; a list
                of shapes where a list of layers is compared.
            student_shape: The same of the student, behind the projector.

        Raises:
            ValueError: If the parts were built for other shapes, or can't be.
        """
        shapes = {
            "teacher_shape": _without_batch(teacher_shape),
            "student_shape": _without_batch(student_shape),
        }
        if self._built_for is None:
            self.make_parts(**shapes)
            self._built_for = shapes
            self.built = True
        elif self._built_for != shapes:
            raise ValueError(
                f"{type(self).__name__} was built for {self._built_for}. "
                f"Received: {shapes}. Make a new loss for other models."
            )

    def make_parts(self, teacher_shape: Any, student_shape: Any) -> None:
        """Set layers and variables as attributes, built. See `build`.

        Args:
            teacher_shape: As in `build`, with `None` for the batch.
            student_shape: The same of the student.
        """

    def parts(self) -> Iterator[tuple[str, Any]]:
        """Layers, variables and random states of the loss, with their names."""
        for name, value in vars(self).items():
            if name == "projector":
                continue
            if isinstance(value, DistillationLoss):
                for inner, part in value.parts():
                    yield f"{name}_{inner}", part
                continue
            several = isinstance(value, (list, tuple))
            for i, part in enumerate(value if several else [value]):
                if isinstance(part, _PARTS):
                    yield (f"{name}_{i}" if several else name), part

    def get_build_config(self) -> dict[str, Any] | None:
        """What `build` was called with, for Keras' files."""
        return self._built_for

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Build as the loss that was saved."""
        self.build(**config)

    def make_projector(
        self, teacher_shape: Shape, student_shape: Shape
    ) -> keras.Layer | None:
        """The layer that `projector="auto"` stands for.

        Args:
            teacher_shape: Shape of the teacher's tensor, batch first.
            student_shape: Shape of the student's tensor, batch first.

        Returns:
            An unbuilt layer, or `None` if the shapes need none.

        Raises:
            ValueError: If the loss can make none.
        """
        raise ValueError(
            f"{type(self).__name__} has no automatic projector. "
            "Received: projector='auto'. Pass a keras.Layer, or None."
        )

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise where the loss can't compare tensors of these shapes.

        Called once, when a `Distiller` is made, with the student's shape as
        it is behind the projector.

        Args:
            teacher_shape: Shape of the teacher's tensor, batch first.
            student_shape: Shape of the student's tensor, batch first.

        Raises:
            ValueError: If the shapes don't fit the loss.
        """

    def describe(self, teacher_shape: Shape, student_shape: Shape) -> str:
        """Who is compared with whom, for error messages."""
        return (
            f"{type(self).__name__} compares {teacher_shape} of "
            f"{_place('teacher', self.teacher_layer_name)} with "
            f"{student_shape} of "
            f"{_place('student', self.student_layer_name)}."
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            "teacher_layer_name": self.teacher_layer_name,
            "student_layer_name": self.student_layer_name,
            "projector": keras.saving.serialize_keras_object(self.projector),
            "reduction": self.reduction,
            "name": self.name,
            "dtype": self.dtype,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DistillationLoss:
        """Make the loss that `get_config` describes."""
        projector = keras.saving.deserialize_keras_object(
            config.get("projector")
        )
        return cls(**{**config, "projector": projector})

    def _array(self, value: Any) -> Any:
        if isinstance(value, self.stored_types):
            return type(value)(*map(self._array, value))
        if isinstance(value, (list, tuple)):
            return ops.convert_to_tensor(value, self.dtype)
        if isinstance(value, dict):  # a teacher's tensor, and labels
            return {key: self._array(x) for key, x in value.items()}
        return value


class LogitLoss(DistillationLoss):
    """Base of the losses between logits.

    A subclass defines `compare(teacher, student)`; one that `uses_labels`
    defines `compare(teacher, student, labels)`. An example whose label is -1
    has none: its value is 0, and the mean is over the others. The value of a
    label beyond the classes is NaN.

    Args:
        teacher_layer_name: As in `DistillationLoss`.
        student_layer_name: As in `DistillationLoss`.
        projector: As in `DistillationLoss`.
        from_logits: Whether the teacher gives logits. `False` if it gives
            probabilities: they are taken to log space, where a temperature
            applies to them as to logits. `None` means logits, unless a
            `Distiller` sees a softmax or sigmoid at the end of the teacher.
            The student must give logits, or show its softmax or sigmoid to
            the `Distiller` as its last layer.
        class_map: For each class of the student, the index of the teacher's
            class that it stands for. Needed where the teacher has other
            classes; those that no entry names are left out, and the
            probabilities of the rest are renormalised.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.
    """

    default_hard_label_weight = 0.1
    per_position = True
    #: What turns these logits into probabilities.
    activation: str = "softmax"

    def __init__(
        self,
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
            teacher_layer_name,
            student_layer_name,
            projector,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        if not isinstance(from_logits, (bool, type(None))):
            raise ValueError(
                "The teacher gives logits or probabilities. Received: "
                f"from_logits={from_logits!r}. Pass True, False, or None to "
                "see it from the teacher's graph."
            )
        self.from_logits = from_logits
        self.class_map = None if class_map is None else list(class_map)
        if not all(map(_is_index, self.class_map or [])):
            raise ValueError(
                "class_map holds the teacher's class for each of the "
                f"student's. Received: class_map={class_map!r}. Pass whole "
                "numbers from 0."
            )

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> Tensor:
        """Weighted mean of `call` over the places that aren't masked."""
        if self.uses_labels:
            y_pred = self._array(y_pred)
            labels = ops.convert_to_tensor(y_true["labels"])
            labels, y_pred = without_padding(labels, y_pred, self.dtype)
            y_true = {**y_true, "labels": labels}
            if self.reduction == "mean_with_sample_weight":
                known = as_indices(labels, y_pred) >= 0
                known = ops.cast(known, self.dtype)
                if sample_weight is not None:
                    places = ops.shape(y_pred)[:-1]
                    known *= align_weights(sample_weight, places, self)
                sample_weight = known
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, teacher: Tensor, student: Tensor) -> Tensor:
        """How far the student is from the teacher, `(batch,)` values."""
        if not self.uses_labels:
            return self.compare(self._teacher_logits(teacher, student), student)
        labels = as_indices(teacher["labels"], student)
        teacher = self._teacher_logits(teacher["teacher"], student)
        known, beyond = labels >= 0, labels >= student.shape[-1]
        inside = ops.where(known & ~beyond, labels, 0)
        values = self.compare(teacher, student, inside)
        # Backends would raise, take the last class, or something else.
        values = ops.where(beyond, math.nan, values)
        return values * weight_of_known(known, values.dtype, self.reduction)

    def _teacher_logits(self, teacher: Tensor, student: Tensor) -> Tensor:
        # NumPy-style broadcasting would hide what doesn't fit.
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        if self.from_logits is False:
            teacher = to_logits(teacher, self.activation)
        if self.class_map is not None:
            teacher = ops.take(teacher, self.class_map, axis=-1)
        return teacher

    def compare(self, teacher: Tensor, student: Tensor, *labels: Any) -> Tensor:
        """`call` for two tensors of logits over the same classes.

        Args:
            teacher: Logits.
            student: Logits.
            labels: Class indices, for a loss that `uses_labels`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define `compare(teacher, student)`."
        )

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise where teacher and student don't have the same classes."""
        classes = teacher_shape[-1]
        if self.class_map is not None:
            wrong = [i for i in self.class_map if not 0 <= i < (classes or 0)]
            if classes is not None and wrong:
                raise ValueError(
                    f"class_map names classes {wrong} that the teacher, with "
                    f"{classes} classes, doesn't have. Received: "
                    f"class_map={self.class_map}. Name indices from 0 to "
                    f"{classes - 1}."
                )
            classes = len(self.class_map)
        if fits((*teacher_shape[:-1], classes), student_shape):
            return
        if None in (classes, student_shape[-1]) or classes == student_shape[-1]:
            raise ValueError(
                f"{self.describe(teacher_shape, student_shape)} Their places "
                "differ, not their classes. Received: logits of shapes "
                f"{teacher_shape} and {student_shape}. Name layers whose "
                "outputs differ in the last axis at most."
            )
        raise ValueError(
            f"{self.describe(teacher_shape, student_shape)} "
            f"Received: logits for {classes} and {student_shape[-1]} classes. "
            "Pass class_map=[...], the teacher's class for each of the "
            "student's, or projector=keras.layers.Dense(...)."
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "from_logits": self.from_logits,
            "class_map": self.class_map,
        }


class TemperedLogitLoss(LogitLoss):
    """Base of the logit losses with a temperature that a callback can set.

    Args:
        temperature: What divides the logits, above 0. `self.temperature` is a
            variable: a callback may set it between epochs.
        teacher_layer_name: As in `DistillationLoss`.
        student_layer_name: As in `DistillationLoss`.
        projector: As in `DistillationLoss`.
        from_logits: As in `LogitLoss`.
        class_map: As in `LogitLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.
    """

    def __init__(
        self,
        temperature: float = 4.0,
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
            teacher_layer_name,
            student_layer_name,
            projector,
            from_logits,
            class_map,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        if not isinstance(temperature, numbers.Real) or not (
            0 < temperature < math.inf
        ):
            raise ValueError(
                "A temperature divides the logits, so it must be a positive "
                f"number. Received: temperature={temperature!r}. Pass 1 for "
                "none, or more to soften the targets."
            )
        self._temperature: Any = keras.Variable(
            temperature,
            dtype=self.dtype,
            trainable=False,
            autocast=False,
            name="temperature",
        )

    @property
    def temperature(self) -> Any:
        """The variable that divides the logits; assign a number to set it."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature.assign(value)

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise where there are fewer than two classes, or not the same."""
        super().check_shapes(teacher_shape, student_shape)
        if self.activation == "softmax":
            refuse_one_class(student_shape)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        temperature = float(ops.convert_to_numpy(self.temperature.value))
        return {**super().get_config(), "temperature": temperature}


_PARTS = (keras.Layer, keras.Variable, keras.random.SeedGenerator)


def _without_batch(shape: Any) -> Any:
    """Shapes as lists, as they come back from a file, whatever the batch."""
    if isinstance(shape, (list, tuple)) and any(
        isinstance(part, (list, tuple)) for part in shape
    ):
        return [_without_batch(part) for part in shape]
    return [None, *shape[1:]]


def fits(teacher_shape: Shape, student_shape: Shape) -> bool:
    """Whether shapes are equal, as far as they are known."""
    return len(teacher_shape) == len(student_shape) and all(
        t == s or None in (t, s)
        for t, s in zip(teacher_shape, student_shape, strict=True)
    )


def align_weights(
    sample_weight: Any, places: Any, loss: keras.losses.Loss
) -> Tensor:
    """Sample weights of the shape of a loss's values.

    Multiplying arrays of different ranks would pair the weights with the
    wrong values wherever two sizes happen to be equal.

    Args:
        sample_weight: A weight for each example, or for each place.
        places: Shape of the values that they are for.
        loss: The loss that has these values.

    Returns:
        A tensor of its own: where there is a mask, Keras multiplies it into
        the weights, on PyTorch in place.

    Raises:
        ValueError: If the weights have more axes than the values.
    """
    weights = ops.convert_to_tensor(sample_weight, loss.dtype)
    if len(weights.shape) > 1 and weights.shape[-1] == 1:
        weights = ops.squeeze(weights, axis=-1)
    if len(weights.shape) > len(places):
        raise ValueError(
            f"{loss.name} has values of {len(places)} axes, but the sample "
            f"weights have more. Received: sample_weight of shape "
            f"{tuple(weights.shape)}. Pass one weight for each example."
        )
    while len(weights.shape) < len(places):
        weights = ops.expand_dims(weights, axis=-1)
    return weights * ops.ones(places, loss.dtype)


def refuse_one_class(student_shape: Shape) -> None:
    """Raise where a softmax has a single logit."""
    if len(student_shape) < 2 or student_shape[-1] == 1:
        raise ValueError(
            "The softmax of a single logit is always 1, so there is nothing "
            f"to learn from it. Received: logits of shape {student_shape}. Use "
            "BinarySoftTargets for a model with one logit."
        )


def relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """`p * (log p - log q)`, zero where `p` is zero even if both logs are -inf.

    In log space throughout: the logarithm of a probability that has been
    rounded, or clipped, has a wrong gradient.
    """
    p = ops.exp(log_p)
    # Not `p > 0`, which would hide a teacher that gives NaN.
    return ops.where(p == 0, 0.0, p * (log_p - log_q))


def divergence(log_p: Tensor, log_q: Tensor, axis: int = -1) -> Tensor:
    """The sum of `relative_entropy` over an axis.

    Its sign is changed after the sum: the gradient of `log_q` is then the one
    that comes in, and needn't be turned around in each class.
    """
    p = ops.exp(log_p)
    return 0.0 - ops.sum(ops.where(p == 0, 0.0, p * (log_q - log_p)), axis=axis)


def of_label(values: Tensor, labels: Tensor) -> Tensor:
    """The value of each example's labelled class, without the class axis."""
    labels = ops.expand_dims(labels, axis=-1)
    return ops.squeeze(ops.take_along_axis(values, labels, axis=-1), axis=-1)


def of_others(values: Tensor, labels: Tensor) -> Tensor:
    """The values of all but each example's labelled class, in any order."""
    classes = values.shape[-1]
    steps = ops.arange(1, classes, dtype="int32")
    others = (ops.expand_dims(labels, axis=-1) + steps) % classes
    return ops.take_along_axis(values, others, axis=-1)


def to_logits(probabilities: Tensor, activation: str) -> Tensor:
    """Logits that give these probabilities, exact in log space.

    A probability that underflowed to zero, or nearly, counts as 2**-110, so
    that values stay finite, as do gradients: they are divided by it.

    Args:
        probabilities: Output of a softmax over the last axis, or of a sigmoid.
        activation: `"softmax"` or `"sigmoid"`.

    Returns:
        Tensor of the same shape.
    """
    logits = _log(probabilities)
    if activation == "softmax":
        return logits
    return logits - _log(1 - probabilities)


def _log(probabilities: Tensor) -> Tensor:
    # Not `maximum`, whose gradient on JAX is infinity times zero here.
    least = 2.0**-110
    return ops.log(ops.where(probabilities > least, probabilities, least))


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z][a-z])", "_", name).lower()


def _is_index(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _plain(names: Any) -> Any:
    return list(names) if isinstance(names, (list, tuple)) else names


def _length(names: Any) -> int | None:
    return len(names) if isinstance(names, list) else None


def _place(who: str, names: Any) -> str:
    return f"the {who}'s output" if names is None else f"{who} layer {names!r}"


def _check_projector(projector: Any, loss: str) -> Any:
    layers = projector if isinstance(projector, (list, tuple)) else [projector]
    for layer in layers:
        if not (layer in (None, "auto") or isinstance(layer, keras.Layer)):
            raise TypeError(
                f"{loss} got a projector that is no Keras layer. "
                f"Received: projector={projector!r}. Pass a keras.Layer, "
                "'auto' or None."
            )
    return list(layers) if isinstance(projector, (list, tuple)) else projector
