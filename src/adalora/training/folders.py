"""The folder of a run: made, held, checked and cleared before any work, so that nothing is lost.

Layout: ``model/`` (artefact, and the Trainer's checkpoints), ``log/`` (TensorBoard), ``log.txt``,
and the results as JSON files next to them.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import transformers
from accelerate.utils import broadcast_object_list, gather_object  # type: ignore[import-untyped]

from adalora.errors import UserError
from adalora.storage.atomic import locked_folder, without_links
from adalora.storage.files import listed
from adalora.storage.snapshots import newest_sound, snapshots, verify
from adalora.training.arguments.training import AdaLoraTrainingArguments

#: What a run writes next to ``model/`` and ``log/``; first what says that it is finished.
_RESULTS = (
    *("run.json", "history.json", "train_results.json", "rank_pattern.json"),
    *("eval_results_*.json", "eval_predictions_*.tsv", "test_results_*.txt"),
)


@contextmanager
def hold_folder(training: AdaLoraTrainingArguments) -> Iterator[None]:
    """Make the run's folder, and keep every other run out of it while inside.

    Raises:
        UserError: in every process of the job, if the folder cannot be written, or another run is
            at work in it.
    """
    with ExitStack() as held:
        failure = None
        if training.should_save:
            try:
                root = Path(str(training.root_output_dir))
                with _said_of(root):
                    Path(str(training.output_dir)).mkdir(parents=True, exist_ok=True)
                held.enter_context(locked_folder(root))
                with _said_of(root):
                    _check_folder(training)
            except UserError as error:
                failure = str(error)
        if failures := [one for one in gather_object([failure]) if one is not None]:
            raise UserError(failures[0])
        yield


@contextmanager
def _said_of(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--root_output_dir {str(root)!r} cannot be written to ({error}); choose another."
        ) from error


def _check_folder(training: AdaLoraTrainingArguments) -> None:
    """Raise OSError where the folder that this run holds cannot be written to."""
    if not os.access(str(training.output_dir), os.W_OK):
        raise PermissionError(f"no permission to write in {training.output_dir}")
    if training.process_index == 0:
        log = os.path.join(str(training.root_output_dir), "log.txt")
        os.close(without_links(log, os.O_WRONLY | os.O_CREAT))


def find_checkpoint(training: AdaLoraTrainingArguments) -> str | None:
    """The checkpoint that training resumes from, chosen by the first process for all.

    Its folder is as this process sees it; None for a fresh start.

    Raises:
        UserError: in every process, if the first finds nothing to resume from where it should
            (``_choose_checkpoint``), or one does not see what the first has chosen.
    """
    chosen, failure = None, None
    if training.process_index == 0:
        try:
            chosen = _choose_checkpoint(training)
        except UserError as error:
            failure = str(error)
    chosen, failure = broadcast_object_list([chosen, failure])
    if failure is not None:
        raise UserError(failure)
    if chosen is None:
        return None
    # On nodes without a common file system each has a folder of its own.
    wanted = _wanted_checkpoint(training)
    own = Path(wanted or os.path.join(str(training.output_dir), Path(chosen).name))
    blind = None if own.is_dir() else f"process {training.process_index} on {socket.gethostname()}"
    if missing := [one for one in gather_object([blind]) if one is not None]:
        raise UserError(
            f"Training resumes from {chosen}, and {listed(missing)} cannot see it: put "
            "--root_output_dir on a file system that all nodes share, or copy the checkpoint to "
            "each (--save_on_each_node writes it to each)."
        )
    return str(own)


def _wanted_checkpoint(training: AdaLoraTrainingArguments) -> str | None:
    """The folder that ``--resume_from_checkpoint`` names; None where it names none."""
    wanted = str(training.resume_from_checkpoint or "")
    return wanted if wanted.lower() not in ("", "true", "false") else None


def _choose_checkpoint(training: AdaLoraTrainingArguments) -> str | None:
    """The checkpoint that training resumes from, checked byte by byte; None for a fresh start.

    As in the original: with ``--overwrite_output_dir`` the run starts afresh; without it training
    resumes from the last checkpoint there, and refuses if there are files and no checkpoint. A
    damaged checkpoint is passed over in favour of the one before. ``--resume_from_checkpoint``
    (a checkpoint, or True for the last one) is stronger than ``--overwrite_output_dir``. Nothing
    is removed here; ``clear_earlier_run`` does that once the new run is known to be sound.

    Raises:
        UserError: if the folder holds an earlier run's files that nothing can be resumed from, or
            the checkpoint asked for is absent or damaged.
    """
    if not training.do_train:
        return None
    model = Path(str(training.output_dir))
    if (wanted := _wanted_checkpoint(training)) is not None:
        if not Path(wanted).is_dir():
            raise UserError(f"--resume_from_checkpoint {wanted!r} is not a checkpoint's folder.")
        verify(Path(wanted))
        return wanted
    last_one = str(training.resume_from_checkpoint or "").lower() == "true"
    if training.overwrite_output_dir and not last_one:
        return None
    if (last := newest_sound(model)) is not None:
        return str(last)
    if last_one:
        raise UserError(f"--resume_from_checkpoint True, and {model} holds no checkpoint.")
    # Hidden names are of a run that was killed while it wrote its first checkpoint.
    if any(not path.name.startswith(".") for path in model.iterdir()):
        raise UserError(
            f"{model} holds files of an earlier run and no checkpoint to resume from; choose "
            "another --root_output_dir, or --overwrite_output_dir to replace them."
        )
    return None


def clear_earlier_run(training: AdaLoraTrainingArguments, *, resumes: bool = False) -> None:
    """Remove what an earlier run wrote, and only that; call it right before training starts.

    Without ``--overwrite_output_dir``, or where that run ``resumes``, nothing is removed.
    """
    if resumes or not training.overwrite_output_dir or training.process_index != 0:
        return
    root, model = Path(str(training.root_output_dir)), Path(str(training.output_dir))
    for checkpoint in snapshots(model):
        shutil.rmtree(checkpoint)
    for pattern in _RESULTS:
        for file in root.glob(pattern):
            file.unlink()


class _LogFile(logging.FileHandler):
    """Appends to a file of that name, and never to what a link of that name points to."""

    def _open(self) -> Any:
        return open(self.baseFilename, "a", encoding=self.encoding, opener=without_links)


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
        path = Path(str(training.root_output_dir)) / "log.txt"
        file = _LogFile(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s - %(levelname)s - %(name)s - %(message)s"))
        root.addHandler(file)
    logging.captureWarnings(True)
    # The library prints to the terminal through a handler of its own; one way out is enough.
    transformers.utils.logging.disable_default_handler()
    transformers.utils.logging.enable_propagation()
    transformers.utils.logging.set_verbosity(logging.INFO if main else logging.WARNING)
