"""Section 3 of Hinton, Vinyals and Dean (2015), on the real MNIST.

    KERAS_BACKEND=jax python examples/hinton_mnist.py
    KERAS_BACKEND=jax python examples/hinton_mnist.py --table

A teacher of two hidden layers of 1,200 units, with dropout, a limit on the
norms of weights, and images shifted by up to two pixels; a student of two times
800 units without any of these, alone and distilled at temperature 20; the same
from a transfer set without any 3, and from one of 7s and 8s only, with the
biases of those classes corrected; temperature against width; and what of the
recipe makes the difference.

All 60,000 images train and all 10,000 test ones measure, after the last epoch.
What of the recipe counts, and how far biases are raised, is measured with the
last 10,000 training images held out, from teacher and student alike. The
teacher's logits are stored, so that distilling costs what training alone does.

Each run is one entry of the results' file, written when it ends. Started again,
the script makes those that are missing, in the order in which they matter.
`--experiments` makes some of them, `--table` none: it prints what is there.
"""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
from mnist_runs import (
    CLASSES,
    NOTHING,
    Images,
    Mnist,
    Results,
    Shuffled,
    compile_arguments,
    errors,
    jitter,
    load,
    logits,
    markdown,
    network,
    outcomes,
    parse_arguments,
    spread,
    stem,
    teacher,
)

import keras_distill as kd

Run = dict[str, Any]

# How often a student sees each image shifted otherwise, before the first shift
# comes again.
VIEWS = 10
WITHOUT_3 = [x for x in range(CLASSES) if x != 3]
ONLY_7_AND_8 = [7, 8]
# By how much the biases of some classes are raised or lowered.
CORRECTIONS = np.arange(0, 201) / 10
WIDTHS = (30, 300)
TEMPERATURES = (1.0, 2.5, 4.0, 8.0, 20.0)


class Plan:
    """All runs of the experiments, with their settings."""

    def __init__(
        self, backend: str, quick: bool = False, seeds: int = 5
    ) -> None:
        self.backend = backend
        self.teacher_epochs = 1 if quick else 100
        self.epochs = 1 if quick else 40
        # Of what is compared with itself only, many times.
        self.short_epochs = 1 if quick else 15
        self.teacher_width = 16 if quick else 1200
        self.width = 8 if quick else 800
        self.widths = (4,) if quick else WIDTHS
        self.temperatures = TEMPERATURES[:2] if quick else TEMPERATURES
        self.seeds = (0,) if quick else tuple(range(seeds))
        self.width_seeds = self.seeds[:3]

    def teacher(self, **changes: Any) -> Run:
        """A teacher, regularised unless `changes` say otherwise."""
        run = {
            "kind": "teacher",
            "backend": self.backend,
            "seed": 0,
            "held_out": False,
            "width": self.teacher_width,
            "epochs": self.teacher_epochs,
            "batch": 250,
            "optimizer": "adam",
            "rate": 1e-3,
            # With 0.5, as Hinton's had, learning takes longer.
            "dropout": 0.25,
            "max_norm": 3.0,
            "jitter": True,
        }
        return changed(run, changes)

    def student(self, **changes: Any) -> Run:
        """A student, distilled at temperature 20 from the teacher."""
        run = {
            "kind": "student",
            "backend": self.backend,
            "seed": 0,
            "held_out": False,
            "width": self.width,
            "epochs": self.epochs,
            "batch": 250,
            "optimizer": "adam",
            "rate": 1e-3,
            "temperature": 20.0,
            "hard_label_weight": 0.1,
            "view": "plain",
            "classes": list(range(CLASSES)),
            "teacher": self.teacher(),
        }
        return changed(run, changes)

    def alone(self, **changes: Any) -> Run:
        """The same student, on hard labels."""
        nothing = {"temperature": None, "hard_label_weight": 1.0}
        return self.student(**{**nothing, "teacher": None, **changes})

    def main(self) -> Iterator[Run]:
        """Teacher, student alone, student distilled."""
        yield self.teacher()
        for seed in self.seeds:
            yield self.alone(seed=seed)
            yield self.student(seed=seed)

    def omitted(self) -> Iterator[Run]:
        """Transfer sets of some classes."""
        for seed in self.seeds:
            for classes in (ONLY_7_AND_8, WITHOUT_3):
                yield self.student(seed=seed, classes=classes)

    def corrections(self) -> Iterator[Run]:
        """What chooses the corrections of biases."""
        for classes in (ONLY_7_AND_8, WITHOUT_3):
            yield self.chooser(classes)

    def chooser(self, classes: list[int]) -> Run:
        """The run on whose held-out images the correction is chosen."""
        return self.student(
            held_out=True,
            teacher=self.teacher(held_out=True, epochs=self.short_epochs),
            classes=classes,
        )

    def temperatures_by_width(self) -> Iterator[Run]:
        """Narrow students at several temperatures."""
        short = {"epochs": self.short_epochs}
        for seed in self.width_seeds:
            for width in self.widths:
                yield self.alone(width=width, seed=seed, **short)
                for temperature in self.temperatures:
                    yield self.student(
                        width=width, seed=seed, temperature=temperature, **short
                    )

    def recipe(self) -> dict[str, Run]:
        """What is changed, by its name in the table; all held out."""
        short = {"held_out": True, "epochs": self.short_epochs}
        guide = self.teacher(**short)
        longer = self.teacher(held_out=True)

        def taught(**changes: Any) -> Run:
            return self.student(**{**short, "teacher": guide, **changes})

        sgd = {"optimizer": "sgd", "rate": 0.1}
        return {
            "teacher": guide,
            "distilled": taught(),
            "student alone": self.alone(**short),
            "distilled, no hard labels": taught(hard_label_weight=0.0),
            "distilled, SGD": taught(**sgd),
            "distilled, both on the same shifted view": taught(view="shifted"),
            "distilled, longer": taught(epochs=self.epochs),
            "distilled, longer, from the longer teacher": taught(
                teacher=longer, epochs=self.epochs
            ),
            "teacher, no shifts": self.teacher(**short, jitter=False),
            "teacher, no dropout": self.teacher(**short, dropout=0.0),
            "teacher, dropout of 0.5": self.teacher(**short, dropout=0.5),
            "teacher, no limit on norms": self.teacher(**short, max_norm=0.0),
            "teacher, SGD": self.teacher(**{**short, **sgd}),
            "teacher, longer": longer,
        }

    def experiments(self) -> dict[str, list[Run]]:
        """All runs, each behind those that it needs."""
        return {
            "main": list(self.main()),
            "omitted": list(self.omitted()),
            "corrections": list(self.corrections()),
            "recipe": list(self.recipe().values()),
            "temperatures": list(self.temperatures_by_width()),
        }


def changed(run: Run, changes: Run) -> Run:
    """The run with other settings, all of which it must have."""
    if unknown := changes.keys() - run.keys():
        raise ValueError(f"No settings of this run: {sorted(unknown)}.")
    return {**run, **changes}


def student(
    run: Run, data: Mnist, results: Results, folder: pathlib.Path
) -> dict[str, Any]:
    """Train a student, and see what it can do at the end."""
    train, test = data.split(run["held_out"])
    train = train.take(np.isin(train.y, run["classes"]))
    model = network(run["width"], 1000 + run["seed"], "student")
    settings = compile_arguments(run, len(train.y))
    if run["teacher"] is None:
        model.compile(**settings)
        batches = Shuffled(train, run["batch"], run["seed"])
        model.fit(batches, epochs=run["epochs"], shuffle=False, verbose=0)
    else:
        cache = spoken(run, train, data, results, folder)
        distiller = kd.Distiller(
            cache.teacher,
            model,
            kd.losses.SoftTargets(run["temperature"]),
            loss_weights=1.0,
            hard_label_weight=run["hard_label_weight"],
        )
        distiller.compile(**settings)
        batches = cache.batches(run["batch"], shuffle=True, seed=run["seed"])
        distiller.fit(batches, epochs=run["epochs"], shuffle=False, verbose=0)
    return outcome(logits(model, test.x), test.y, run["classes"])


def spoken(
    run: Run,
    train: Images,
    data: Mnist,
    results: Results,
    folder: pathlib.Path,
) -> kd.TeacherCache:
    """What the run's teacher says about its transfer set, asked once."""
    guide = teacher(run["teacher"], data, results, folder)
    shifts = kd.Views(jitter, VIEWS) if run["view"] == "shifted" else None
    classes = "".join(str(x) for x in run["classes"])
    return kd.TeacherCache.write(
        folder / f"{stem(run['teacher'])}-{run['view']}-{classes}",
        guide,
        tuple(train),
        storage="float32",
        views=shifts,
        verbose=0,
    )


def outcome(said: np.ndarray, y: np.ndarray, classes: list[int]) -> Run:
    """Errors; where classes were left out, for each correction, too."""
    found: Run = {"errors": errors(said, y)}
    unseen = ~np.isin(np.arange(CLASSES), classes)
    if unseen.any():
        raised = [said + by * unseen for by in CORRECTIONS.astype("float32")]
        theirs = unseen[y]
        found["corrected"] = [errors(x, y) for x in raised]
        found["corrected_unseen"] = [
            errors(x[theirs], y[theirs]) for x in raised
        ]
    return found


class Tables:
    """Markdown of what is there: mean ± standard deviation over seeds."""

    def __init__(self, records: list[Run], plan: Plan) -> None:
        self.records = records
        self.plan = plan

    def __str__(self) -> str:
        parts = (self.main(), self.omitted(), self.recipe(), self.widths())
        return "\n\n".join(filter(None, parts))

    def outcomes(self, runs: Iterable[Run]) -> list[Run]:
        """What came of those of the runs that have been made."""
        return outcomes(self.records, runs)

    def cell(self, runs: Iterable[Run]) -> str:
        """Errors of the runs."""
        return spread([outcome["errors"] for outcome in self.outcomes(runs)])

    def main(self) -> str:
        """Teacher, student alone and distilled, beside what was published."""
        plan = self.plan
        rows = (
            ("teacher", "67", [plan.teacher()]),
            ("student alone", "146", [plan.alone(seed=x) for x in plan.seeds]),
            ("distilled", "74", [plan.student(seed=x) for x in plan.seeds]),
        )
        return markdown(
            ["", "published", "errors", "seeds"],
            [
                [name, published, self.cell(runs), self.seeds(runs)]
                for name, published, runs in rows
            ],
            first=2,
        )

    def seeds(self, runs: list[Run]) -> str:
        """How many of the runs have been made."""
        return str(len(self.outcomes(runs)))

    def omitted(self) -> str:
        """With biases as they were learned, and corrected in two ways."""
        return markdown(
            [
                "transfer set",
                "biases of the unseen classes",
                "published",
                "errors",
                "of the unseen classes",
                "seeds",
            ],
            [
                [name, *cells]
                for name, classes, published in (
                    ("without 3s", WITHOUT_3, ("206", "109")),
                    ("only 7s and 8s", ONLY_7_AND_8, ("4730", "1320")),
                )
                for cells in self.corrected(classes, *published)
            ],
            first=3,
        )

    def corrected(
        self, classes: list[int], learned: str, corrected: str
    ) -> list[list[str]]:
        """A row for each way to choose the correction."""
        found = self.outcomes(
            self.plan.student(seed=x, classes=classes) for x in self.plan.seeds
        )
        chooser = self.outcomes([self.plan.chooser(classes)])
        rows = []
        for way, published, places in (
            ("as learned", learned, [0 for _ in found]),
            (
                "raised, chosen on held-out images",
                "",
                [best(x["corrected"]) for x in chooser for _ in found],
            ),
            (
                "raised, chosen on the test images",
                corrected,
                [best(x["corrected"]) for x in found],
            ),
        ):
            pairs = [*zip(found, places, strict=False)]
            rows.append(
                [
                    way + raised(places),
                    published,
                    spread([x["corrected"][i] for x, i in pairs]),
                    spread([x["corrected_unseen"][i] for x, i in pairs]),
                    str(len(pairs)),
                ]
            )
        return rows

    def recipe(self) -> str:
        """What each change does, on the held-out images."""
        return markdown(
            ["", "epochs", "errors, held out"],
            [
                [name, str(run["epochs"]), self.cell([run])]
                for name, run in self.plan.recipe().items()
            ],
            first=2,
        )

    def widths(self) -> str:
        """Temperature against width."""
        plan = self.plan
        rows: list[tuple[str, Callable[..., Run], Run]] = [
            ("alone", plan.alone, {}),
            *(
                (f"T = {x:g}", plan.student, {"temperature": x})
                for x in plan.temperatures
            ),
        ]
        return markdown(
            ["units of each layer", *(str(x) for x in plan.widths)],
            [
                [
                    name,
                    *(
                        self.cell(
                            make(
                                width=width,
                                seed=seed,
                                epochs=plan.short_epochs,
                                **changes,
                            )
                            for seed in plan.width_seeds
                        )
                        for width in plan.widths
                    ),
                ]
                for name, make, changes in rows
            ],
        )


def best(curve: list[int]) -> int:
    """The place of the least errors, in the middle if there are several."""
    places = np.flatnonzero(np.array(curve) == min(curve))
    return int(places[len(places) // 2])


def raised(choices: list[int]) -> str:
    """By how much the biases were raised, on average."""
    if not any(choices):
        return ""
    return f", by {CORRECTIONS[choices].mean():.1f}"


def main() -> None:
    options = parse_arguments(__doc__, "hinton_mnist", Plan("").experiments())
    results = Results(options.json)
    plan = Plan(keras.backend.backend(), options.quick, options.seeds)
    if not options.table:
        try:
            make_runs(plan, results, options)
        except KeyboardInterrupt:
            sys.exit("\nInterrupted. The same command makes the missing runs.")
    print(str(Tables(results.all(), plan)) or NOTHING)


def make_runs(plan: Plan, results: Results, options: Any) -> None:
    data = load(options.data, options.data_dir)
    experiments = plan.experiments()
    for name in options.experiments or experiments:
        for run in experiments[name]:
            if run["kind"] == "teacher":
                teacher(run, data, results, options.output)
                continue
            measure = functools.partial(
                student, run, data, results, options.output
            )
            results.make(run, measure)


if __name__ == "__main__":
    main()
