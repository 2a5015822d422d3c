"""The same trainings for one device and for many: run as a script by workers.

    python scenarios.py FOLDER NAME...

writes `FOLDER/NAME-RANK.npz` for each: the weights and the history.
"""

import pathlib
import sys
import tempfile

import keras
import numpy as np
from keras import layers
from support import cnn, teacher

import keras_distill as kd

# Two full batches of 8 and a ragged one, which two processes can't halve.
COUNT = 21


def data(count=COUNT):
    random = np.random.default_rng(0)
    x = random.normal(size=(count, 8, 8, 1)).astype("float32")
    return x, np.arange(count) % 3


def student(norm=False, dropout=0.0):
    model = cnn(4, seed=3, dropout=dropout)
    model.get_layer("norm").trainable = norm
    model.get_layer("logits").kernel_regularizer = keras.regularizers.L2(0.01)
    return model


def distiller(losses=None, norm=False, dropout=0.0, **optimizer):
    made = kd.Distiller(
        teacher(),
        student(norm, dropout),
        losses=losses,
        hard_label_weight=0.5,
    )
    made.compile(
        optimizer=keras.optimizers.Adam(0.01, epsilon=1e-4, **optimizer),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return made


def fit(made, batches, **arguments):
    history = made.fit(batches, epochs=3, verbose=0, **arguments)
    return made, history.history


def plain():
    made = distiller()
    batches = kd.distribution.batches(data(), 8, shuffle=True, seed=4)
    return fit(made, batches, validation_data=data(13))


def arrays():
    x, y = data()
    made = distiller()
    history = made.fit(
        x, y, batch_size=8, epochs=3, shuffle=False, validation_split=0.2,
        verbose=0,
    )
    return made, history.history


def weights():
    x, y = data()
    weight = np.random.default_rng(1).uniform(0, 2, COUNT).astype("float32")
    return fit(distiller(), kd.distribution.batches((x, y, weight), 8))


def features():
    loss = kd.losses.Hint("conv", "conv", projector="auto")
    return fit(distiller([kd.losses.SoftTargets(), loss]),
               kd.distribution.batches(data(), 8))


def cache():
    folder = tempfile.mkdtemp()
    stored = kd.TeacherCache.write(folder, teacher(), data(), verbose=0)
    return fit(distiller(), stored.batches(8, shuffle=True))


def accumulation():
    made = distiller(gradient_accumulation_steps=2)
    return fit(made, kd.distribution.batches(data(), 8))


def clipping():
    made = distiller(global_clipnorm=0.1)
    return fit(made, kd.distribution.batches(data(), 8))


def tail_of_one():
    return fit(distiller(), kd.distribution.batches(data(17), 8))


def relations():
    made = distiller([
        kd.losses.RelationalDistance("pool", "pool"),
        kd.losses.LogitCorrelation(),
        kd.losses.ContrastiveRepresentation("logits", "logits", seed=2),
    ])
    return fit(made, kd.distribution.batches(data(), 8))


def relations_per_replica():
    made = distiller(kd.losses.RelationalDistance("pool", "pool"))
    made.gather_relations = False
    return fit(made, kd.distribution.batches(data(24), 8))


def banks():
    x, y = data()
    loss = kd.losses.ContrastiveRepresentation(
        "logits", "logits", bank_size=COUNT, negatives=8, seed=2
    )
    batch = kd.TransferBatch(x, sample_ids=np.arange(COUNT))
    return fit(distiller(loss), kd.distribution.batches((batch, y), 8))


def normalization():
    return fit(distiller(norm=True), kd.distribution.batches(data(), 8))


def dropout():
    return fit(distiller(dropout=0.5), kd.distribution.batches(data(), 8))


def run(name):
    """Weights and history of a scenario, as arrays by name."""
    keras.utils.set_random_seed(0)
    made, history = globals()[name]()
    found = {
        f"w{i}": keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(v))
        for i, v in enumerate(made.variables)
    }
    return found | {k: np.array(v) for k, v in history.items()}


def main():
    world = kd.distribution.initialize()
    folder, *names = sys.argv[1:]
    for name in names:
        path = pathlib.Path(folder) / f"{name}-{world.rank}.npz"
        np.savez(path, **run(name))


if __name__ == "__main__":
    main()
