"""The Distiller: teacher consulted once, student run once, losses blended."""

from __future__ import annotations

import functools
import math
import numbers
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill.backends import as_array, no_gradient, values_kept
from keras_distill.checks import (
    as_losses,
    check_models,
    labels_for,
    sample_ids_for,
    supports_jit,
    weights_for,
)
from keras_distill.comparison import as_list, compare, extractors
from keras_distill.defaults import (
    compile_arguments,
    default_hard_loss,
    default_kind,
    default_metrics,
    require_same_kind,
)
from keras_distill.distribution.current import engine_of
from keras_distill.distribution.model import DistributedModel
from keras_distill.distribution.shares import without_marker
from keras_distill.features import (
    StoredTeacher,
    TransferBatch,
    check_inputs,
    select_inputs,
    symbolic_output,
)
from keras_distill.fidelity import ExaminedBatch, Fidelity, check_metrics
from keras_distill.local_devices import local
from keras_distill.losses.base import DistillationLoss, Tensor
from keras_distill.masks import lost_masks, with_masks
from keras_distill.metrics.fidelity_metric import FidelityMetric
from keras_distill.whole_files import written_whole


class _StudentOutputs(NamedTuple):
    """What one forward pass of the student gives beside the teacher's.

    Attributes:
        output: The student's output.
        compared: What each loss compares; nothing while it is evaluated.
        measured: What each fidelity metric sees.
        masks: Masks of the output that would be lost.
    """

    output: Any
    compared: list[Any]
    measured: list[list[Any]]
    masks: list[list[Any]]


@keras.saving.register_keras_serializable("keras_distill")
class NoHardLabels(keras.losses.Loss):  # type: ignore[misc]  # keras is untyped
    """Stands for `loss=None`: hard labels, if any, only feed the metrics."""

    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: Any = None
    ) -> Tensor:
        """Zero, whatever masks and weights there are."""
        return ops.zeros(())


@keras.saving.register_keras_serializable("keras_distill")
class Distiller(DistributedModel):
    """Trains a student on what a teacher says about each batch.

    Each `train_step` runs the teacher once, in inference mode and outside of
    the differentiated part; runs the student once; and blends the losses
    between the two with the student's loss on the hard labels. The temperature
    and the softmax of soft targets are part of that step, inside
    `losses.SoftTargets`, since each loss has its own temperature.

    Everything else is Keras: `fit`, `evaluate`, `predict`, callbacks, sample
    weights, masks, metrics, mixed precision, data sets. `predict` runs the
    student alone, and so does `evaluate` where no fidelity metric compares it
    with the teacher. `distiller.student` is the model to keep; it holds
    nothing of the teacher. A `train_step` or `compute_loss` of the student's
    own isn't used.

    A student that is compiled brings its loss, metrics and optimizer (a new
    one, of the same configuration). One that isn't gets Adam, `HardLabels`
    and `HardLabelAccuracy`, which fit what it ends in. Calling `compile` on
    the distiller overrides both.

    Formula:
        `hard_label_weight * hard + sum_i loss_weights[i] * losses[i] +
        penalties`, where `penalties` are the student's regularisers and
        activity losses, counted once and unscaled. The weights need not sum
        to one. Without labels there is no `hard`.

    Args:
        teacher: A built Keras model. It is never changed. `None`, or better
            what is known of it (`TeacherCache.teacher`), if every batch holds
            its outputs.
        student: A built Keras model, which is trained.
        losses: A `losses.DistillationLoss`, or a list of them. By default
            `SoftTargets()`, or `BinarySoftTargets()` for a student that ends
            in sigmoids or in one logit.
        loss_weights: A number for each loss; by default what the method's
            paper uses, `loss.default_weight`.
        hard_label_weight: Weight of the student's own loss; by default what
            the papers of the losses use, `loss.default_hard_label_weight`, and
            the smallest of these if they differ. Soft targets: 0.1.
        teacher_inputs: A function, or Keras layer, that makes the teacher's
            inputs from the batch's, where they differ. Not needed for dict
            batches, from which each model takes the inputs that it has names
            for.
        save_teacher: Whether `save` and `save_weights`, and so checkpoints,
            hold the teacher too, and `load_weights` loads it. A distiller
            loaded from a file without it has no teacher.
        name: As in `keras.Model`.

    Raises:
        ValueError: If the models share weights, or aren't built, or a loss
            can't compare them.
        TypeError: If something isn't a model or a loss.

    Example:
        >>> import keras, numpy as np, keras_distill as kd
        >>> teacher = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(32, activation="relu"),
        ...      keras.layers.Dense(3)])
        >>> student = keras.Sequential([keras.Input((4,)),
        ...                             keras.layers.Dense(3)])
        >>> distiller = kd.Distiller(teacher, student)
        >>> x = np.random.default_rng(0).normal(size=(64, 4))
        >>> y = np.arange(64) % 3
        >>> history = distiller.fit(x, y, epochs=2, verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'hard_label_loss', 'loss', 'soft_targets_loss']

    Weights and temperatures are variables, so a schedule is a callback:

        >>> soft = distiller.distillation_losses["soft_targets"]
        >>> def cool(epoch, logs=None):
        ...     soft.temperature.assign(max(1.0, 4.0 - epoch))
        >>> callback = keras.callbacks.LambdaCallback(on_epoch_begin=cool)
        >>> _ = distiller.fit(x, epochs=2, verbose=0, callbacks=[callback])

    On JAX, variables hold no values within an epoch: a callback that sets them
    between batches calls `distiller.jax_state_sync()` first.

    Reference:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural
        Network", 2015.
    """

    def __init__(
        self,
        teacher: keras.Model | StoredTeacher | None,
        student: keras.Model,
        losses: DistillationLoss | Sequence[DistillationLoss] | None = None,
        loss_weights: float | Sequence[float] | None = None,
        hard_label_weight: float | None = None,
        teacher_inputs: Callable[[Any], Any] | None = None,
        save_teacher: bool = True,
        name: str | None = None,
    ) -> None:
        stored = teacher if isinstance(teacher, StoredTeacher) else None
        teacher = None if stored else teacher
        check_models(teacher, student)
        # Inputs go to the student as they came; it casts them itself.
        super().__init__(name=name, dtype=student.dtype_policy, autocast=False)
        chosen = as_losses(losses, student)
        views = compare(teacher, student, chosen, stored)
        # Inside a proxy, Keras doesn't see the teacher: it is no
        # sublayer, so nothing that is done to the distiller's layers (such as
        # setting `trainable`, or adding up regularisers) is done to it.
        given: dict[str, Any] = {
            "teacher": teacher,
            "teacher_inputs": teacher_inputs,
            "stored": stored,
        }
        self._given = MappingProxyType(given)
        self._keeps_values = False
        self._teacher_rests = False
        self._evaluates = False
        self._teacher_view, self._student_view, comparisons = views
        self._comparisons = MappingProxyType({c.name: c for c in comparisons})
        self.student = student
        self.save_teacher = save_teacher
        self._default_kind = default_kind(student) if losses is None else None
        self._add_projectors()
        self._add_weights(loss_weights, hard_label_weight)
        self._add_terms()
        self._fidelity = Fidelity(None, None, student)
        self.built = True
        try:
            self.compile()
        except ValueError as error:
            # There may be a `compile` to come; without one, `fit` raises.
            warnings.warn(str(error), stacklevel=2)

    def _add_projectors(self) -> None:
        # Each an attribute of its own: PyTorch modules, and Keras' files, know
        # their parts by attribute.
        for i, comparison in enumerate(self._comparisons.values()):
            for j, layer in enumerate(comparison.projectors):
                if layer is not None:
                    setattr(self, f"projector_{i}_{j}", layer)

    def _add_weights(
        self, loss_weights: Any, hard_label_weight: float | None
    ) -> None:
        losses = self.distillation_losses
        if hard_label_weight is None:
            hard_label_weight = min(
                x.default_hard_label_weight for x in losses.values()
            )
        if loss_weights is None:
            loss_weights = [x.default_weight for x in losses.values()]
        elif isinstance(loss_weights, numbers.Real):
            loss_weights = [loss_weights]
        if isinstance(loss_weights, Mapping) or len(loss_weights) != len(
            losses
        ):
            raise ValueError(
                f"Each loss has one weight. Received: loss_weights="
                f"{list(loss_weights)} for losses {list(losses)}. Pass "
                f"{len(losses)} numbers, or None for those of the papers."
            )
        self._hard_label_weight = self._number(
            "hard_label_weight", hard_label_weight
        )
        self._loss_weights = [
            self._number(f"{name}_weight", value)
            for name, value in zip(losses, loss_weights, strict=True)
        ]
        self._loss_variables = [
            part
            for loss in losses.values()
            for _, part in loss.parts()
            if isinstance(part, keras.Variable)
        ]
        for i, loss in enumerate(losses.values()):
            self._add_parts(i, loss)

    def _add_parts(self, index: int, loss: DistillationLoss) -> None:
        """Train the layers of a loss, and let its random numbers go on."""
        for name, part in loss.parts():
            if isinstance(part, keras.Variable):
                continue
            if isinstance(part, keras.Layer) and not part.built:
                raise ValueError(
                    f"A layer of {type(loss).__name__} has no weights yet. "
                    f"Received: {name}={part.name!r}, which isn't built. Call "
                    "its build in the loss's constructor."
                )
            setattr(self, f"loss_{index}_{name}", part)

    def _number(self, name: str, value: float) -> keras.Variable:
        if not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
            raise ValueError(
                "A loss's weight must be a finite number, not negative. "
                f"Received: {name}={value}. Pass 0 to leave the loss out."
            )
        return self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(value),
            dtype="float32",
            autocast=False,
            trainable=False,
            name=name,
        )

    def _add_terms(self) -> None:
        """Metrics that follow each term of the loss, unweighted."""
        self._terms = [
            keras.metrics.Mean(name=name)
            for name in (
                "hard_label_loss",
                *(f"{name}_loss" for name in self._comparisons),
            )
        ]

    @property
    def teacher(self) -> keras.Model | None:
        """The teacher, as it was given."""
        teacher: keras.Model | None = self._given["teacher"]
        return teacher

    @property
    def teacher_inputs(self) -> Callable[[Any], Any] | None:
        """What makes the teacher's inputs from the batch's."""
        made: Callable[[Any], Any] | None = self._given["teacher_inputs"]
        return made

    @property
    def teacher_layers(self) -> list[str]:
        """The teacher's hidden layers that losses and metrics see, sorted.

        What to store beside its outputs.
        """
        names = {
            name
            for looks in self._looking
            for name in as_list(looks.teacher_layer_name)
            if isinstance(name, str)
        }
        view = self._teacher_view
        return sorted(names if view is None else names & set(view.layers))

    @property
    def _looking(self) -> list[Any]:
        """All that looks at the models: losses and fidelity metrics."""
        return [*self.distillation_losses.values(), *self._fidelity.metrics]

    @property
    def distillation_losses(self) -> Mapping[str, DistillationLoss]:
        """The losses by name, in order."""
        return MappingProxyType(
            {name: c.loss for name, c in self._comparisons.items()}
        )

    @property
    def hard_label_weight(self) -> keras.Variable:
        """The hard labels' weight, a variable; a number may be assigned."""
        return self._hard_label_weight

    @hard_label_weight.setter
    def hard_label_weight(self, value: float) -> None:
        self._hard_label_weight.assign(value)

    @property
    def loss_weights(self) -> tuple[keras.Variable, ...]:
        """The losses' weights, variables; numbers may be assigned to all."""
        return tuple(self._loss_weights)

    @loss_weights.setter
    def loss_weights(self, values: float | Sequence[float]) -> None:
        several = [values] if isinstance(values, (int, float)) else values
        for weight, value in zip(self._loss_weights, several, strict=True):
            weight.assign(value)

    @property
    def output_names(self) -> list[str]:
        """The student's, which Keras uses to name losses and metrics."""
        names: list[str] = self.student.output_names
        return names

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics that Keras resets, and gives their state in a step."""
        return [*super().metrics, *self._fidelity.metrics]

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        """All that training doesn't change by gradients, the teacher included.

        On JAX, a compiled step gets the values of these as arguments, which
        takes time: while the student runs alone, the teacher is left out.
        """
        own: list[keras.Variable] = super().non_trainable_variables
        return own if self._teacher_rests else own + self._teacher_variables()

    @property
    def all_variables(self) -> list[keras.Variable]:
        """Every variable that a step takes or changes."""
        return [*super().all_variables, *self._teacher_variables()]

    @property
    def trained_layers(self) -> list[keras.Layer]:
        """Layers besides the student that are trained with it."""
        return [
            part
            for comparison in self._comparisons.values()
            for part in (
                *comparison.projectors,
                *(part for _, part in comparison.loss.parts()),
            )
            if isinstance(part, keras.Layer)
        ]

    def _teacher_variables(self) -> list[keras.Variable]:
        return [
            variable
            for given in self._given.values()
            if isinstance(given, keras.Layer)
            for variable in given.variables
        ]

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        loss_weights: Any = None,
        metrics: Any = "auto",
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: Any = "auto",
        auto_scale_loss: bool = True,
        fidelity_metrics: Sequence[FidelityMetric] | None = None,
    ) -> None:
        """Configure training, as `keras.Model.compile` does for a model.

        Args:
            optimizer: As in Keras; `"auto"` for one configured as the
                compiled student's, or Adam.
            loss: The student's loss on the hard labels, as in Keras; `"auto"`
                for the compiled student's, or `HardLabels`; `None` to learn
                from the teacher alone.
            loss_weights: As in Keras, among the outputs' hard label losses.
            metrics: As in Keras; `"auto"` for the compiled student's, or
                `HardLabelAccuracy`, unless `weighted_metrics` are given.
            weighted_metrics: As in Keras.
            run_eagerly: As in Keras.
            steps_per_execution: As in Keras.
            jit_compile: As in Keras.
            auto_scale_loss: As in Keras.
            fidelity_metrics: Metrics between the teacher and the student, such
                as `metrics.Agreement()`. With them, `evaluate` and validation
                run the teacher too, unless the batches hold its outputs.
                Sample weights count, as in `weighted_metrics`.

        Raises:
            ValueError: If the backend can't do what is asked, a metric can't
                measure the models, or one between the two is among `metrics`.
            TypeError: If `fidelity_metrics` holds anything else.
        """
        if steps_per_execution > 1 and keras.backend.backend() == "torch":
            raise ValueError(
                "The PyTorch backend runs one step at a time. Received: "
                f"steps_per_execution={steps_per_execution}. Pass 1."
            )
        given: dict[str, Any] = {}
        if "auto" in (optimizer, loss, metrics):
            given = compile_arguments(self.student)
        if isinstance(optimizer, str) and optimizer == "auto":
            optimizer = given.get("optimizer") or keras.optimizers.Adam()
        if isinstance(loss, str) and loss == "auto":
            loss = given.get("loss") or default_hard_loss(self.student)
            loss_weights = loss_weights or given.get("loss_weights")
            self._misses_hard_loss = loss is None
        else:
            self._misses_hard_loss = False
        if isinstance(metrics, str) and metrics == "auto":
            metrics = None
            if weighted_metrics is None:
                metrics = given.get("metrics", default_metrics(self.student))
                weighted_metrics = given.get("weighted_metrics")
        if jit_compile == "auto" and not supports_jit(self._given["teacher"]):
            jit_compile = False
        fidelity = Fidelity(
            fidelity_metrics,
            self._given["teacher"] or self._given["stored"],
            self.student,
        )
        taken = fidelity.names(labels=True)
        for given_metrics in (metrics, weighted_metrics, self._terms):
            check_metrics(given_metrics, self.student, taken)
        self._check_hard_labels(loss)
        self._fidelity = fidelity
        self._teacher_view, self._student_view = extractors(
            self._given["teacher"], self.student, self._looking
        )
        self._saw_labels = False
        # Names of what the last steps logged.
        self._trained_logs: frozenset[str] = frozenset()
        self._tested_logs: frozenset[str] = frozenset()
        self._has_metrics = bool(metrics or weighted_metrics)
        self.note_metrics([metrics, weighted_metrics])
        for term in self._terms:
            term.reset_state()
        super().compile(
            optimizer=optimizer,
            # Keras would keep an earlier loss, or earlier metrics, for None.
            loss=NoHardLabels() if loss is None else loss,
            loss_weights=loss_weights,
            metrics=metrics or {},
            weighted_metrics=weighted_metrics,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=auto_scale_loss,
        )

    def _check_hard_labels(self, loss: Any) -> None:
        """Raise where their loss doesn't go with the distiller's."""
        if self._default_kind is not None:
            require_same_kind(self._default_kind, loss)
        # Keras logs the losses of several outputs by the outputs' names.
        names = list(loss) if isinstance(loss, Mapping) else []
        has_graph = symbolic_output(self.student) is not None
        if isinstance(loss, (list, tuple)) and has_graph:
            names = self.output_names
        logged = {f"{name}_loss" for name in names if len(names) > 1}
        twice = sorted(logged & {term.name for term in self._terms})
        if twice:
            raise ValueError(
                "Two losses would be logged under the same name. Received: a "
                f"loss of an output and one of the distiller's, as {twice}. "
                "Give the distiller's loss another name=."
            )

    def get_compile_config(self) -> Any:
        """What `compile_from_config` needs."""
        config = super().get_compile_config()
        return {**config, "fidelity_metrics": self._fidelity.get_config()}

    def compile_from_config(self, config: Any) -> None:
        """Compile as the distiller that was saved."""
        arguments = keras.saving.deserialize_keras_object(config)
        if keras.backend.backend() == "torch":  # the file may be another's
            arguments["steps_per_execution"] = 1
        self.compile(**arguments)
        self.optimizer.build(self.trainable_variables)

    def train_step(self, *args: Any) -> Any:
        """Run the teacher, then the student, and blend their losses.

        Keras passes `(data,)`, or `(state, data)` on JAX.
        """
        *state, data = args
        with self.step_on(data, trains=True) as real:
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(real)
            x = self._with_teacher(x, state)
            result = super().train_step(*state, (x, y, sample_weight))
        if y is None:
            known = self._label_free()
            result = _filter_logs(result, lambda name: name in known)
        self._trained_logs = _names_of(result)
        return result

    def test_step(self, *args: Any) -> Any:
        """Run the student, alone if no fidelity metric needs the teacher.

        Keras passes `(data,)`, or `(state, data)` on JAX.
        """
        *state, data = args
        with self.step_on(data) as real:
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(real)
            if y is None and not self._fidelity.names(labels=False):
                raise ValueError(
                    "`evaluate` compares the student with hard labels. "
                    "Received: a batch without labels. Pass y, leave "
                    "validation data out, or compile with fidelity_metrics, "
                    "such as metrics.Agreement()."
                )
            if self._fidelity.metrics:
                x = ExaminedBatch(self._with_teacher(x, state))
            elif isinstance(x, TransferBatch):
                x = x.inputs
            result = super().test_step(*state, (x, y, sample_weight))
        terms = {term.name for term in self._terms}
        result = _filter_logs(result, lambda name: name not in terms)
        if y is None:
            known = self._fidelity.names(labels=False)
            result = _filter_logs(result, lambda name: name in known)
        self._tested_logs = _names_of(result)
        return result

    def predict_step(self, *args: Any) -> Any:
        """Run the student alone.

        Keras passes `(data,)`, or `(state, data)` on JAX.
        """
        *state, data = args
        with self.step_on(data) as real:
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(real)
            if isinstance(x, TransferBatch):
                x = x.inputs
            return super().predict_step(*state, (x, y, sample_weight))

    def _with_teacher(self, x: Any, state: Sequence[Any]) -> TransferBatch:
        if not isinstance(x, TransferBatch):
            return self._ask_teacher(x, state)
        if x.holds_teacher:
            return x
        return self._ask_teacher(x.inputs, state)._replace(
            sample_ids=x.sample_ids
        )

    def _ask_teacher(self, inputs: Any, state: Sequence[Any]) -> TransferBatch:
        if self._teacher_view is None:
            raise ValueError(
                "This distiller has no teacher to ask: it was made, or saved, "
                "without one. Received: a batch without the teacher's outputs. "
                "Feed cache.batches or cache.attach of a TeacherCache, or "
                "TransferBatch; or make a Distiller with the teacher and "
                "load_weights into it."
            )
        values = []
        if state:  # JAX
            values = list(
                zip(self.non_trainable_variables, state[0][1], strict=True)
            )
        # Whatever the teacher would assign is dropped with the scope.
        with keras.StatelessScope(state_mapping=values), no_gradient():
            seen = inputs
            if self.teacher_inputs is not None:
                seen = self.teacher_inputs(inputs)
            check_inputs(self._teacher_view.model, seen)
            output, features = self._teacher_view(seen, training=False)
        output, features = keras.tree.map_structure(
            ops.stop_gradient, (output, features)
        )
        return TransferBatch(inputs, output, features)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Run the student, once.

        Args:
            inputs: The student's inputs, or a `TransferBatch`.
            training: As in `keras.Model`.

        Returns:
            The student's output; for a `TransferBatch`, together with what
            each loss compares and each fidelity metric sees.
        """
        inputs = without_marker(inputs)
        if isinstance(inputs, ExaminedBatch):
            output, features = self._student_view(
                inputs.batch.inputs, training=training
            )
            measured = self._fidelity.student_sides(output, features)
            return _StudentOutputs(output, [], measured, lost_masks(output))
        if isinstance(inputs, TransferBatch) and not inputs.holds_teacher:
            inputs = inputs.inputs
        if not isinstance(inputs, TransferBatch):
            return self.student(
                select_inputs(self.student, inputs), training=training
            )
        output, features = self._student_view(inputs.inputs, training=training)
        compared = [
            comparison.student_side(output, features, training=training)
            for comparison in self._comparisons.values()
        ]
        measured = self._fidelity.student_sides(output, features)
        return _StudentOutputs(output, compared, measured, lost_masks(output))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Blend the losses; for plain outputs, the student's own loss."""
        if isinstance(x, ExaminedBatch):
            y_pred = y_pred.output
        if not isinstance(y_pred, _StudentOutputs):
            return self._own_loss(x, y, y_pred, sample_weight, training)
        x = without_marker(x)
        engine = engine_of(self)
        size = ops.shape(keras.tree.flatten(y_pred.output)[0])[0]
        total = self._hard_loss(
            x, y, y_pred.output, sample_weight, training, size
        )
        terms = zip(
            self._comparisons.values(),
            self.loss_weights,
            self._terms[1:],
            y_pred.compared,
            strict=True,
        )
        for comparison, weight, term, student in terms:
            loss = comparison.loss
            teacher = comparison.teacher_side(
                x.teacher_output, x.teacher_features
            )
            if loss.uses_labels or loss.uses_sample_ids:
                teacher = {"teacher": teacher}
            if loss.uses_labels:
                teacher["labels"] = labels_for(loss, y)
            if loss.uses_sample_ids:
                teacher["sample_ids"] = sample_ids_for(loss, x)
            sides = (teacher, student, weights_for(loss, sample_weight))
            value = self.related(loss, sides, size)
            _follow(term, engine.whole(value), size)
            total = total + ops.cast(value, total.dtype) * weight
        return engine.weighted(total, size)

    def _own_loss(
        self, x: Any, y: Any, output: Any, sample_weight: Any, training: bool
    ) -> Tensor:
        if y is None:  # Keras builds its state from unlabelled batches too.
            return ops.zeros(())
        self._check_hard_loss()
        return super().compute_loss(x, y, output, sample_weight, training)

    def _hard_loss(
        self,
        x: Any,
        y: Any,
        output: Any,
        sample_weight: Any,
        training: bool,
        size: Any,
    ) -> Tensor:
        """The weighted hard label loss, and the penalties unweighted."""
        penalties = self.losses
        engine = engine_of(self)
        penalty = engine.divided(
            sum(
                (
                    ops.cast(ops.sum(p), keras.config.floatx())
                    for p in penalties
                ),
                start=ops.zeros(()),
            )
        )
        if y is None:
            return penalty
        self._check_hard_loss()
        # Keras adds the penalties to the hard label loss.
        # On PyTorch, it multiplies a mask into the sample weights in place.
        weights = keras.tree.map_structure(
            lambda w: w if w is None else ops.copy(w), sample_weight
        )
        both = super().compute_loss(x, y, output, weights, training)
        weight = self.hard_label_weight
        if not penalties:
            _follow(self._terms[0], engine.whole(both), size)
            return both * weight
        _follow(self._terms[0], engine.whole(both - penalty), size)
        return both * weight + penalty * (1 - weight)

    def _check_hard_loss(self) -> None:
        if self._misses_hard_loss:
            raise ValueError(
                f"There is no default loss for the hard labels of "
                f"'{self.student.name}', whose output isn't one tensor of "
                "class logits. Received: labels, and a student that isn't "
                "compiled. Call distiller.compile(loss=...), with None to "
                "learn from the teacher alone."
            )

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> Any:
        """Update the metrics with the student's output."""
        if isinstance(y_pred, _StudentOutputs):
            batch = x.batch if isinstance(x, ExaminedBatch) else x
            self._fidelity.update(batch, y_pred.measured, y, sample_weight)
            y_pred = with_masks(y_pred.output, y_pred.masks)
        self._saw_labels = self._saw_labels or y is not None
        if y is None or not self._has_metrics:
            return self.get_metrics_result()
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_metrics_result(self) -> dict[str, Any]:
        """What `fit` logs: without labels, only what needs none."""
        logs: dict[str, Any] = super().get_metrics_result()
        names = self._tested_logs if self._evaluates else self._trained_logs
        if self._in_step or not names:
            return logs
        # Keras takes the last step's logs, of one device alone, where the names
        # aren't theirs.
        return {name: logs[name] for name in logs if name in names}

    def own_metrics_result(self) -> dict[str, Any]:
        """The same, on this device alone."""
        if self._saw_labels and self._has_metrics:
            logs: dict[str, Any] = super().own_metrics_result()
            return logs
        # The metrics of `compile` take their shape from the first labels, and
        # ask for labels of every output, even where there are no metrics.
        logs = {
            metric.name: metric.result()
            for metric in super().metrics
            if metric.name != "compile_metrics"
        }
        if not self._saw_labels:
            del logs[self._terms[0].name]
        return {**logs, **self._fidelity.results(self._saw_labels)}

    def _label_free(self) -> set[str]:
        terms = (term.name for term in self._terms[1:])
        return {"loss", *terms, *self._fidelity.names(labels=False)}

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 (inherited)
        with self._values_kept(trains=True):
            return super().fit(*args, **kwargs)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        with self._student_alone(not self._fidelity.metrics):
            return super().evaluate(*args, **kwargs)

    @functools.wraps(keras.Model.predict)
    def predict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        with self._student_alone():
            return super().predict(*args, **kwargs)

    @contextmanager
    def _student_alone(self, alone: bool = True) -> Iterator[None]:
        before = self._teacher_rests, self._evaluates
        self._teacher_rests, self._evaluates = alone, True
        try:
            with self._values_kept():
                yield
        finally:
            self._teacher_rests, self._evaluates = before

    def _build_optimizer(self) -> None:
        if not self.optimizer.built:
            with engine_of(self).scope():
                self.optimizer.build(self.trainable_variables)

    @contextmanager
    def _values_kept(self, trains: bool = False) -> Iterator[None]:
        if self._keeps_values:  # validation within fit
            yield
            return
        if not self.compiled:  # of which Keras complains
            yield
            return
        engine = engine_of(self)
        engine.check(self)
        if trains:
            self._build_optimizer()
        self._fidelity.require_sums(engine.sums_metrics)
        self.warn_of_sums(engine)
        engine.prepare(self)
        self._keeps_values = True
        try:
            with values_kept(
                [] if self._teacher_rests else self._teacher_variables(),
                lambda: [
                    *self.variables,
                    *(self.optimizer.variables if trains else []),
                    *self.metrics_variables,
                ],
                trains,
            ):
                yield
        finally:
            self._keeps_values = False

    @functools.wraps(keras.Model.save)
    def save(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        path = str(args[0] if args else kwargs.get("filepath", ""))
        if path.endswith((".h5", ".hdf5")):
            raise ValueError(
                "A distiller can't be loaded from the old HDF5 format. "
                f"Received: filepath={path!r}. Use a name that ends in .keras."
            )
        if self.compiled:
            # A loaded one has an optimizer that is built.
            self._build_optimizer()
        whole = written_whole(keras.Model.save, self, args, kwargs)
        with local(), whole as given:
            return super().save(**given)

    @functools.wraps(keras.Model.save_weights)
    def save_weights(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        whole = written_whole(keras.Model.save_weights, self, args, kwargs)
        with local(), whole as given:
            return super().save_weights(**given)

    @functools.wraps(keras.Model.load_weights)
    def load_weights(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        with local():
            return super().load_weights(*args, **kwargs)

    def __dir__(self) -> list[str]:
        """Where Keras looks for what it saves."""
        names = list(super().__dir__())
        if not self.save_teacher:
            names.remove("teacher")
        return names

    def save_own_variables(self, store: Any) -> None:
        """Store weights, temperatures and the state of random numbers.

        Keras stores no state of random numbers (as of dropout); with it, a
        training run that was interrupted goes on exactly.
        """
        for name, variable in self._own_variables().items():
            store[name] = as_array(variable)

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` stored."""
        own = self._own_variables()
        if set(store.keys()) != set(own):
            raise ValueError(
                "The file was written by a distiller of other losses or "
                f"another student. Received: entries {sorted(store.keys())}, "
                f"expected {sorted(own)}. Make the distiller with the "
                "arguments it was made with."
            )
        for name, variable in own.items():
            variable.assign(store[name])

    def _own_variables(self) -> dict[str, keras.Variable]:
        weights = {id(v) for v in self.weights}
        random = [v for v in self.variables if id(v) not in weights]
        mine = [self.hard_label_weight, *self.loss_weights]
        return {
            **{f"number_{i}": v for i, v in enumerate(mine)},
            **{f"loss_{i}": v for i, v in enumerate(self._loss_variables)},
            **{f"random_{i}": v for i, v in enumerate(random)},
        }

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal distiller."""
        serialize = keras.saving.serialize_keras_object
        numbers = [float(as_array(v)) for v in self.loss_weights]
        return {
            "teacher": serialize(self._given["teacher"])
            if self.save_teacher
            else None,
            "student": serialize(self.student),
            "losses": [
                self._loss_config(c) for c in self._comparisons.values()
            ],
            "loss_weights": numbers,
            "hard_label_weight": float(as_array(self.hard_label_weight)),
            "teacher_inputs": serialize(self.teacher_inputs)
            if self.save_teacher
            else None,
            "save_teacher": self.save_teacher,
            "name": self.name,
        }

    def _loss_config(self, comparison: Any) -> Any:
        config = keras.saving.serialize_keras_object(comparison.loss)
        left_out = not self.save_teacher or self._given["teacher"] is None
        if left_out and comparison.teacher_is_probability:
            # Without the teacher, its softmax can't be seen again.
            config["config"]["from_logits"] = False
        if left_out and comparison.loss.projector is not None:
            # Without the teacher, "auto" can't be made out again.
            layers = comparison.projectors
            config["config"]["projector"] = keras.saving.serialize_keras_object(
                layers if len(layers) > 1 else layers[0]
            )
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Distiller:
        """Make the distiller that `get_config` describes."""
        objects = ("teacher", "student", "losses", "teacher_inputs")
        made = {
            key: keras.saving.deserialize_keras_object(config[key])
            for key in objects
        }
        return cls(**{**config, **made})


def _filter_logs(result: Any, keep: Callable[[str], bool]) -> Any:
    """Some of a step's logs; on JAX, they are the first of two results."""
    logs, *state = result if isinstance(result, tuple) else (result,)
    logs = {name: value for name, value in logs.items() if keep(name)}
    return (logs, *state) if state else logs


def _names_of(result: Any) -> frozenset[str]:
    return frozenset(result[0] if isinstance(result, tuple) else result)


def _follow(term: keras.metrics.Mean, value: Tensor, size: Any) -> None:
    term.update_state(ops.stop_gradient(value), sample_weight=size)
