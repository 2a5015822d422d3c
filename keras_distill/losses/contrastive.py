"""Contrast: to tell the teacher's view of an example from those of others."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import LayerName, Tensor
from keras_distill.losses.feature_loss import FeatureLoss, unit


@keras.saving.register_keras_serializable("keras_distill")
class ContrastiveRepresentation(FeatureLoss):
    """Contrast of embeddings, of one example against others (CRD).

    Teacher's and student's view of the same example should be close, and those
    of different examples apart. That holds on to how features depend on each
    other, which comparing them one by one doesn't. Both views are embedded by
    layers that are trained with the student and thrown away afterwards.

    With `bank_size`, the others come from two banks, which hold an embedding
    of each example of the transfer set by each model: the paper's loss. It has
    to know which examples a batch holds: `TransferBatch(x, sample_ids=...)`.
    Without, they are the other examples of the batch, which should be large.

    As in the authors' code, the first batch sets the scores' normaliser, and
    the positive is what the bank holds of the example. Where that code draws
    negatives for each example, here a batch shares its draws: each example's
    are as likely as before, and a product of matrices replaces the gathering
    of `batch * negatives` vectors. That code also leaves out examples of the
    same class if it knows the labels; this is its form without. The constant
    that it adds within logarithms isn't needed here.

    Formula:
        Of unit vectors `t` and `s`, the embeddings. With banks `T` and `S`,
        `nce(s_i, T) + nce(t_i, S)`, where, for example `i` and draws `k`,
        `nce(v, M) = -log(h(M_i)) - sum_k log(1 - h(M_k))`,
        `h(m) = p(m) / (p(m) + negatives / bank_size)` and
        `p(m) = exp(v . m / temperature) / Z`. Then
        `M_i = unit(momentum * M_i + (1 - momentum) * v_i)`.
        Without, `- log softmax_j(s_i . t_j / temperature)_i -
        log softmax_j(t_i . s_j / temperature)_i`.

    Args:
        teacher_layer_name: The layer to embed, usually the one before the
            logits.
        student_layer_name: The same of the student.
        bank_size: How many examples the transfer set has, or `None` for no
            banks.
        negatives: How many examples a batch is contrasted with, drawn with
            replacement. Only for banks.
        embedding: Size of the embeddings.
        temperature: What divides the scalar products, above 0.
        momentum: How much of an example's old embedding stays in a bank, at
            least 0 and below 1.
        seed: Seed of the draws, an integer, or `None` for a random one.
        projector: As in `FeatureLoss`. Not needed.
        data_format: As in `FeatureLoss`.
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `DistillationLoss`.

    Shapes:
        Teacher `(batch, ..., teacher_features)`, student `(batch, ...,
        student_features)` with as many axes, values `(batch,)`. Feature maps
        and tokens are averaged over their places first. Sample ids `(batch,)`,
        integers from 0 to `bank_size - 1`; the value of one out of range is
        NaN, and it changes no bank's row. If one comes twice in a batch, one
        of its embeddings goes into the banks. Takes memory for `batch *
        negatives` numbers a few times, or `batch**2`, and `bank_size *
        embedding` twice.

    Raises:
        ValueError: If an argument is out of range, or lists of layers are
            given.

    Example:
        >>> import numpy as np
        >>> import keras_distill as kd
        >>> loss = kd.losses.ContrastiveRepresentation(bank_size=50, seed=0)
        >>> loss.build((None, 8), (None, 4))
        >>> random = np.random.default_rng(0)
        >>> batch = {"teacher": random.normal(size=(2, 8)),
        ...          "sample_ids": np.array([7, 3])}
        >>> before = np.array(loss.teacher_bank)
        >>> value = loss(batch, random.normal(size=(2, 4)))
        >>> changed = np.any(np.array(loss.teacher_bank) != before, axis=-1)
        >>> np.flatnonzero(changed).tolist()
        [3, 7]

    Reference:
        Tian, Krishnan and Isola, "Contrastive Representation Distillation",
        ICLR 2020. Without banks: van den Oord, Li and Vinyals,
        "Representation Learning with Contrastive Predictive Coding", 2018, in
        both directions as in Radford et al., "Learning Transferable Visual
        Models From Natural Language Supervision", ICML 2021, but their sum.
    """

    default_weight = 0.8
    has_parts = True
    relates_examples = True
    same_channels = False
    same_size = False

    def __init__(
        self,
        teacher_layer_name: LayerName = None,
        student_layer_name: LayerName = None,
        bank_size: int | None = None,
        negatives: int = 16384,
        embedding: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        seed: int | None = None,
        projector: Any = None,
        data_format: str | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            teacher_layer_name,
            student_layer_name,
            projector,
            data_format,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.refuse_lists()
        _check_counts(bank_size, negatives, embedding)
        if not 0 < temperature < math.inf:
            raise ValueError(
                "A temperature divides the scalar products. Received: "
                f"temperature={temperature!r}. Pass a positive number."
            )
        if not 0 <= momentum < 1:
            raise ValueError(
                "A bank's rows have to change. Received: "
                f"momentum={momentum!r}. Pass a number from 0 to less than 1."
            )
        self.bank_size = bank_size
        self.negatives = negatives
        self.embedding = embedding
        self.temperature = temperature
        self.momentum = momentum
        self.seed = seed
        self.uses_sample_ids = bank_size is not None

    def make_parts(self, teacher_shape: Any, student_shape: Any) -> None:
        """Make the embeddings and the banks."""
        teacher, student = map(self.shape_last, (teacher_shape, student_shape))
        self.teacher_embedding = self._embedding(teacher[-1])
        self.student_embedding = self._embedding(student[-1])
        if self.bank_size is None:
            return
        self.random = keras.random.SeedGenerator(self.seed)
        self.teacher_bank = self._bank("teacher_bank")
        self.student_bank = self._bank("student_bank")
        # Of the student's embeddings with the teacher's bank, and the reverse.
        self.log_normalizers = self._variable((2,), "zeros", "log_normalizers")
        self.has_normalizers = self._variable((), "zeros", "has_normalizers")

    def _embedding(self, features: Any) -> keras.Layer:
        layer = keras.layers.Dense(self.embedding, dtype=self.dtype)
        layer.build((None, features))
        return layer

    def _bank(self, name: str) -> keras.Variable:
        # Of length 1 on average.
        limit = math.sqrt(3 / self.embedding)
        uniform = keras.initializers.RandomUniform(-limit, limit)
        return self._variable((self.bank_size, self.embedding), uniform, name)

    def _variable(self, shape: Any, initializer: Any, name: str) -> Any:
        return keras.Variable(
            initializer,
            shape=shape,
            dtype=self.dtype,
            trainable=False,
            autocast=False,
            name=name,
        )

    def call(self, teacher: Any, student: Tensor) -> Tensor:
        """Values of shape `(batch,)`."""
        ids = None
        if self.uses_sample_ids:
            ids, teacher = teacher["sample_ids"], teacher["teacher"]
        ((teacher, student),) = self.pairs(teacher, student)
        teacher = unit(self.teacher_embedding(_pooled(teacher)))
        student = unit(self.student_embedding(_pooled(student)))
        if ids is None:
            return self._within_batch(teacher, student)
        return self._against_banks(teacher, student, ids)

    def _within_batch(self, teacher: Tensor, student: Tensor) -> Tensor:
        scores = self._scores(student, teacher)
        positive = ops.diagonal(scores)
        return (
            ops.logsumexp(scores, axis=0)
            + ops.logsumexp(scores, axis=1)
            - 2 * positive
        )

    def _scores(self, anchors: Tensor, others: Tensor) -> Tensor:
        return anchors @ ops.transpose(others) / self.temperature

    def _against_banks(
        self, teacher: Tensor, student: Tensor, ids: Tensor
    ) -> Tensor:
        assert self.bank_size is not None
        ids = ops.cast(ids, "int32")
        inside = (ids >= 0) & (ids < self.bank_size)
        places = ops.clip(ids, 0, self.bank_size - 1)
        drawn = keras.random.randint(
            (self.negatives,), 0, self.bank_size, seed=self.random
        )
        scores = [
            self._bank_scores(student, self.teacher_bank, places, drawn),
            self._bank_scores(teacher, self.student_bank, places, drawn),
        ]
        normalizers = self._normalizers(scores)
        values = [
            contrast(positive - log_z, negative - log_z, self.bank_size)
            for (positive, negative), log_z in zip(
                scores, (normalizers[0], normalizers[1]), strict=True
            )
        ]
        self._update(self.teacher_bank, teacher, places, inside)
        self._update(self.student_bank, student, places, inside)
        return ops.where(inside, values[0] + values[1], math.nan)

    def _bank_scores(
        self, anchors: Tensor, bank: Any, places: Tensor, drawn: Tensor
    ) -> tuple[Tensor, Tensor]:
        positive = anchors * ops.take(bank.value, places, axis=0)
        return (
            ops.sum(positive, axis=-1) / self.temperature,
            self._scores(anchors, ops.take(bank.value, drawn, axis=0)),
        )

    def _normalizers(self, scores: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Logarithms of the two `Z`, which the first batch sets."""
        assert self.bank_size is not None
        first = ops.stack(
            [_log_mean(p, n) + math.log(self.bank_size) for p, n in scores]
        )
        first = ops.stop_gradient(first)
        chosen = ops.where(
            self.has_normalizers.value > 0, self.log_normalizers.value, first
        )
        self.log_normalizers.assign(chosen)
        self.has_normalizers.assign(ops.ones((), self.dtype))
        return chosen

    def _update(
        self, bank: Any, embeddings: Tensor, places: Tensor, inside: Tensor
    ) -> None:
        old = ops.take(bank.value, places, axis=0)
        new = unit(self.momentum * old + (1 - self.momentum) * embeddings)
        new = ops.where(ops.expand_dims(inside, axis=-1), new, old)
        places = ops.expand_dims(places, axis=-1)
        new = ops.stop_gradient(new)
        bank.assign(ops.scatter_update(bank.value, places, new))

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "bank_size": self.bank_size,
            "negatives": self.negatives,
            "embedding": self.embedding,
            "temperature": self.temperature,
            "momentum": self.momentum,
            "seed": self.seed,
        }


def contrast(positive: Tensor, negative: Tensor, size: int) -> Tensor:
    """How badly a view is told from noise, by noise-contrastive estimation.

    Args:
        positive: Logarithms of the normalised scores of the examples' own
            views, `(batch,)`.
        negative: Those of the noise, `(batch, negatives)`.
        size: How many examples the noise is drawn from.

    Returns:
        Values `(batch,)`.
    """
    noise = ops.log(ops.cast(ops.shape(negative)[1], negative.dtype) / size)
    # With scores that are ratios of probabilities, log(x / (x + 1)).
    return ops.softplus(noise - positive) + ops.sum(
        ops.softplus(negative - noise), axis=-1
    )


def _check_counts(bank_size: Any, negatives: Any, embedding: Any) -> None:
    for argument, value in (
        ("bank_size", 1 if bank_size is None else bank_size),
        ("negatives", negatives),
        ("embedding", embedding),
    ):
        # Above that, float32 doesn't tell sample ids apart.
        if not isinstance(value, int) or not 1 <= value <= 2**24:
            raise ValueError(
                "Banks, draws and embeddings have a size. Received: "
                f"{argument}={value!r}. Pass an integer from 1 to 2**24."
            )


def _pooled(x: Tensor) -> Tensor:
    places = tuple(range(1, len(x.shape) - 1))
    return ops.mean(x, axis=places) if places else x


def _log_mean(positive: Tensor, negative: Tensor) -> Tensor:
    """Logarithm of the mean of the scores, given by their logarithms."""
    count = ops.cast(
        ops.shape(negative)[0] * (1 + ops.shape(negative)[1]), negative.dtype
    )
    total = ops.logaddexp(ops.logsumexp(positive), ops.logsumexp(negative))
    return total - ops.log(count)
