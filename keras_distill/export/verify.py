"""How faithful a LiteRT file is to its student, and what it costs."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_distill.export import processes, runner
from keras_distill.export.artifact import LiteRTArtifact
from keras_distill.export.budget import Budget, Costs
from keras_distill.export.decisions import (
    accuracy,
    class_numbers,
    decide_apart,
    decisions,
    thresholds_of,
    yes_or_no,
)
from keras_distill.export.examples import read_examples, require_finite
from keras_distill.export.flatbuffer import operations
from keras_distill.export.float_file import require_exportable
from keras_distill.export.measure import Latency, OperationTime, measure
from keras_distill.export.metadata import fingerprint
from keras_distill.export.micro_runner import (
    MicroCheck,
    check_on_micro,
    require_tflite_micro,
)
from keras_distill.export.processes import WorkerError
from keras_distill.export.quantized_file import snr_db
from keras_distill.export.signature import TensorInfo, name_tensors
from keras_distill.predictions import predict

# Random inputs say something of the errors, and nothing of the accuracy.
_MICRO_EXAMPLES = 16
# As many operations of a profile are printed.
_SLOWEST = 5


@dataclasses.dataclass(frozen=True)
class OutputCheck:
    """One output of a file against the same output of Keras.

    Attributes:
        accuracy: The file's accuracy on the labels; None without labels, or if
            they are no classes.
        keras_accuracy: Keras' accuracy on them.
        agreement: Fraction of decisions that are the same: of the largest of
            several values, or of one value's side of the threshold; of each
            value's where labels name several classes. None where that isn't
            known.
        max_error: Largest absolute difference.
        mean_error: Mean absolute difference.
        snr_db: Signal-to-noise ratio, in dB.
    """

    accuracy: float | None
    keras_accuracy: float | None
    agreement: float | None
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
    def agreement(self) -> float | None:
        """Lowest agreement of an output; None if none is known."""
        found = [output.agreement for output in self.outputs.values()]
        return min((a for a in found if a is not None), default=None)

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
        if self.agreement is not None:
            rows.append(("agreement with Keras", f"{self.agreement:.2%}"))
        rows += [
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
    threshold: float | None = None,
    micro: bool = False,
    profile: bool = False,
    threads: int = 1,
    runs: int = 50,
) -> LiteRTCheck:
    """Run a file on the real interpreters, and compare it with its student.

    Each interpreter runs in a process of its own, where its end is no harm.

    Args:
        artifact: What `export_litert` returned, or the path of such a file.
        student: The student that it was made of, with the same weights.
        data: Examples, best those that nothing was chosen by: `(x, y)`, inputs
            alone, or a data set of such batches. Labels are class numbers,
            one-hot rows, or rows in which several classes are 1, each of which
            is a decision of its own; in the structure of the student's outputs,
            with -1 for none. Of other targets, such as a quantity, there is no
            accuracy. Examples count alike: sample weights that differ are an
            error.
        budget: What the file must not exceed.
        threshold: Above what a value says yes, where it is a decision of its
            own. None is 0.5 after a sigmoid and 0 after a linear layer; a
            student that doesn't show its last activation, such as a subclassed
            one, needs it for labels.
        micro: Whether to run it on TensorFlow Lite Micro too, which says what
            arena it needs. A budget with an `arena` does.
        profile: Whether to measure each operation.
        threads: Threads of the interpreter whose latency is measured.
        runs: Number of inferences that are timed.

    Returns:
        The check.

    Raises:
        RuntimeError: If the file falls short of the budget, or doesn't run.
        ValueError: If the file was made from other weights; if the data isn't
            the student's, or a budget asks for what the data can't tell.
        ImportError: If tflite-micro is needed and isn't installed.

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
    for name, value in (("threads", threads), ("runs", runs)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{name} is a whole number from 1 on. Received: "
                f"{name}={value!r}."
            )
    micro = micro or (budget is not None and budget.arena is not None)
    if micro:
        require_tflite_micro()
    require_exportable(student)
    path = artifact.path if isinstance(artifact, LiteRTArtifact) else artifact
    # What lies there now may be another file than the one that was exported.
    artifact = LiteRTArtifact.of(path)
    _require_same_weights(artifact, student)
    reference = Reference.of(
        student,
        data,
        artifact.input_names,
        artifact.float_inputs(),
        artifact.output_names,
        threshold,
    )
    _require_thresholds(reference, reference.labels)
    require_measurable(budget, reference)
    check = check_file(
        artifact,
        reference,
        micro=micro,
        profile=profile,
        threads=threads,
        runs=runs,
    )
    excesses = {} if budget is None else budget.excesses(check.costs)
    if budget is not None and excesses:
        raise RuntimeError(
            f"'{artifact.path}' falls short of what was asked. Received: "
            f"{budget.describe(excesses, check.costs)}.\n{check}"
        )
    return check


def _require_same_weights(
    artifact: LiteRTArtifact, student: keras.Model
) -> None:
    made, given = artifact.facts["student"], fingerprint(student)
    if made["sha256"] != given["sha256"]:
        raise ValueError(
            "The file was made from another student, or from this one with "
            f"other weights. Received: path='{artifact.path}', made from "
            f"{_name_of(made)}, and student={_name_of(given)}. Pass that "
            "student, or export this one again."
        )


def _name_of(print_of: dict[str, Any]) -> str:
    return (
        f"'{print_of['name']}' ({print_of['parameters']:,} parameters, sha256 "
        f"{print_of['sha256'][:12]})"
    )


@dataclasses.dataclass(frozen=True)
class Reference:
    """What Keras returns for the examples, and the right answers.

    Attributes:
        examples: The file's inputs, by name.
        expected: The student's outputs, by the file's names for them.
        labels: Numbers of classes by output name, for outputs with such labels,
            or of each value, whether it is a yes.
        thresholds: The value above which a value says yes, by output name; None
            where it isn't known.
    """

    examples: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    thresholds: dict[str, float | None]

    @classmethod
    def of(
        cls,
        student: keras.Model,
        data: Any,
        input_names: Any,
        inputs: tuple[TensorInfo, ...],
        output_names: Any = None,
        threshold: float | None = None,
    ) -> Reference:
        """Run the student on the data.

        Args:
            student: The student.
            data: As for `verify_litert`.
            input_names: The file's names, in the structure of the inputs.
            inputs: The file's inputs, as the user has them.
            output_names: The file's names, in the structure of the outputs;
                None for those that a file will have.
            threshold: As for `verify_litert`.
        """
        examples, x, y, weighted = read_examples(
            data, input_names, inputs, student
        )
        if weighted:
            raise ValueError(
                "Examples count alike for accuracy and agreement. Received: "
                "sample weights behind the labels. Pass `(x, y)`, without "
                "those that are to count for nothing."
            )
        require_finite(examples)
        outputs = predict(student, x)
        output_names = output_names or name_tensors(outputs, "output")
        names = keras.tree.flatten(output_names)
        expected = dict(
            zip(
                names, map(np.asarray, keras.tree.flatten(outputs)), strict=True
            )
        )
        thresholds = thresholds_of(student, names, threshold)
        count = len(next(iter(expected.values())))
        labels = {}
        for name, given in _by_name(y, student, output_names, count).items():
            one = expected[name]
            known = class_numbers(name, given, one, thresholds[name])
            known = yes_or_no(given, one) if known is None else known
            if known is not None:
                labels[name] = known
        return cls(examples, expected, labels, thresholds)


def _by_name(
    y: Any, student: keras.Model, output_names: Any, count: int
) -> dict[str, np.ndarray]:
    """Labels by output name; empty without any."""
    if y is None:
        return {}
    if isinstance(y, dict) and not isinstance(output_names, dict):
        # As Keras' own `fit` takes them.
        _require_names(y, student.output_names)
        y = [y[name] for name in student.output_names]
    labels, names = keras.tree.flatten(y), keras.tree.flatten(output_names)
    for label in labels:
        _require_as_many(label, count)
    if len(labels) != len(names):
        raise ValueError(
            "Each output has labels of its own, in the structure of the "
            f"student's outputs. Received: {len(labels)} arrays of labels "
            f"for outputs {names}."
        )
    return dict(zip(names, labels, strict=True))


def _require_names(labels: dict[str, Any], names: list[str]) -> None:
    if set(labels) != set(names):
        raise ValueError(
            "Labels in a dict are named as the student's outputs. Received: "
            f"{[*labels]} for outputs {names}."
        )


def _require_as_many(labels: np.ndarray, count: int) -> None:
    if len(labels) != count:
        raise ValueError(
            "Each example has a label. Received: "
            f"{len(labels)} labels for {count} examples."
        )


def require_measurable(budget: Budget | None, reference: Reference) -> None:
    """Refuse a budget that asks for what the data can't tell.

    Raises:
        ValueError: If it does.
    """
    if budget is None:
        return
    if budget.accuracy_drop is not None and not reference.labels:
        raise ValueError(
            "A drop of accuracy needs labels: class numbers, or one-hot rows. "
            f"Received: accuracy_drop={budget.accuracy_drop}, without such "
            "labels. Pass `(x, y)`, or ask for `agreement` instead."
        )
    if budget.accuracy_drop is not None or budget.agreement is not None:
        # Of an output without classes among its labels, nothing is asked.
        _require_thresholds(reference, reference.labels or reference.expected)


def _require_thresholds(reference: Reference, names: Iterable[str]) -> None:
    for name in names:
        threshold = reference.thresholds[name]
        outputs, labels = reference.expected[name], reference.labels.get(name)
        if threshold is None and decide_apart(outputs, labels):
            raise ValueError(
                f"Each value of output '{name}' is a decision, and the student "
                "doesn't show from where on it is a yes. Received: "
                "threshold=None, and no last activation that says it. Pass "
                "`verify_litert("
                "threshold=...)`: 0.5 for probabilities, 0.0 for logits; or "
                'end the student with `keras.layers.Activation("sigmoid")`, '
                'or "linear" for logits.'
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
    return LiteRTCheck(
        scheme=artifact.quantization.scheme,
        size=artifact.size,
        examples=len(next(iter(reference.expected.values()))),
        outputs={
            name: _check_output(
                expected,
                seen[name],
                reference.labels.get(name),
                reference.thresholds[name],
            )
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
    expected: np.ndarray,
    seen: np.ndarray,
    labels: np.ndarray | None,
    threshold: float | None,
) -> OutputCheck:
    expected, seen = expected.astype("float64"), seen.astype("float64")
    apart = labels is not None and labels.shape == expected.shape
    theirs, ours = (
        decisions(x[..., None] if apart else x, threshold)
        for x in (expected, seen)
    )
    with np.errstate(invalid="ignore"):
        # Both may be infinite on purpose.
        difference = np.where(expected == seen, 0.0, np.abs(expected - seen))
    return OutputCheck(
        accuracy=accuracy(ours, labels),
        keras_accuracy=accuracy(theirs, labels),
        agreement=None if theirs is None else float((theirs == ours).mean()),
        max_error=float(difference.max()),
        mean_error=float(difference.mean()),
        snr_db=snr_db({"": expected}, {"": seen}),
    )
