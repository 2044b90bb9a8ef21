"""Finished runs, read and summarised once: records, rows, scores, differences, intervals."""

from __future__ import annotations

from adalora.results.guards import Evidence, find_warnings
from adalora.results.record import RECORD_FILE, RunRecord, RunWarning, SplitScores, WarningKind
from adalora.results.sources import RESULTS_FILE, Result, read_results
from adalora.storage.files import plain

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
