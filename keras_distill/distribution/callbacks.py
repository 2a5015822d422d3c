"""Callbacks of a training by several processes."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_distill.distribution.batches import GlobalBatches
from keras_distill.distribution.world import world

#: What writes files, of which there is one for all processes.
_WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)
#: What says what it does, which all processes do alike.
_SPEAKERS = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ReduceLROnPlateau,
)


class AsOne(keras.callbacks.Callback):  # type: ignore[misc]
    """Processes begin alike, and stop at the same time."""

    def __init__(self, engine: Any, user: list[Any]) -> None:
        super().__init__()
        self.engine = engine
        self.within_epochs = any(map(_may_stop_within_an_epoch, user))
        self.started = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Wait until all have read a backup, which the first may remove."""
        self.engine.any(False)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Make all processes alike, once."""
        # Not when training begins: a backup has been loaded since.
        if not self.started:
            self.started = True
            self.engine.start(self.model, self.params["steps"], epoch)
            # One process's callback may stop all: all ask, or none does.
            self.within_epochs = self.engine.any(self.within_epochs)
        self.engine.require_alike(self.model)
        self._agree()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop together, where a callback may stop here."""
        if self.within_epochs:
            self._agree()
            return
        # A signal, say, stops one process at any time. The others learn of it
        # by what they exchange in the next step, and all stop behind that.
        self.engine.wants_stop |= self.model.stop_training
        self.model.stop_training = self.engine.stops

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stop together."""
        self.engine.require_alike(self.model)
        self._agree()

    def on_train_end(self, logs: Any = None) -> None:
        """Say where a callback has changed one of the students."""
        self.engine.require_alike(self.model)

    def _agree(self) -> None:
        stops = self.model.stop_training or self.engine.wants_stop
        self.model.stop_training = self.engine.any(stops)
        self.engine.wants_stop = self.model.stop_training


class Placed(keras.callbacks.Callback):  # type: ignore[misc]
    """Variables are where the steps expect them, also after a backup."""

    def __init__(self, engine: Any) -> None:
        super().__init__()
        self.engine = engine
        self.started = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Wait until all have read a backup, which the first may remove."""
        self.engine.each(0)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Place variables, once."""
        if not self.started:
            self.started = True
            self.engine.place(self.model)


class Resumed(keras.callbacks.Callback):  # type: ignore[misc]
    """Each epoch has the data set's order of that epoch.

    Also if a backup has the first ones behind it, and although Keras looks at
    a batch before, and calls that an epoch.
    """

    def __init__(self, data: GlobalBatches, initial_epoch: int) -> None:
        super().__init__()
        self.data = data
        self.before = data.epoch - initial_epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Set the data set's epoch."""
        self.data.epoch = self.before + epoch


class RestoreOnly(keras.callbacks.Callback):  # type: ignore[misc]
    """A backup that another process writes."""

    def __init__(self, backup: Any) -> None:
        super().__init__()
        self.backup = backup

    def set_model(self, model: Any) -> None:
        """Hand the model on."""
        super().set_model(model)
        self.backup.set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        """Restore."""
        self.backup.on_train_begin(logs)


def without_files(callbacks: list[Any]) -> list[Any]:
    """The callbacks of a process that writes no files."""
    return [
        RestoreOnly(x) if isinstance(x, keras.callbacks.BackupAndRestore) else x
        for x in callbacks
        if not isinstance(x, _WRITERS)
    ]


def require_same_backups(callbacks: list[Any], engine: Any) -> None:
    """Raise where some processes see a backup, and others don't.

    Raises:
        ValueError: If so.
    """
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.BackupAndRestore):
            continue
        path = pathlib.Path(callback.backup_dir)
        seen = engine.each(int(path.is_dir() and any(path.iterdir())))
        if len({*seen}) > 1:
            raise ValueError(
                "All processes go on from the same backup. Received: "
                f"backup_dir='{path}', in which {sum(seen)} of {len(seen)} "
                "processes see one. Keep it where all see it."
            )


@contextlib.contextmanager
def quiet(callbacks: Any) -> Iterator[None]:
    """Let callbacks print in the first process alone."""
    user = [] if world().is_first else keras.tree.flatten(callbacks)
    speakers = [x for x in user if isinstance(x, _SPEAKERS)]
    before = [callback.verbose for callback in speakers]
    for callback in speakers:
        callback.verbose = 0
    try:
        yield
    finally:
        for callback, verbose in zip(speakers, before, strict=True):
            callback.verbose = verbose


def _may_stop_within_an_epoch(callback: Any) -> bool:
    plain = _batch_hooks(keras.callbacks.Callback)
    # LambdaCallback has functions of its own in each object.
    own = plain.keys() & vars(callback).keys()
    return bool(own) or _batch_hooks(type(callback)) != plain


def _batch_hooks(kind: Any) -> dict[str, Any]:
    return {
        "on_batch_begin": kind.on_batch_begin,
        "on_batch_end": kind.on_batch_end,
        "on_train_batch_begin": kind.on_train_batch_begin,
        "on_train_batch_end": kind.on_train_batch_end,
    }
