"""Four claims about soft targets, measured on MNIST.

    KERAS_BACKEND=jax python examples/claims.py
    KERAS_BACKEND=jax python examples/claims.py --table

Hinton, Vinyals and Dean (2015) say of soft targets of high entropy that they
carry much more information in each training case than hard labels, and much
less variance in the gradient between cases; so that a small model can be
trained on much less data, and with a much higher learning rate. Here:

information: errors against the number of training images, hard labels or soft
    targets, with the same number of steps.
data: how many times as many images hard labels need for the same errors. It
    follows from the runs of the first.
variance: of the gradient between single images, with regard to all weights of
    the student, over the squared norm of its mean (1 / signal-to-noise ratio),
    which is the same whatever the loss is multiplied by.
rates: errors against the learning rate of plain SGD, with the factor of the
    squared temperature and without it, and with steps of a given length, which
    is what makes hard and soft gradients comparable: without, a "higher rate"
    may just be a smaller gradient.

The teacher is that of hinton_mnist.py after 40 epochs, and is trained first if
it isn't there; the student has two layers of 300 units and no regularisation.
All 10,000 test images measure, after the last step; nothing is chosen by them.
Each run is one entry of the results' file; started again, the script makes
those that are missing. `--table` prints what is there; both draw claims.png.
"""

from __future__ import annotations

import functools
import math
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
from hinton_mnist import Plan as Hinton
from mnist_runs import (
    NOTHING,
    Images,
    Mnist,
    Results,
    errors,
    load,
    logits,
    markdown,
    network,
    outcomes,
    parse_arguments,
    spread,
    stem,
    teacher,
    write,
)

import keras_distill as kd

Run = dict[str, Any]

HARD = "hard"
SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0)
RATES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LENGTHS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
# The name of each way to take a step, and whether its loss is of soft targets.
WAYS = {
    "hard": False,
    "soft, with T²": True,
    "soft, without T²": True,
    "hard, steps of one length": False,
    "soft, steps of one length": True,
}
OF_ONE_LENGTH = ["hard, steps of one length", "soft, steps of one length"]
STATES = ("first weights", "after hard labels", "after soft targets")
# So small that every gradient is cut to it: then a step's length is the rate.
CUT = 1e-6


class Plan:
    """All runs of the claims, with their settings."""

    def __init__(
        self, backend: str, quick: bool = False, seeds: int = 5
    ) -> None:
        self.backend = backend
        # Less patient than where the teacher itself is measured.
        self.teacher = Hinton(backend, quick).teacher(epochs=1 if quick else 40)
        self.width = 8 if quick else 300
        self.steps = 2 if quick else 2500
        # An epoch.
        self.state_steps = 2 if quick else 600
        self.rate_steps = 2 if quick else 1000
        self.temperatures = TEMPERATURES[:1] if quick else TEMPERATURES
        self.examples = 5 if quick else 500
        self.seeds = (0,) if quick else tuple(range(seeds))
        self.shares = SHARES[-1:] if quick else SHARES
        self.rates = RATES[:1] if quick else RATES
        self.lengths = LENGTHS[:1] if quick else LENGTHS
        self.states = STATES[:1] if quick else STATES
        self.ways = [*WAYS][2:4] if quick else [*WAYS]

    def run(self, **settings: Any) -> Run:
        """A run, with what all of them have in common."""
        return {
            "backend": self.backend,
            "width": self.width,
            "batch": 100,
            "temperature": 4.0,
            "teacher": self.teacher,
            **settings,
        }

    def information(self, share: float, soft: bool) -> list[Run]:
        """Some share of the training images, with each seed."""
        return [
            self.run(
                kind="information",
                seed=seed,
                share=share,
                soft=soft,
                steps=self.steps,
                rate=1e-3,
            )
            for seed in self.seeds
        ]

    def variance(self, state: str) -> list[Run]:
        """All gradients at the weights that a student has then."""
        return [
            self.run(
                kind="variance",
                seed=seed,
                state=state,
                steps=self.state_steps,
                rate=1e-3,
                examples=self.examples,
                temperatures=list(self.temperatures),
            )
            for seed in self.seeds
        ]

    def rate(self, way: str, rate: float) -> list[Run]:
        """SGD at a constant rate, with each seed."""
        return [
            self.run(
                kind="rate",
                seed=seed,
                way=way,
                rate=rate,
                steps=self.rate_steps,
            )
            for seed in self.seeds
        ]

    def experiments(self) -> dict[str, list[Run]]:
        """All runs, a seed of each before the next seed."""
        found = {
            "information": [
                self.information(share, soft)
                for share in self.shares
                for soft in (False, True)
            ],
            "variance": [self.variance(state) for state in self.states],
            "rates": [
                self.rate(way, rate)
                for way in self.ways
                for rate in self.rates_of(way)
            ],
        }
        return {
            name: [run for turn in zip(*runs, strict=True) for run in turn]
            for name, runs in found.items()
        }

    def rates_of(self, way: str) -> tuple[float, ...]:
        """Rates to try; of steps of one length, their lengths."""
        return self.lengths if way in OF_ONE_LENGTH else self.rates


class Steps(keras.utils.PyDataset):
    """A number of batches of some of the images, shuffled again and again.

    They say which images they hold, for `TeacherCache.attach`.
    """

    def __init__(
        self, images: Images, batch: int, steps: int, seed: int, share: float
    ) -> None:
        super().__init__()
        self.images = images
        self.batch = batch
        self.steps = steps
        random = np.random.default_rng(seed)
        size = len(images.y)
        chosen = random.permutation(size)[: round(share * size)]
        rounds = math.ceil(steps * batch / len(chosen))
        self.order = np.concatenate(
            [random.permutation(chosen) for _ in range(rounds)]
        )

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[kd.TransferBatch, np.ndarray]:
        ids = self.order[index * self.batch :][: self.batch]
        x, y = self.images.take(ids)
        return kd.TransferBatch(x, sample_ids=ids), y


class Lab:
    """The images, and what the teacher says about them, asked once."""

    def __init__(self, data: Mnist, cache: kd.TeacherCache) -> None:
        self.data = data
        self.cache = cache

    def measure(self, run: Run) -> Run:
        """What comes of a run."""
        kinds: dict[str, Callable[[Run], Run]] = {
            "information": self.information,
            "variance": self.variance,
            "rate": self.rate,
        }
        return kinds[run["kind"]](run)

    def information(self, run: Run) -> Run:
        """Errors of a student that was given some share of the images."""
        distiller = self.distiller(run, float(run["soft"]))
        self.train(distiller, run, adam(run), run["share"])
        return self.errors(distiller)

    def rate(self, run: Run) -> Run:
        """Errors after some steps of plain SGD."""
        soft = float(WAYS[run["way"]])
        if run["way"] == "soft, without T²":
            soft = run["temperature"] ** -2
        distiller = self.distiller(run, soft)
        optimizer = keras.optimizers.SGD(run["rate"])
        if run["way"] in OF_ONE_LENGTH:
            optimizer = keras.optimizers.SGD(
                run["rate"] / CUT, global_clipnorm=CUT
            )
        self.train(distiller, run, optimizer)
        return self.errors(distiller)

    def variance(self, run: Run) -> Run:
        """Variance over the squared norm of the mean, for each loss."""
        soft = run["state"] == "after soft targets"
        distiller = self.distiller(run, float(soft))
        if run["state"] != "first weights":
            self.train(distiller, run, adam(run))
        # With it, the gradient is what the weights lose in a step.
        distiller.compile(keras.optimizers.SGD(1.0))
        distiller.hard_label_weight, distiller.loss_weights = 1.0, [0.0]
        found = {HARD: self.spread_of_gradient(distiller, run["examples"])}
        distiller.hard_label_weight, distiller.loss_weights = 0.0, [1.0]
        (loss,) = distiller.distillation_losses.values()
        for temperature in run["temperatures"]:
            loss.temperature.assign(temperature)
            found[f"{temperature:g}"] = self.spread_of_gradient(
                distiller, run["examples"]
            )
        return found

    def distiller(self, run: Run, soft: float) -> kd.Distiller:
        """A fresh student that learns from the teacher, or from labels."""
        return kd.Distiller(
            self.cache.teacher,
            network(run["width"], 1000 + run["seed"], "student"),
            kd.losses.SoftTargets(run["temperature"]),
            loss_weights=soft,
            hard_label_weight=float(not soft),
        )

    def train(
        self,
        distiller: kd.Distiller,
        run: Run,
        optimizer: keras.optimizers.Optimizer,
        share: float = 1.0,
    ) -> None:
        """The run's steps."""
        distiller.compile(optimizer)
        batches = Steps(
            self.data.train, run["batch"], run["steps"], run["seed"], share
        )
        distiller.fit(self.cache.attach(batches), shuffle=False, verbose=0)

    def errors(self, distiller: kd.Distiller) -> Run:
        """Of the test images; and whether the student still has numbers."""
        said = logits(distiller.student, self.data.test.x)
        return {
            "errors": errors(said, self.data.test.y),
            "diverged": not bool(np.isfinite(said).all()),
        }

    def spread_of_gradient(
        self, distiller: kd.Distiller, examples: int
    ) -> float:
        """E ||g - mean||² / ||mean||², with g the gradient of an image.

        The mean is that of twenty times as many images, of which the first are
        those whose own gradients are taken.
        """
        before = [np.array(x) for x in distiller.student.get_weights()]

        def gradient(ids: np.ndarray) -> np.ndarray:
            batch = self.cache.read(ids)._replace(inputs=self.data.train.x[ids])
            distiller.train_on_batch(batch, self.data.train.y[ids])
            after = distiller.student.get_weights()
            distiller.student.set_weights(before)
            return np.concatenate(
                [
                    (x - y).ravel().astype("float64")
                    for x, y in zip(before, after, strict=True)
                ]
            )

        mean = gradient(np.arange(min(20 * examples, self.cache.size)))
        norms = [
            np.sum((gradient(np.array([i])) - mean) ** 2)
            for i in range(examples)
        ]
        return float(np.mean(norms) / np.sum(mean**2))


def adam(run: Run) -> keras.optimizers.Optimizer:
    """Its rate falls to zero along a cosine."""
    return keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(run["rate"], run["steps"])
    )


class Tables:
    """Markdown, and a plot, of what is there."""

    def __init__(self, records: list[Run], plan: Plan) -> None:
        self.records = records
        self.plan = plan

    def __str__(self) -> str:
        at_rates = [x for x in WAYS if x not in OF_ONE_LENGTH]
        parts = (
            self.information(),
            self.data(),
            self.variance(),
            self.rates("rate", self.plan.rates, at_rates),
            self.rates("length of a step", self.plan.lengths, OF_ONE_LENGTH),
        )
        return "\n\n".join(filter(None, parts))

    def outcomes(self, runs: Iterable[Run]) -> list[Run]:
        """What came of those of the runs that have been made."""
        return outcomes(self.records, runs)

    def errors(self, runs: Iterable[Run]) -> list[int]:
        """Of those of the runs that have been made."""
        return [x["errors"] for x in self.outcomes(runs)]

    def information(self) -> str:
        """Errors against the number of training images."""
        return markdown(
            ["training images", "hard labels", "soft targets"],
            [
                [
                    f"{share:.0%}",
                    *(
                        spread(self.errors(self.plan.information(share, soft)))
                        for soft in (False, True)
                    ),
                ]
                for share in self.plan.shares
            ],
        )

    def factors(self) -> dict[float, float]:
        """For shares, how many times as much hard labels need."""
        made = [
            (share, *(np.mean(x) for x in pair))
            for share in self.plan.shares
            if all(
                pair := [
                    self.errors(self.plan.information(share, soft))
                    for soft in (False, True)
                ]
            )
        ]
        if not made:
            return {}
        shares, hard, soft = (np.array(x) for x in zip(*made, strict=True))
        # Where hard labels don't get there with all images, nobody knows.
        return {
            float(share): float(needed_share(shares, hard, errors) / share)
            for share, errors in zip(shares, soft, strict=True)
            if hard.min() <= errors <= hard.max()
        }

    def data(self) -> str:
        """What soft targets save, between the shares that were measured."""
        return markdown(
            ["soft targets on", "do as well as hard labels on", "factor"],
            [
                [f"{share:.0%}", f"{share * factor:.1%}", f"{factor:.1f}"]
                for share, factor in self.factors().items()
            ],
        )

    def targets(self) -> list[str]:
        """Hard labels, and each temperature."""
        return [HARD, *(f"{x:g}" for x in self.plan.temperatures)]

    def variances(self, target: str) -> list[list[float]]:
        """For each state, those of the seeds."""
        return [
            [x[target] for x in self.outcomes(self.plan.variance(state))]
            for state in self.plan.states
        ]

    def variance(self) -> str:
        """Variance over the squared norm of the mean gradient."""
        return markdown(
            ["targets", *self.plan.states],
            [
                [
                    target if target == HARD else f"soft, T = {target}",
                    *(spread(x, digits=1) for x in self.variances(target)),
                ]
                for target in self.targets()
            ],
        )

    def rates(self, first: str, rates: Iterable[float], ways: list[str]) -> str:
        """Errors against the rate, or the length of steps."""
        return markdown(
            [first, *ways],
            [
                [f"{rate:g}", *(self.rate(way, rate) for way in ways)]
                for rate in rates
            ],
        )

    def rate(self, way: str, rate: float) -> str:
        """Errors, or how often there were no numbers left."""
        found = self.outcomes(self.plan.rate(way, rate))
        lost = sum(x["diverged"] for x in found)
        if lost:
            return f"diverged, {lost} of {len(found)}"
        return spread([x["errors"] for x in found])

    def draw(self, path: pathlib.Path) -> None:
        """A picture of each claim."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 8), layout="constrained")
        panels = figure.subplots(2, 2).ravel()
        self.draw_information(panels[0])
        self.draw_data(panels[1])
        self.draw_variance(panels[2])
        self.draw_rates(panels[3])
        write(path, lambda part: figure.savefig(part, format="png", dpi=100))

    def draw_information(self, axes: Any) -> None:
        """Errors against training images."""
        for soft, name in ((False, "hard labels"), (True, "soft targets")):
            series = [
                (share, self.errors(self.plan.information(share, soft)))
                for share in self.plan.shares
            ]
            draw_series(axes, series, name)
        label(axes, "share of the training images", "test errors")

    def draw_data(self, axes: Any) -> None:
        """How many times as many images hard labels need."""
        factors = self.factors()
        if factors:
            axes.plot([*factors], [*factors.values()], "o-")
        label(axes, "share that soft targets get", "hard labels need, times")
        axes.set(yscale="linear")

    def draw_variance(self, axes: Any) -> None:
        """Variance of gradients against temperature; hard labels dashed."""
        temperatures = self.plan.temperatures
        series = [self.variances(f"{x:g}") for x in temperatures]
        lines = zip(self.plan.states, self.variances(HARD), strict=True)
        for i, (state, hard) in enumerate(lines):
            pairs = [
                (temperature, found[i])
                for temperature, found in zip(temperatures, series, strict=True)
            ]
            draw_series(axes, pairs, f"soft, {state}")
            if hard:
                axes.axhline(np.mean(hard), color=f"C{i}", linestyle="--")
        label(
            axes, "temperature (dashed: hard labels)", "variance / mean squared"
        )

    def draw_rates(self, axes: Any) -> None:
        """Errors against the rate, or the length of steps (dashed)."""
        for way in WAYS:
            made = [
                (rate, self.errors(self.plan.rate(way, rate)))
                for rate in self.plan.rates_of(way)
            ]
            style = "o--" if way in OF_ONE_LENGTH else "o-"
            draw_series(axes, made, way, style)
        label(axes, "rate, or length of a step (dashed)", "test errors")


def needed_share(
    shares: np.ndarray, errors: np.ndarray, wanted: float
) -> float:
    """The share at which so many errors are made, between those measured."""
    order = np.argsort(errors)
    return float(
        np.exp(np.interp(wanted, errors[order], np.log(shares[order])))
    )


def draw_series(axes: Any, series: Any, name: str, style: str = "o-") -> None:
    """Means of what there is, with standard deviations."""
    made = [(x, values) for x, values in series if values]
    if not made:
        return
    axes.errorbar(
        [x for x, _ in made],
        [np.mean(values) for _, values in made],
        [np.std(values, ddof=len(values) > 1) for _, values in made],
        fmt=style,
        capsize=3,
        label=name,
    )


def label(axes: Any, horizontal: str, vertical: str) -> None:
    """Names of the axes, which are logarithmic, and of what they show."""
    axes.set(xlabel=horizontal, ylabel=vertical)
    axes.grid(alpha=0.3)
    # An empty one can't be logarithmic.
    if axes.has_data():
        axes.set(xscale="log", yscale="log")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def main() -> None:
    options = parse_arguments(__doc__, "claims", Plan("").experiments())
    results = Results(options.json)
    plan = Plan(keras.backend.backend(), options.quick, options.seeds)
    if not options.table:
        try:
            make_runs(plan, results, options)
        except KeyboardInterrupt:
            sys.exit("\nInterrupted. The same command makes the missing runs.")
    tables = Tables(results.all(), plan)
    print(str(tables) or NOTHING)
    tables.draw(options.output / "claims.png")


def make_runs(plan: Plan, results: Results, options: Any) -> None:
    data = load(options.data, options.data_dir)
    guide = teacher(plan.teacher, data, results, options.output)
    cache = kd.TeacherCache.write(
        options.output / f"{stem(plan.teacher)}-claims",
        guide,
        tuple(data.train),
        storage="float32",
        verbose=0,
    )
    lab = Lab(data, cache)
    experiments = plan.experiments()
    for name in options.experiments or experiments:
        for run in experiments[name]:
            results.make(run, functools.partial(lab.measure, run))


if __name__ == "__main__":
    main()
