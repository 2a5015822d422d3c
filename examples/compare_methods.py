"""Every method of the library on one real data set and pair of networks.

    KERAS_BACKEND=torch python examples/compare_methods.py --out compare/

Teacher: a convolutional network that learned from 20,000 images of
Fashion-MNIST. Student: one with a sixth of its weights, that gets 2,000 other
images. All methods have the same students to start from, the same images, the
same number of epochs and the same optimizer; the weights of their losses are
those of their papers. What counts is the last epoch's accuracy on the 10,000
test images, and how often student and teacher agree there. To choose a weight,
`--held-out` looks at 10,000 other training images instead, in a folder apart.

Each run is a JSON file in the folder, written when it is done. Started again,
the script makes those that are missing; started twice, with other `--seeds`,
the two share the work. At the end it prints the table.
"""

import argparse
import functools
import json
import os
import pathlib
import time

import figures
import keras
import numpy as np
from keras import layers

import keras_distill as kd
from keras_distill import losses as l

RESULTS = figures.RESULTS / "compare_methods.json"
MAPS = ["stage1", "stage2", "stage3"]
NORMS = ["norm1", "norm2", "norm3"]


def network(widths, name):
    """Three stages, 14x14, 7x7 and 7x7, a mean over places, and a head."""
    model = keras.Sequential([keras.Input((28, 28, 1))], name=name)
    for i, width in enumerate(widths, start=1):
        strides = 2 if i < 3 else 1
        model.add(
            layers.Conv2D(
                width, 3, strides, padding="same", use_bias=False,
                name=f"conv{i}",
            )
        )  # fmt: skip
        model.add(layers.BatchNormalization(momentum=0.9, name=f"norm{i}"))
        model.add(layers.ReLU(name=f"stage{i}"))
    model.add(layers.GlobalAveragePooling2D(name="pooled"))
    model.add(layers.Dense(10, name="logits"))
    return model


def compiled(model, epochs, images, batch_size=64):
    """Adam whose learning rate falls to zero along a cosine."""
    steps = epochs * -(-images // batch_size)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def load(path):
    """Fashion-MNIST, scaled to -1 ... 1."""
    if path:
        with np.load(path) as file:
            train = file["x_train"], file["y_train"]
            test = file["x_test"], file["y_test"]
    else:
        train, test = keras.datasets.fashion_mnist.load_data()
    return [
        (x.reshape(-1, 28, 28, 1).astype("float32") / 127.5 - 1, y.ravel())
        for x, y in (train, test)
    ]


def logits(loss):
    """A loss between the outputs."""
    return lambda teacher: [loss()]


def between(loss, where, **arguments):
    """A loss between layers of the same names."""
    return lambda teacher: [
        loss(teacher_layer_name=where, student_layer_name=where, **arguments)
    ]


# For each method: from a teacher, the losses.
METHODS = {
    "SoftTargets": logits(l.SoftTargets),
    "LogitMatching": logits(l.LogitMatching),
    "DecoupledSoftTargets": logits(l.DecoupledSoftTargets),
    "NormalizedSoftTargets": logits(l.NormalizedSoftTargets),
    "WeightedSoftTargets": logits(l.WeightedSoftTargets),
    "LogitCorrelation": logits(l.LogitCorrelation),
    "StandardizedLogits": logits(
        lambda: l.StandardizedLogits(l.SoftTargets(2.0))
    ),
    "MultiLevelLogits": logits(l.MultiLevelLogits),
    "CurriculumTemperature": logits(l.CurriculumTemperature),
    "OneForAll": logits(l.OneForAll),
    "JensenShannon": logits(l.JensenShannon),
    "ReverseKL": logits(lambda: l.JensenShannon(beta=1.0)),
    "SkewedDivergence": logits(l.SkewedDivergence),
    "TotalVariation": logits(l.TotalVariation),
    "SortedProbabilities": logits(l.SortedProbabilities),
    "TeacherFree": logits(l.TeacherFree),
    "CorrectedTeacher": logits(l.CorrectedTeacher),
    "HardTargets": logits(l.HardTargets),
    "SparseSoftTargets": logits(lambda: l.SparseSoftTargets(k=3)),
    "SampledSoftTargets": logits(l.SampledSoftTargets),
    "Hint": between(l.Hint, "stage2", projector="auto"),
    "AttentionTransfer": between(l.AttentionTransfer, MAPS),
    "SimilarityPreserving": between(l.SimilarityPreserving, "stage3"),
    "CorrelationCongruence": between(l.CorrelationCongruence, "pooled"),
    "KernelCongruence": between(l.KernelCongruence, "pooled"),
    "RelationalDistance + RelationalAngle": lambda teacher: [
        l.RelationalDistance("pooled", "pooled"),
        l.RelationalAngle("pooled", "pooled"),
    ],
    "ProbabilisticTransfer": between(l.ProbabilisticTransfer, "pooled"),
    "VariationalInformation": between(l.VariationalInformation, MAPS),
    "NeuronSelectivity": between(l.NeuronSelectivity, MAPS),
    "PearsonCorrelation": between(
        l.PearsonCorrelation, "stage3", projector="auto"
    ),
    "ChannelWise": between(l.ChannelWise, "stage3", projector="auto"),
    "InterChannelCorrelation": between(
        l.InterChannelCorrelation, "stage3", projector="auto"
    ),
    "ContrastiveRepresentation": between(l.ContrastiveRepresentation, "pooled"),
    "FeatureOverhaul": lambda teacher: [
        l.FeatureOverhaul(
            [l.relu_margin(teacher.get_layer(name)) for name in NORMS],
            NORMS,
            NORMS,
            projector="auto",
        )
    ],
    "MaskedGeneration": between(l.MaskedGeneration, "stage3", projector="auto"),
    "SoftmaxRegression": lambda teacher: [
        l.SoftmaxRegression(teacher.get_layer("logits"), "stage3", "stage3")
    ],
    # Each pair of layers has a projector larger than the student; all nine
    # would take half an hour a run.
    "SemanticCalibration": lambda teacher: [
        l.SemanticCalibration(
            teacher_layer_name=MAPS[1:], student_layer_name=MAPS[2:]
        )
    ],
    "KnowledgeReview": between(l.KnowledgeReview, MAPS),
}


def factor_transfer(teacher, student, data, epochs, weights=None):
    """Stage one, on the teacher alone: a paraphraser of its last maps."""
    inside = keras.Model(
        teacher.inputs, teacher.get_layer("stage3").output
    ).predict(data[0], verbose=0)
    encoder, autoencoder = l.paraphraser(inside.shape)
    autoencoder.compile("adam", "mse")
    autoencoder.fit(inside, inside, batch_size=64, epochs=10, verbose=0)
    loss = l.FactorTransfer(
        encoder, teacher_layer_name="stage3", student_layer_name="stage3"
    )
    return train(teacher, student, [loss], data, epochs, weights)


def two_stages(loss):
    """A third of the epochs for the inside, the rest with soft targets."""

    def run(teacher, student, data, epochs):
        first = epochs // 3
        train(teacher, student, [loss(teacher)], data, first, hard=0.0)
        soft = [l.SoftTargets()]
        return train(teacher, student, soft, data, epochs - first)

    return run


def classifier_reuse(teacher, student, data, epochs):
    """The student computes what goes into the teacher's own classifier."""
    student = kd.reuse_classifier(teacher, student, "stage3", "stage3")
    loss = l.Hint("stage3", student.get_layer("projector").name)
    return train(teacher, student, [loss], data, epochs, [1.0], hard=0.0)


def class_attention(teacher, student, data, epochs):
    """With heads that are convolutions: a map for each class, then a mean."""
    student = with_class_maps(student)
    loss = l.ClassAttention(
        teacher_layer_name="class_maps", student_layer_name="class_maps"
    )
    return train(with_class_maps(teacher), student, [loss], data, epochs)


def with_class_maps(model):
    """The same function, with the head before the mean over places."""
    head = model.get_layer("logits")
    maps = layers.Conv2D(10, 1, name="class_maps")
    converted = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            *model.layers[:-2],
            maps,
            layers.GlobalAveragePooling2D(name="logits"),
        ]
    )
    kernel, bias = head.get_weights()
    maps.set_weights([kernel[None, None], bias])
    return converted


STAGED = {
    "FactorTransfer": factor_transfer,
    "ActivationBoundary": two_stages(
        lambda teacher: l.ActivationBoundary(NORMS, NORMS, projector="auto")
    ),
    "FlowOfSolution": two_stages(
        lambda teacher: l.FlowOfSolution(MAPS, MAPS, projector="auto")
    ),
    "ClassAttention": class_attention,
    "reuse_classifier": classifier_reuse,
}


def weighed(losses, weight):
    """A method with another weight than its paper's."""
    return lambda teacher, student, data, epochs: train(
        teacher, student, losses(teacher), data, epochs, [weight]
    )


# Those that do worse than the student alone. They run where they are named.
LIGHTER = {
    **{
        f"AttentionTransfer at {weight}": weighed(
            METHODS["AttentionTransfer"], weight
        )
        for weight in (100, 10)
    },
    **{
        f"SemanticCalibration at {weight}": weighed(
            METHODS["SemanticCalibration"], weight
        )
        for weight in (40, 4)
    },
    **{
        f"FactorTransfer at {weight}": functools.partial(
            factor_transfer, weights=[weight]
        )
        for weight in (20, 2)
    },
}


def alone(teacher, student, data, epochs):
    """Hard labels only."""
    compiled(student, epochs, len(data[0]))
    student.fit(*data, batch_size=64, epochs=epochs, verbose=0)
    return student


def train(teacher, student, losses, data, epochs, weights=None, hard=None):
    """One stage of distillation; by default with the papers' weights."""
    compiled(student, epochs, len(data[0]))
    distiller = kd.Distiller(
        teacher, student, losses, weights, hard_label_weight=hard
    )
    distiller.fit(*data, batch_size=64, epochs=epochs, verbose=0)
    return student


def runs():
    """All that can be run, by name."""

    def plain(losses):
        return lambda teacher, student, data, epochs: train(
            teacher, student, losses(teacher), data, epochs
        )

    return {
        "student alone": alone,
        **{name: plain(losses) for name, losses in METHODS.items()},
        **STAGED,
        **LIGHTER,
    }


def prepared_teacher(path, data, seed, epochs):
    """The teacher of a seed, trained once."""
    if path.exists():
        return keras.models.load_model(path, compile=False)
    keras.utils.set_random_seed(seed)
    teacher = compiled(network((32, 64, 64), "teacher"), epochs, len(data[0]))
    teacher.fit(*data, batch_size=64, epochs=epochs, verbose=0)
    write(path, teacher.save)
    return teacher


def settings(options):
    """What runs must have in common to stand in one table."""
    kept = ("epochs", "images", "teacher_images", "teacher_epochs")
    return {
        **{name: getattr(options, name) for name in (*kept, "test_images")},
        "backend": keras.backend.backend(),
        **({"held_out": True} if options.held_out else {}),
    }


def check(path, options):
    """Raise where a finished run had other settings."""
    found = json.loads(path.read_text()).get("settings")
    if found != settings(options):
        raise SystemExit(
            f"{path} is of a run with other settings. Received: "
            f"{settings(options)}, there {found}. Pass another --out, or "
            "remove the file."
        )


def write(path, save):
    """A file that is there whole, or not at all."""
    part = path.with_name(f"part-{os.getpid()}-{path.name}")
    save(part)
    os.replace(part, path)


def measure(run, teacher, data, test, seed, epochs):
    """Train a fresh student, and see what it can do at the end."""
    keras.utils.set_random_seed(100 + seed)
    student = network((16, 24, 24), "student")
    started = time.perf_counter()
    trained = run(teacher, student, data, epochs)
    seconds = time.perf_counter() - started
    said = trained.predict(test[0], batch_size=500, verbose=0).argmax(-1)
    guide = teacher.predict(test[0], batch_size=500, verbose=0).argmax(-1)
    return {
        "accuracy": float((said == test[1]).mean()),
        "agreement": float((said == guide).mean()),
        "teacher_accuracy": float((guide == test[1]).mean()),
        "parameters": trained.count_params(),
        "seconds": round(seconds, 1),
        "seed": seed,
        "about": figures.describe(),
    }


def spread(records, key):
    """Mean and standard deviation over seeds, in percent."""
    found = 100 * np.array([record[key] for record in records])
    if len(found) == 1:
        return f"{found[0]:.1f}"
    return f"{found.mean():.1f} ± {found.std(ddof=1):.1f}"


def finished(options):
    """What came of all runs whose results are in the folder."""
    paths = sorted(options.out.glob("*.json"))
    for path in paths:
        check(path, options)
    return [json.loads(path.read_text()) for path in paths]


def table(records):
    """All results, best first, as Markdown."""
    results = {}
    for record in records:
        results.setdefault(record["method"], []).append(record)
    order = sorted(
        results,
        key=lambda name: -np.mean([r["accuracy"] for r in results[name]]),
    )
    seeds = {record["seed"]: record for record in records}.values()
    teacher = spread(seeds, "teacher_accuracy")
    rows = [("*teacher*", teacher, "", str(len(seeds)))]
    for name in order:
        rows.append(
            (
                f"`{name}`" if name != "student alone" else f"*{name}*",
                spread(results[name], "accuracy"),
                spread(results[name], "agreement"),
                str(len(results[name])),
            )
        )
    return figures.markdown(
        ("method", "accuracy", "agreement with the teacher", "seeds"), rows
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    out, data = "folder of the results", "file to read instead of downloading"
    parser.add_argument("--out", type=pathlib.Path, default="compare", help=out)
    parser.add_argument("--data", metavar="NPZ", help=data)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", choices=list(runs()),
        help=f"some of: {', '.join(runs())}",
    )  # fmt: skip
    for name, default in (
        ("epochs", 60),
        ("images", 2000),
        ("teacher-images", 20000),
        ("teacher-epochs", 8),
        ("test-images", 10000),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"default: {default}"
        )
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="measure on as many training images that nobody learns from",
    )
    figures.add_arguments(parser)
    options = parser.parse_args()
    if options.table:
        figures.show(options.json or RESULTS, table)
        return
    (x, y), test = load(options.data)
    split, taught = options.teacher_images, options.teacher_epochs
    if options.held_out:
        test = x[split + options.images :], y[split + options.images :]
    test = tuple(part[: options.test_images] for part in test)
    known = x[:split], y[:split]
    data = x[split:][: options.images], y[split:][: options.images]
    options.out.mkdir(parents=True, exist_ok=True)
    # One table has runs of the same settings.
    finished(options)
    for seed in options.seeds:
        for name in options.methods or [x for x in runs() if x not in LIGHTER]:
            path = options.out / f"{name.replace(' ', '_')}-{seed}.json"
            if path.exists():
                continue
            teacher = prepared_teacher(
                options.out / f"teacher-{seed}-{split}-{taught}.keras",
                known,
                seed,
                taught,
            )
            record = measure(
                runs()[name], teacher, data, test, seed, options.epochs
            )
            record |= {"method": name, "settings": settings(options)}
            text = json.dumps(record, indent=1)
            write(path, lambda part, text=text: part.write_text(text))
            print(f"{name}, seed {seed}: {record['accuracy']:.4f}", flush=True)
            keras.utils.clear_session()
    records = finished(options)
    print(table(records))
    if options.json:
        lines = ",\n".join(map(json.dumps, records))
        write(options.json, lambda part: part.write_text(f"[\n{lines}\n]\n"))


if __name__ == "__main__":
    main()
