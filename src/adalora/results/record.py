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
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypedDict,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from adalora.errors import UserError
from adalora.storage.atomic import atomic_write
from adalora.storage.files import plain, read_json

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


@dataclass(frozen=True)
class _Rule:
    """What an annotated value must be beyond its type: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool] = lambda value: True


def _with_names(words: str, *names: str) -> _Rule:
    return _Rule(f"{words} {', '.join(names)}", lambda value: set(names) <= set(value))


def _has_zone(value: str) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


Text = Annotated[str, _Rule("a text that is not empty", bool)]
Time = Annotated[str, _Rule("a time such as 2026-01-31T12:00:00+00:00", _has_zone)]
Count = Annotated[int, _Rule("a whole number of at least 0", lambda value: value >= 0)]
Measure = Annotated[float, _Rule("a number of at least 0", lambda value: value >= 0)]
Metrics = Annotated[dict[str, float], _Rule("numbers by metric")]


class RunWarning(TypedDict):
    """Something about a run that its scores alone do not tell."""

    kind: WarningKind
    message: Text


class SplitScores(TypedDict):
    """What a run reached on one evaluation set.

    ``main`` names the metric that the task is judged by. ``saved`` holds every metric of the model
    that the run left, as a fraction, and ``last`` those of the last epoch: the same, but with
    ``--load_best_model_at_end`` of the last evaluation on the way, None where there was none on
    this set. ``best`` holds the metrics of the epoch (``best_epoch``) with the best main one, None
    where nothing was evaluated on the way. ``majority`` is the main metric of always answering the
    most frequent class, ``samples`` the examples of the set.
    """

    main: Text
    saved: Metrics
    last: Metrics | None
    best: Metrics | None
    best_epoch: float | None
    majority: float
    samples: Count


_OPTIONAL = ("warnings", "data", "format_version")


@dataclass(frozen=True)
class RunRecord:
    """One finished run.

    Raises:
        UserError: naming the first field that is not what it should be.
    """

    FORMAT_VERSION: ClassVar[int] = 1

    created: Time  #: end of the run, ISO 8601 with a time zone
    method: Text  #: label of the method, such as "AdaLoRA"
    task: Text | None  #: name of the task; None for the user's own files
    base_model: Text  #: hub id or folder
    seed: int  #: of the whole run
    #: the words after the program's name
    command: Annotated[Sequence[str], _Rule("a list of words")]
    #: every flag whose value is not its default
    flags: Annotated[Mapping[str, Any], _Rule("flags by name")]
    steps: Count  #: optimizer steps
    epochs: Measure  #: of the training data
    seconds: Measure | None  #: of training; None if the run only evaluated
    tokens_per_second: Measure | None  #: real (not padding) training tokens; None likewise
    #: the process's largest resident set, or on CUDA its largest allocation
    peak_memory_bytes: Count | None
    #: evaluation set -> what was reached on it
    scores: Annotated[Mapping[str, SplitScores], _Rule("scores by evaluation set")]
    #: mean task loss of training; None if there was none or it was not finite
    train_loss: float | None
    eval_loss: float | None  #: task loss on the first evaluation set; None likewise
    #: ``adapter_initial`` (trained outside the head), ``adapter_kept`` (the same after pruning),
    #: ``head``, ``trained`` (adapter_initial + head) and ``total``
    parameters: Annotated[
        Mapping[str, Count],
        _with_names("counts of", "adapter_initial", "adapter_kept", "head", "trained", "total"),
    ]
    init_rank: Count  #: triplets that each matrix began with; 0 for methods without
    mask_events: Count  #: how often the allocator pruned
    #: ``<module>.lora_E`` -> triplets kept; empty for methods without
    rank_pattern: Annotated[Mapping[str, Count], _Rule("triplets kept by matrix")]
    hardware: Annotated[
        Mapping[str, Any],
        _with_names(
            "an object with",
            *("machine", "processor", "cores", "threads", "device", "precision", "processes"),
        ),
    ]
    #: and of peft where it was used
    versions: Annotated[
        Mapping[str, Text],
        _with_names("the versions of", "python", "torch", "transformers", "adalora", "loralib"),
    ]
    #: git revision of the code, "+changes" behind it if it was edited; None if unknown
    revision: Text | None
    warnings: Annotated[Sequence[RunWarning], _Rule("a list of warnings")] = field(
        default_factory=list
    )
    #: what the run understood of its data and its start (``Understood``)
    data: Annotated[Mapping[str, Any], _Rule("facts by name")] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION  #: of this layout

    def __post_init__(self) -> None:
        if self.format_version != self.FORMAT_VERSION:
            raise UserError(
                f"The record is of format {self.format_version!r} and this program reads "
                f"{self.FORMAT_VERSION}; use the adalora that wrote it, or a newer one."
            )
        _check(vars(self), RunRecord)
        for warning in self.warnings:
            _check(warning, RunWarning, " of a warning")
        object.__setattr__(self, "scores", _completed(self.scores, self.flags))
        for split, scores in self.scores.items():
            _check(scores, SplitScores, f" on {split}")
            main = scores["main"]
            for name in _hints(SplitScores):
                metrics = scores.get(name)
                if isinstance(metrics, Mapping) and main not in metrics:
                    raise UserError(
                        f"The record's {name!r} on {split} is {_shown(metrics)}; expected numbers "
                        f"by metric, {main!r} among them."
                    )
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

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values, ``format_version`` first; numbers not finite become None."""
        values = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        first = {"format_version": values.pop("format_version")}
        return cast("dict[str, Any]", plain({**first, **values}))

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, source: str = "The record") -> RunRecord:
        """The record in ``values``; names that this version does not know are passed over.

        One in which something is missing or not what it should be is refused, naming ``source``.
        """
        fields = [one.name for one in dataclasses.fields(cls)]
        missing = [name for name in fields if name not in values and name not in _OPTIONAL]
        if missing:
            raise UserError(f"{source} lacks {', '.join(missing)}: it is no record of a run.")
        known = {name: value for name, value in values.items() if name in fields}
        try:
            return cls(**known)
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
        """The record of a run in ``path``, its folder or ``run.json``; refused if unreadable."""
        path = Path(path)
        file = path / RECORD_FILE if path.is_dir() else path
        if not file.exists():
            raise UserError(
                f"{file} does not exist: no run has finished there. run_glue.py writes it last."
            )
        return cls.from_json(read_json(file), source=str(file))

    def score(self, split: str, *, best: bool = False) -> float:
        """The main metric on ``split``: of the model that the run left, or at the best epoch.

        Where nothing was evaluated on the way the best is that of the model left.
        """
        scores = self.scores[split]
        metrics = (scores["best"] if best else None) or scores["saved"]
        return metrics[scores["main"]]


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _check(values: Mapping[str, Any], kind: type, where: str = "") -> None:
    """Refuse the first of ``values`` that is not what ``kind`` annotates it as."""
    for name, hint in _hints(kind).items():
        value = values.get(name)
        if get_origin(hint) is not ClassVar and not _fits(value, hint):
            raise UserError(
                f"The record's {name!r}{where} is {_shown(value)}; expected {_words(hint)}."
            )


def _fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of the type ``hint``; of a TypedDict, whether it is a mapping."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, inner[0]) and bool(inner[1].holds(value))
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(_fits(one, inner[0]) for one in value)
    if origin in (Mapping, dict):
        return isinstance(value, Mapping) and all(
            _fits(key, inner[0]) and _fits(one, inner[1]) for key, one in value.items()
        )
    if is_typeddict(hint):
        return isinstance(value, Mapping)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return hint is Any or isinstance(value, int | float if hint is float else hint)


def _words(hint: Any) -> str:
    """What ``_fits`` wants, for a sentence."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return str(inner[1].words)
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if inner:
        return ", or ".join(map(_words, inner))
    return {int: "a whole number", float: "a number", NoneType: "null"}[hint]


def _completed(scores: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """``scores`` with NaN for each metric that is null, and with ``saved``, which old records lack.

    Their metrics of the model left are in ``last``; with ``--load_best_model_at_end`` that was the
    best epoch's, and of the last nothing is known.
    """
    completed = {}
    for split, one in scores.items():
        own = {
            name: {key: math.nan if number is None else number for key, number in value.items()}
            if isinstance(value, Mapping)
            else value
            for name, value in one.items()
        }
        if "saved" not in own:
            last = own.get("last")
            known = None if flags.get("load_best_model_at_end") else last
            own = {"saved": last, **own, "last": known}
        completed[split] = own
    return completed


def _shown(value: object, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + "…"
