"""The kept help is the parser's, and it comes without the parser's imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adalora.commands import train as flags_help
from adalora.training.arguments.parser import build_parser

PROGRAM = Path(__file__).parents[1] / "examples" / "text-classification" / "run_glue.py"


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="argparse lays out differently in later Pythons"
)
def test_the_kept_help_is_the_parsers() -> None:
    live = build_parser(flags_help.PROGRAM).format_help()
    assert flags_help.kept_help() == live, "run scripts/write_flags_help.py"


def test_another_release_of_transformers_gets_its_own_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "help.txt"
    monkeypatch.setattr(flags_help, "HELP_FILE", kept)
    flags_help.write_help("usage: as it is now\n")
    assert flags_help.kept_help() == "usage: as it is now\n"
    kept.write_text("transformers 5.0.0\nusage: as it was\n")
    assert flags_help.kept_help() is None
    assert not flags_help.show_help(["--help"])


@pytest.mark.parametrize(
    "command",
    [[str(PROGRAM), "--help"], ["-m", "adalora", "--help"], ["-m", "adalora", "plan", "-h"]],
)
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(("usage:", "adalora"))
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "datasets", "numpy"}
