"""A loss tied to two models: which tensors it compares, through what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from keras_distill.features import (
    FeatureExtractor,
    LayerName,
    StoredTeacher,
    data_formats,
    symbolic_output,
)
from keras_distill.heads import final_activation, layer_activation
from keras_distill.losses.base import DistillationLoss, LogitLoss, to_logits
from keras_distill.losses.feature_loss import FeatureLoss


@dataclass
class Comparison:
    """A loss, and how it finds its two sides.

    Attributes:
        name: The loss's name, made unique among its siblings.
        loss: The loss itself, unchanged.
        teacher_is_probability: The graph shows that the teacher's output is a
            probability, and the loss wants logits.
        student_is_probability: The same for the student.
        projectors: A layer or `None` for each tensor of the student.
    """

    name: str
    loss: DistillationLoss
    teacher_is_probability: bool = False
    student_is_probability: bool = False
    projectors: list[keras.Layer | None] = field(default_factory=list)

    def teacher_side(self, output: Any, features: dict[str, Any]) -> Any:
        """What the loss sees of the teacher."""
        names = self.loss.teacher_layer_name
        stored = self.loss.stored_types
        tensors = [
            pick("teacher", name, output, features, stored)
            for name in as_list(names)
        ]
        return self._packed(tensors, names, self.teacher_is_probability)

    def student_side(
        self, output: Any, features: dict[str, Any], training: bool | None
    ) -> Any:
        """What the loss sees of the student, behind the projectors."""
        names = self.loss.student_layer_name
        tensors = [
            pick("student", name, output, features) for name in as_list(names)
        ]
        projected = [
            tensor if layer is None else layer(tensor, training=training)
            for layer, tensor in zip(self.projectors, tensors, strict=True)
        ]
        return self._packed(projected, names, self.student_is_probability)

    def _packed(self, tensors: list[Any], names: Any, convert: bool) -> Any:
        if convert:
            tensors = [self._logits(tensor) for tensor in tensors]
        return tensors if isinstance(names, list) else tensors[0]

    def _logits(self, tensor: Any) -> Any:
        loss = self.loss
        assert isinstance(loss, LogitLoss)
        if isinstance(tensor, loss.stored_types):  # made of logits already
            return tensor
        # In the loss's dtype: float16 has too few small numbers to take the
        # logarithm of. As a layer, it passes masks on.
        layer = keras.layers.Activation(
            lambda x: to_logits(x, loss.activation), dtype=loss.dtype
        )
        return layer(tensor)


def compare(
    teacher: keras.Model | None,
    student: keras.Model,
    losses: list[DistillationLoss],
    stored: StoredTeacher | None = None,
) -> tuple[FeatureExtractor | None, FeatureExtractor, list[Comparison]]:
    """Tie losses to a teacher and a student, and check that they fit.

    Args:
        teacher: A built model, or `None` where all its outputs were stored.
        student: A built model.
        losses: The losses.
        stored: What is known of the outputs, where they were stored.

    Returns:
        An extractor of the teacher, one of the student, and the comparisons,
        whose projectors are built.

    Raises:
        ValueError: If a name isn't there, or shapes can't be compared.
    """
    seen_teacher, seen_student = extractors(teacher, student, losses)
    comparisons = [
        Comparison(name, loss)
        for name, loss in zip(_unique_names(losses), losses, strict=True)
    ]
    student_specs = seen_student.specs()
    teacher_specs = seen_teacher.specs() if seen_teacher else None
    if stored is not None:
        teacher_specs = stored.output, stored.features
    for comparison in comparisons:
        if isinstance(comparison.loss, LogitLoss):
            _detect_probabilities(comparison, teacher or stored, student)
        loss = comparison.loss
        sides = [
            ("teacher", teacher, loss.teacher_layer_name, teacher_specs),
            ("student", student, loss.student_layer_name, student_specs),
        ]
        shapes = [_shapes(who, names, specs) for who, _, names, specs in sides]
        if isinstance(loss, FeatureLoss):
            for (who, model, *_), seen in zip(sides, shapes, strict=True):
                deep = any(
                    shape is not None and len(shape) > 3 for shape in seen
                )
                if deep and model is not None:
                    _check_data_format(loss, who, model)
        _fit_shapes(comparison, *shapes)
    return seen_teacher, seen_student, comparisons


def extractors(
    teacher: keras.Model | None, student: keras.Model, compared: Sequence[Any]
) -> tuple[FeatureExtractor | None, FeatureExtractor]:
    """Extractors of all that some losses and metrics look at.

    Args:
        teacher: A built model, or `None` where all its outputs were stored.
        student: A built model.
        compared: Objects with `teacher_layer_name` and `student_layer_name`.
    """
    seen_student = _extractor(
        student, [n for x in compared for n in as_list(x.student_layer_name)]
    )
    seen_teacher = teacher and _extractor(
        teacher, [n for x in compared for n in as_list(x.teacher_layer_name)]
    )
    return seen_teacher, seen_student


def output_spec(model: keras.Model) -> Any:
    """Structure, shapes and dtypes of a model's output, `None` if unknown."""
    graph = symbolic_output(model)
    if graph is None:
        specs = FeatureExtractor(model).specs()
        return None if specs is None else specs[0]
    # Called with a list of one output, a Functional model returns a tensor.
    if isinstance(graph, (list, tuple)) and len(graph) == 1:
        return graph[0]
    return graph


def pick(
    who: str,
    name: LayerName,
    output: Any,
    features: dict[str, Any],
    stored_types: tuple[Any, ...] = (),
) -> Any:
    """The tensor that a name stands for, or a tuple of one of these types."""
    if name is None and isinstance(output, stored_types):
        return output
    if isinstance(name, int) and isinstance(output, (list, tuple)):
        if not -len(output) <= name < len(output):
            raise ValueError(
                f"The {who} has {len(output)} outputs. Received: "
                f"{who}_layer_name={name}. Pass an index of one of them."
            )
        return output[name]
    if isinstance(name, str) and isinstance(output, dict) and name in output:
        return output[name]
    if isinstance(name, str):
        if name not in features:
            raise ValueError(
                f"The batch lacks what {who} layer '{name}' computed. "
                f"Received: features {sorted(features)}. Store it with the "
                f"{who}'s outputs, or leave out what needs it."
            )
        return features[name]
    if isinstance(output, tuple) and type(output) is not tuple and not name:
        raise ValueError(
            f"The {who}'s output is a {type(output).__name__}, which this loss "
            f"doesn't take. Received: {who}_layer_name={name!r}. If another "
            "loss's targets were stored, use that loss, or store logits; "
            "otherwise say which output the loss compares."
        )
    if keras.tree.is_nested(output) or name is not None:
        raise ValueError(
            f"The {who}'s output is {_describe(output)}. Received: "
            f"{who}_layer_name={name!r}. Say which output the loss compares: "
            f"{who}_layer_name takes a key, an index, or a layer's name."
        )
    return output


def as_list(names: Any) -> list[LayerName]:
    """Names as a list, however they were given."""
    return names if isinstance(names, list) else [names]


def _extractor(model: keras.Model, names: list[Any]) -> FeatureExtractor:
    texts = {name: None for name in names if isinstance(name, str)}
    if not texts:
        return FeatureExtractor(model)
    output = output_spec(model)
    keys = output if isinstance(output, dict) else {}
    return FeatureExtractor(model, [name for name in texts if name not in keys])


def _unique_names(losses: list[DistillationLoss]) -> list[str]:
    names: list[str] = []
    for loss in losses:
        name, count = loss.name, 0
        while name in names:
            count += 1
            name = f"{loss.name}_{count}"
        names.append(name)
    return names


def _detect_probabilities(
    comparison: Comparison,
    teacher: keras.Model | StoredTeacher | None,
    student: keras.Model,
) -> None:
    loss = comparison.loss
    assert isinstance(loss, LogitLoss)
    for who, model, name in (
        ("teacher", teacher, loss.teacher_layer_name),
        ("student", student, loss.student_layer_name),
    ):
        found = seen_activation(model, name)
        if who == "student" and (layer := _only_projector(loss)) is not None:
            found = None if layer == "auto" else layer_activation(layer)
        if model is None or found is None:
            continue
        called = (
            "of a cache" if isinstance(model, StoredTeacher) else model.name
        )
        if found != loss.activation:
            other = "BinarySoftTargets" if found == "sigmoid" else "SoftTargets"
            raise ValueError(
                f"{type(loss).__name__} compares what a {loss.activation} "
                f"turns into probabilities, but the {who} ends in a {found}. "
                f"Received: {who}='{called}'. Use a loss made for it, such "
                f"as {other}."
            )
        if who == "teacher" and loss.from_logits:
            raise ValueError(
                f"The teacher ends in a {found}: it gives probabilities, not "
                f"logits. Received: from_logits=True for "
                f"teacher='{called}'. Pass from_logits=False."
            )
        if who == "student":
            comparison.student_is_probability = True
        elif loss.from_logits is None:
            comparison.teacher_is_probability = True


def _only_projector(loss: LogitLoss) -> Any:
    """The layer whose output is compared, `"auto"`, or `None`."""
    several = isinstance(loss.projector, list)
    return loss.projector[0] if several else loss.projector


def _check_data_format(loss: FeatureLoss, who: str, model: keras.Model) -> None:
    """Raise where the loss would take another axis for the channels."""
    found = data_formats(model)
    if len(found) == 1 and loss.data_format not in found:
        raise ValueError(
            f"{type(loss).__name__} looks for the channels of feature maps "
            f"elsewhere than the {who} has them. Received: data_format="
            f"'{loss.data_format}' for {who}='{model.name}', which is "
            f"'{found.pop()}'. Pass its format to the loss; two models of "
            "different formats can't be compared by their feature maps."
        )


def seen_activation(
    model: keras.Model | StoredTeacher | None, name: LayerName
) -> str | None:
    """What an output went through, as far as it is known."""
    if isinstance(model, StoredTeacher):
        hidden = isinstance(name, str) and name in model.features
        return None if hidden else model.activation
    return None if model is None else final_activation(model, name)


def _fit_shapes(
    comparison: Comparison, teachers: list[Any], students: list[Any]
) -> None:
    """Build the projectors, and let the loss see the shapes."""
    loss = comparison.loss
    behind: list[Any] = []
    for i, pair in enumerate(_pairs(loss, teachers, students)):
        try:
            layer, student = _fit_pair(loss, *pair)
        except ValueError as error:
            if len(students) == 1:
                raise
            raise ValueError(f"Pair {i} of the layers: {error}") from error
        comparison.projectors.append(layer)
        behind.append(student)
    if loss.has_parts:
        _build(loss, teachers, behind)


def _fit_pair(
    loss: DistillationLoss, layer: Any, teacher: Any, student: Any
) -> tuple[keras.Layer | None, Any]:
    """A pair's projector, built, and the student's shape behind it."""
    if layer == "auto":
        if teacher is None or student is None:
            raise ValueError(
                f"The shapes that {type(loss).__name__} compares are "
                "unknown before the models run. Received: "
                "projector='auto'. Of a teacher whose outputs are stored, "
                "pass cache.teacher in its place, or a layer as projector; "
                "call subclassed models on a batch first."
            )
        layer = loss.make_projector(teacher, student)
    if layer is not None:
        student = _project(loss, layer, student)
    if loss.pairs_layers and None not in (teacher, student):
        loss.check_shapes(teacher, student)
    return layer, student


def _pairs(
    loss: DistillationLoss, teachers: list[Any], students: list[Any]
) -> list[tuple[Any, Any, Any]]:
    """Projector, teacher's and student's shape for each student's layer."""
    wanted = loss.projector
    if not loss.pairs_layers:
        if wanted is not None:
            raise ValueError(
                f"{type(loss).__name__} makes its own projectors. Received: "
                f"projector={wanted!r}. Pass None."
            )
        return [(None, None, student) for student in students]
    if not isinstance(wanted, list):
        wanted = [wanted] * len(students)
    if len(wanted) != len(students):
        raise ValueError(
            f"{type(loss).__name__} compares {len(students)} layers. Received: "
            f"{len(wanted)} projectors. Pass one for each, or None for it."
        )
    return list(zip(wanted, teachers, students, strict=True))


def _build(
    loss: DistillationLoss, teachers: list[Any], students: list[Any]
) -> None:
    if None not in [*teachers, *students]:
        several = isinstance(loss.student_layer_name, list)
        loss.build(
            teachers
            if isinstance(loss.teacher_layer_name, list)
            else teachers[0],
            students if several else students[0],
        )
    elif not loss.built:
        raise ValueError(
            f"{type(loss).__name__} makes parts for the shapes that it "
            "compares, and they are unknown before the models run. Received: "
            f"shapes {teachers} of the teacher and {students} of the student. "
            "Call subclassed models on a batch first, or loss.build("
            "teacher_shape, student_shape) if the teacher's outputs are stored."
        )


def _project(loss: DistillationLoss, layer: Any, shape: Any) -> Any:
    if shape is None and not layer.built:
        raise ValueError(
            f"The shape of what {type(loss).__name__} compares is unknown "
            f"before the student runs, so its projector '{layer.name}' can't "
            "be built. Received: a student that doesn't tell its shapes. Call "
            "it on a batch first, or build the projector."
        )
    if shape is None:
        return None
    return tuple(layer(keras.KerasTensor(shape)).shape)


def _shapes(who: str, names: Any, specs: Any) -> list[Any]:
    if specs is None:
        return [None] * len(as_list(names))
    return [tuple(pick(who, n, *specs).shape) for n in as_list(names)]


def _describe(output: Any) -> str:
    if isinstance(output, dict):
        return f"a dict with keys {sorted(output)}"
    if isinstance(output, (list, tuple)):
        return f"a {type(output).__name__} of {len(output)}"
    return "one tensor"
