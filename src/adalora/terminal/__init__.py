"""What a run says in the terminal: ranks by layer and matrix, the closing summary, the plan."""

from __future__ import annotations

from adalora.terminal.summaries import (
    PlanSummary,
    RunSummary,
    Score,
    budget_curve,
    plan_summary,
    rank_table,
    run_summary,
)

__all__ = [
    "PlanSummary",
    "RunSummary",
    "Score",
    "budget_curve",
    "plan_summary",
    "rank_table",
    "run_summary",
]
