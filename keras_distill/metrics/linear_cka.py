"""How alike two layers see the examples."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import (
    LayerName,
    Shape,
    Tensor,
    align_weights,
)
from keras_distill.metrics.fidelity_metric import FidelityMetric
from keras_distill.metrics.rows import as_tensor

# Their products take a gigabyte in float32.
_MOST_FEATURES = 2**14


@keras.saving.register_keras_serializable("keras_distill")
class LinearCKA(FidelityMetric):
    """Linear centered kernel alignment (CKA) of two layers.

    Whether the examples that one layer finds alike are those that the other
    does: from 0 to 1, and 1 for features that differ by a rotation, a factor
    or an offset. The layers may have different widths. Feature maps and
    sequences are taken as one long row for each example, as in the paper.

    Not an estimate: means and products of the features are added up, so that
    any division into batches gives the same. With fewer examples than
    features it is too high, even for features that have nothing in common.

    Formula:
        `|X^T Y|^2 / (|X^T X| * |Y^T Y|)` with Frobenius norms, of the centered
        features `X` and `Y`, a row for each example. With weights, of the
        weighted covariances. NaN where a layer says the same of all examples.

    Args:
        teacher_layer_name: As in `FidelityMetric`.
        student_layer_name: As in `FidelityMetric`.
        name: As in `keras.metrics.Metric`.
        dtype: As in `FidelityMetric`.

    Shapes:
        Teacher `(batch, ...)` and student `(batch, ...)`, with at most 16384
        features together: it keeps the square of that many numbers.

    Raises:
        ValueError: If the features are more than that.

    Example:
        >>> import numpy as np, keras_distill as kd
        >>> metric = kd.metrics.LinearCKA("hidden", "hidden")
        >>> features = np.random.default_rng(0).normal(size=(20, 3))
        >>> metric.update_state(features, 5 - 2 * features[:, ::-1])
        >>> round(float(metric.result()), 4)
        1.0

    Reference:
        Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural Network
        Representations Revisited", 2019.
    """

    # Products are centred with a mean, which other devices don't share.
    adds_up = False

    def __init__(
        self,
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        name: str = "linear_cka",
        dtype: Any = None,
    ) -> None:
        super().__init__(teacher_layer_name, student_layer_name, name, dtype)
        # The sums are as large as the layers are.
        self.built = False
        self._widths: list[int] = []

    def build(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Make the sums, for features of these shapes."""
        shapes = (tuple(teacher_shape), tuple(student_shape))
        widths: list[Any] = [_width(shape) for shape in shapes]
        if self._widths == widths:
            return
        if self.built or None in widths or sum(widths) > _MOST_FEATURES:
            known = f" It was built for {self._widths}." if self.built else ""
            raise ValueError(
                "LinearCKA compares layers whose features have fixed sizes, "
                f"at most {_MOST_FEATURES} together.{known} Received: "
                f"shapes {shapes[0]} and {shapes[1]}. Name narrower layers, "
                "such as the pooling behind a convolution, and make a metric "
                "for each pair."
            )
        size = sum(widths)
        self._weight, self._mean, self._products = (
            self.add_variable(shape, "zeros", self.dtype, name=name)
            for shape, name in (
                ((), "weight"),
                ((size,), "mean"),
                ((size, size), "products"),
            )
        )
        self._widths = widths
        self.built = True

    def update_state(
        self,
        teacher: Any,
        student: Any,
        sample_weight: Any = None,
        labels: Any = None,
    ) -> None:
        """Add a batch.

        Args:
            teacher: What the teacher's layer computed.
            student: What the student's layer computed.
            sample_weight: A weight for each example.
            labels: None: the metric doesn't use them.
        """
        self.check_labels(labels)
        teacher, student = as_tensor(teacher), as_tensor(student)
        self.build(tuple(teacher.shape), tuple(student.shape))
        both = ops.concatenate(
            [
                ops.reshape(ops.cast(x, self.dtype), (-1, width))
                for x, width in zip(
                    (teacher, student), self._widths, strict=True
                )
            ],
            axis=-1,
        )
        examples = ops.shape(both)[:1]
        weights = ops.ones(examples, self.dtype)
        if sample_weight is not None:
            weights = align_weights(sample_weight, examples, self)
        self._merge(both, ops.expand_dims(weights, axis=-1))

    def _merge(self, both: Tensor, weights: Tensor) -> None:
        """Add examples to the weight, the mean and the centered products.

        Sums of what isn't centered would cancel where means are large.
        """
        both = ops.where(weights != 0, both, 0.0)
        added = ops.sum(weights)
        total = self._weight + added
        mean = ops.sum(weights * both, axis=0) / _not_zero(added)
        centered = both - mean
        products = ops.matmul(ops.transpose(weights * centered), centered)
        shift = mean - self._mean
        between = self._weight * added / _not_zero(total)
        products = products + between * ops.outer(shift, shift)
        self._products.assign_add(products)
        self._mean.assign_add(shift * added / _not_zero(total))
        self._weight.assign(total)

    def result(self) -> Tensor:
        """The alignment; NaN before the second example."""
        if not self.built:
            return ops.convert_to_tensor(float("nan"), self.dtype)
        cut = self._widths[0]
        products = ops.convert_to_tensor(self._products)
        # Squares of unscaled products may overflow.
        scale = ops.sqrt(ops.diagonal(products))
        of_teacher, of_student = (
            ops.norm(part) for part in (scale[:cut], scale[cut:])
        )
        within_teacher = products[:cut, :cut] / of_teacher**2
        within_student = products[cut:, cut:] / of_student**2
        across = products[:cut, cut:] / (of_teacher * of_student)
        return ops.sum(ops.square(across)) / (
            ops.norm(within_teacher) * ops.norm(within_student)
        )

    def get_build_config(self) -> dict[str, Any] | None:
        """What `build` needs, for Keras' files."""
        if not self.built:
            return None
        teacher, student = ([None, width] for width in self._widths)
        return {"teacher_shape": teacher, "student_shape": student}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Build as the metric that was saved."""
        self.build(**config)


def _width(shape: Shape) -> int | None:
    width = 1
    for size in shape[1:]:
        if size is None:
            return None
        width *= size
    return width


def _not_zero(number: Tensor) -> Tensor:
    return ops.where(number == 0, 1.0, number)
