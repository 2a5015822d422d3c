"""`keras-distill completion`."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from keras_distill.cli.arguments import Commands, add_command
from keras_distill.cli.console import print_json

_SHELLS = ("bash", "fish", "tcsh", "zsh")
# Arguments that take data or a teacher of any kind, which are mostly files.
_FILES = ("cache", "calibration", "data", "teacher", "validation")


def add(
    commands: Commands, make_parser: Callable[[], argparse.ArgumentParser]
) -> None:
    """Add the command, which completes the parser that it is part of."""

    def run(parsed: argparse.Namespace) -> int:
        script = _script(make_parser(), parsed.shell)
        if parsed.json:
            print_json({"shell": parsed.shell, "script": script})
        else:
            print(script)
        return 0

    command = add_command(
        commands,
        "completion",
        run,
        "print what lets a shell complete this command",
        "Print a script that lets a shell complete the names of commands,\n"
        "options, choices and files.",
        '  bash:  eval "$(keras-distill completion bash)"\n'
        '  zsh:   keras-distill completion zsh > "${fpath[1]}/_keras-distill"\n'
        "  fish:  keras-distill completion fish > \\\n"
        "             ~/.config/fish/completions/keras-distill.fish",
    )
    command.add_argument("shell", choices=_SHELLS, help=", ".join(_SHELLS))


def _script(parser: argparse.ArgumentParser, shell: str) -> str:
    try:
        import shtab
    except ImportError as error:
        raise ImportError(
            "Scripts for shells are made by shtab. Received: no shtab. Run "
            "`pip install 'keras-distill[cli]'`."
        ) from error
    for action in _actions(parser):
        if action.type is pathlib.Path or action.dest in _FILES:
            # Where shtab looks for it.
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    # Argparse has no public way to go through a parser's arguments; shtab, for
    # which this is, reads the same.
    for action in parser._actions:
        yield action
        choices: Any = action.choices
        if isinstance(choices, dict):
            for value in choices.values():
                if isinstance(value, argparse.ArgumentParser):
                    yield from _actions(value)
