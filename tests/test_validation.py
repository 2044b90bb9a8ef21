"""The wrong ``loralib`` is recognised, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
OURS = "class SVDLinear: ...\nclass RankAllocator: ...\ndef compute_orth_regu(): ...\n"
PROGRAM = """
import sys
import tomllib
sys.path[:0] = sys.argv[1:]
from adalora.errors import UserError
from adalora.commands.flags import require_our_loralib
try:
    require_our_loralib()
except UserError as error:
    print(error)
"""


def check(folder: Path, source: str | None) -> str:
    if source is not None:
        (folder / "loralib").mkdir()
        (folder / "loralib" / "__init__.py").write_text(source)
    done = subprocess.run(
        # -S: without site-packages, so that no installed loralib is found.
        [sys.executable, "-I", "-S", "-c", PROGRAM, str(folder), str(SOURCE)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "no loralib is installed"),
        ("class Linear: ...\n", "without SVDLinear and RankAllocator"),
        ("__version__ = '0.1.2'\n" + OURS, "version 0.1.2"),
        (OURS, "no version stated"),
    ],
)
def test_a_missing_or_foreign_loralib_is_named_with_what_to_type(
    tmp_path: Path, source: str | None, message: str
) -> None:
    said = check(tmp_path, source)
    assert message in said
    assert "pip install -e loralib -e ." in said
    assert len(said.splitlines()) == 1


def test_ours_passes(tmp_path: Path) -> None:
    assert check(tmp_path, "__version__ = '1.0.0'\n" + OURS) == ""


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        ("Summary: PyTorch implementation of low-rank adaptation\n", True),
        # Ours, as it was called before.
        ("Summary: AdaLoRA and LoRA layers: a correct drop-in\n", False),
        (None, False),
    ],
)
def test_another_loralib_beside_ours_is_recognised_at_import(
    tmp_path: Path, summary: str | None, said: bool
) -> None:
    (tmp_path / "adalora_loralib-1.0.0.dist-info").mkdir()
    if summary is not None:
        (tmp_path / "loralib-0.1.2.dist-info").mkdir()
        (tmp_path / "loralib-0.1.2.dist-info" / "METADATA").write_text(f"Name: loralib\n{summary}")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM, str(tmp_path), str(SOURCE)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ("Another project's loralib 0.1.2 is installed in" in done.stderr) == said
    assert ("pip uninstall loralib" in done.stderr) == said


def test_the_distribution_of_loralib_has_a_name_of_its_own() -> None:
    described = tomllib.loads((SOURCE.parent / "loralib" / "pyproject.toml").read_text())
    assert described["project"]["name"] == "adalora-loralib"
    assert described["tool"]["setuptools"]["packages"] == ["loralib"]
    assert '"adalora-loralib>=1.0"' in (SOURCE.parent / "setup.py").read_text()
