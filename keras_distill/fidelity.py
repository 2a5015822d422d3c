"""Fidelity metrics tied to a teacher and a student."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill.checks import labels_for, weights_for
from keras_distill.comparison import extractors, pick, seen_activation
from keras_distill.features import (
    StoredTeacher,
    TransferBatch,
    symbolic_output,
)
from keras_distill.heads import final_activation
from keras_distill.losses.base import align_weights, to_logits
from keras_distill.masks import mask_of
from keras_distill.metrics.fidelity_metric import (
    FidelityMetric,
    LogitFidelityMetric,
)
from keras_distill.metrics.label_metric import LabelMetric


class ExaminedBatch(NamedTuple):
    """What an evaluation with a teacher feeds the student.

    Attributes:
        batch: A batch that holds what the teacher said.
    """

    batch: TransferBatch


class _Tied(NamedTuple):
    """A metric, and the softmax or sigmoid that its models' graphs end in."""

    metric: FidelityMetric
    teacher_activation: str | None = None
    student_activation: str | None = None


class Fidelity:
    """Metrics between a teacher and a student, as a `Distiller` runs them.

    Args:
        metrics: The metrics.
        teacher: A built model, what is known of one, or `None`.
        student: A built model.

    Raises:
        TypeError: If something else than a fidelity metric is given.
        ValueError: If two have the same name, or can't measure the models.
    """

    def __init__(
        self,
        metrics: Sequence[FidelityMetric] | None,
        teacher: keras.Model | StoredTeacher | None,
        student: keras.Model,
    ) -> None:
        self.metrics = _checked(metrics)
        self._tied = [_tie(metric, teacher, student) for metric in self.metrics]
        if self.metrics:
            self._build(teacher, student)

    def _build(self, teacher: Any, student: Any) -> None:
        stored = isinstance(teacher, StoredTeacher)
        views = extractors(None if stored else teacher, student, self.metrics)
        specs: list[Any] = [view and view.specs() for view in views]
        if stored:
            specs[0] = (teacher.output, teacher.features)
        for metric in self.metrics:
            sides = (
                ("teacher", metric.teacher_layer_name, specs[0]),
                ("student", metric.student_layer_name, specs[1]),
            )
            shapes: list[Any] = [
                tuple(pick(who, name, *seen).shape)
                for who, name, seen in sides
                if seen is not None
            ]
            if len(shapes) == 2:
                metric.build(*shapes)
            elif not metric.built:
                raise ValueError(
                    f"{type(metric).__name__} keeps sums for the shapes that "
                    "it compares, and they are unknown before the models run. "
                    f"Received: fidelity_metrics with '{metric.name}'. Call "
                    "subclassed models on a batch first, or metric.build("
                    "teacher_shape, student_shape)."
                )

    def require_sums(self, sums: bool) -> None:
        """Raise where devices add up what a metric can't add up.

        Args:
            sums: Whether devices add up what metrics keep.
        """
        for metric in self.metrics:
            if sums and not metric.adds_up:
                raise ValueError(
                    f"{type(metric).__name__} can't be put together from what "
                    "several devices saw. Received: fidelity_metrics with "
                    f"'{metric.name}' on several devices. Measure it on one, "
                    "in a process of its own."
                )

    def names(self, labels: bool) -> list[str]:
        """What is logged, with labels or without."""
        return [
            name for m in self._measuring(labels) for name in m.metric.log_names
        ]

    def results(self, labels: bool) -> dict[str, Any]:
        """The values of `names`."""
        logs: dict[str, Any] = {}
        for metric, *_ in self._measuring(labels):
            result = metric.result()
            logs.update(
                result if isinstance(result, dict) else {metric.name: result}
            )
        return logs

    def _measuring(self, labels: bool) -> list[_Tied]:
        return [t for t in self._tied if labels or not t.metric.uses_labels]

    def student_sides(
        self, output: Any, features: dict[str, Any]
    ) -> list[list[Any]]:
        """What each metric sees of the student, with its mask if it has one.

        The mask goes along by itself: on JAX, a tensor loses it where Keras'
        training step takes the gradient.
        """
        sides = []
        for metric, _, activation in self._tied:
            tensor = pick(
                "student", metric.student_layer_name, output, features
            )
            mask = mask_of(tensor) if metric.per_position else None
            tensor = ops.stop_gradient(tensor)
            if activation is not None:
                tensor = to_logits(ops.cast(tensor, metric.dtype), activation)
            sides.append([tensor] if mask is None else [tensor, mask])
        return sides

    def update(
        self,
        batch: TransferBatch,
        student_sides: list[list[Any]],
        labels: Any,
        sample_weight: Any,
    ) -> None:
        """Add a batch to the metrics that can measure it.

        Args:
            batch: What the teacher said.
            student_sides: What `student_sides` returned.
            labels: Hard labels, or `None`.
            sample_weight: Weights of examples, or `None`.
        """
        for tied, side in zip(self._tied, student_sides, strict=True):
            metric = tied.metric
            if metric.uses_labels and labels is None:
                continue
            teacher = pick(
                "teacher",
                metric.teacher_layer_name,
                batch.teacher_output,
                batch.teacher_features,
            )
            activation = tied.teacher_activation
            if activation is not None:
                teacher = to_logits(ops.cast(teacher, metric.dtype), activation)
            weights = weights_for(metric, sample_weight)
            given = {}
            if metric.uses_labels:
                given["labels"] = labels_for(metric, labels)
            student, *mask = side
            if mask and len(mask[0].shape) == len(student.shape) - 1:
                weights = _masked(metric, weights, mask[0])
            metric.update_state(teacher, student, weights, **given)

    def get_config(self) -> Any:
        """What `Distiller.compile` takes, as it goes into a file."""
        configs = [
            keras.saving.serialize_keras_object(metric)
            for metric in self.metrics
        ]
        for tied, config in zip(self._tied, configs, strict=True):
            if tied.teacher_activation is not None:
                # Without the teacher, its softmax can't be seen again.
                config["config"]["teacher_from_logits"] = False
        return configs


def check_metrics(metrics: Any, student: keras.Model, taken: list[str]) -> None:
    """Raise where a metric of `compile(metrics=...)` would measure nonsense.

    Args:
        metrics: Metrics between labels and the student, as Keras takes them.
        student: The student.
        taken: Names that fidelity metrics log.
    """
    for output, metric in _by_output(metrics, student):
        if isinstance(metric, FidelityMetric):
            raise ValueError(
                f"{type(metric).__name__} compares the student with the "
                "teacher, not with labels. Received: metrics with "
                f"'{metric.name}'. Pass it in compile(fidelity_metrics=[...])."
            )
        name = metric if isinstance(metric, str) else _name_of(metric)
        if name in taken:
            raise ValueError(
                "Two metrics would be logged under the same name. Received: "
                f"'{name}' in metrics and in fidelity_metrics. Give one "
                "another name=..."
            )
        if isinstance(metric, LabelMetric):
            _check_label_metric(metric, final_activation(student, output))


def _check_label_metric(metric: LabelMetric, found: str | None) -> None:
    if found is None or (found == metric.activation and not metric.from_logits):
        return
    raise ValueError(
        f"The student ends in a {found}: it gives probabilities, not logits. "
        f"Received: {type(metric).__name__} with activation="
        f"'{metric.activation}', from_logits={metric.from_logits}. Pass "
        f"activation='{found}', from_logits=False."
    )


def _by_output(metrics: Any, student: keras.Model) -> Iterable[Any]:
    """Pairs of an output's name and a metric of it."""
    if isinstance(metrics, dict):
        for name, given in metrics.items():
            for metric in keras.tree.flatten(given):
                yield name, metric
        return
    if not isinstance(metrics, (list, tuple)):  # of which Keras complains
        return
    several = len(keras.tree.flatten(symbolic_output(student))) > 1
    for i, given in enumerate(metrics):
        for metric in keras.tree.flatten(given):
            yield (i if several else None), metric


def _name_of(metric: Any) -> str | None:
    return metric.name if isinstance(metric, keras.metrics.Metric) else None


def _checked(metrics: Any) -> list[FidelityMetric]:
    several = metrics is None or isinstance(metrics, (list, tuple))
    chosen = list(metrics or ()) if several else [metrics]
    for metric in chosen:
        if not isinstance(metric, FidelityMetric):
            raise TypeError(
                "Fidelity metrics compare a student with its teacher. "
                f"Received: fidelity_metrics={metrics!r}. Pass a list of such "
                "keras_distill.metrics as Agreement(); those between the "
                "student and labels go to metrics=[...]."
            )
    counts = Counter(name for m in chosen for name in m.log_names)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise ValueError(
            "Two metrics would be logged under the same name. Received: "
            f"fidelity_metrics with {twice} more than once. Give one another "
            "name=..."
        )
    return chosen


def _tie(
    metric: FidelityMetric,
    teacher: keras.Model | StoredTeacher | None,
    student: keras.Model,
) -> _Tied:
    if not isinstance(metric, LogitFidelityMetric):
        return _Tied(metric)
    sides = (
        ("teacher", teacher, metric.teacher_layer_name),
        ("student", student, metric.student_layer_name),
    )
    given = (metric.teacher_from_logits, metric.student_from_logits)
    seen = []
    for (who, model, name), from_logits in zip(sides, given, strict=True):
        found = seen_activation(model, name)
        if found is not None and (found != metric.activation or from_logits):
            raise ValueError(
                f"The {who} ends in a {found}: it gives probabilities, not "
                f"logits. Received: {type(metric).__name__} with activation="
                f"'{metric.activation}', {who}_from_logits={from_logits}. Pass "
                f"activation='{found}', and leave {who}_from_logits out."
            )
        seen.append(found if from_logits is None else None)
    return _Tied(metric, *seen)


def _masked(metric: FidelityMetric, weights: Any, mask: Any) -> Any:
    mask = ops.cast(mask, metric.dtype)
    if weights is None:
        return mask
    return mask * align_weights(weights, ops.shape(mask), metric)
