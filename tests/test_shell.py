"""What a program says to type works as typed: from anywhere, with the environment active or not."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from adalora.shell import lines_of, program, short_path, typed


@pytest.fixture(params=["project", "my project"])
def environment(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An environment of our own in ``.venv`` of the working directory, which is not active."""
    folder = tmp_path / request.param / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("python3", "adalora"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} of ours: $@\n")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python3"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(folder))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(folder.parents[1])
    return folder


def test_an_environment_that_is_not_active_is_named_from_the_working_directory(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program("adalora") == os.path.join(".venv", "bin", "adalora")
    assert program("python") == os.path.join(".venv", "bin", "python3")
    monkeypatch.chdir(environment)
    assert program("adalora") == os.path.join(".", "adalora")
    monkeypatch.chdir("/")
    assert shlex.split(program("adalora")) == [str(environment / "adalora").lstrip("/")]


def test_an_active_environment_needs_no_path(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{environment}:/usr/bin:/bin")
    assert program("adalora") == "adalora"
    assert program("python") == "python3"
    (environment / "python").symlink_to("python3")
    assert program("python") == "python"


def test_another_environment_s_program_of_the_same_name_is_not_ours(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "adalora").symlink_to(environment / "adalora")
    monkeypatch.setenv("PATH", f"{other}:/usr/bin:/bin")
    assert program("adalora") == os.path.join(".venv", "bin", "adalora")


def test_a_program_that_the_environment_has_not_is_named_alone(environment: Path) -> None:
    assert program("no-such-program") == "no-such-program"


@pytest.mark.parametrize("folder", [".", "within", "../elsewhere", "/"])
@pytest.mark.parametrize("name", ["adalora", "python"])
def test_it_runs_as_typed(
    environment: Path, monkeypatch: pytest.MonkeyPatch, folder: str, name: str
) -> None:
    Path(folder).mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    done = subprocess.run(
        ["bash", "-c", f"{program(name)} 'a b'"], capture_output=True, text=True, check=True
    )
    assert done.stdout in ("adalora of ours: a b\n", "python3 of ours: a b\n")


def test_a_path_is_as_short_as_it_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert short_path(tmp_path / "output" / "run") == os.path.join("output", "run")
    assert short_path(Path("output")) == "output"
    assert short_path(tmp_path.parent / "run") == os.path.join("..", "run")
    assert short_path(Path("/etc")) == "/etc"


@pytest.mark.parametrize("width", [1, 20, 80])
@pytest.mark.parametrize(
    "command", ["one", "'a b/bin/adalora' train --x 'c d' e", 'echo "a  b" | cat -', "a" * 90]
)
def test_a_command_over_several_lines_is_the_same_command(command: str, width: int) -> None:
    lines = lines_of(command, width)
    whole = subprocess.run(
        ["bash", "-c", "printf '%s\\n' " + "\n".join(lines).replace("|", "'|'")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert whole.stdout.splitlines() == shlex.split(command.replace("|", "'|'"))
    for line in lines:
        assert len(line) <= width or len(shlex.split(line.removesuffix("\\"))) == 1


def test_words_are_quoted_where_the_shell_needs_it() -> None:
    assert [typed(word) for word in ("plain/path", "a b", Path("$x"))] == [
        "plain/path",
        "'a b'",
        "'$x'",
    ]
