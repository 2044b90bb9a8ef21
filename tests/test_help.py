"""``--help``: one screen at once, true to the parser; every flag when asked for; no traceback."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from adalora.cli import COMMANDS, main
from adalora.commands.train import HELP, show_help
from adalora.presets import untuned
from adalora.training.arguments.parser import build_parser

PROGRAM = Path(__file__).parents[1] / "examples" / "text-classification" / "run_glue.py"
ALL_MATRICES = "query,key,value,intermediate,layer.output,attention.output"
HEAVY = {"torch", "transformers", "datasets", "numpy"}


@pytest.fixture(scope="module")
def actions() -> dict[str, argparse.Action]:
    """Flag -> what the parser does with it."""
    return {flag: a for a in build_parser()._actions for flag in a.option_strings}


@pytest.mark.parametrize("program", ["run_glue.py", "adalora train"])
def test_the_short_help_fits_one_screen(program: str) -> None:
    lines = HELP.format(program=program).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80


def test_each_flag_of_the_short_help_is_the_parsers(actions: dict[str, argparse.Action]) -> None:
    named = set(re.findall(r"--\w+", HELP)) - {"--help"}
    assert len(named) > 25
    assert not named - set(actions)


def test_each_stated_default_is_the_parsers(actions: dict[str, argparse.Action]) -> None:
    adalora = untuned({"apply_adalora": True})
    stated = re.findall(
        r"^  --(\w+) .*\((?:default: ([^;]+?))?(?:; )?(?:AdaLoRA: (.+))?\)$", HELP, re.M
    )
    assert len(stated) == HELP.count("(default: ") + HELP.count("(AdaLoRA: ")
    for flag, default, with_adalora in stated:
        if default:
            found = actions[f"--{flag}"].default
            assert str(getattr(found, "value", found)) == default, flag
        if with_adalora:
            words = str(adalora[flag])
            assert ("all" if words == ALL_MATRICES else words) == with_adalora, flag


@pytest.mark.parametrize("words", [["--help", "all"], ["--help-all"], ["--do_train", "-h", "all"]])
def test_all_the_flags_are_shown_by_group_when_asked_for(
    words: Sequence[str],
    actions: dict[str, argparse.Action],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", *words]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: adalora train")
    assert not set(actions) - set(re.findall(r"(?<!\S)--?[\w-]+", shown))
    for group in ("model:", "adaptation method:", "data:", "training:"):
        assert f"\n{group}\n" in shown


def test_flags_that_ask_for_no_help_show_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert not show_help(["--task_name", "rte", "all"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "command",
    [
        *([str(PROGRAM), flag] for flag in ("-h", "--help")),
        *(["-m", "adalora", command, "--help"] for command in ("", *COMMANDS)),
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *filter(None, command)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(("usage:", "adalora"))
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "adalora.errors" in imported
    assert not imported & HEAVY


def test_a_table_is_made_without_torch(tmp_path: Path, project_root: Path) -> None:
    sweep, table = project_root / "docs" / "results" / "minilm", tmp_path / "table.md"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "adalora", "table", sweep, "-o", table],
        capture_output=True,
        text=True,
        check=True,
    )
    assert table.is_file()
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "adalora.results.sources" in imported
    assert not imported & {"torch", "transformers", "datasets"}


@pytest.mark.parametrize("flags", [["presets"], ["presets", "rte/full"], ["table", "--help"]])
def test_a_reader_that_goes_away_ends_a_command_quietly(flags: list[str]) -> None:
    """Text of ``print``, of rich and of argparse, into a pipe that nobody reads."""
    process = subprocess.Popen(
        [sys.executable, "-m", "adalora", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # argparse looks away from what fails at once
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141  # as a shell counts any program that this happens to


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("train", "plan")])
def test_one_thing_has_one_name_in_every_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    flags = set(re.findall(r"(?<!\S)--?[a-z]\w*", shown.split("\nexample")[0]))
    assert ("--output" in flags) == ("-o" in flags)
    assert not flags & {"--force", "--json", "--yaml", "--csv", "--base", "--out", "--limit"}
