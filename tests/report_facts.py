"""Facts of distillations that never were, for tests of what is made of them."""

import dataclasses

import numpy as np

from keras_distill.reports import groups, measures, paired
from keras_distill.reports.facts import Export, Facts, Run
from keras_distill.reports.soft_targets import choose, soft_targets

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)


def constructed(classes=4, pairs=3, epochs=20, examples=300, seed=0):
    """A good teacher, students alone that are worse, distilled ones between."""
    random = np.random.default_rng(seed)
    labels = np.arange(examples) % classes
    truth = 4.0 * np.eye(classes)[labels]

    def logits(noise):
        return truth + noise * random.normal(size=truth.shape)

    teacher = logits(1.0)
    seen = groups.Examples(labels, teacher, 4.0, *choose(teacher))
    taught = groups.measure(teacher, seen)
    alone = [groups.measure(logits(2.8), seen) for _ in range(pairs)]
    distilled = [
        groups.measure((teacher + logits(2.4)) / 2, seen) for _ in range(pairs)
    ]
    right = [[m.decided == labels for m in s] for s in (alone, distilled)]
    x = random.integers(0, 256, (examples, 8, 8, 3)).astype("uint8")
    return Facts(
        classes=tuple(f"class {i}" for i in range(classes)),
        examples=examples,
        teacher=groups.group_of([taught], seen, 5000),
        alone=groups.group_of(alone, seen, 500),
        distilled=groups.group_of(distilled, seen, 500),
        gain=paired.gain_of(*right),
        teacher_lead=paired.normal_interval(
            (taught.decided == labels) - np.mean(right[0], 0)
        ),
        mistakes=groups.mistakes_of(taught, alone, distilled, seen),
        runs=tuple(
            run(f"seed {i}", how, epochs, random)
            for how in (True, False)
            for i in range(pairs)
        ),
        temperature=4.0,
        temperatures=TEMPERATURES,
        entropy_shares=tuple(
            measures.entropy_share(teacher, t) for t in TEMPERATURES
        ),
        soft_targets=soft_targets(
            x, seen, TEMPERATURES, alone[0], distilled[0]
        ),
        exports=(
            Export("int8", 9000, 0.9, 0.9, 0.99, 0.012, 0.02, 1, 2**21, 6000),
            Export("float32", 30000, 0.9, 0.9, 1.0, 2.5, 3.0, 1, None, None),
        ),
        seeds=tuple(range(pairs)),
        data="0" * 64,
        environment={"keras": "3.12.0", "backend": "jax 0.7.0"},
        command="python train.py --seeds 3",
        made="2026-01-01T00:00:00+00:00",
    )


def run(name, distilled, epochs, random=None):
    """A training whose loss falls fast and then stays."""
    fall = 0.5 + 2 * np.exp(-np.arange(epochs))
    if random is not None:
        fall = fall + 0.001 * random.random(epochs)
    names = ["loss", "val_loss"]
    if distilled:
        names += ["hard_label_loss", "soft_targets_loss"]
    curves = {n: tuple(fall.tolist()) for n in names}
    rise = tuple((1 - fall / 3).tolist())
    curves |= {"accuracy": rise, "val_accuracy": rise}
    weights = {"hard_label_loss": 0.1, "soft_targets_loss": 0.9}
    return Run(
        name,
        distilled,
        curves,
        finished=epochs,
        planned=epochs,
        weights=weights if distilled else {},
    )


def with_runs(facts, **changes):
    """The facts, with something else in each distilled run."""
    runs = [
        dataclasses.replace(r, **changes) if r.distilled else r
        for r in facts.runs
    ]
    return dataclasses.replace(facts, runs=tuple(runs))


def with_curves(facts, **curves):
    """The facts, with other curves in each distilled run."""
    runs = [
        dataclasses.replace(r, curves={**r.curves, **curves})
        if r.distilled
        else r
        for r in facts.runs
    ]
    return dataclasses.replace(facts, runs=tuple(runs))


def with_means(facts, group, **values):
    """The facts, with the same figures for each model of a group."""
    found = getattr(facts, group)
    scores = tuple(dataclasses.replace(s, **values) for s in found.scores)
    return dataclasses.replace(
        facts, **{group: dataclasses.replace(found, scores=scores)}
    )
