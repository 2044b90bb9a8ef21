"""Finished runs as records: what a run was told, what it reached, and what it cost."""

from __future__ import annotations

from adalora.runs.record import RECORD_FILE, RunRecord, RunWarning, SplitScores, WarningKind

__all__ = ["RECORD_FILE", "RunRecord", "RunWarning", "SplitScores", "WarningKind"]
