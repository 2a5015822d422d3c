"""What does distilling with `keras_distill` cost, beyond what it has to?

Compares a `Distiller` with a training step that is written by hand for each
backend: teacher once, in inference mode, outside of the gradient; student
once; the same loss. Both are Keras models, trained by the same `fit` on the
same batches, in turns (A B, B A, ...), so that what else the machine does
falls on both. Processor time is judged, since others can't add to it.

    python examples/benchmark_step.py --backend jax

A ratio is the median over the rounds, with the middle half of them. The rows
marked OK or OVER are the distiller's with small models; the others are for
orientation: what following each term of the loss costs, the distiller as it is
when it isn't compiled (its own loss and metric), Keras' built-in distiller,
and what a call of `fit` costs besides its steps. With tiny models, the extra
microseconds count: what each step costs however large the models are.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 1.05
BATCH = 32
CLASSES = 10
TEMPERATURE = 4.0
SOFT, HARD, HINT = 0.9, 0.1, 100.0
BUILT_IN = "keras.distillation"
FRAMEWORKS = ("tensorflow", "jax", "torch")


@dataclass
class Row:
    """A line of the table; times in ms, `extra` in microseconds."""

    case: str
    what: str
    cpu: float
    wall: float
    ratio: float
    low: float
    high: float
    wall_ratio: float
    extra: float
    judged: bool

    @property
    def mark(self) -> str:
        """How the row compares with the limit."""
        if not self.judged:
            return ""
        return "OK" if self.ratio <= LIMIT else "OVER"


@dataclass
class Check:
    """A number that isn't a ratio of times, and its limit."""

    what: str
    value: float
    limit: float
    unit: str

    @property
    def mark(self) -> str:
        """How the number compares with the limit."""
        return "OK" if self.value <= self.limit else "OVER"


# Models


def resnet(widths: tuple[int, ...], blocks: int, seed: int) -> Any:
    """A small residual network; its layer "hint" is before the last stage."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input((16, 16, 3))
    for stage, width in enumerate(widths):
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            y = layers.Conv2D(width, 3, strides, "same", use_bias=False)(x)
            y = layers.ReLU()(layers.BatchNormalization()(y))
            y = layers.Conv2D(width, 3, padding="same", use_bias=False)(y)
            y = layers.BatchNormalization()(y)
            if x.shape != y.shape:
                x = layers.Conv2D(width, 1, strides)(x)
            last = block == blocks - 1 and stage == len(widths) - 2
            x = layers.ReLU(name="hint" if last else None)(x + y)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def mlp(width: int, seed: int) -> Any:
    """A network so small that only the fixed cost of a step remains."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    inputs = keras.Input((16,))
    x = layers.Dense(width, activation="relu", name="hint")(inputs)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def small() -> tuple[Any, Any]:
    """Teacher and student of a realistic proportion, 10 to 1."""
    return resnet((24, 48, 96), 2, seed=1), resnet((8, 16, 32), 2, seed=2)


def tiny() -> tuple[Any, Any]:
    """Teacher and student that cost next to nothing."""
    return mlp(32, seed=1), mlp(8, seed=2)


def data(model: Any, steps: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    examples = steps * BATCH
    x = rng.normal(size=(examples, *model.input_shape[1:]))
    return x.astype("float32"), rng.integers(0, CLASSES, examples)


# The step written by hand


def with_hint(model: Any) -> Any:
    """The model with a second output."""
    import keras

    return keras.Model(
        model.input, [model.output, model.get_layer("hint").output]
    )


def by_hand(models: tuple[Any, Any], hint: bool, follow: bool) -> Any:
    """A Keras model whose train_step is as good as we can write it.

    Args:
        models: Teacher and student.
        hint: Whether to compare the layers "hint" as well.
        follow: Whether metrics follow each term of the loss.
    """
    import keras

    teacher, student = models
    teacher.trainable = False
    if hint:
        teacher, student = with_hint(teacher), with_hint(student)
    steps = {"tensorflow": tensorflow_step, "jax": jax_step}

    class ByHand(keras.Model):
        """Students first, so that weights come in a distiller's order."""

        train_step = steps.get(keras.backend.backend(), torch_step)

        def __init__(self) -> None:
            super().__init__()
            self.student = student
            self.projector = projector(models) if hint else None
            self.teacher = teacher
            self.mean_loss = keras.metrics.Mean("loss")
            self.accuracy = keras.metrics.SparseCategoricalAccuracy("accuracy")
            names = ["hard", "soft", "hint"][: 2 + hint] if follow else []
            self.terms = [keras.metrics.Mean(name) for name in names]
            self.built = True

        def call(self, x: Any, training: bool | None = None) -> Any:
            return self.student(x, training=training)

    model = ByHand()
    model.compile(keras.optimizers.Adam())
    return model


def projector(models: tuple[Any, Any]) -> Any:
    """What mends the width of the student's hint."""
    import keras

    teacher, student = (model.get_layer("hint").output for model in models)
    width = teacher.shape[-1]
    maps = len(teacher.shape) == 4
    layer = keras.layers.Conv2D(width, 1) if maps else keras.layers.Dense(width)
    layer.build(student.shape)
    return layer


def blend(model: Any, y: Any, taught: Any, learned: Any) -> tuple[Any, Any]:
    """The loss, and its terms."""
    import keras
    from keras import ops

    hint = model.projector is not None
    logits = learned[0] if hint else learned
    log_p = ops.log_softmax((taught[0] if hint else taught) / TEMPERATURE)
    log_q = ops.log_softmax(logits / TEMPERATURE)
    divergence = ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)
    soft = ops.mean(divergence) * TEMPERATURE**2
    hard = ops.mean(
        keras.losses.sparse_categorical_crossentropy(y, logits, True)
    )
    loss, terms = HARD * hard + SOFT * soft, [hard, soft]
    if hint:
        gap = ops.mean(ops.square(taught[1] - model.projector(learned[1])))
        loss, terms = loss + HINT * gap, [*terms, gap]
    return loss, terms


def measure(model: Any, y: Any, learned: Any, loss: Any, terms: Any) -> Any:
    """Update the metrics."""
    size = y.shape[0]
    model.mean_loss.update_state(loss, size)
    model.accuracy.update_state(
        y, learned[0] if model.projector is not None else learned
    )
    for metric, value in zip(model.terms, terms, strict=False):
        metric.update_state(value, size)
    return {metric.name: metric.result() for metric in model.metrics}


def tensorflow_step(model: Any, batch: Any) -> Any:
    import tensorflow as tf

    x, y = batch
    weights = model.trainable_weights
    taught = model.teacher(x, training=False)
    with tf.GradientTape() as tape:
        learned = model.student(x, training=True)
        loss, terms = blend(model, y, taught, learned)
    model.optimizer.apply(tape.gradient(loss, weights), weights)
    return measure(model, y, learned, loss, terms)


def torch_step(model: Any, batch: Any) -> Any:
    import torch

    x, y = batch
    weights = model.trainable_weights
    with torch.no_grad():
        taught = model.teacher(x, training=False)
    learned = model.student(x, training=True)
    loss, terms = blend(model, y, taught, learned)
    model.student.zero_grad()
    if model.projector is not None:
        model.projector.zero_grad()
    loss.backward()
    with torch.no_grad():
        model.optimizer.apply([w.value.grad for w in weights], weights)
        return measure(
            model, y, learned, loss.detach(), [t.detach() for t in terms]
        )


def jax_step(model: Any, state: Any, batch: Any) -> Any:
    import jax
    import keras

    trained, constant, optimizer, metrics = state
    x, y = batch
    held = list(zip(model.non_trainable_variables, constant, strict=True))
    with keras.StatelessScope(state_mapping=held):
        taught = model.teacher(x, training=False)

    def loss_of(trained: Any) -> Any:
        now = [*held, *zip(model.trainable_variables, trained, strict=True)]
        with keras.StatelessScope(state_mapping=now) as scope:
            learned = model.student(x, training=True)
            loss, terms = blend(model, y, taught, learned)
        moved = [scope.get_current_value(v) for v, _ in held]
        return loss, (learned, terms, moved)

    (loss, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained)
    learned, terms, constant = rest
    trained, optimizer = model.optimizer.stateless_apply(
        optimizer, gradients, trained
    )
    counts = list(zip(model.metrics_variables, metrics, strict=True))
    with keras.StatelessScope(state_mapping=counts) as scope:
        logs = measure(model, y, learned, loss, terms)
    metrics = [scope.get_current_value(v) for v, _ in counts]
    return logs, (trained, constant, optimizer, metrics)


# The libraries


def distiller(
    models: tuple[Any, Any], hint: bool, compiled: bool = True
) -> Any:
    import keras

    import keras_distill as kd

    losses: list[Any] = [kd.losses.SoftTargets(TEMPERATURE)]
    weights = [SOFT]
    if hint:
        losses.append(kd.losses.Hint("hint", "hint", projector="auto"))
        weights.append(HINT)
    made = kd.Distiller(*models, losses, weights, hard_label_weight=HARD)
    if compiled:
        made.compile(keras.optimizers.Adam(), **loss_and_metric())
    return made


def loss_and_metric() -> dict[str, Any]:
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metric = keras.metrics.SparseCategoricalAccuracy("accuracy")
    return {"loss": loss, "metrics": [metric]}


def built_in(models: tuple[Any, Any]) -> Any:
    """Keras' own distiller, where this Keras has one."""
    import keras

    if not hasattr(keras, "distillation"):
        return None
    loss = keras.distillation.LogitsDistillation(TEMPERATURE)
    made = keras.distillation.Distiller(
        *models, [loss], student_loss_weight=HARD
    )
    made.compile(keras.optimizers.Adam(), **loss_and_metric())
    return made


def student_alone(models: tuple[Any, Any]) -> Any:
    import keras

    models[1].compile(keras.optimizers.Adam(), **loss_and_metric())
    return models[1]


# Measuring


def clock() -> Any:
    return np.array([time.process_time(), time.perf_counter()])


def fit_cost(model: Any, x: Any, y: Any) -> Any:
    """Seconds for the epoch, and for the rest of the call of `fit`.

    Returns:
        An array `[epoch, rest]`, each of processor and wall time.
    """
    import keras

    marks = []

    def mark(epoch: int, logs: Any = None) -> None:
        # Wait for what JAX still computes.
        keras.ops.convert_to_numpy(model.trainable_variables[0])
        marks.append(clock())

    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=mark, on_epoch_end=mark
    )
    start = clock()
    model.fit(
        x, y, BATCH, verbose=0, shuffle=False, callbacks=[watch], epochs=1
    )
    whole = clock() - start
    epoch = marks[1] - marks[0]
    return np.array([epoch, whole - epoch])


def evaluate_cost(model: Any, x: Any, y: Any) -> Any:
    """Seconds for a call of `evaluate`, of processor and wall time."""
    start = clock()
    model.evaluate(x, y, BATCH, verbose=0)
    return (clock() - start)[None]


def interleave(jobs: dict[str, Callable[[], Any]], rounds: int) -> Any:
    """Run all jobs in every round, in alternating order."""
    for job in [*jobs.values()] * 2:  # compile, and warm up
        job()
    costs: dict[str, list[Any]] = {name: [] for name in jobs}
    for i in range(rounds):
        for name in list(jobs)[:: 1 if i % 2 else -1]:
            costs[name].append(jobs[name]())
    return {name: np.array(taken) for name, taken in costs.items()}


def rows(case: str, costs: Any, steps: int) -> list[Row]:
    """Compare each with the first; `costs` are (rounds, 2) by name."""
    first = next(iter(costs.values()))
    made = []
    for name, taken in costs.items():
        ratios = np.percentile(taken / first, [25, 50, 75], axis=0)
        cpu, wall = np.median(taken, axis=0) / steps * 1e3
        extra = np.median((taken - first)[:, 0]) / steps * 1e6
        row = Row(
            *(case, name, cpu, wall, ratios[1, 0], ratios[0, 0], ratios[2, 0]),
            *(ratios[1, 1], extra, name == "distiller" and "tiny" not in case),
        )
        made.append(row)
        print(line(row), flush=True)
    return made


def same_start(models: dict[str, Any], x: Any, y: Any) -> None:
    """Give all the same weights, and check that they then learn the same."""
    import keras

    first = models["by hand"].trainable_variables
    start = [np.array(keras.ops.convert_to_numpy(w)) for w in first]
    few = slice(4 * BATCH)
    expected = None
    for name, model in models.items():
        for weight, initial in zip(
            model.trainable_variables, start, strict=True
        ):
            weight.assign(initial)
        history = model.fit(x[few], y[few], BATCH, verbose=0, shuffle=False)
        loss = history.history["loss"][0]
        expected = expected or loss
        if name != BUILT_IN and not np.isclose(loss, expected, rtol=1e-3):
            raise SystemExit(f"{name} has loss {loss}, by hand {expected}")


def compare_fit(
    case: str, make: Callable[[], Any], hint: bool, steps: int, rounds: int
) -> list[Row]:
    """Training, by everything that can do it."""
    models = {
        "by hand": by_hand(make(), hint, follow=False),
        "by hand, terms followed": by_hand(make(), hint, follow=True),
        "distiller": distiller(make(), hint),
        "distiller, uncompiled": distiller(make(), hint, compiled=False),
        BUILT_IN: None if hint else built_in(make()),
    }
    models = {name: model for name, model in models.items() if model}
    x, y = data(models["distiller"].student, steps)
    same_start(models, x, y)
    jobs = {name: partial(fit_cost, m, x, y) for name, m in models.items()}
    costs = interleave(jobs, rounds)
    epochs = {name: taken[:, 0] for name, taken in costs.items()}
    calls = {
        f"rest of the call, {name}": taken[:, 1]
        for name, taken in costs.items()
        if name in ("by hand", "distiller")
    }
    return [*rows(case, epochs, steps), *rows(case, calls, 1)]


def compare_evaluate(
    case: str, make: Callable[[], Any], steps: int, rounds: int
) -> list[Row]:
    """Evaluation, against that of the student alone."""
    models = {
        "student": student_alone(make()),
        "distiller": distiller(make(), hint=False),
        BUILT_IN: built_in(make()),
    }
    models = {name: model for name, model in models.items() if model}
    x, y = data(models["student"], steps)
    jobs = {name: partial(evaluate_cost, m, x, y) for name, m in models.items()}
    costs = interleave(jobs, rounds)
    return rows(case, {n: c[:, 0] for n, c in costs.items()}, steps)


# What JAX compiles and holds


def jax_checks() -> list[Check]:
    """Compilations, constants and memory of a ragged run of `fit`."""
    import jax
    import keras

    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    model = distiller(small(), hint=True)
    x, y = data(model.student, steps=4)
    x, y = x[: -BATCH // 2], y[: -BATCH // 2]
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **about: (
            compiled.append(about.get("fun_name", ""))
            if event == "/jax/core/compile/backend_compile_duration"
            else None
        )
    )
    traced = []
    step = model.train_step

    def counted(*args: Any) -> Any:
        traced.append(1)
        return step(*args)

    held = []
    model.train_step = counted
    model.fit(
        *(x, y, BATCH, 3),
        verbose=0,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs=None: held.append(
                    sum(array.nbytes for array in jax.live_arrays()) - before
                )
            )
        ],
    )
    models = [
        model.variables,
        model.teacher.variables,
        model.optimizer.variables,
    ]
    kept = {id(v): v.value.nbytes for group in models for v in group}
    needed = sum(kept.values()) + x[:BATCH].nbytes + y[:BATCH].nbytes
    state = [
        [v.value for v in group]
        for group in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    ]
    jaxpr = jax.make_jaxpr(step)(state, (x[:BATCH], y[:BATCH]))
    constants = sum(np.asarray(c).nbytes for c in jaxpr.consts)
    mine = [name for name in compiled if "counted" in name]
    return [
        Check("traces of the step in 3 ragged epochs", len(traced), 2, ""),
        Check("compilations of the step", len(mine), 2, ""),
        Check("constants in the step", constants, 4096, " bytes"),
        Check("memory held over what is needed", max(held) / needed, LIMIT, ""),
    ]


# Importing


IMPORTING = """
import sys, time
start = time.process_time()
import {first}
middle = time.process_time()
before = set(sys.modules)
import keras_distill
end = time.process_time()
loaded = {{"tensorflow", "jax", "torch"}} & (set(sys.modules) - before)
print(middle - start, end - middle, *loaded)
"""


def import_checks(backend: str, rounds: int) -> list[Check]:
    """What `import keras_distill` costs and loads, in fresh processes."""
    firsts = ("keras", "keras_distill")
    seconds: dict[str, list[float]] = {"keras": [], "keras_distill": []}
    more, loaded = [], set()
    for i in range(rounds):
        for first in firsts[:: 1 if i % 2 else -1]:
            reply = subprocess.run(
                [sys.executable, "-c", IMPORTING.format(first=first)],
                env={**os.environ, "KERAS_BACKEND": backend},
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()
            seconds[first].append(float(reply[0]))
            if first == "keras":
                more.append(float(reply[1]))
                loaded.update(reply[2:])
    keras, ours = (1e3 * statistics.median(seconds[f]) for f in firsts)
    extra = 1e3 * statistics.median(more)
    print(
        f"import keras {keras:.0f} ms, import keras_distill {ours:.0f} ms",
        flush=True,
    )
    return [
        Check("import keras_distill after keras", extra, 50, " ms"),
        Check("frameworks loaded that keras doesn't", len(loaded), 0, ""),
    ]


# The report


HEADER = (
    f"{'':34} {'cpu ms':>8} {'wall ms':>8} {'cpu ratio':>20} "
    f"{'wall':>6} {'extra us':>9}"
)


def line(row: Row) -> str:
    spread = f"{row.ratio:.3f} ({row.low:.3f}-{row.high:.3f})"
    return (
        f"  {row.what:32} {row.cpu:8.2f} {row.wall:8.2f} {spread:>20} "
        f"{row.wall_ratio:6.3f} {row.extra:9.0f} {row.mark}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backend", choices=FRAMEWORKS, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--only",
        choices=("fit", "evaluate", "import", "jax"),
        help="measure nothing else",
    )
    parser.add_argument(
        "--models",
        choices=("small", "tiny"),
        nargs="+",
        default=["small", "tiny"],
        help="small ones are realistic, tiny ones show the fixed cost",
    )
    parser.add_argument(
        "--cores",
        type=int,
        default=1,
        help="processor cores to use; one gives the steadiest figures",
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument(
        "--strict", action="store_true", help="exit 1 if anything is OVER"
    )
    return parser.parse_args()


def use_cores(count: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])


def measure_steps(args: argparse.Namespace) -> list[Row]:
    made = []
    only, rounds = args.only, args.rounds
    models = {"small": (small, 8, 32), "tiny": (tiny, 200, 200)}
    for size in args.models:
        make, fit_steps, evaluate_steps = models[size]
        if only in (None, "fit"):
            for hint, losses in ((False, "logits"), (True, "logits and hint")):
                title(case := f"fit, {size} models, {losses}")
                made += compare_fit(case, make, hint, fit_steps, rounds)
        if only in (None, "evaluate"):
            title(case := f"evaluate, {size} models")
            made += compare_evaluate(case, make, evaluate_steps, rounds)
    return made


def title(case: str) -> None:
    gc.collect()
    print(f"\n{case}\n{HEADER}", flush=True)


def main() -> None:
    args = arguments()
    os.environ["KERAS_BACKEND"] = args.backend
    use_cores(args.cores)
    checks = []
    if args.only in (None, "import"):
        checks += import_checks(args.backend, max(5, args.rounds // 2))
    made = measure_steps(args)
    if args.backend == "jax" and args.only in (None, "jax"):
        checks += jax_checks()
    print()
    for check in checks:
        print(
            f"  {check.what:40} {check.value:10.4g}{check.unit} "
            f"(limit {check.limit:g}) {check.mark}"
        )
    if args.json:
        args.json.write_text(json.dumps(report(args, made, checks), indent=1))
    if args.strict and "OVER" in [item.mark for item in [*made, *checks]]:
        raise SystemExit(1)


def report(args: Any, made: list[Row], checks: list[Check]) -> dict[str, Any]:
    import keras

    framework = sys.modules.get(args.backend)
    return {
        "backend": args.backend,
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            args.backend: getattr(framework, "__version__", None),
        },
        "rounds": args.rounds,
        "cores": args.cores,
        "limit": LIMIT,
        "rows": [{**asdict(row), "mark": row.mark} for row in made],
        "checks": [{**asdict(c), "mark": c.mark} for c in checks],
    }


if __name__ == "__main__":
    main()
