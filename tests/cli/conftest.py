"""Files that a command line names."""

import keras
import numpy as np
import pytest
from support import images, mlp


def knowing_teacher():
    """A teacher that looks at the pixel that tells a class."""
    teacher = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(
                4, 1, activation="relu", kernel_initializer="ones", name="conv"
            ),
            keras.layers.Flatten(),
            keras.layers.Dense(3, kernel_initializer="zeros", name="logits"),
        ],
        name="teacher",
    )
    kernel = np.zeros((8, 8, 4, 3))
    kernel[range(3), range(3), 0, range(3)] = 1
    teacher.get_layer("logits").set_weights(
        [kernel.reshape(-1, 3), np.zeros(3)]
    )
    return teacher


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A teacher that knows the data, a student, and data of all kinds."""
    folder = tmp_path_factory.mktemp("files")
    x, y = images(60)
    x[np.arange(60), y, y, 0] += 20
    knowing_teacher().save(folder / "teacher.keras")
    mlp(4).save(folder / "student.keras")
    other = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(5)]
    )
    other.save(folder / "five.keras")
    keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(1)]
    ).save(folder / "logit.keras")
    keras.Sequential(
        [
            keras.Input((None, None, 1)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    ).save(folder / "any.keras")
    np.savez(folder / "data.npz", x=x, y=y)
    np.savez(folder / "parts.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    np.savez(folder / "rows.npz", x=x, y=np.eye(3)[y])
    np.savez(folder / "flat.npz", x=x[..., 0], y=y)
    np.savez(folder / "several.npz", x=x, y=np.ones((60, 3)))
    np.savez(folder / "soft.npz", x=x, y=np.full((60, 3), 1 / 3))
    np.save(folder / "x.npy", x)
    np.savez(folder / "large.npz", x=np.zeros((6, 9, 9, 1)), y=y[:6])
    np.savez(folder / "beyond.npz", x=x, y=y + 1)
    np.savez(folder / "fewer.npz", x=x, y=y[:9])
    np.savez(folder / "words.npz", x=x, y=np.array(["a", "b"] * 30))
    np.savez(folder / "abc.npz", x=x, y=np.array(["a", "b", "c"] * 20))
    np.savez(folder / "bcd.npz", x=x, y=np.array(["b", "c", "d"] * 20))
    np.savez(folder / "unknown.npz", x=x, y=np.full(60, -1))
    holes = x.copy()
    holes[7, 0, 0] = np.nan
    np.savez(folder / "holes.npz", x=holes, y=y)
    np.savez(folder / "pickle.npz", x=np.array([{}]), y=y, allow_pickle=True)
    (folder / "noise.npz").write_bytes(b"PK\x03\x04 and noise")
    (folder / "noise.keras").write_bytes(b"PK\x03\x04 and noise")
    (folder / "noise.json").write_bytes(b"\xff")
    (folder / "notes.txt").write_text("nothing to read")
    return folder
