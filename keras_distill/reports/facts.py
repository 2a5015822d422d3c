"""What a report knows: numbers and texts, nothing that could still change."""

from __future__ import annotations

import dataclasses
import statistics

from keras_distill.reports.measures import Bin
from keras_distill.reports.paired import Gain, Interval


@dataclasses.dataclass(frozen=True)
class Scores:
    """One model on the test examples.

    Attributes:
        accuracy: Share of examples that it gets right.
        nll: Negative log-likelihood of the labels, in nats.
        brier: Brier score, from 0 to 2.
        ece: Expected calibration error, in 15 intervals.
        agreement: Share of examples where it decides as the teacher does.
        divergence: Kullback-Leibler divergence from the teacher, in nats.
        tempered_divergence: The same at the temperature of the training; None
            where that isn't known.
        rank_correlation: Spearman's correlation with the teacher over the
            wrong classes' logits, averaged over examples; None for two
            classes.
        same_favourite: Share of examples where both hold the same wrong class
            for the likeliest; None for two classes.
    """

    accuracy: float
    nll: float
    brier: float
    ece: float
    agreement: float
    divergence: float
    tempered_divergence: float | None
    rank_correlation: float | None
    same_favourite: float | None


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Who is right, as shares of the examples, averaged over the students.

    Attributes:
        both_right: Teacher and student.
        teacher_only: The teacher alone.
        student_only: The student alone.
        same_mistake: Neither, and both take it for the same class.
        other_mistake: Neither, each in its own way.
    """

    both_right: float
    teacher_only: float
    student_only: float
    same_mistake: float
    other_mistake: float


@dataclasses.dataclass(frozen=True)
class Group:
    """The teacher, or all students that were trained in the same way.

    Attributes:
        parameters: Number of weights; None where no model was given.
        scores: Each model's, in the order of the seeds; None for a run that
            failed.
        reliability: Confidence against accuracy, all models' examples
            together.
        outcomes: Who is right, it or the teacher.
        confusion: Counts over all models, rows are the labels' classes; None
            for more than 12 classes.
        wrong_classes: What is given to each wrong class; None for two classes
            or more than 12.
    """

    parameters: int | None
    scores: tuple[Scores | None, ...]
    reliability: tuple[Bin, ...]
    outcomes: Outcomes
    confusion: tuple[tuple[int, ...], ...] | None
    wrong_classes: tuple[tuple[float, ...], ...] | None

    def values(self, name: str) -> list[float]:
        """One figure of all models that have it."""
        found = [getattr(s, name) for s in self.scores if s is not None]
        return [value for value in found if value is not None]

    def mean(self, name: str) -> float | None:
        """A figure's mean over the models; None if no model has it."""
        values = self.values(name)
        return statistics.fmean(values) if values else None

    def spread(self, name: str) -> float | None:
        """A figure's standard deviation; None for fewer than two models."""
        values = self.values(name)
        return statistics.stdev(values) if len(values) > 1 else None


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One class that is taken for another.

    Attributes:
        label: The number of the right class.
        decided: The number of the class that it is taken for.
        teacher: How often the teacher does it.
        alone: How often a student alone does it, on average.
        distilled: How often a distilled student does it. Any of the three is
            None where there is no such model.
    """

    label: int
    decided: int
    teacher: float | None
    alone: float | None
    distilled: float | None


@dataclasses.dataclass(frozen=True)
class Run:
    """How one student was trained.

    Attributes:
        name: The seed, or the run's place if no seeds were told.
        distilled: Whether it had a teacher.
        curves: The values of each epoch, by name as Keras logs them; None for
            a value that isn't finite.
        finished: Number of epochs that were finished; None if nothing is
            known of the training.
        began: Number of epochs before it, of a training that went on.
        planned: Number that were asked for; None if that isn't known.
        stopped: Whether a callback ended it, such as `EarlyStopping`.
        failure: Why there is no student; None if there is one.
        weights: The weight of each term of the loss, by the term's name.
    """

    name: str
    distilled: bool
    curves: dict[str, tuple[float | None, ...]]
    finished: int | None = None
    began: int = 0
    planned: int | None = None
    stopped: bool = False
    failure: str | None = None
    weights: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """What to call it."""
        return f"{'distilled' if self.distilled else 'alone'}, {self.name}"

    def epochs_of(self, name: str) -> range | None:
        """The epochs of a curve's values, counted from 1.

        None for a curve of some epochs, as with `validation_freq`: Keras
        doesn't remember which.
        """
        epochs = range(self.began + 1, (self.finished or 0) + 1)
        return epochs if len(epochs) == len(self.curves[name]) else None

    @property
    def lost_in(self) -> str | None:
        """Where a loss first wasn't finite; None if all are."""
        lost = {
            name: values.index(None)
            for name, values in self.curves.items()
            if name.endswith("loss") and None in values
        }
        known = [
            epochs[place]
            for name, place in lost.items()
            if (epochs := self.epochs_of(name)) is not None
        ]
        if known:
            return f"epoch {min(known)}"
        return "validation" if lost else None

    @property
    def is_cut_off(self) -> bool:
        """Whether it ended before its time, and no callback wanted that."""
        if self.finished is None or self.planned is None or self.stopped:
            return False
        return self.finished < self.planned


@dataclasses.dataclass(frozen=True)
class Picture:
    """An example's image.

    Attributes:
        shape: Height, width and channels: 1 or 3.
        pixels: Bytes in base64, row by row.
    """

    shape: tuple[int, int, int]
    pixels: str


@dataclasses.dataclass(frozen=True)
class SoftTarget:
    """What is said of one example.

    Attributes:
        index: Its place in the test examples.
        label: The number of its class.
        picture: The image; None where the input is none.
        classes: Numbers of the classes that the teacher holds for likeliest.
        teacher: Their probabilities for each of the report's temperatures.
        alone: Their probabilities by the first student alone, at the
            temperature of `Facts.shown_temperature`; None if there is none.
        distilled: The same of the first distilled student.
    """

    index: int
    label: int
    picture: Picture | None
    classes: tuple[int, ...]
    teacher: tuple[tuple[float, ...], ...]
    alone: tuple[float, ...] | None
    distilled: tuple[float, ...] | None


@dataclasses.dataclass(frozen=True)
class Export:
    """A file on the device's interpreter.

    Attributes:
        scheme: Its quantisation.
        size: Its size in bytes.
        accuracy: Its accuracy; None without labels.
        keras_accuracy: Keras' on the same examples.
        agreement: Share of decisions that are Keras'.
        latency_ms: Median time of one inference, on the machine of the report.
        p90_ms: 90th percentile of it.
        threads: Threads that ran it.
        peak_memory: Bytes that it took at most; None if that isn't known.
        arena: Bytes of the arena on TensorFlow Lite Micro; None if that wasn't
            measured.
    """

    scheme: str
    size: int
    accuracy: float | None
    keras_accuracy: float | None
    agreement: float | None
    latency_ms: float
    p90_ms: float
    threads: int
    peak_memory: int | None
    arena: int | None


@dataclasses.dataclass(frozen=True)
class Facts:
    """All that a report is made of.

    Attributes:
        classes: The classes' names.
        examples: Number of labelled test examples.
        teacher: The teacher.
        alone: The students trained alone; None without any, or if all of them
            failed.
        distilled: The distilled students; None if all of them failed.
        gain: Distilled against alone, in pairs; None without a pair.
        teacher_lead: The teacher's accuracy less that of the students alone,
            over the examples; None without any.
        mistakes: The most frequent ones.
        runs: How each student was trained.
        temperature: Of the soft targets at the end of training; None where no
            loss has one or no distiller was given.
        temperatures: Those at which soft targets are shown.
        entropy_shares: The teacher's entropy at each of `temperatures`, as a
            share of the largest that it can be.
        soft_targets: Some examples.
        exports: Files.
        seeds: As they were told.
        data: SHA-256 of the test examples and labels.
        environment: Versions and machine.
        command: What made the report.
        made: When, in UTC.
    """

    classes: tuple[str, ...]
    examples: int
    teacher: Group
    alone: Group | None
    distilled: Group | None
    gain: Gain | None
    teacher_lead: Interval | None
    mistakes: tuple[Mistake, ...]
    runs: tuple[Run, ...]
    temperature: float | None
    temperatures: tuple[float, ...]
    entropy_shares: tuple[float, ...]
    soft_targets: tuple[SoftTarget, ...]
    exports: tuple[Export, ...]
    seeds: tuple[int, ...] | None
    data: str
    environment: dict[str, str]
    command: str
    made: str

    @property
    def shown_temperature(self) -> float:
        """At which the students are shown: the training's, or else 1."""
        return self.temperature or 1.0

    @property
    def gap_closed(self) -> float | None:
        """Share of the way from the student alone to the teacher.

        Of the pairs whose runs both came through. None without any, or where
        the teacher isn't better, and there is no way to go.
        """
        teacher = self.teacher.mean("accuracy")
        if self.alone is None or self.distilled is None or teacher is None:
            return None
        pairs = [
            (alone.accuracy, distilled.accuracy)
            for alone, distilled in zip(
                self.alone.scores, self.distilled.scores, strict=True
            )
            if alone is not None and distilled is not None
        ]
        if not pairs:
            return None
        start, end = map(statistics.fmean, zip(*pairs, strict=True))
        lead = teacher - start
        return (end - start) / lead if lead > 0 else None
