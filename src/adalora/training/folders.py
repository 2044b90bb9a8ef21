"""The folder of a run: made, checked and cleared before any work, so that nothing is lost by it.

Layout: ``model/`` (artefact, and the Trainer's checkpoints), ``log/`` (TensorBoard), ``log.txt``,
and the results as JSON files beside them.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path

import transformers
from transformers.trainer_utils import get_last_checkpoint

from adalora.errors import UserError
from adalora.training.arguments import AdaLoraTrainingArguments

__all__ = ["clear_earlier_run", "configure_logging", "prepare_folder"]


def prepare_folder(training: AdaLoraTrainingArguments) -> str | None:
    """Make the run's folder and say which checkpoint training resumes from.

    As in the original: with ``--overwrite_output_dir`` the run starts afresh; without it training
    resumes from the last checkpoint there, and refuses if there are files and no checkpoint.
    Nothing is removed here; ``clear_earlier_run`` does that once the new run is known to be sound.

    Returns:
        Path of the checkpoint to resume from, or None.

    Raises:
        UserError: if the folder cannot be written, holds an unfinished run's files that nothing
            can be resumed from, or the checkpoint asked for does not exist.
    """
    root, model = Path(str(training.root_output_dir)), Path(str(training.output_dir))
    try:
        model.mkdir(parents=True, exist_ok=True)
        if not os.access(model, os.W_OK):
            raise PermissionError(f"no permission to write in {model}")
    except OSError as error:
        raise UserError(
            f"--root_output_dir {str(root)!r} cannot be written to ({error}); choose another."
        ) from error
    _check_checkpoint(training.resume_from_checkpoint)
    if not training.do_train:
        return None
    wanted = training.resume_from_checkpoint
    if wanted is not None and wanted.lower() not in ("true", "false"):
        return wanted
    last = get_last_checkpoint(str(model))
    if wanted is not None and wanted.lower() == "true":
        if last is None:
            raise UserError(f"--resume_from_checkpoint True, and {model} holds no checkpoint.")
        return str(last)
    if training.overwrite_output_dir:
        return None
    if last is None and any(model.iterdir()):
        raise UserError(
            f"{model} holds files of an earlier run and no checkpoint to resume from; choose "
            "another --root_output_dir, or --overwrite_output_dir to replace them."
        )
    return None if last is None else str(last)


def _check_checkpoint(path: str | None) -> None:
    if path is None or path.lower() in ("true", "false"):
        return
    if not (Path(path) / "trainer_state.json").is_file():
        raise UserError(
            f"--resume_from_checkpoint {path!r} is not a checkpoint: it has no trainer_state.json."
        )


def clear_earlier_run(training: AdaLoraTrainingArguments) -> None:
    """Remove what an earlier run wrote, and only that; call it right before training starts."""
    if not training.overwrite_output_dir or training.process_index != 0:
        return
    root, model = Path(str(training.root_output_dir)), Path(str(training.output_dir))
    for checkpoint in model.glob("checkpoint-*"):
        if checkpoint.is_dir():
            shutil.rmtree(checkpoint)
    for pattern in ("eval_results_*.json", "test_results_*.txt", "train_results.json"):
        for file in root.glob(pattern):
            file.unlink()
    (root / "rank_pattern.json").unlink(missing_ok=True)


def configure_logging(training: AdaLoraTrainingArguments) -> None:
    """Send log records to ``log.txt`` in full, and warnings to the terminal.

    The records of transformers and of this project go to the file from the first process only.
    """
    main = training.process_index == 0
    root = logging.getLogger()
    root.setLevel(logging.INFO if main else logging.WARNING)
    for handler in list(root.handlers):
        root.removeHandler(handler)
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.WARNING)
    terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    root.addHandler(terminal)
    if main:
        file = logging.FileHandler(
            Path(str(training.root_output_dir)) / "log.txt", encoding="utf-8"
        )
        file.setFormatter(logging.Formatter("%(asctime)s - %(levelname)s - %(name)s - %(message)s"))
        root.addHandler(file)
    logging.captureWarnings(True)
    # The library prints to the terminal through a handler of its own; one way out is enough.
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
    transformers.utils.logging.set_verbosity(logging.INFO if main else logging.WARNING)
