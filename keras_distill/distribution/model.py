"""A Keras model whose `fit` is the same on one device and on many."""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_distill.batch_means import means_taken_by
from keras_distill.cache.transfer_set import TransferSet, is_array
from keras_distill.call_arguments import named_arguments
from keras_distill.distribution.batches import GlobalBatches, ShardedBatches
from keras_distill.distribution.callbacks import (
    Resumed,
    quiet,
    require_same_backups,
    without_files,
)
from keras_distill.distribution.current import engine_of
from keras_distill.distribution.engines import OneDevice
from keras_distill.distribution.shares import real_rows
from keras_distill.distribution.world import world
from keras_distill.losses.base import DistillationLoss

# Packages whose metrics keep sums.
_KEEP_SUMS = ("keras", "keras_distill")


class DistributedModel(keras.Model):  # type: ignore[misc]  # keras is untyped
    """What a `Distiller` does so that engines can train it on many devices."""

    _in_step = False
    _gather_relations = True
    _foreign_metrics: tuple[str, ...] = ()

    @property
    def gather_relations(self) -> bool:
        """Whether losses between examples see the whole global batch.

        On several devices, a loss such as `losses.RelationalDistance` may
        relate the examples of the global batch (`True`, the default: what one
        device does with that batch), or those of each replica by themselves
        (`False`: less to send and to compute, with fewer relations). Set it
        before `fit`. On one device it makes no difference.
        """
        return self._gather_relations

    @gather_relations.setter
    def gather_relations(self, value: bool) -> None:
        self._gather_relations = value
        self.train_function = None  # was traced with the other value

    @property
    def trained_layers(self) -> list[Any]:
        """Layers besides the student that are trained with it."""
        return []

    @property
    def distillation_losses(self) -> Mapping[str, DistillationLoss]:
        """The losses by name, in order."""
        return {}

    def related(
        self, loss: DistillationLoss, sides: tuple[Any, Any, Any], rows: Any
    ) -> Any:
        """A loss's value where its examples may be on several devices.

        Args:
            loss: The loss.
            sides: What it is called with: teacher, student, sample weights.
            rows: How many examples this replica has.
        """
        # Outside of a step, Keras looks for shapes alone, on each device.
        if not (loss.relates_examples and self._in_step):
            return loss(*sides)
        engine = engine_of(self)
        if self.gather_relations:
            return loss(*engine.gather(sides))
        pieces = engine.pieces(rows)
        if len(pieces) == 1:
            return loss(*sides)
        values = [
            loss(*keras.tree.map_structure(_cut(piece), sides))
            * len(range(rows)[piece])
            for piece in pieces
        ]
        return sum(values[1:], start=values[0]) / rows

    def note_metrics(self, metrics: Any) -> None:
        """Remember of which metrics nobody knows what they keep."""
        found = {
            type(metric).__name__
            for metric in keras.tree.flatten(metrics)
            if isinstance(metric, keras.metrics.Metric)
            and type(metric).update_state.__module__.split(".")[0]
            not in _KEEP_SUMS
        }
        self._foreign_metrics = tuple(sorted(found))

    def warn_of_sums(self, engine: OneDevice) -> None:
        """Say that several devices add up what such metrics keep."""
        if engine.sums_metrics and self._foreign_metrics:
            warnings.warn(
                "Several devices compute a metric from the sums of what its "
                "variables hold. Received: "
                f"{', '.join(self._foreign_metrics)}, which may keep something "
                "else: a maximum, say, comes out wrong. If so, evaluate on one "
                "device.",
                stacklevel=2,
            )

    @property
    def all_variables(self) -> list[Any]:
        """Every variable that a step takes or changes."""
        return [
            *self.variables,
            *(self.optimizer.variables if self.optimizer else []),
            *self.metrics_variables,
        ]

    @contextlib.contextmanager
    def step_on(self, data: Any, trains: bool = False) -> Iterator[Any]:
        """Surrounds a step, and gives the real rows of its batch."""
        data, count = real_rows(data)
        engine = engine_of(self)
        self._in_step = True
        try:
            with (
                engine.step(self, data, count, trains),
                means_taken_by(engine.mean),
            ):
                yield data
        finally:
            self._in_step = False

    def get_metrics_result(self) -> dict[str, Any]:
        """What metrics say, over all devices at an epoch's end."""
        if self._in_step:
            return self.own_metrics_result()
        return engine_of(self).metrics_result(self, self.own_metrics_result)

    def own_metrics_result(self) -> dict[str, Any]:
        """What metrics say on this device alone."""
        logs: dict[str, Any] = super().get_metrics_result()
        return logs

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 (inherited)
        given = named_arguments(keras.Model.fit, self, args, kwargs)
        _refuse_weights_alone(given, "sample_weight", "class_weight")
        if type(given["validation_data"]) is tuple:
            names = ("x", "y", "sample_weight")
            parts = keras.utils.unpack_x_y_sample_weight(
                given["validation_data"]
            )
            validation = dict(zip(names, parts, strict=True))
            _refuse_weights_alone(validation, "sample_weight")
        engine = engine_of(self)
        if engine.splits_arrays:
            _split_validation(given)
            _share_validation(given)
            _share_arrays(
                given,
                given["batch_size"],
                given["shuffle"],
                # As Keras does: each `fit` has orders of its own, which follow
                # from the seed that was set.
                engine.each(np.random.randint(2**31 - 1))[0],
                given["initial_epoch"],
            )
        elif engine.replicas > 1:
            _split_validation(given)
            _size_validation(given, engine)
            _size_batches(given, engine, trains=True)
        _give_share(given["x"], engine)
        _give_share(given["validation_data"], engine)
        engine.note_labels(
            [_labels_of(given["x"]), _labels_of(given["validation_data"])]
        )
        if isinstance(given["x"], GlobalBatches):
            _refuse_parts_of_epochs(given["x"], given["steps_per_epoch"])
            given["shuffle"] = False  # it has an order, the same everywhere
        _choose_callbacks(given, engine)
        _print_once(given)
        with engine.training(self), quiet(given["callbacks"]):
            return super().fit(**given)

    @functools.wraps(keras.Model.evaluate)
    def evaluate(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        given = named_arguments(keras.Model.evaluate, self, args, kwargs)
        _refuse_weights_alone(given, "sample_weight")
        engine = engine_of(self)
        if engine.splits_arrays and "_use_cached_eval_dataset" not in given:
            _share_arrays(given, given["batch_size"], False)
        elif engine.replicas > 1:
            _size_batches(given, engine, trains=False)
        _give_share(given["x"], engine)
        if "_use_cached_eval_dataset" not in given:  # else `fit` has done it
            engine.note_labels([_labels_of(given["x"])])
        _print_once(given)
        return super().evaluate(**given)

    @functools.wraps(keras.Model.predict)
    def predict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        given = named_arguments(keras.Model.predict, self, args, kwargs)
        engine = engine_of(self)
        if engine.share.pieces > 1:
            if engine.share.count > 1:
                raise ValueError(
                    "Keras can't collect predictions from several processes. "
                    f"Received: predict in {world()}. Predict with the "
                    "student in a process of its own, or evaluate."
                )
            _share_arrays(given, given["batch_size"], False)
            _give_share(given["x"], engine)
        _print_once(given)
        return super().predict(**given)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """As Keras does it, on one device.

        Raises:
            ValueError: If each of several processes would train by itself.
        """
        if engine_of(self).trains_in_fit_alone:
            raise ValueError(
                "Processes train together in `fit`; here each would train by "
                f"itself. Received: train_on_batch in {world()}. Pass the "
                "batches to `fit`."
            )
        return super().train_on_batch(
            x, y, sample_weight, class_weight, return_dict
        )


def _refuse_parts_of_epochs(data: GlobalBatches, steps: int | None) -> None:
    # Keras goes on in the middle of the data, where the order is already that
    # of the next epoch: some examples would come twice, and others never.
    if data.shuffle and steps not in (None, len(data)):
        raise ValueError(
            "An epoch of shuffled batches is once through all of them. "
            f"Received: steps_per_epoch={steps} for {len(data)} batches. Leave "
            "it out, and choose epochs by how often each example is to be seen."
        )


def _cut(piece: slice) -> Callable[[Any], Any]:
    return lambda x: None if x is None else x[piece]


def _refuse_weights_alone(given: dict[str, Any], *names: str) -> None:
    """Raise where Keras would drop weights, since there are no labels."""
    lost = [name for name in names if given[name] is not None]
    arrays = all(is_array(x) for x in keras.tree.flatten(given["x"]))
    if lost and arrays and given["y"] is None:
        raise ValueError(
            "Keras drops the weights of arrays without labels. Received: "
            f"{' and '.join(lost)}, and no y. With sample weights, pass "
            "y=np.full(len(x), -1): a label of -1 is none."
        )


def _share_arrays(
    given: dict[str, Any],
    size: Any,
    shuffle: Any,
    seed: int = 0,
    epoch: int = 0,
) -> None:
    """Make arrays into batches of which each process loads its share."""
    leaves = keras.tree.flatten(given["x"])
    pandas = sys.modules.get("pandas")
    if pandas and any(isinstance(x, pandas.DataFrame) for x in leaves):
        raise TypeError(
            "Several devices share arrays, and take a table for a data set of "
            f"each one's own. Received: x of type {type(given['x']).__name__}. "
            "Pass x.to_numpy()."
        )
    if not all(is_array(x) for x in leaves):
        return
    arrays = TransferSet(
        given["x"], given.pop("y", None), given.pop("sample_weight", None)
    )
    given["x"] = ShardedBatches(
        arrays, size or 32, bool(shuffle), seed, epoch, workers=1
    )
    given["batch_size"] = None


def _split_validation(given: dict[str, Any]) -> None:
    """The last part of the arrays, as Keras takes it."""
    share = given["validation_split"]
    if not share or given["validation_data"] is not None:
        return
    parts = (given["x"], given["y"], given["sample_weight"])
    size = len(keras.tree.flatten(parts)[0])
    first = math.floor(size * (1 - share))

    def cut(where: slice) -> Any:
        return keras.tree.map_structure(
            lambda x: None if x is None else x[where], parts
        )

    given["x"], given["y"], given["sample_weight"] = cut(slice(first))
    given["validation_data"] = cut(slice(first, None))
    given["validation_split"] = 0.0


def _share_validation(given: dict[str, Any]) -> None:
    data = given["validation_data"]
    if data is None or isinstance(data, GlobalBatches):
        return
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    made = {"x": x, "y": y, "sample_weight": weight}
    size = given["validation_batch_size"] or given["batch_size"]
    _share_arrays(made, size, False)
    if isinstance(made["x"], GlobalBatches):
        given["validation_data"] = made["x"]


def _size_batches(
    given: dict[str, Any], engine: OneDevice, trains: bool
) -> None:
    data = given["x"]
    if isinstance(data, GlobalBatches):
        engine.batch_size(data.batch_size, data.size, trains=True)
    leaves = keras.tree.flatten(data)
    if all(map(is_array, leaves)):
        given["batch_size"] = engine.batch_size(
            given["batch_size"] or 32, len(leaves[0]), trains
        )


def _size_validation(given: dict[str, Any], engine: OneDevice) -> None:
    if given["validation_data"] is None:
        return
    x, *_ = keras.utils.unpack_x_y_sample_weight(given["validation_data"])
    size = given["validation_batch_size"] or given["batch_size"]
    made = {"x": x, "batch_size": size}
    _size_batches(made, engine, trains=False)
    given["validation_batch_size"] = made["batch_size"]


def _labels_of(data: Any) -> Any:
    return data.labels() if isinstance(data, GlobalBatches) else None


def _give_share(data: Any, engine: OneDevice) -> None:
    if isinstance(data, GlobalBatches):
        data.share = engine.share


def _choose_callbacks(given: dict[str, Any], engine: OneDevice) -> None:
    user = given["callbacks"]
    if isinstance(user, keras.callbacks.CallbackList):
        if world().size > 1:
            raise TypeError(
                "Processes need callbacks of their own. Received: "
                "callbacks of type CallbackList. Pass a list of callbacks."
            )
        return
    callbacks = keras.tree.flatten(user or [])
    require_same_backups(callbacks, engine)
    extra = engine.callbacks(callbacks)
    if isinstance(given["x"], GlobalBatches):
        extra.append(Resumed(given["x"], given["initial_epoch"]))
    if not world().is_first:
        callbacks = without_files(callbacks)
    given["callbacks"] = [*callbacks, *extra]


def _print_once(given: dict[str, Any]) -> None:
    if not world().is_first:
        given["verbose"] = 0
