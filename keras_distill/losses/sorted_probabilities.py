"""Sorted probabilities: for a teacher and a student of other classes."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill.losses.base import LogitLoss, Shape, Tensor, fits


@keras.saving.register_keras_serializable("keras_distill")
class SortedProbabilities(LogitLoss):
    """Distance of the probabilities, each side's in its own order (ULD).

    For language models whose tokenizers differ, so that no class of one is a
    class of the other: the student learns how sure to be, not of what. That
    comes from the hard labels, without which this loss teaches nothing of use.
    It is the Wasserstein distance where all classes are equally far apart.

    Both need the same number of places. The tokens of two tokenizers don't
    line up; the authors cut the longer sequence.

    Formula:
        `sum_c |p_(c) - q_(c)|`, with `p_(1) >= p_(2) >= ...` the sorted softmax
        of the teacher's logits, `q` that of the student's, and zeros after the
        last class of the one that has fewer.

    Args:
        teacher_layer_name: As in `DistillationLoss`.
        student_layer_name: As in `DistillationLoss`.
        projector: As in `DistillationLoss`.
        from_logits: As in `LogitLoss`.
        class_map: As in `LogitLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher `(batch, ..., teacher_classes)`, student `(batch, ...,
        classes)`, values `(batch, ...)`, from 0 to 2.

    Raises:
        ValueError: If the two have not the same places.

    Example:
        >>> import keras_distill as kd
        >>> loss = kd.losses.SortedProbabilities()
        >>> value = loss([[2.0, 0.0, -2.0, 0.0]], [[0.0, 1.0, -1.0]])
        >>> round(float(value), 4)
        0.2795

    Reference:
        Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal
        Logit Distillation Loss for LLMs", TMLR 2025.
    """

    default_hard_label_weight = 1.0

    def compare(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Values of shape `(batch, ...)`."""
        classes = max(teacher.shape[-1], student.shape[-1])
        p = _ordered(ops.softmax(teacher, axis=-1), classes)
        q = _ordered(ops.softmax(student, axis=-1), classes)
        return ops.sum(ops.abs(p - q), axis=-1)

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise where the places differ; the classes may."""
        if self.class_map is not None:
            super().check_shapes(teacher_shape, student_shape)
        if not fits(teacher_shape[:-1], student_shape[:-1]):
            raise ValueError(
                f"{self.describe(teacher_shape, student_shape)} Their places "
                "differ. Received: logits of shapes "
                f"{teacher_shape} and {student_shape}. Name layers whose "
                "outputs differ in the last axis at most, and cut sequences to "
                "the same length."
            )


def _ordered(probabilities: Tensor, classes: int) -> Tensor:
    """Sorted, the smallest first, behind the zeros of missing classes."""
    missing = classes - probabilities.shape[-1]
    widths = [(0, 0)] * (len(probabilities.shape) - 1) + [(missing, 0)]
    return ops.sort(ops.pad(probabilities, widths), axis=-1)
