"""The record of one finished run, ``run.json``: all that a table, a report or a rerun needs of it.

Plain facts only, so that reading a record loads neither a model nor torch. In the file a number
that is not finite is ``null`` (JSON has no other word for it); read back, a metric is NaN again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict, cast, get_args

from adalora.errors import UserError
from adalora.storage.atomic import atomic_write
from adalora.storage.files import plain

RECORD_FILE = "run.json"

WarningKind = Literal[
    "one_class",
    "loss_not_finite",
    "ranks_unchanged",
    "delta_zero",
    "no_better_than_majority",
    "steps_skipped",
    "other",
]


class RunWarning(TypedDict):
    """Something about a run that its scores alone do not tell."""

    kind: WarningKind
    message: str


class SplitScores(TypedDict):
    """What a run reached on one evaluation set.

    ``main`` names the metric that the task is judged by. ``saved`` holds every metric of the model
    that the run left, as a fraction, and ``last`` those of the last epoch: the same, but with
    ``--load_best_model_at_end`` of the last evaluation on the way, None where there was none on
    this set. ``best`` holds the metrics of the epoch (``best_epoch``) with the best main one, None
    where nothing was evaluated on the way. ``majority`` is the main metric of always answering the
    most frequent class, ``samples`` the examples of the set.
    """

    main: str
    saved: dict[str, float]
    last: dict[str, float] | None
    best: dict[str, float] | None
    best_epoch: float | None
    majority: float
    samples: int


_OPTIONAL = ("warnings", "format_version")
_PARAMETERS = ("adapter_initial", "adapter_kept", "head", "trained", "total")
_HARDWARE = ("machine", "processor", "cores", "threads", "device", "precision", "processes")
_VERSIONS = ("python", "torch", "transformers", "adalora", "loralib")


@dataclass(frozen=True)
class RunRecord:
    """One finished run.

    Attributes:
        created: end of the run, ISO 8601 with a time zone.
        method: label of the method, such as "AdaLoRA".
        task: name of the task; None for the user's own files.
        base_model: hub id or folder.
        seed: of the whole run.
        command: the words after the program's name.
        flags: every flag whose value is not its default.
        steps: optimizer steps.
        epochs: of the training data.
        seconds: of training; None if the run only evaluated.
        tokens_per_second: real (not padding) training tokens; None likewise.
        peak_memory_bytes: the process's largest resident set, or on CUDA its largest allocation.
        scores: evaluation set -> what was reached on it.
        train_loss: mean task loss of training; None if there was none or it was not finite.
        eval_loss: task loss on the first evaluation set; None likewise.
        parameters: ``adapter_initial`` (trained outside the head), ``adapter_kept`` (the same after
            pruning), ``head``, ``trained`` (adapter_initial + head) and ``total``.
        init_rank: triplets that each matrix began with; 0 for methods without.
        mask_events: how often the allocator pruned.
        rank_pattern: ``<module>.lora_E`` -> triplets kept; empty for methods without.
        hardware: machine, processor, cores, threads, device, precision, processes.
        versions: of python, torch, transformers, adalora, loralib, and peft where it was used.
        revision: git revision of the code, "+changes" behind it if it was edited; None if unknown.
        warnings: what the guards found.
        format_version: of this layout.

    Raises:
        UserError: naming the first field that is not what it should be.
    """

    FORMAT_VERSION: ClassVar[int] = 1

    created: str
    method: str
    task: str | None
    base_model: str
    seed: int
    command: Sequence[str]
    flags: Mapping[str, Any]
    steps: int
    epochs: float
    seconds: float | None
    tokens_per_second: float | None
    peak_memory_bytes: int | None
    scores: Mapping[str, SplitScores]
    train_loss: float | None
    eval_loss: float | None
    parameters: Mapping[str, int]
    init_rank: int
    mask_events: int
    rank_pattern: Mapping[str, int]
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]
    revision: str | None
    warnings: Sequence[RunWarning] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != self.FORMAT_VERSION:
            raise UserError(
                f"The record is of format {self.format_version!r} and this program reads "
                f"{self.FORMAT_VERSION}; use the adalora that wrote it, or a newer one."
            )
        for name, (is_right, expected) in _RULES.items():
            value = getattr(self, name)
            if not is_right(value):
                raise UserError(f"The record's {name!r} is {_shown(value)}; expected {expected}.")
        object.__setattr__(self, "scores", _with_saved(self.scores, self.flags))
        for split, scores in self.scores.items():
            _check_scores(split, scores)
        for path, kept in self.rank_pattern.items():
            if kept > self.init_rank:
                raise UserError(
                    f"The record keeps {kept} triplets of {path!r} and began with "
                    f"{self.init_rank} (init_rank)."
                )
        trained = self.parameters["adapter_initial"] + self.parameters["head"]
        if self.parameters["trained"] != trained:
            raise UserError(
                f"The record counts {self.parameters['trained']} trained parameters, and adapter "
                f"and head together are {trained}."
            )

    # ---- JSON ----

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values, ``format_version`` first; numbers not finite become None."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        first = {"format_version": values.pop("format_version")}
        return cast("dict[str, Any]", plain({**first, **values}))

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, source: str = "The record") -> RunRecord:
        """The record in ``values``; names that this version does not know are passed over.

        Args:
            values: as ``to_json`` gave them.
            source: where they are from, for the message.

        Raises:
            UserError: if something is missing or not what it should be.
        """
        fields = [one.name for one in dataclasses.fields(cls)]
        missing = [name for name in fields if name not in values and name not in _OPTIONAL]
        if missing:
            raise UserError(f"{source} lacks {', '.join(missing)}: it is no record of a run.")
        known = {name: value for name, value in values.items() if name in fields}
        try:
            return cls(**{**known, "scores": _with_nan(known["scores"])})
        except UserError as error:
            raise UserError(f"{source} is damaged or of another version: {error}") from error

    def write(self, folder: Path) -> Path:
        """Write ``run.json`` in ``folder``, whole or not at all; returns its path."""
        path = folder / RECORD_FILE
        text = json.dumps(self.to_json(), indent=2, allow_nan=False, ensure_ascii=False)
        with atomic_write(path) as new:
            new.write_text(text + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: str | Path) -> RunRecord:
        """The record of a run.

        Args:
            path: the run's folder, or its ``run.json``.

        Raises:
            UserError: if there is none, or it cannot be read.
        """
        path = Path(path)
        file = path / RECORD_FILE if path.is_dir() else path
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(
                f"{file} does not exist: no run has finished there. run_glue.py writes it last."
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise UserError(f"{file} holds {type(values).__name__}; a JSON object was expected.")
        return cls.from_json(values, source=str(file))

    # ---- what readers ask most often ----

    def score(self, split: str, *, best: bool = False) -> float:
        """The main metric on ``split``: of the model that the run left, or at the best epoch.

        Where nothing was evaluated on the way the best is that of the model left.
        """
        scores = self.scores[split]
        metrics = (scores["best"] if best else None) or scores["saved"]
        return metrics[scores["main"]]


# ---- rules ----


def _is_int(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _maps(
    value_rule: Callable[[Any], bool], required: tuple[str, ...] = ()
) -> Callable[[Any], bool]:
    def rule(value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and all(isinstance(key, str) for key in value)
            and all(value_rule(one) for one in value.values())
            and all(name in value for name in required)
        )

    return rule


def _lists(value_rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def rule(value: Any) -> bool:
        return isinstance(value, list | tuple) and all(value_rule(one) for one in value)

    return rule


def _or_none(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or rule(value)


def _is_positive_or_zero(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_warning(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and value.get("kind") in get_args(WarningKind)
        and _is_text(value.get("message"))
    )


_COUNT = (_is_int, "a whole number of at least 0")
_TEXT = (_is_text, "a text that is not empty")
_MEASURE = (_or_none(_is_positive_or_zero), "a number of at least 0, or null")

#: Field -> what its value must be, as a test and in words.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "created": (_is_time, "a time such as 2026-01-31T12:00:00+00:00"),
    "method": _TEXT,
    "task": (_or_none(_is_text), "the name of a task, or null"),
    "base_model": _TEXT,
    "seed": (lambda value: _is_int(value, -(2**63)), "a whole number"),
    "command": (_lists(lambda word: isinstance(word, str)), "a list of words"),
    "flags": (_maps(lambda _: True), "flags by name"),
    "steps": _COUNT,
    "epochs": (_is_positive_or_zero, "a number of at least 0"),
    "seconds": _MEASURE,
    "tokens_per_second": _MEASURE,
    "peak_memory_bytes": (_or_none(_is_int), "a whole number of at least 0, or null"),
    "scores": (_maps(lambda one: isinstance(one, Mapping)), "scores by evaluation set"),
    "train_loss": (_or_none(_is_number), "a number or null"),
    "eval_loss": (_or_none(_is_number), "a number or null"),
    "parameters": (_maps(_is_int, _PARAMETERS), f"counts of {', '.join(_PARAMETERS)}"),
    "init_rank": _COUNT,
    "mask_events": _COUNT,
    "rank_pattern": (_maps(_is_int), "triplets kept by matrix"),
    "hardware": (_maps(lambda _: True, _HARDWARE), f"an object with {', '.join(_HARDWARE)}"),
    "versions": (_maps(_is_text, _VERSIONS), f"the versions of {', '.join(_VERSIONS)}"),
    "revision": (_or_none(_is_text), "a git revision or null"),
    "warnings": (
        _lists(_is_warning),
        f"a list of objects with kind (one of {', '.join(get_args(WarningKind))}) and message",
    ),
}


def _check_scores(split: str, scores: Mapping[str, Any]) -> None:
    metrics = _maps(_is_number)
    main = scores.get("main")
    rules: dict[str, tuple[bool, str]] = {
        "main": (_is_text(main), "the name of a metric"),
        "saved": (
            metrics(scores.get("saved")) and main in scores["saved"],
            f"numbers by metric, {main!r} among them",
        ),
        **{
            name: (
                scores.get(name) is None or (metrics(scores[name]) and main in scores[name]),
                f"numbers by metric, {main!r} among them, or null",
            )
            for name in ("last", "best")
        },
        "best_epoch": (_or_none(_is_number)(scores.get("best_epoch")), "a number or null"),
        "majority": (_is_number(scores.get("majority")), "a number"),
        "samples": (_is_int(scores.get("samples")), "a whole number of at least 0"),
    }
    for name, (right, expected) in rules.items():
        if not right:
            raise UserError(
                f"The record's {name!r} on {split} is {_shown(scores.get(name))}; "
                f"expected {expected}."
            )


def _with_saved(scores: Any, flags: Mapping[str, Any]) -> Any:
    """``scores`` with ``saved``, which older records lack: theirs of the model left is ``last``.

    With ``--load_best_model_at_end`` that was the best epoch's, and of the last nothing is known.
    """
    best_left = bool(flags.get("load_best_model_at_end"))
    return {
        split: one
        if "saved" in one
        else {**one, "saved": one.get("last"), "last": None if best_left else one.get("last")}
        for split, one in scores.items()
    }


def _shown(value: object, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + "…"


def _with_nan(scores: Any) -> Any:
    """``scores`` with NaN for each metric that is null; whatever else is wrong is left as it is."""
    if isinstance(scores, Mapping):
        return {
            split: {
                **one,
                **{
                    name: {k: math.nan if v is None else v for k, v in one[name].items()}
                    for name in ("saved", "last", "best")
                    if isinstance(one.get(name), Mapping)
                },
            }
            if isinstance(one, Mapping)
            else one
            for split, one in scores.items()
        }
    return scores
