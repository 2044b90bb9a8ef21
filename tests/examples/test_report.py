"""From a real run of the program to its report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from adalora.results.record import RunRecord


def test_a_run_of_the_program_has_a_report_with_every_picture(
    trained: tuple[Path, str], run_command: Any, tmp_path: Path
) -> None:
    pytest.importorskip(
        "adalora.training.make_record", reason="needs a runner that writes run.json"
    )
    root, _ = trained
    report = tmp_path / "report"
    done = run_command([sys.executable, "-m", "adalora", "report", root, "-o", report])
    assert str(report / "index.html") in done.stdout
    page = (report / "index.html").read_text(encoding="utf-8")
    record = RunRecord.read(root)
    assert set(record.scores) == {"validation_matched", "validation_mismatched"}
    for split in record.scores:
        assert f"{record.score(split):.4f}" in page
    assert "What was predicted, mini-mnli-mm" in page
    names = {path.stem for path in (report / "pictures").glob("*.png")}
    assert {"ranks", "ranks-by-kind", "ranks-by-layer", "budget", "importance", "loss"} <= names
