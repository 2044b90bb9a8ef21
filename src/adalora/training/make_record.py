"""A finished run as facts: its record (``run.json``), its history (``history.json``), answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import nn

from adalora.adapters.freeze import ParameterCounts
from adalora.adapters.head import is_head
from adalora.adapters.kinds import lora_layers
from adalora.glue.metrics import main_metric_of
from adalora.glue.predictions import result_name, write_eval_predictions
from adalora.results.guards import Evidence, find_warnings
from adalora.results.record import RunRecord, SplitScores
from adalora.runtime.machine import hardware, peak_memory, revision, versions
from adalora.storage.files import plain, write_json
from adalora.training.arguments.parser import RunArguments, build_parser
from adalora.training.callbacks import TrainingTime
from adalora.training.run_parts import Evaluated, RunParts, Trained
from adalora.training.tokenise import real_tokens

HISTORY_FILE = "history.json"
#: What the Trainer reports in addition to the metrics of a task.
_NO_METRICS = ("loss", "samples", "runtime", "samples_per_second", "steps_per_second", "model_")
_SECRET = "***"


def make_record(
    parts: RunParts,
    counts: ParameterCounts,
    trained: Trained | None,
    evaluated: Mapping[str, Evaluated],
    command: Sequence[str],
) -> RunRecord:
    """The record of a run that has trained (``trained`` is None otherwise), evaluated or both.

    ``evaluated`` is by split, ``command`` the words of the command line.
    """
    arguments, trainer, state = parts.arguments, parts.trainer, parts.trainer.state
    training = arguments.training
    scores = _scores(parts, trained, {split: one.metrics for split, one in evaluated.items()})
    first = next((one.metrics for one in evaluated.values()), {})
    adaptation, pattern = parts.adaptation, parts.rank_pattern
    allocated = None if adaptation is None else adaptation.counts()
    record = RunRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        method=arguments.method.name,
        task=arguments.data.task_name,
        base_model=arguments.model.model_name_or_path,
        seed=training.seed,
        command=_without_secrets(command),
        flags=given_flags(arguments),
        steps=state.global_step,
        epochs=float(state.epoch or 0.0),
        seconds=TrainingTime.of(trainer).seconds if trained else None,
        tokens_per_second=_tokens_per_second(parts) if trained else None,
        peak_memory_bytes=peak_memory(training.device),
        scores=scores,
        train_loss=None if trained is None else _finite(trained.metrics.get("train_loss")),
        eval_loss=_finite(first.get("eval_loss")),
        parameters={
            "adapter_initial": counts.adapter_initial,
            "adapter_kept": counts.adapter_kept,
            "head": counts.head,
            "trained": counts.adapter_initial + counts.head,
            "total": counts.total,
        },
        init_rank=adaptation.init_rank if adaptation is not None and pattern else 0,
        mask_events=0 if allocated is None else allocated.mask_events,
        rank_pattern=pattern,
        hardware=hardware(
            device=training.device, precision=_precision(arguments), processes=training.world_size
        ),
        versions=versions(*(("peft",) if getattr(arguments.method, "peft_config", None) else ())),
        revision=revision(),
        data=parts.data.understood.as_json(),
    )
    if trained is None:
        return record
    warnings = find_warnings(_evidence(parts, trained, evaluated, scores))
    return dataclasses.replace(record, warnings=warnings)


def write_history(parts: RunParts, evaluated: Mapping[str, Evaluated]) -> None:
    """Write ``history.json`` and the answers on every evaluation set."""
    adaptation = parts.adaptation
    history = {
        "log_history": parts.trainer.state.log_history,
        "allocations": [] if adaptation is None else adaptation.history.entries(),
        "importance": {} if adaptation is None else adaptation.importance(),
    }
    write_json(parts.root / HISTORY_FILE, plain(history))
    for split, one in evaluated.items():
        name = result_name(parts.arguments.data.task_name, split)
        path = parts.root / f"eval_predictions_{name}.tsv"
        answers = one.answers
        write_eval_predictions(path, answers.predictions, answers.labels, parts.data.labels)


def given_flags(arguments: RunArguments) -> dict[str, Any]:
    """Every flag whose value, as it was given, is not its default; secrets are left out."""
    # A default that is a text is parsed like a word of the command line.
    defaults = vars(build_parser().parse_known_args(["--model_name_or_path", ""])[0])
    found: dict[str, Any] = {}
    for part in arguments:
        values = getattr(part, "given", vars(part))
        for field in dataclasses.fields(part):
            value = _json(values.get(field.name))
            # From a file of flags a default comes as the dataclass has it.
            usual = (_json(defaults.get(field.name)), _json(field.default))
            if field.name in defaults and value not in usual:
                found[field.name] = _SECRET if _is_secret(field.name, value) else value
    return found


def fingerprint(model: nn.Module) -> list[float]:
    """A number for each trained parameter outside the head, by which a change of it is seen."""
    return [
        # On the host: an Apple GPU has no float64.
        float(parameter.detach().cpu().sum(dtype=torch.float64))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not is_head(model, name)
    ]


def metric_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The task's metrics in what the Trainer reports, without its prefix."""
    names = {key.removeprefix("eval_"): key for key in metrics if key.startswith("eval_")}
    return {
        name: float(metrics[key])
        for name, key in names.items()
        if not name.startswith(_NO_METRICS) and isinstance(metrics[key], float)
    }


def _scores(
    parts: RunParts, trained: Trained | None, metrics: Mapping[str, Mapping[str, float]]
) -> dict[str, SplitScores]:
    """What was reached on each evaluation set: by the model left, the last one and the best one."""
    training = parts.arguments.training
    main = main_metric_of(parts.data.task, parts.data.is_regression)
    # Only the first evaluation set is evaluated on the way.
    logged = () if trained is None else trained.logged
    on_the_way = [entry for entry in logged if f"eval_{main}" in entry]
    best = max(on_the_way, key=lambda entry: float(entry[f"eval_{main}"]), default=None)
    loaded_best = bool(training.load_best_model_at_end and on_the_way)
    # The Trainer may have chosen by another number, such as the loss.
    by_main = training.metric_for_best_model in (main, f"eval_{main}")
    found: dict[str, SplitScores] = {}
    for split, reached in metrics.items():
        saved = metric_values(reached)
        first = split == parts.data.validation_splits[0]
        scores: SplitScores = {
            "main": main,
            "saved": saved,
            "last": saved,
            "best": metric_values(best) if first and best else None,
            "best_epoch": float(best["epoch"]) if first and best else None,
            "majority": parts.data.majority_score(split, len(parts.splits[split])),
            "samples": len(parts.splits[split]),
        }
        if loaded_best:
            scores["last"] = metric_values(on_the_way[-1]) if first else None
            if not first and by_main and best is not None:
                scores["best"], scores["best_epoch"] = saved, float(best["epoch"])
        found[split] = scores
    return found


def _evidence(
    parts: RunParts,
    trained: Trained,
    evaluated: Mapping[str, Evaluated],
    scores: Mapping[str, SplitScores],
) -> Evidence:
    adaptation, names = parts.adaptation, parts.data.labels
    allocated = None if adaptation is None else adaptation.counts()
    return Evidence(
        answers={split: one.answers.distinct(names) for split, one in evaluated.items()},
        losses=dict(_losses(parts, trained)),
        scores=scores,
        prunes=adaptation is not None and adaptation.settings.allocate,
        init_rank=0 if adaptation is None else adaptation.init_rank,
        rank_pattern=parts.rank_pattern,
        mask_events=0 if allocated is None else allocated.mask_events,
        triplets_held=0 if adaptation is None else adaptation.count_triplets(),
        triplets_wanted=0 if allocated is None else allocated.target_total_rank,
        moved=trained.moved,
        update_is_zero=_update_is_zero(parts.model, moved=trained.moved),
        steps_left_out=parts.trainer.bad_steps.total,
        skipped_steps=0 if allocated is None else allocated.skipped_steps,
        steps=0 if allocated is None else allocated.updates_due,
    )


def _losses(parts: RunParts, trained: Trained) -> Iterator[tuple[str, float]]:
    for name in ("loss", "grad_norm", "eval_loss"):
        for entry in parts.trainer.state.log_history:
            if isinstance(entry.get(name), float):
                yield f"{name} logged at step {entry['step']}", entry[name]
    yield "mean training loss", float(trained.metrics.get("train_loss", 0.0))


def _update_is_zero(model: nn.Module, *, moved: bool) -> bool:
    """Whether no adapted matrix is changed, asked of the factors: the base may be sharded."""
    layers = lora_layers(model).values()
    # What a kind trains beside its product (DoRA's magnitudes) starts where it changes nothing.
    beside = any(None in layer.FACTORS.values() for layer in layers)
    return (
        bool(layers) and not (beside and moved) and all(layer.product_is_zero() for layer in layers)
    )


def _tokens_per_second(parts: RunParts) -> float | None:
    """Real training tokens over the time that was not spent on evaluation."""
    time = TrainingTime.of(parts.trainer)
    epochs = float(parts.trainer.state.epoch or 0.0) - time.since_epoch
    seconds = time.seconds - time.evaluating
    tokens = sum(int(counts.sum()) for counts in real_tokens(parts.splits["train"]))
    return tokens * epochs / seconds if seconds > 0 else None


def _precision(arguments: RunArguments) -> str:
    training = arguments.training
    products = "bfloat16" if training.bf16 else "float16" if training.fp16 else "float32"
    base = arguments.model.base_dtype
    return products if base == "float32" else f"{products}, base {base}"


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


def _json(value: Any) -> Any:
    value = getattr(value, "value", value)  # the choices of transformers are enumerations
    known = value is None or isinstance(value, str | int | float | bool | list | dict)
    return value if known else str(value)


def _is_secret(name: str, value: object) -> bool:
    return name.endswith("_token") and isinstance(value, str)


def _without_secrets(command: Sequence[str]) -> list[str]:
    """The words of a command without what follows a flag such as ``--hub_token``."""
    shown: list[str] = []
    hide = False
    for word in command:
        flag, equals, _ = word.partition("=")
        secret = flag.startswith("--") and flag.endswith("token") and "use_auth" not in flag
        shown.append(_SECRET if hide else f"{flag}={_SECRET}" if secret and equals else word)
        hide = secret and not equals
    return shown
