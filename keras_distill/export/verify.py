"""How faithful a LiteRT file is to its student, and what it costs."""

from __future__ import annotations

import collections
import dataclasses
import os
from typing import Any

import keras
import numpy as np

from keras_distill.export import processes, runner
from keras_distill.export.artifact import LiteRTArtifact
from keras_distill.export.budget import Budget, Costs
from keras_distill.export.examples import (
    as_examples,
    as_inputs_and_labels,
    require_finite,
)
from keras_distill.export.flatbuffer import operations
from keras_distill.export.measure import Latency, OperationTime, measure
from keras_distill.export.micro_runner import MicroCheck, check_on_micro
from keras_distill.export.processes import WorkerError
from keras_distill.export.quantized_file import snr_db

# Random inputs say something of the errors, and nothing of the accuracy.
_MICRO_EXAMPLES = 16
# As many operations of a profile are printed.
_SLOWEST = 5


@dataclasses.dataclass(frozen=True)
class OutputCheck:
    """One output of a file against the same output of Keras.

    Attributes:
        accuracy: The file's accuracy on the labels; None without labels.
        keras_accuracy: Keras' accuracy on them.
        agreement: Fraction of decisions that are the same: of the largest of
            several values, or of one value's side of the middle.
        max_error: Largest absolute difference.
        mean_error: Mean absolute difference.
        snr_db: Signal-to-noise ratio, in dB.
    """

    accuracy: float | None
    keras_accuracy: float | None
    agreement: float
    max_error: float
    mean_error: float
    snr_db: float


@dataclasses.dataclass(frozen=True)
class LiteRTCheck:
    """What a file does and costs on the real interpreters.

    `print(check)` shows it as a table.

    Attributes:
        scheme: The file's quantisation.
        size: The file's size in bytes.
        examples: Number of examples that were compared.
        outputs: Each output against Keras, by name.
        latency: Time of one inference with LiteRT, on this machine.
        peak_memory: Bytes that loading and running the file took at most on
            this machine; None where that can't be measured.
        fully_accelerated: Whether XNNPACK runs every operation; None if LiteRT
            couldn't say.
        operations: How often the file has each operation.
        profile: Time of each operation; empty if it wasn't asked for.
        micro: The same file on TensorFlow Lite Micro; None if that wasn't asked
            for.
    """

    scheme: str
    size: int
    examples: int
    outputs: dict[str, OutputCheck]
    latency: Latency
    peak_memory: int | None
    fully_accelerated: bool | None
    operations: dict[str, int]
    profile: tuple[OperationTime, ...] = dataclasses.field(repr=False)
    micro: MicroCheck | None = None

    @property
    def accuracy(self) -> float | None:
        """Mean accuracy over the outputs that have labels."""
        return _mean([o.accuracy for o in self.outputs.values()])

    @property
    def keras_accuracy(self) -> float | None:
        """Keras' mean accuracy over the outputs that have labels."""
        return _mean([o.keras_accuracy for o in self.outputs.values()])

    @property
    def accuracy_drop(self) -> float | None:
        """What the file's accuracy lost against Keras."""
        if self.accuracy is None or self.keras_accuracy is None:
            return None
        return self.keras_accuracy - self.accuracy

    @property
    def agreement(self) -> float:
        """Lowest agreement of an output."""
        return min(output.agreement for output in self.outputs.values())

    @property
    def snr_db(self) -> float:
        """Lowest signal-to-noise ratio of an output, in dB."""
        return min(output.snr_db for output in self.outputs.values())

    @property
    def max_error(self) -> float:
        """Largest absolute difference of an output."""
        return max(output.max_error for output in self.outputs.values())

    @property
    def costs(self) -> Costs:
        """What a `Budget` limits."""
        return Costs(
            flash=self.size,
            arena=None if self.micro is None else self.micro.arena,
            latency_ms=self.latency.median_ms,
            accuracy_drop=self.accuracy_drop,
            agreement=self.agreement,
            snr_db=self.snr_db,
        )

    def __str__(self) -> str:
        rows = [
            ("scheme", self.scheme),
            ("size", f"{self.size / 1024:.1f} KB"),
            ("examples", f"{self.examples:,}"),
        ]
        if self.accuracy is not None:
            rows.append(
                (
                    "accuracy",
                    f"{self.accuracy:.2%} (Keras {self.keras_accuracy:.2%})",
                )
            )
        rows += [
            ("agreement with Keras", f"{self.agreement:.2%}"),
            ("largest error", f"{self.max_error:.2e}"),
            ("signal to noise", f"{self.snr_db:.1f} dB"),
            (
                "latency",
                f"{self.latency.median_ms:.3f} ms (90 %: "
                f"{self.latency.p90_ms:.3f} ms), "
                f"{self.latency.threads} thread(s)",
            ),
        ]
        if self.peak_memory is not None:
            rows.append(("peak memory", f"{self.peak_memory / 2**20:.1f} MB"))
        if self.fully_accelerated is not None:
            text = "every operation" if self.fully_accelerated else "not all"
            rows.append(("XNNPACK runs", text))
        if self.micro is not None:
            rows.append(("arena on tflite-micro", f"{self.micro.arena:,} B"))
        ops = ", ".join(f"{n} {name}" for name, n in self.operations.items())
        rows.append(("operations", ops))
        slowest = sorted(self.profile, key=lambda time: -time.median_ms)
        for time in slowest[:_SLOWEST]:
            rows.append((f"{time.share:.0%} of the time", str(time)))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def verify_litert(
    artifact: LiteRTArtifact | str | os.PathLike[str],
    student: keras.Model,
    data: Any,
    *,
    budget: Budget | None = None,
    micro: bool = False,
    profile: bool = False,
    threads: int = 1,
    runs: int = 50,
) -> LiteRTCheck:
    """Run a file on the real interpreters, and compare it with its student.

    Each interpreter runs in a process of its own, where its end is no harm.

    Args:
        artifact: What `export_litert` returned, or the path of such a file.
        student: The student that it was made of.
        data: Examples, best those that nothing was chosen by: `(x, y)`, inputs
            alone, or a data set of such batches. Labels are class numbers or
            one-hot rows, in the structure of the student's outputs.
        budget: What the file must not exceed.
        micro: Whether to run it on TensorFlow Lite Micro too, which says what
            arena it needs. A budget with an `arena` does.
        profile: Whether to measure each operation.
        threads: Threads of the interpreter whose latency is measured.
        runs: Number of inferences that are timed.

    Returns:
        The check.

    Raises:
        RuntimeError: If the file falls short of the budget, or doesn't run.
        ValueError: If the data isn't the student's, or a budget asks for what
            the data can't tell.

    Example:
        >>> import keras, numpy as np, pathlib, tempfile
        >>> import keras_distill as kd
        >>> layers = [keras.Input((8,)), keras.layers.Dense(3)]
        >>> student = keras.Sequential(layers)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "student.tflite"
        >>> artifact = kd.export_litert(student, path)
        >>> x, y = np.eye(8, dtype="float32"), np.arange(8) % 3
        >>> check = kd.verify_litert(artifact, student, (x, y))
        >>> check.agreement, check.accuracy_drop
        (1.0, 0.0)
    """
    artifact = LiteRTArtifact.of(artifact)
    reference = Reference.of(artifact, student, data)
    _require_measurable(budget, reference)
    check = check_file(
        artifact,
        reference,
        micro=micro or (budget is not None and budget.arena is not None),
        profile=profile,
        threads=threads,
        runs=runs,
    )
    excesses = {} if budget is None else budget.excesses(check.costs)
    if excesses:
        raise RuntimeError(
            f"'{artifact.path}' falls short of what was asked. Received: "
            f"{describe(excesses, budget, check.costs)}.\n{check}"
        )
    return check


def describe(
    excesses: dict[str, float], budget: Budget | None, costs: Costs
) -> str:
    """The limits that don't hold, as text."""
    return ", ".join(
        f"{name}={getattr(costs, name)} (asked for: {getattr(budget, name)})"
        for name in excesses
    )


@dataclasses.dataclass(frozen=True)
class Reference:
    """What Keras returns for the examples, and the right answers.

    Attributes:
        examples: The file's inputs, by name.
        expected: The student's outputs, by the file's names for them.
        labels: Labels by output name; empty without any.
    """

    examples: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]

    @classmethod
    def of(
        cls, artifact: LiteRTArtifact, student: keras.Model, data: Any
    ) -> Reference:
        """Run the student on the data."""
        x, y = as_inputs_and_labels(data)
        examples = as_examples(x, artifact.input_names, artifact.float_inputs())
        require_finite(examples)
        names = keras.tree.flatten(artifact.output_names)
        outputs = keras.tree.flatten(student.predict(x, verbose=0))
        if len(outputs) != len(names):
            raise ValueError(
                "The file isn't of this student. Received: a file with outputs "
                f"{names}, and a student with {len(outputs)}."
            )
        if isinstance(y, dict) and not isinstance(artifact.output_names, dict):
            # As Keras' own `fit` takes them.
            _require_names(y, student.output_names)
            y = [y[name] for name in student.output_names]
        labels = keras.tree.flatten(y)
        for label in labels if y is not None else []:
            _require_as_many(label, outputs[0])
        if y is not None and len(labels) != len(names):
            raise ValueError(
                "Each output has labels of its own, in the structure of the "
                f"student's outputs. Received: {len(labels)} arrays of labels "
                f"for outputs {names}."
            )
        return cls(
            examples,
            dict(zip(names, map(np.asarray, outputs), strict=True)),
            {} if y is None else dict(zip(names, labels, strict=True)),
        )


def _require_names(labels: dict[str, Any], names: list[str]) -> None:
    if set(labels) != set(names):
        raise ValueError(
            "Labels in a dict are named as the student's outputs. Received: "
            f"{[*labels]} for outputs {names}."
        )


def _require_as_many(labels: np.ndarray, outputs: np.ndarray) -> None:
    if len(labels) != len(outputs):
        raise ValueError(
            "Each example has a label. Received: "
            f"{len(labels)} labels for {len(outputs)} examples."
        )


def _require_measurable(budget: Budget | None, reference: Reference) -> None:
    asked = budget is not None and budget.accuracy_drop is not None
    if asked and not _class_numbers(reference):
        raise ValueError(
            "A drop of accuracy needs labels: class numbers, or one-hot rows. "
            f"Received: accuracy_drop={budget.accuracy_drop}, without such "  # type: ignore[union-attr]
            "labels. Pass `(x, y)`, or ask for `agreement` instead."
        )


def check_file(
    artifact: LiteRTArtifact,
    reference: Reference,
    *,
    micro: bool = False,
    profile: bool = False,
    threads: int = 1,
    runs: int = 50,
) -> LiteRTCheck:
    """Run a file, and compare it with what Keras returned."""
    model = artifact.model()
    try:
        seen = processes.call(
            runner.run, model, reference.examples, artifact.batch_size
        )
        first = {
            name: runner.chunk_of(array, 0, artifact.batch_size or 1)
            for name, array in reference.examples.items()
        }
        costs = processes.call(measure, model, first, threads, runs, profile)
    except WorkerError as error:
        raise RuntimeError(
            "The LiteRT interpreter can't run the file. Received: "
            f"path='{artifact.path}', {error}"
        ) from error
    few = {n: x[:_MICRO_EXAMPLES] for n, x in reference.examples.items()}
    arrays = keras.tree.map_structure(few.__getitem__, artifact.input_names)
    numbers = _class_numbers(reference)
    return LiteRTCheck(
        scheme=artifact.quantization.scheme,
        size=artifact.size,
        examples=len(next(iter(reference.expected.values()))),
        outputs={
            name: _check_output(expected, seen[name], numbers.get(name))
            for name, expected in reference.expected.items()
        },
        latency=costs.latency,
        peak_memory=costs.peak_memory,
        fully_accelerated=costs.fully_accelerated,
        operations=dict(collections.Counter(o.name for o in operations(model))),
        profile=costs.profile,
        micro=check_on_micro(artifact, arrays) if micro else None,
    )


def _check_output(
    expected: np.ndarray, seen: np.ndarray, labels: np.ndarray | None
) -> OutputCheck:
    expected, seen = expected.astype("float64"), seen.astype("float64")
    # Both sides of one value, on the scale that Keras has it on.
    middle = 0.5 if expected.min() >= 0 and expected.max() <= 1 else 0.0
    theirs, ours = _decisions(expected, middle), _decisions(seen, middle)
    difference = np.abs(expected - seen)
    return OutputCheck(
        accuracy=_accuracy(ours, labels),
        keras_accuracy=_accuracy(theirs, labels),
        agreement=float((theirs == ours).mean()),
        max_error=float(difference.max()),
        mean_error=float(difference.mean()),
        snr_db=snr_db({"": expected}, {"": seen}),
    )


def _decisions(values: np.ndarray, middle: float) -> np.ndarray:
    if values.ndim < 2:
        values = values[..., None]
    if values.shape[-1] > 1:
        largest: np.ndarray = values.argmax(-1)
        return largest
    above: np.ndarray = values[..., 0] > middle
    return above.astype("int64")


def _accuracy(decisions: np.ndarray, labels: np.ndarray | None) -> float | None:
    if labels is None:
        return None
    # As `HardLabels` has it, -1 marks an example without a label.
    labelled = labels != -1
    if not labelled.any():
        return None
    return float((decisions == labels)[labelled].mean())


def _class_numbers(reference: Reference) -> dict[str, np.ndarray]:
    """The labels as numbers of classes, of the outputs where they are such."""
    found = {}
    for name, labels in reference.labels.items():
        expected = reference.expected[name]
        if _is_one_hot(labels, expected):
            found[name] = labels.argmax(-1)
        elif _are_classes(labels, expected):
            found[name] = labels.reshape(expected.shape[:-1]).astype("int64")
    return found


def _is_one_hot(labels: np.ndarray, expected: np.ndarray) -> bool:
    return bool(
        labels.shape == expected.shape
        and labels.shape[-1] > 1
        and np.isin(labels, (0, 1)).all()
        and (labels.sum(-1) == 1).all()
    )


def _are_classes(labels: np.ndarray, expected: np.ndarray) -> bool:
    """Whether labels are numbers of classes, two for one value, or -1."""
    if expected.ndim < 2 or labels.size != expected[..., 0].size:
        return False
    classes = max(expected.shape[-1], 2)
    return bool(np.isin(labels, np.arange(-1, classes)).all())
