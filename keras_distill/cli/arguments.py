"""Arguments that several commands have."""

from __future__ import annotations

import argparse
import fractions
import pathlib
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

# What `add_subparsers` returns, of which argparse has no public name.
Commands: TypeAlias = Any

_DATA = """\
what data may be:
  tfds:NAME      of TensorFlow Datasets, such as tfds:cifar10
  data.npz       labels in the array y, inputs in the others; or x_train,
                 y_train, x_test, ...
  data.npy       inputs alone
  data.parquet   a column of images or lists, or several of numbers, and label
  folder/        images, in a folder for each class
"""


class UsageError(ValueError):
    """A command line that can't be understood."""


class Parser(argparse.ArgumentParser):
    """A parser whose texts stay as they are, and that says errors in a line."""

    def __init__(self, **options: Any) -> None:
        options.setdefault(
            "formatter_class", argparse.RawDescriptionHelpFormatter
        )
        # `--min` for `--min-agreement` would mean something else one day.
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Raise what `main` says.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"{message}. See {self.prog} --help.")


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    help_: str,
    description: str,
    example: str,
    *,
    reads_data: bool = False,
    interrupted: str = "Run the same command again.",
) -> argparse.ArgumentParser:
    """A command with what all commands have.

    Args:
        commands: What it is added to.
        name: Its name.
        run: What it does; returns the exit status.
        help_: A line for the list of commands.
        description: What its help says first.
        example: What its help says last.
        reads_data: Whether it has the arguments of `add_data_options`.
        interrupted: How to go on after an interrupt.
    """
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_,
        description=description,
        epilog=(f"{_DATA}\n" if reads_data else "") + f"example:\n{example}",
    )
    command.set_defaults(run=run, interrupted=interrupted)
    command.add_argument(
        "--json", action="store_true", help="print JSON, for other programs"
    )
    if reads_data:
        add_data_options(command)
    return command


def add_data_options(command: argparse.ArgumentParser) -> None:
    """How to read the data."""
    group = command.add_argument_group("how to read the data")
    group.add_argument(
        "--split",
        help="part of data that have parts (default: train, to learn from)",
    )
    group.add_argument(
        "--labels",
        metavar="NAME",
        help="the array or column of labels (default: y, or label)",
    )
    group.add_argument(
        "--resize",
        action="store_true",
        help="resize images of files to what the model takes",
    )
    group.add_argument(
        "--scale",
        type=number,
        metavar="FACTOR",
        help="multiply inputs by it, such as 1/255",
    )
    group.add_argument(
        "--data-dir",
        type=pathlib.Path,
        metavar="FOLDER",
        help="where TensorFlow Datasets keeps its data",
    )


def refuse_data_options(parsed: argparse.Namespace, reason: str) -> None:
    """Raise where the options of data were given, and no data.

    Raises:
        UsageError: If one was.
    """
    names = ("split", "labels", "resize", "scale", "data_dir")
    given = [
        f"--{name.replace('_', '-')}"
        for name in names
        if vars(parsed)[name] not in (None, False)
    ]
    if given:
        raise UsageError(
            f"These say how to read data. Received: {', '.join(given)}, and "
            f"{reason}. Leave them out."
        )


def number(text: str) -> float:
    """A number, which may be a fraction: 1/255.

    Raises:
        ValueError: If it is none.
    """
    try:
        return float(fractions.Fraction(text))
    except (OverflowError, ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(
            f"it is a number, or a fraction such as 1/255, not {text!r}"
        ) from error


def positive(text: str) -> int:
    """A whole number from 1 on.

    Raises:
        ValueError: If it is none.
    """
    return _whole(text, 1, None)


def seed(text: str) -> int:
    """A seed, as Keras takes one.

    Raises:
        ValueError: If it is none.
    """
    return _whole(text, 0, 2**32 - 1)


def _whole(text: str, least: int, most: int | None) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least or (most is not None and value > most):
        until = "on" if most is None else f"to {most}"
        raise argparse.ArgumentTypeError(
            f"it is a whole number from {least} {until}, not {text!r}"
        )
    return value
