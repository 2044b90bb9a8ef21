"""From a real run of the program to its report."""

from __future__ import annotations

from pathlib import Path

import pytest

from adalora.cli import main
from adalora.results.record import RunRecord


def test_a_run_of_the_program_has_a_report_with_every_picture(
    trained: tuple[Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip(
        "adalora.training.make_record", reason="needs a runner that writes run.json"
    )
    root, _ = trained
    report = tmp_path / "report"
    assert main(["report", str(root), "-o", str(report)]) == 0
    assert str(report / "index.html") in capsys.readouterr().out
    page = (report / "index.html").read_text(encoding="utf-8")
    record = RunRecord.read(root)
    assert set(record.scores) == {"validation_matched", "validation_mismatched"}
    for split in record.scores:
        assert f"{record.score(split):.4f}" in page
    assert "What was predicted, mini-mnli-mm" in page
    names = {path.stem for path in (report / "pictures").glob("*.png")}
    assert {"ranks", "ranks-by-kind", "ranks-by-layer", "budget", "importance", "loss"} <= names
