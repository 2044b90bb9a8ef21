"""A Trainer whose checkpoints are whole or absent, and whose resumed runs end as if never stopped.

A checkpoint holds what trains, never the frozen base, as safetensors and JSON (the format:
``docs/checkpoints.md``). Nothing that the installed Trainer would pickle is written or read. What
must agree for an exact continuation is in ``settings.py``, what a process must remember in
``state.py``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import transformers
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from safetensors import SafetensorError
from torch import nn
from transformers import TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput

from adalora.adapters.trainable import load_trainable, save_trainable
from adalora.errors import UserError
from adalora.storage.atomic import remove
from adalora.storage.files import listed, not_finite
from adalora.storage.nested import load_state, save_state, state_bytes, tensors_of
from adalora.storage.snapshots import (
    Manifest,
    newest_sound,
    publish,
    remove_leftovers,
    rotate,
    staging_folder,
    verify,
)
from adalora.training.build import count_steps
from adalora.training.callbacks import TrainingTime
from adalora.training.checkpointing.settings import (
    CLASSES,
    TOKENIZER,
    TRAINING_DATA,
    differences,
    trainer_settings,
)
from adalora.training.checkpointing.state import (
    Continuation,
    RunningMean,
    random_state_kept,
    weights_kept,
)
from adalora.training.nonfinite import BadSteps
from adalora.training.optimizer import advance_scheduler, load_optimizer, optimizer_state
from adalora.training.protocol import Adaptation

logger = logging.getLogger(__name__)

TRAINABLE_FILE = "trainable.safetensors"
ALLOCATOR_FILE = "allocator.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "trainer_state.json"


class ResumableTrainer(transformers.Trainer):  # type: ignore[misc]
    """Writing checkpoints, choosing one, checking it, and continuing from it exactly.

    Args:
        adaptation: the method over the model, whose state belongs to a checkpoint; None for none.
        settings: what else decides the result of the run, by flag, as JSON values; kept in every
            checkpoint and compared when a run is resumed.
        **kwargs: those of ``transformers.Trainer``.
    """

    def __init__(
        self,
        *args: Any,
        adaptation: Adaptation | None = None,
        settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.adaptation = adaptation
        self.settings: dict[str, Any] = json.loads(json.dumps(dict(settings or {})))
        self.penalty, self.bad_steps = RunningMean(), BadSteps()
        self.training_time = TrainingTime()
        self.add_callback(self.training_time)
        self.continuation = Continuation(self)
        self._settings_changed = False
        self.add_callback(self.continuation)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict; training continues, and is saved, as if it had not been."""
        # In place, after training: --bf16_full_eval and --fp16_full_eval.
        casts = self.args.bf16_full_eval or self.args.fp16_full_eval
        weights = weights_kept(self._unwrapped) if casts else nullcontext()
        with random_state_kept(), self.training_time.evaluation(), weights:
            return super().evaluation_loop(*args, **kwargs)

    # ---- writing checkpoints ----

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the trained parameters, not the frozen base."""
        folder = Path(output_dir or str(self.args.output_dir))
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_trainable(self._unwrapped, folder / TRAINABLE_FILE)
        if self.processing_class is not None:
            try:
                self.processing_class.save_pretrained(folder)
            except Exception as error:
                # The tokenizers library has no exception of its own for a full disk.
                if type(error) is Exception:
                    raise OSError(str(error)) from error
                raise

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint to a staging folder, and rename it when every process is done.

        Raises:
            UserError: if a process could not write; the earlier checkpoints are as they were.
        """
        self.store_flos()
        folder = Path(self._get_output_dir(trial=trial))
        target = folder / f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(target)
        staging = staging_folder(target)
        memories = self._gather_memories()
        try:
            self._in_every_process(target, lambda: _empty(staging))
            self._in_every_process(target, lambda: self._write_parts(staging, memories))
            self._in_every_process(target, lambda: self._publish(target))
        except UserError:
            if self.args.should_save:
                remove(staging)
            raise
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))

    def _gather_memories(self) -> list[bytes]:
        """What each process must remember, as its file's content: one of them writes it all."""
        if self.args.save_only_model:
            return []
        name = _process_file(self.args.process_index)
        return list(gather_object([state_bytes(self.continuation.state(), name)]))

    def _write_parts(self, folder: Path, memories: list[bytes]) -> None:
        """The files of a checkpoint; this process writes for all."""
        self._save(str(folder))
        if self.adaptation is not None and self.adaptation.begun:
            save_state(self.adaptation.state_dict(), folder / ALLOCATOR_FILE)
        if not self.args.save_only_model:
            state = optimizer_state(self.optimizer, self._unwrapped)
            state["scheduler"] = cast(Any, self.lr_scheduler).state_dict()
            if self.accelerator.scaler is not None:
                state["scaler"] = self.accelerator.scaler.state_dict()
            save_state(state, folder / OPTIMIZER_FILE)
        self._note_callbacks()
        self.state.save_to_json(str(folder / STATE_FILE))
        for process, memory in enumerate(memories):
            (folder / _process_file(process)).write_bytes(memory)

    def _note_callbacks(self) -> None:
        """Put the state of callbacks that have one where ``trainer_state.json`` keeps it."""
        found: dict[str, list[dict[str, Any]]] = {}
        for callback in (*self.callback_handler.callbacks, self.control):
            if isinstance(callback, ExportableState):
                found.setdefault(type(callback).__name__, []).append(callback.state())
        # As the Trainer reads it back: a list where there are several of a kind.
        cast(Any, self.state).stateful_callbacks = {
            name: states[0] if len(states) == 1 else states for name, states in found.items()
        }

    def _publish(self, target: Path) -> None:
        publish(target, step=self.state.global_step, settings=self._resume_settings())
        best = self.state.best_model_checkpoint
        protected = [] if best is None else [Path(best)]
        rotate(target.parent, self.args.save_total_limit, newest=target, protected=protected)

    def _in_every_process(self, target: Path, work: Callable[[], None]) -> None:
        """Do ``work`` where files are written; all processes wait, and fail if one does."""
        failure: str | None = None
        try:
            if self.args.should_save:
                work()
        except UserError as error:
            failure = str(error)
        except (OSError, SafetensorError) as error:
            failure = (
                f"The checkpoint {target} could not be written ({error}). Earlier ones are as "
                "they were: make room or choose another place, and start the same command again."
            )
        failures = [one for one in gather_object([failure]) if one is not None]
        if failures:
            raise UserError(failures[0])

    # ---- continuing from checkpoints ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As ``transformers.Trainer.train``, from the start or from a checkpoint.

        ``resume_from_checkpoint=True`` takes the last one in ``output_dir`` that is whole.

        Raises:
            UserError: if the checkpoint is absent, damaged, or of a run with other settings.
        """
        folder = Path(str(self.args.output_dir))
        if self.args.should_save:
            remove_leftovers(folder)
        if resume_from_checkpoint is True:
            newest = newest_sound(folder)
            if newest is None:
                raise UserError(f"{folder} holds no checkpoint to resume from.")
            resume_from_checkpoint = str(newest)
        self.continuation.resume(None)
        self._settings_changed = False
        return super().train(resume_from_checkpoint or None, trial, ignore_keys_for_eval)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Check a checkpoint and this run against one another, and take its parameters over."""
        folder = Path(resume_from_checkpoint)
        manifest = verify(folder, require=(TRAINABLE_FILE, STATE_FILE))
        if OPTIMIZER_FILE not in manifest.files:
            raise UserError(
                f"{folder} was written with --save_only_model and holds no optimizer to resume "
                "with; choose another checkpoint, or start afresh with --overwrite_output_dir."
            )
        self._compare_settings(folder, manifest)
        try:
            TrainerState.load_from_json(str(folder / STATE_FILE))
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(f"{folder / STATE_FILE} is no trainer's state: {error}") from error
        process, file = None, _process_file(self.args.process_index)
        if file in manifest.files:
            process = load_state(folder / file)
        else:
            message = "%s holds no random generators for process %d; they start anew."
            logger.warning(message, folder, self.args.process_index)
        load_trainable(self._unwrapped, folder / TRAINABLE_FILE)
        try:
            self.continuation.resume(process)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{folder / file} does not hold what it should: {error!r}") from error

    def _compare_settings(self, folder: Path, manifest: Manifest) -> None:
        different = differences(manifest.settings, self._resume_settings())
        self._settings_changed = bool(different)
        if not different:
            return
        shown = "; ".join(f"{name}: {values}" for name, values in different.items())
        if "optim" in different:
            raise UserError(
                f"{folder} holds the state of another optimizer ({shown}); give --optim as it was."
            )
        if CLASSES in different:
            raise UserError(
                f"{folder} is of a run on other classes ({shown}). Start afresh with "
                "--overwrite_output_dir, or in another --root_output_dir, where --lora_path can "
                "take over a finished run's adapters and the classes that it knows."
            )
        if not getattr(self.args, "force_resume", False):
            changed = {TRAINING_DATA: "other training data", TOKENIZER: "another tokenizer"}
            what = " and ".join(words for name, words in changed.items() if name in different)
            kept = "Give the data as it was" if what else "Give the flags as they were"
            raise UserError(
                f"{folder} is of a run with {what or 'other settings'} ({shown}). {kept}, start "
                "afresh with --overwrite_output_dir, or continue with the new ones by "
                "--force_resume."
            )
        message = "%s continues with other settings, as --force_resume asks: %s"
        logger.warning(message, folder, shown)

    def _resume_settings(self) -> dict[str, Any]:
        """What decides the result of this run, as JSON values."""
        sized = hasattr(self.train_dataset, "__len__")
        examples = len(cast(Any, self.train_dataset)) if sized else None
        settings = trainer_settings(
            self.args,
            examples=examples,
            total_steps=count_steps(examples or 0, cast(Any, self.args)),
            adaptation=self.adaptation,
        )
        return {**self.settings, **settings}

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Optimizer, learning rate, allocator; by this run's settings where they were changed."""
        if checkpoint is None:
            return
        path = Path(checkpoint) / OPTIMIZER_FILE
        stored = _finite(load_state(path), path)
        try:
            load_optimizer(
                self.optimizer,
                self._unwrapped,
                stored,
                source=str(path),
                keep_hyperparameters=self._settings_changed,
            )
            if self._settings_changed:
                advance_scheduler(self.lr_scheduler, self.state.global_step)
            else:
                cast(Any, self.lr_scheduler).load_state_dict(stored["scheduler"])
            if self.accelerator.scaler is not None and "scaler" in stored:
                self.accelerator.scaler.load_state_dict(stored["scaler"])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not hold what it should: {error!r}") from error
        self._load_allocator(Path(checkpoint), reschedule=self._settings_changed)

    def _load_allocator(self, checkpoint: Path, *, reschedule: bool) -> None:
        if self.adaptation is None:
            return
        # The total number of steps is known by now, and the allocator's state needs its schedule.
        self.adaptation.begin(self.state.max_steps)
        if self.adaptation.begun:
            path = checkpoint / ALLOCATOR_FILE
            state = _finite(load_state(path), path)
            self.adaptation.load_state_dict(state, reschedule=reschedule)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing: the gradient scaler comes with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.continuation.restore_random_state()

    def _load_best_model(self) -> None:
        """Parameters of the best checkpoint, and the ranks that belong to them."""
        folder = Path(str(self.state.best_model_checkpoint))
        verify(folder, require=(TRAINABLE_FILE,))
        load_trainable(self._unwrapped, folder / TRAINABLE_FILE)
        # Only its ranks are wanted, whatever schedule it was made by.
        self._load_allocator(folder, reschedule=True)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """One epoch; none where the checkpoint was the last, after which the Trainer would step."""
        over = self.state.global_step >= self.state.max_steps or self.control.should_training_stop
        if not over:
            super()._run_epoch(*args, **kwargs)

    @property
    def _unwrapped(self) -> nn.Module:
        return cast(nn.Module, self.accelerator.unwrap_model(self.model))


def _process_file(process: int) -> str:
    return f"process-{process}.safetensors"


def _empty(folder: Path) -> None:
    """Make ``folder``, without what a killed process left there."""
    remove(folder)
    folder.mkdir(parents=True)


def _finite(state: dict[str, Any], source: Path) -> dict[str, Any]:
    if bad := not_finite(tensors_of(state)):
        raise UserError(
            f"{source} holds NaN or infinity in {listed(bad)}: training had diverged. Choose an "
            "earlier checkpoint."
        )
    return state
