"""``adalora train FLAGS...``: the program of run_glue.py, where there is no checkout."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(flags: Sequence[str]) -> int:
    """Train, evaluate and predict as the flags say."""
    from adalora.flags_help import show_help

    if show_help(flags, program="adalora train"):
        return 0
    from adalora.loralib_check import require_our_loralib

    require_our_loralib()
    from adalora.training import program

    program.run(flags, program="adalora train")
    return 0
