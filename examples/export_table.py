"""Export eight kinds of networks from three backends in every scheme.

    python examples/export_table.py

Prints, for each network, whether it converts, its operations, size, parity with
Keras and latency, and whether JAX and PyTorch give the file that TensorFlow
gives. The networks have random weights and normalisation statistics: this
compares ways to a file, and says nothing of accuracy. Takes about ten minutes
on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any

import figures
import numpy as np

RESULTS = figures.RESULTS / "export_table.json"

BACKENDS = ("tensorflow", "jax", "torch")
CALIBRATION, TEST = 64, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--backend", choices=BACKENDS, help="only this one")
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS]
    )
    parser.add_argument("--schemes", nargs="+", help="default: all")
    # How the script calls itself, a process for each backend.
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    figures.add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.table:
        figures.show(arguments.json or RESULTS, table)
        return
    if arguments.folder is not None:
        run_backend(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        backends = [arguments.backend] if arguments.backend else BACKENDS
        for backend in backends:
            call_itself(backend, pathlib.Path(folder), arguments)
        facts = read(pathlib.Path(folder), backends)
    print(table({"": facts}))
    if arguments.json:
        figures.keep(arguments.json, facts)


def call_itself(
    backend: str, folder: pathlib.Path, arguments: argparse.Namespace
) -> None:
    options = ["--folder", folder, "--networks", *arguments.networks]
    if arguments.schemes:
        options += ["--schemes", *arguments.schemes]
    subprocess.run(
        [sys.executable, __file__, *map(str, options)],
        check=True,
        env=os.environ | {"KERAS_BACKEND": backend},
    )


def run_backend(arguments: argparse.Namespace) -> None:
    """Export every network in every scheme, and note what is measured."""
    import keras

    import keras_distill as kd
    from keras_distill.export.schemes import SCHEMES

    rows = []
    for name in arguments.networks:
        student = load_or_make(name, arguments.folder)
        random = np.random.default_rng(0)
        calibration = examples(student, CALIBRATION, random)
        test = examples(student, TEST, random)
        for scheme in arguments.schemes or SCHEMES:
            row = {
                "backend": keras.backend.backend(),
                "network": name,
                "scheme": scheme,
            }
            started = time.perf_counter()
            try:
                with warnings.catch_warnings():
                    # Random weights bear fewer bits than trained ones.
                    warnings.simplefilter("ignore", UserWarning)
                    artifact = kd.export_litert(
                        student,
                        arguments.folder / "student.tflite",
                        scheme,
                        calibration_data=calibration,
                    )
            except RuntimeError as error:
                row["problem"] = str(error).splitlines()[0]
            else:
                row["seconds"] = time.perf_counter() - started
                check = kd.verify_litert(artifact, student, test)
                outputs = keras.tree.flatten(artifact.predict(test))
                row |= {
                    "size": artifact.size,
                    "parity": artifact.max_error,
                    "snr": check.snr_db,
                    "agreement": check.agreement,
                    "ms": check.latency.median_ms,
                    "operations": check.operations,
                    "outputs": [array.tolist() for array in outputs],
                }
            rows.append(row)
            print(describe(row), flush=True)
    file = arguments.folder / f"{keras.backend.backend()}.json"
    file.write_text(json.dumps(rows))


def load_or_make(name: str, folder: pathlib.Path):
    """The same weights on each backend."""
    import keras

    path = folder / f"{name}.keras"
    if path.exists():
        return keras.saving.load_model(path)
    keras.utils.set_random_seed(0)
    student = NETWORKS[name](keras)
    random = np.random.default_rng(0)
    for layer in student.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape[0]
            layer.set_weights(
                [
                    random.uniform(0.7, 1.3, size),
                    random.normal(0, 0.1, size),
                    random.normal(0, 0.1, size),
                    random.uniform(0.5, 1.5, size),
                ]
            )
    student.save(path)
    return student


def examples(student, count: int, random: np.random.Generator) -> np.ndarray:
    shape = (count, *student.inputs[0].shape[1:])
    if student.inputs[0].dtype != "int32":
        return random.random(shape).astype("float32")
    tokens = random.integers(1, 100, shape).astype("int32")
    # Half the texts end early, so that masks matter.
    tokens[::2, shape[1] // 2 :] = 0
    return tokens


def describe(row: dict) -> str:
    start = f"{row['backend']:<11}{row['network']:<16}{row['scheme']:<22}"
    if "problem" in row:
        return start + row["problem"]
    return (
        f"{start}{row['size'] / 1024:7.1f} KB {row['snr']:6.1f} dB "
        f"{row['ms']:.3f} ms, exported in {row['seconds']:.1f} s"
    )


def read(folder: pathlib.Path, backends: Sequence[str]) -> dict[str, Any]:
    """What each backend measured, and how the files of others differ."""
    found = {
        backend: json.loads((folder / f"{backend}.json").read_text())
        for backend in backends
    }
    compared = {
        backend: compare(found[backend], found[backends[0]])
        for backend in backends[1:]
    }
    rows = [row for rows in found.values() for row in rows]
    for row in rows:
        row.pop("outputs", None)
    return {"rows": rows, "compared": compared}


def table(kept: dict[str, Any]) -> str:
    """A row for each network; below it, how other backends' files differ."""
    (facts,) = kept.values()
    rows = facts["rows"]
    backend = rows[0]["backend"]
    first = [row for row in rows if row["backend"] == backend]
    lines = []
    for name in dict.fromkeys(row["network"] for row in first):
        done = [r for r in rows if r["network"] == name and "parity" in r]
        # The float32 file is the first one.
        operations = sum(done[0]["operations"].values()) if done else 0
        parity = max((row["parity"] for row in done), default=np.nan)
        cells = [cell(row) for row in first if row["network"] == name]
        lines.append([name, str(operations), f"{parity:.0e}", *cells])
    schemes = list(dict.fromkeys(row["scheme"] for row in first))
    head = ["network", "operations", "parity", *schemes]
    return "\n\n".join(
        [
            figures.markdown(head, lines),
            *(
                f"{other} against {backend}: the same operations in "
                f"{found['same']} of {found['files']} files, outputs at most "
                f"{found['apart']:.0e} apart."
                for other, found in facts["compared"].items()
            ),
            f"Each cell: signal-to-noise ratio against Keras, size, latency on "
            f"one thread, on {backend}. {TEST} random inputs, {CALIBRATION} "
            "others for calibration; seed 0.",
        ]
    )


def cell(row: dict) -> str:
    if "problem" in row:
        return "fails"
    ratio = "exact" if row["snr"] > 100 else f"{row['snr']:.0f} dB"
    return f"{ratio}, {row['size'] / 1024:.0f} KB, {1000 * row['ms']:.0f} µs"


def compare(rows: list[dict], others: list[dict]) -> dict[str, Any]:
    """Whether two backends gave the same files."""
    differences, same = [0.0], 0
    for row, other in zip(rows, others, strict=True):
        same += row.get("operations") == other.get("operations")
        for ours, theirs in zip(
            row.get("outputs", []), other.get("outputs", []), strict=True
        ):
            difference = np.abs(np.subtract(ours, theirs)).max()
            differences.append(float(difference))
    return {"same": same, "files": len(rows), "apart": max(differences)}


def normalized(keras, x):
    return keras.layers.ReLU()(keras.layers.BatchNormalization()(x))


def convolution(keras, x, width, size=3, strides=1):
    layer = keras.layers.Conv2D(
        width, size, strides=strides, padding="same", use_bias=False
    )
    return layer(x)


def cnn(keras):
    image = x = keras.Input((32, 32, 3), name="image")
    for width in (16, 32, 32):
        x = normalized(keras, convolution(keras, x, width))
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(10)(x))


def depthwise_cnn(keras):
    image = keras.Input((32, 32, 3), name="image")
    x = normalized(keras, convolution(keras, image, 16, strides=2))
    for width in (32, 64):
        x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = normalized(keras, x)
        x = normalized(keras, convolution(keras, x, width, 1))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(10)(x))


def resnet(keras):
    image = keras.Input((32, 32, 3), name="image")
    x = normalized(keras, convolution(keras, image, 16))
    for width, strides in ((16, 1), (32, 2)):
        y = normalized(keras, convolution(keras, x, width, strides=strides))
        y = keras.layers.BatchNormalization()(convolution(keras, y, width))
        if strides == 2:
            x = convolution(keras, x, width, 1, strides)
            x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(10)(x))


def attention_block(keras, x, width, activation):
    y = keras.layers.LayerNormalization()(x)
    y = keras.layers.MultiHeadAttention(2, width // 2)(y, y)
    x = keras.layers.Add()([x, y])
    y = keras.layers.LayerNormalization()(x)
    y = keras.layers.Dense(2 * width, activation=activation)(y)
    return keras.layers.Add()([x, keras.layers.Dense(width)(y)])


def vision_transformer(keras):
    image = keras.Input((32, 32, 3), name="image")
    x = keras.layers.Conv2D(32, 8, strides=8)(image)
    x = keras.layers.Reshape((16, 32))(x)
    for _ in range(2):
        x = attention_block(keras, x, 32, "gelu")
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(image, keras.layers.Dense(10)(x))


def recurrent(keras):
    signal = keras.Input((12, 8), name="signal")
    lstm = keras.layers.LSTM(16, return_sequences=True)
    x = keras.layers.Bidirectional(lstm)(signal)
    x = keras.layers.GRU(16)(x)
    return keras.Model(signal, keras.layers.Dense(5)(x))


def cnn_1d(keras):
    signal = x = keras.Input((64, 4), name="signal")
    for width in (16, 32):
        layer = keras.layers.Conv1D(width, 5, padding="same", use_bias=False)
        x = keras.layers.MaxPooling1D()(normalized(keras, layer(x)))
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(signal, keras.layers.Dense(5)(x))


def text_transformer(keras):
    tokens = keras.Input((16,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(100, 32, mask_zero=True)(tokens)
    x = attention_block(keras, x, 32, "relu")
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, keras.layers.Dense(4)(x))


def unet(keras):
    image = keras.Input((32, 32, 3), name="image")
    fine = normalized(keras, convolution(keras, image, 8))
    half = normalized(keras, convolution(keras, fine, 16, strides=2))
    coarse = normalized(keras, convolution(keras, half, 16, strides=2))
    x = keras.layers.UpSampling2D(interpolation="bilinear")(coarse)
    x = keras.layers.Concatenate()([x, half])
    x = normalized(keras, convolution(keras, x, 16))
    x = keras.layers.Conv2DTranspose(
        8, 3, strides=2, padding="same", activation="relu"
    )(x)
    x = keras.layers.Concatenate()([x, fine])
    pooled = keras.layers.GlobalAveragePooling2D()(coarse)
    return keras.Model(
        image,
        {
            "mask": keras.layers.Conv2D(2, 1)(x),
            "kind": keras.layers.Dense(4)(pooled),
        },
    )


NETWORKS = {
    "CNN": cnn,
    "depthwise CNN": depthwise_cnn,
    "ResNet": resnet,
    "ViT": vision_transformer,
    "LSTM and GRU": recurrent,
    "1-D CNN": cnn_1d,
    "text transformer": text_transformer,
    "U-Net": unet,
}


if __name__ == "__main__":
    main()
