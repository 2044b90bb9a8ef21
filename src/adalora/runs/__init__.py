"""Finished runs as records: what a run was told, what it reached, and what it cost."""

from __future__ import annotations

from adalora.runs.guards import Evidence, find_warnings
from adalora.runs.plain import plain
from adalora.runs.record import RECORD_FILE, RunRecord, RunWarning, SplitScores, WarningKind

__all__ = [
    "RECORD_FILE",
    "Evidence",
    "RunRecord",
    "RunWarning",
    "SplitScores",
    "WarningKind",
    "find_warnings",
    "plain",
]
