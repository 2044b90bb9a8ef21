"""``adalora plan FLAGS...``: what run_glue.py would do with these flags, without training."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(flags: Sequence[str]) -> int:
    """Print the plan; 1 if something is wrong with its schedule."""
    from adalora.flags_help import show_help

    if show_help(flags, program="adalora plan"):
        return 0
    from rich.console import Console

    from adalora.loralib_check import require_our_loralib
    from adalora.report import plan_summary

    require_our_loralib()
    from adalora.training import parse_arguments
    from adalora.training.plan import make_plan

    plan = make_plan(parse_arguments(flags, program="adalora plan"))
    Console().print(plan_summary(plan))
    return 1 if plan.problems else 0
