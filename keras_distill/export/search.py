"""The best quantisation that fits a budget."""

from __future__ import annotations

import dataclasses
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

from keras_distill.export.artifact import LiteRTArtifact
from keras_distill.export.budget import Budget
from keras_distill.export.schemes import SCHEMES, Quantization
from keras_distill.export.verify import (
    LiteRTCheck,
    Reference,
    check_file,
)

# Writes a file to a path, quantised in one way.
Writer = Callable[[pathlib.Path, Quantization], LiteRTArtifact]


class Attempt(NamedTuple):
    """A file that was tried.

    Attributes:
        quantization: How it was made.
        check: What was measured; None if it couldn't be made.
        excesses: How far it was over the budget, by the limit's name.
        problem: Why it couldn't be made or run; empty if it could.
    """

    quantization: Quantization
    check: LiteRTCheck | None
    excesses: dict[str, float]
    problem: str = ""

    def describe(self, budget: Budget) -> str:
        """The attempt as a line of text."""
        name = self.quantization.scheme
        if self.quantization.float_layers:
            name += f" with {len(self.quantization.float_layers)} in float"
        if self.check is None:
            return f"{name}: {self.problem}"
        return f"{name}: {budget.describe(self.excesses, self.check.costs)}"


def best_that_fits(
    write: Writer,
    folder: pathlib.Path,
    reference: Reference,
    budget: Budget,
    schemes: list[Quantization],
    worst_layers: Callable[[Quantization], list[str]],
) -> LiteRTArtifact:
    """Try schemes from the most exact to the smallest; return the first to fit.

    Where integers lose too much and there is room left, the layers that lose
    most are tried in float.

    Args:
        write: Makes a file.
        folder: Where the files go.
        reference: What Keras returns for the data to judge by.
        budget: What must hold.
        schemes: What to try, from the most exact to the smallest.
        worst_layers: The layers that lose most in a scheme, the worst first.

    Raises:
        RuntimeError: If nothing fits; it says what is nearest.
    """
    attempts = []

    def attempt(quantization: Quantization) -> LiteRTArtifact | None:
        """The file, if it fits."""
        path = folder / f"{quantization.scheme}.tflite"
        try:
            artifact = _quietly(write, path, quantization)
            attempts.append(_attempt(artifact, reference, budget))
        except RuntimeError as error:
            attempts.append(Attempt(quantization, None, {}, _first_line(error)))
            return None
        return None if attempts[-1].excesses else artifact

    for quantization in schemes:
        if (artifact := attempt(quantization)) is not None:
            return artifact
        for mixed in _mixtures(attempts[-1], worst_layers):
            if (artifact := attempt(mixed)) is not None:
                return artifact
            if not _has_room(attempts[-1]):
                break
    raise RuntimeError(_failure(attempts, budget))


def _quietly(
    write: Writer, path: pathlib.Path, quantization: Quantization
) -> LiteRTArtifact:
    with warnings.catch_warnings():
        # A poor signal is what the budget judges.
        warnings.simplefilter("ignore", UserWarning)
        return write(path, quantization)


def _attempt(
    artifact: LiteRTArtifact, reference: Reference, budget: Budget
) -> Attempt:
    check = check_file(artifact, reference, micro=budget.arena is not None)
    return Attempt(artifact.quantization, check, budget.excesses(check.costs))


def _mixtures(
    attempt: Attempt, worst_layers: Callable[[Quantization], list[str]]
) -> Iterator[Quantization]:
    """The same scheme with 1, 2, 4, ... of the worst layers in float."""
    quantization = attempt.quantization
    # What is over the budget in memory or time gets no better in float.
    if quantization.details.kind != "static" or not _has_room(attempt):
        return
    try:
        layers = worst_layers(quantization)
    except RuntimeError:  # one that can't be quantised alone
        return
    count = 1
    while count < len(layers):
        yield dataclasses.replace(
            quantization, float_layers=tuple(layers[:count])
        )
        count *= 2


def _has_room(attempt: Attempt) -> bool:
    """Whether there is a file of which only the fidelity falls short."""
    if attempt.check is None:
        return False
    return not set(attempt.excesses) & {"flash", "arena", "latency_ms"}


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _failure(attempts: list[Attempt], budget: Budget) -> str:
    measured = [a for a in attempts if a.check is not None]
    tried = "\n".join(f"- {attempt.describe(budget)}" for attempt in attempts)
    nearest = "none of them could be made"
    if measured:
        best = min(measured, key=lambda a: sum(a.excesses.values()))
        nearest = f"nearest is {best.describe(budget)}"
    return (
        f"No file fits the budget; {nearest}. Received: {budget}. Raise the "
        "limits, distil a smaller student, or train this one with "
        f"`quantization_aware`. Tried:\n{tried}"
    )


def schemes_to_try(
    quantization: Quantization | None, calibrated: bool
) -> list[Quantization]:
    """What a budget chooses from, from the most exact to the smallest.

    Args:
        quantization: The one to try, if the caller named one.
        calibrated: Whether there is data for a static scheme.
    """
    if quantization is not None:
        return [quantization]
    return [
        Quantization(name)
        for name, scheme in SCHEMES.items()
        if calibrated or scheme.kind != "static"
    ]
