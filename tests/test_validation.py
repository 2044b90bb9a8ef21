"""The wrong ``loralib`` is recognised, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
OURS = "class SVDLinear: ...\nclass RankAllocator: ...\ndef compute_orth_regu(): ...\n"
PROGRAM = """
import sys
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
