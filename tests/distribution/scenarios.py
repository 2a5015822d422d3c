"""The same trainings for one device and for many: run as a script by workers.

    python scenarios.py MODE FOLDER NAME...

MODE is `processes`, `mesh` (of JAX) or `mirrored` (of TensorFlow). It writes
`FOLDER/NAME-RANK.npz`: weights and history; and for `mesh`
`FOLDER/NAME-one.npz`, the same of one device.
"""

import atexit
import contextlib
import os
import pathlib
import signal
import sys
import tempfile
import time

import keras
import numpy as np
from support import cnn, teacher

import keras_distill as kd
from keras_distill.distribution.current import engine_of
from keras_distill.predictions import predict

# In which TensorFlow's models are made; `fit` is called outside.
scope = contextlib.nullcontext
# Two full batches of 8, and one example that two can't share.
COUNT = 17


def data(count=COUNT, weighted=False):
    random = np.random.default_rng(0)
    x = random.normal(size=(count, 8, 8, 1)).astype("float32")
    y = np.arange(count) % 3
    if not weighted:
        return x, y
    return x, y, random.uniform(0, 2, count).astype("float32")


def distiller(*args, **kwargs):
    with scope():
        return make(*args, **kwargs)


def make(
    losses=None,
    norm=False,
    dropout=0.0,
    penalty=0.1,
    loss=None,
    metrics=("accuracy",),
    **optimizer,
):
    student = cnn(4, seed=3, dropout=dropout)
    student.get_layer("norm").trainable = norm
    student.get_layer("logits").kernel_regularizer = keras.regularizers.L2(
        penalty
    )
    made = kd.Distiller(
        teacher(), student, losses=losses, hard_label_weight=0.5
    )
    made.compile(
        # A larger epsilon than usual, since where a gradient is zero but for
        # rounding, Adam would make a step of the rounding.
        optimizer=keras.optimizers.Adam(0.01, epsilon=1e-4, **optimizer),
        loss=loss
        or keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[*metrics],
    )
    return made


def fit(made, batches, **arguments):
    history = made.fit(batches, epochs=3, verbose=0, **arguments)
    return made, history.history


def batches(count=COUNT, weighted=False):
    return kd.distribution.batches(
        data(count, weighted), 8, shuffle=True, seed=4
    )


def everything(**optimizer):
    """Cache, weights, features, relations, projectors, validation, tail."""
    stored = kd.TeacherCache.write(
        tempfile.mkdtemp(),
        teacher(),
        data(weighted=True),
        layers=["conv"],
        verbose=0,
    )
    made = distiller(
        [
            kd.losses.SoftTargets(),
            kd.losses.Hint("conv", "conv", projector="auto"),
            kd.losses.SimilarityPreserving("conv", "conv"),
        ],
        **optimizer,
    )
    return fit(made, stored.batches(8, shuffle=True), validation_data=data(13))


def everything_accumulated():
    return everything(gradient_accumulation_steps=2, global_clipnorm=0.3)


def arrays():
    x, y = data()
    made = distiller()
    history = made.fit(
        x,
        y,
        batch_size=8,
        epochs=3,
        shuffle=False,
        validation_split=0.2,
        verbose=0,
    )
    return made, history.history


def agreed():
    """What the first process says, where each would say another number."""
    made = distiller()
    number = engine_of(made).each(kd.distribution.world().rank + 2**30)[0]
    return made, {"number": [float(number)]}


def relations():
    """Between examples, and a mean over those that have a label."""
    made = distiller(
        [
            kd.losses.RelationalDistance("pool", "pool"),
            kd.losses.LogitCorrelation(),
            kd.losses.ContrastiveRepresentation("logits", "logits", seed=2),
            kd.losses.DecoupledSoftTargets(),
        ],
        loss=kd.HardLabels(),
        metrics=[kd.HardLabelAccuracy()],
    )
    # Five in the last, which two can't halve.
    x, y = data(21)
    y[np.arange(21) % 5 < 2] = -1
    return fit(made, kd.distribution.batches((x, y), 8, shuffle=True, seed=4))


def texts():
    """Sequences of unequal length: the mean is over what isn't padding."""
    with scope():
        teacher, student = (
            keras.Sequential(
                [
                    keras.Input((5,)),
                    keras.layers.Embedding(9, width, mask_zero=True),
                    keras.layers.Dense(3),
                ]
            )
            for width in (8, 4)
        )
        made = kd.Distiller(teacher, student)
        made.compile(keras.optimizers.Adam(0.01, epsilon=1e-4))
    x = np.random.default_rng(0).integers(1, 9, (COUNT, 5))
    x[np.arange(5) >= np.arange(COUNT)[:, None] % 6] = 0
    words = x % 3
    return fit(made, kd.distribution.batches((x, words), 8))


def relations_alone():
    """No penalty, and labels in validation alone, of some examples.

    One process has no rows of the last batch.
    """
    made = distiller(
        kd.losses.RelationalDistance(),
        penalty=0.0,
        loss=kd.HardLabels(),
        metrics=[kd.HardLabelAccuracy()],
    )
    unlabelled = kd.distribution.batches(data()[0], 8)
    x, y = data(13)
    y[:6] = -1
    made, history = fit(made, unlabelled, validation_data=(x, y))
    score = made.evaluate(x, y, verbose=0)
    return made, history | {"score": score}


def banks():
    x, y = data()
    loss = kd.losses.ContrastiveRepresentation(
        "logits", "logits", bank_size=COUNT, negatives=8, seed=2
    )
    batch = kd.TransferBatch(x, sample_ids=np.arange(COUNT))
    return fit(distiller(loss), kd.distribution.batches((batch, y), 8))


class Halves(kd.losses.RelationalDistance):
    """What two replicas of four examples do by themselves, on one device."""

    def __init__(self):
        super().__init__("pool", "pool", name="relational_distance")

    def compare(self, teacher, student):
        halves = [
            super(Halves, self).compare(teacher[half], student[half])
            for half in (slice(4), slice(4, 8))
        ]
        return keras.ops.concatenate(halves)


def relations_per_replica(one=False):
    loss = Halves() if one else kd.losses.RelationalDistance("pool", "pool")
    made = distiller(loss)
    made.gather_relations = False
    return fit(made, batches(16))


def normalization():
    return fit(distiller(norm=True), batches())


def dropout():
    return fit(distiller(dropout=0.5), batches())


def callbacks():
    """Files of one process, and one that stops all."""
    world = kd.distribution.world()
    folder = pathlib.Path(sys.argv[2]) / f"files-{world.rank}"

    class StopsAlone(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                self.model.stop_training = True

    return fit(
        distiller(),
        batches(),
        callbacks=[
            keras.callbacks.ModelCheckpoint(f"{folder}/student.keras"),
            keras.callbacks.CSVLogger(f"{folder}.csv"),
            # Of one process alone, and all stop.
            *([StopsAlone()] if world.rank == world.size - 1 else []),
        ],
    )


class Dies(keras.callbacks.Callback):
    """The last process is killed in its second epoch."""

    def on_train_batch_begin(self, batch, logs=None):
        rank, size = kd.distribution.world()
        if self.epoch == 1 and batch == 1 and rank == size - 1:
            path = pathlib.Path(sys.argv[2]) / "died"
            path.write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch


def uninterrupted():
    return fit(distiller(dropout=0.5), batches())


def resumed(*more):
    """Begins anew where there is no backup."""
    backup = keras.callbacks.BackupAndRestore(
        pathlib.Path(sys.argv[2]) / "backup", delete_checkpoint=False
    )
    return fit(distiller(dropout=0.5), batches(), callbacks=[backup, *more])


def killed():
    return resumed(Dies())


@contextlib.contextmanager
def before_the_distribution():
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    yield
    keras.distribution.set_distribution(distribution)


def placed():
    """Models that were made before; predictions that devices can't halve."""
    with before_the_distribution():
        made = distiller()
    made, history = fit(made, batches(9))
    predicted = made.predict(data(5)[0], verbose=0)
    # What checks and reports do with a model of Keras alone.
    np.testing.assert_allclose(
        predict(made.student, data(5)[0]), predicted, rtol=1e-5, atol=1e-6
    )
    score = made.evaluate(*data(5), verbose=0)
    return made, history | {"predicted": predicted, "score": score}


def split_teacher():
    """Half of a teacher's layer on each device, beside a whole student."""
    if keras.distribution.distribution() is None:
        return fit(distiller(), batches())
    mesh = keras.distribution.DeviceMesh((1, 2), ("batch", "model"))
    layout = keras.distribution.LayoutMap(mesh)
    # The teacher's first layer has 16 channels, the student's has 4.
    with before_the_distribution():
        made = distiller()
    kernel = made.teacher.get_layer("conv").kernel
    kernel_path = f"^{kernel.path}$"
    layout[kernel_path] = (None, None, None, "model")
    split = keras.distribution.ModelParallel(
        layout_map=layout, auto_shard_dataset=False
    )
    with split.scope():
        result = fit(made, batches())
    assert not kernel.value.sharding.is_fully_replicated
    return result


def apart():
    """What would let processes train apart is an error in all of them."""
    import pytest

    def wrong(error, expected, run):
        with pytest.raises(error, match=expected):
            run()

    rank = kd.distribution.world().rank
    made = distiller()
    folder = pathlib.Path(sys.argv[2]) / f"backups-{rank}"
    if rank == 0:
        folder.mkdir()
        (folder / "backup").write_text("")
    backup = keras.callbacks.BackupAndRestore(folder)
    wrong(
        ValueError,
        "1 of 2 processes see one",
        lambda: fit(made, batches(), callbacks=[backup]),
    )
    if keras.backend.backend() == "torch":
        slower = keras.callbacks.LearningRateScheduler(lambda _, rate: rate / 2)
        mine = [slower] if rank == 0 else []
        wrong(
            RuntimeError,
            "learning rates",
            lambda: fit(made, batches(), callbacks=mine),
        )
        longer = (data(8) for _ in range(3 + rank))
        wrong(
            ValueError,
            "process 0 has no more batches, process 1 is in a step",
            lambda: made.fit(longer, verbose=0),
        )
        wrong(
            ValueError, "would train by itself", lambda: made.train_on_batch(0)
        )
    return distiller(), {"refused": [1.0]}


def stopped():
    """One process is told to stop, in the middle of an epoch or before."""
    made, rank = distiller(), kd.distribution.world().rank

    def until_told():
        for i in range(20):
            if i == 5 and rank == 1:  # as the handler of a signal would
                made.stop_training = True
            yield data(8)

    made.fit(until_told(), verbose=0)
    steps = int(made.optimizer.iterations)

    class StopsBefore(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.stop_training = rank == 0 and epoch == 1

    made, history = fit(made, batches(), callbacks=[StopsBefore()])
    return made, history | {"steps": [float(steps)]}


def frozen():
    """Weights that nobody trains, before and after."""
    made = distiller()
    layer = made.student.get_layer("conv")
    layer.trainable = False
    made.compile(loss=None, metrics=None)
    before = keras.ops.convert_to_numpy(layer.kernel)
    fit(made, batches())
    moved = np.abs(keras.ops.convert_to_numpy(layer.kernel) - before).max()
    return made, {"moved": [float(moved)]}


def refusals():
    """What can't be right on TensorFlow's replicas is refused."""
    import pytest

    for wrong in (
        {"gradient_accumulation_steps": 2},
        {"clipnorm": 1.0},
        {"use_ema": True, "ema_overwrite_frequency": 2},
    ):
        with pytest.raises(ValueError, match="on each replica before"):
            fit(distiller(**wrong), batches())
    with pytest.raises(ValueError, match="share equally"):
        distiller().fit(*data(), batch_size=7, verbose=0)
    made = distiller()
    made.compile(loss=None, metrics=None)
    with pytest.raises(ValueError, match="compiled outside of"):
        fit(made, batches())
    return distiller(), {}


def run(name, **arguments):
    """Weights and history of a scenario, as arrays by name."""
    keras.utils.set_random_seed(0)
    made, history = globals()[name](**arguments)
    found = {
        f"w{i}": keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(v))
        for i, v in enumerate(made.variables)
    }
    return found | {k: np.array(v) for k, v in history.items()}


def run_on_one(name):
    return run(name, **({"one": True} if "per_replica" in name else {}))


def note_world(path):
    """Write, for each process, how many it still belongs to."""
    size = str(kd.distribution.world().size)
    path.with_name(f"{path.name}-{os.environ['RANK']}").write_text(size)


def main():
    mode, folder, *names = sys.argv[1:]
    folder = pathlib.Path(folder)
    global scope  # noqa: PLW0603
    run_scope, make_scope = contextlib.nullcontext, scope
    if mode == "mirrored":
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
        make_scope = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope
    rank = 0
    if mode == "processes":
        # Before it joins, so that this comes after what it does at the end.
        atexit.register(note_world, folder / f"ended-{names[0]}")
        rank = kd.distribution.initialize().rank
    if mode == "mesh":
        run_scope = keras.distribution.DataParallel().scope
    for name in names:
        if mode == "mesh":
            np.savez(folder / f"{name}-one.npz", **run_on_one(name))
        scope = make_scope
        with run_scope():
            np.savez(folder / f"{name}-{rank}.npz", **run(name))
        scope = contextlib.nullcontext
        print("done", name, flush=True)


if __name__ == "__main__":
    main()
