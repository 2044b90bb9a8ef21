"""What a run says in the terminal: ranks by layer and matrix, the closing summary, the plan."""

from __future__ import annotations

from adalora.terminal.plan_summary import PlanSummary, budget_curve, plan_summary
from adalora.terminal.run_summary import RunSummary, Score, rank_table, run_summary

__all__ = [
    "PlanSummary",
    "RunSummary",
    "Score",
    "budget_curve",
    "plan_summary",
    "rank_table",
    "run_summary",
]
