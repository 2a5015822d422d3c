"""The commands that look, and what all commands have."""

import json
import subprocess
import sys

import pytest
from support import only_on

import keras_distill as kd
from keras_distill.cli import main, methods
from keras_distill.cli.program import parse

# The same on each backend.
pytestmark = only_on("torch")
COMMANDS = (
    *("methods", "distill", "label", "export", "verify", "inspect"),
    *("report", "completion"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"example:\n  keras-distill {command}" in said or (
        f'example:\n  bash:  eval "$(keras-distill {command} bash)"' in said
    )


def test_help_names_all_commands_and_the_backend(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "KERAS_BACKEND" in said
    for command in COMMANDS:
        assert f"\n    {command}" in said


def test_methods_are_those_of_the_package(capsys):
    assert main(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [m["name"] for m in listed] == [m.name for m in kd.losses.methods()]
    assert main(["methods"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + len(listed)
    (row,) = [line for line in table if line.startswith("SoftTargets ")]
    assert row.split("  ")[-1].strip() == "0.1"
    assert main(["methods", "DecoupledSoftTargets"]) == 0
    said = capsys.readouterr().out
    assert kd.losses.method("DecoupledSoftTargets").documentation in said


def test_report_measures_and_converts(files, tmp_path, capsys):
    facts = tmp_path / "r.json"
    given = [
        *("report", "--teacher", f"{files}/teacher.keras", "--data"),
        *(f"{files}/data.npz", "--students", f"{files}/student.keras"),
        *("--baselines", f"{files}/student.keras", "--seeds", "7"),
        *("--class-names", "car", "truck", "frog", "-o", str(facts)),
    ]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert "A gain of 0.0 points is no more than noise." in said
    made = kd.Report.load(facts)
    assert made.facts.classes == ("car", "truck", "frog")
    assert made.facts.command.startswith("keras-distill report --teacher")
    page = tmp_path / "r.md"
    assert main(["report", str(facts), "-o", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["seeds"] == [7]
    made.save(tmp_path / "same.md")
    assert page.read_text() == (tmp_path / "same.md").read_text()


@pytest.mark.parametrize("shell", ["bash", "fish", "tcsh", "zsh"])
def test_completion_knows_commands_and_choices(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*COMMANDS, "--temperature", "int16x8"):
        assert word.removeprefix("--") in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert main(["completion", shell, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said == {"shell": shell, "script": script.rstrip("\n")}


def test_completion_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "pip install 'keras-distill[cli]'" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_mistake(tmp_path, monkeypatch):
    def gone():
        raise BrokenPipeError

    monkeypatch.setattr(methods, "methods", gone)
    with (
        (tmp_path / "pipe").open("w") as pipe,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stdout", pipe)
        assert main(["methods"]) == 1
        print("what is left", file=pipe)  # isn't refused at the end
    assert (tmp_path / "pipe").read_text() == ""


def test_a_defect_of_our_own_is_not_hidden(monkeypatch):
    def broken():
        raise KeyError("of our own making")

    monkeypatch.setattr(methods, "methods", broken)
    with pytest.raises(KeyError, match="of our own making"):
        main(["methods"])


@pytest.mark.parametrize(
    "given",
    [
        ["t.keras", "s.keras", "d.npz", "--epochs", "3", "--json"],
        ["--json", "t.keras", "--epochs", "3", "s.keras", "d.npz"],
        ["t.keras", "--epochs", "3", "s.keras", "--json", "d.npz"],
    ],
)
def test_options_stand_between_files_too(given):
    parsed = parse(["distill", "-o", "o.keras", *given])
    files = parsed.teacher, parsed.student, parsed.data
    assert [str(file) for file in files] == ["t.keras", "s.keras", "d.npz"]
    assert (parsed.epochs, parsed.json) == (3, True)
    without = ["-o", "o.keras", *(x for x in given if x != "s.keras")]
    assert parse(["distill", *without]).student is None
