"""What to type after a run, each command with the reason to."""

from __future__ import annotations

from pathlib import Path

from adalora.glue.tasks import MINI_PREFIX
from adalora.training.parser import RunArguments

__all__ = ["next_commands"]


def next_commands(arguments: RunArguments, script: Path | None) -> list[tuple[str, str]]:
    """Commands that lead on from a trained run.

    Args:
        arguments: what the run was told.
        script: the program that ran; None for ``adalora train``.
    """
    commands = []
    if arguments.training.uses_tensorboard:
        commands.append(("Watch the curves", f"tensorboard --logdir {arguments.training.log_dir}"))
    task_name = arguments.data.task_name or ""
    if task_name.startswith(MINI_PREFIX):
        task = task_name.removeprefix(MINI_PREFIX)
        if scripts := _task_scripts(script):
            example = task if f"run_debertav3_{task}.sh" in scripts else "rte"
            commands.append(
                (
                    "The same on the real task, from the official GLUE files",
                    f"bash scripts/run_debertav3_{example}.sh --data_dir GLUE_FOLDER",
                )
            )
        program = "adalora train" if script is None else f"python {_short(script)}"
        commands.append(
            (
                "The same on your own data",
                f"{program} --model_name_or_path nano --train_file "
                "train.csv --validation_file dev.csv --do_train --do_eval --apply_adalora "
                "--root_output_dir output/mine",
            )
        )
    return commands


def _task_scripts(program: Path | None) -> set[str]:
    """Names of the project's shell scripts, one per task."""
    if program is None:
        return set()
    return {path.name for path in (program.resolve().parents[2] / "scripts").glob("run_*.sh")}


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
