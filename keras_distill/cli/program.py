"""The command line: its parser, and what it returns to the shell."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from keras_distill.cli import (
    completion,
    distilling,
    exporting,
    inspecting,
    labelling,
    methods,
    reporting,
    verifying,
)
from keras_distill.cli.arguments import Commands, Parser

# As programs do for a wrong command line, so that a script can tell.
_USERS_ERROR = 2
_FAILED = 1
# As a shell has it for a program that an interrupt ended.
_INTERRUPTED = 130

_DESCRIPTION = """\
Knowledge distillation for Keras 3, from teacher to device.

Each command has an example: keras-distill COMMAND --help.
"""
_EPILOG = """\
The backend is Keras' own choice: KERAS_BACKEND=jax keras-distill ...

The exit status is 0 if all went well; 1 if something fell short of what was
asked, or failed; 2 if something that was passed can't be used; and 130 after
Ctrl-C.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    Args:
        arguments: The command line without the program; None is that of the
            process.

    Returns:
        0; 1 if something fell short or failed; 2 if what was passed can't be
        used; 130 if it was interrupted.

    Example:
        >>> main(["inspect", "no-such-file.tflite"])
        2
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        parsed = parse(given)
    except ValueError as error:
        return _say(error, _USERS_ERROR)
    parsed.given = given
    try:
        status: int = parsed.run(parsed)
    except BrokenPipeError:
        # Who read the output has seen enough; Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except (OSError, TypeError, ValueError) as error:
        return _say(error, _USERS_ERROR)
    except (ImportError, MemoryError, RuntimeError) as error:
        return _say(error, _FAILED)
    except KeyboardInterrupt:
        return _say(f"interrupted. {parsed.interrupted}", _INTERRUPTED)
    return status


def _say(what: object, status: int) -> int:
    print(f"keras-distill: {' '.join(str(what).split())}", file=sys.stderr)
    return status


def parse(given: Sequence[str]) -> argparse.Namespace:
    """A command line's arguments; options may stand between its files."""
    whole, commands = _parsers()
    if not given or given[0] not in commands.choices:
        return whole.parse_args(given)  # asks for help, or is wrong
    # What takes commands can't take options between files: a command can.
    command: Parser = commands.choices[given[0]]
    return command.parse_intermixed_args(given[1:])


def parser() -> Parser:
    """The parser of the whole command line."""
    return _parsers()[0]


def _parsers() -> tuple[Parser, Commands]:
    """The parser, and what holds those of its commands."""
    made = Parser(
        prog="keras-distill", description=_DESCRIPTION, epilog=_EPILOG
    )
    commands: Commands = made.add_subparsers(required=True, metavar="COMMAND")
    for module in (
        methods,
        distilling,
        labelling,
        exporting,
        verifying,
        inspecting,
        reporting,
    ):
        module.add(commands)
    completion.add(commands, parser)
    return made, commands
