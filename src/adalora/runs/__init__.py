"""Finished runs as records: what a run was told, what it reached, and what it cost."""

from __future__ import annotations

from adalora.runs.guards import Evidence, find_warnings
from adalora.runs.plain import plain
from adalora.runs.record import RECORD_FILE, RunRecord, RunWarning, SplitScores, WarningKind
from adalora.runs.results import RESULTS_FILE, Result, read_results

__all__ = [
    "RECORD_FILE",
    "RESULTS_FILE",
    "Evidence",
    "Result",
    "RunRecord",
    "RunWarning",
    "SplitScores",
    "WarningKind",
    "find_warnings",
    "plain",
    "read_results",
]
