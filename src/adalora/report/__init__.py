"""What a run says in the terminal: ranks by layer and matrix, the closing summary, the plan."""

from __future__ import annotations

from adalora.report.curve import Schedule, budget_curve
from adalora.report.plan import PlanSummary, plan_summary
from adalora.report.ranks import rank_table
from adalora.report.summary import RunSummary, Score, run_summary

__all__ = [
    "PlanSummary",
    "RunSummary",
    "Schedule",
    "Score",
    "budget_curve",
    "plan_summary",
    "rank_table",
    "run_summary",
]
