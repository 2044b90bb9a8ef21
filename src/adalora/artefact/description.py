"""What an artefact says about itself: enough to rebuild the model and to use its answers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import loralib
from adalora.adapters.bottleneck import ADAPTER_TYPES, bottlenecks
from adalora.adapters.freeze import trained_parts
from adalora.adapters.kinds import LORA_KINDS, PARTS, kind_of, lora_layers
from adalora.errors import UserError
from adalora.storage.files import read_json
from adalora.validation import (
    check_inside,
    check_kind,
    check_one_of,
    check_real,
    check_strings,
    check_whole,
)

FORMAT_VERSION = 1
MANIFEST = "adalora.json"

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
}
# Far beyond any real model: a larger number in a file is damage, or meant to exhaust the memory.
_MOST_LABELS = 1_000_000
_MOST_TOKENS = 10_000_000
_LARGEST_RANK = 100_000


@dataclass(frozen=True)
class LoRASettings:
    """How the LoRA layers were put on: type, rank, scale, dropout and exact module paths."""

    lora_type: str
    init_rank: int
    lora_alpha: float
    lora_dropout: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        check_one_of("lora_type", self.lora_type, LORA_KINDS)
        check_whole("init_rank", self.init_rank, 1, _LARGEST_RANK)
        check_real("lora_alpha", self.lora_alpha, -math.inf, math.inf)
        check_real("lora_dropout", self.lora_dropout, 0, 1)
        check_strings("targets", self.targets)


@dataclass(frozen=True)
class Origin:
    """An artefact or a file that a model's adapters were read from."""

    path: str  #: as it was on the machine that read it
    sha256: str  #: checksum of the file with the adapters
    method: str | None = None  #: what the artefact was trained by; None where only a file was given
    task: str | None = None  #: likewise
    created: str | None = None  #: likewise; ISO 8601, UTC


@dataclass(frozen=True)
class Description:
    """The facts that go with the tensors.

    ``method`` is a word for people; ``trained`` names the parts that trained (``lora``,
    ``bottleneck``, ``bitfit``, ``full``). ``text_columns`` are the one or two columns of the
    training data that hold texts, ``label_column`` the one of labels, ``data`` what the run
    understood of its data (``Understood.as_json``), ``training`` the settings of the run that are
    worth telling, and ``lineage`` the artefacts or files that it started from, the nearest first.
    ``rank_pattern`` (``<module>.lora_E`` -> triplets), ``metrics``, ``base_fingerprint``, ``files``
    (name -> bytes), ``checksums`` (name -> SHA-256) and ``created`` are filled in by
    ``save_artefact``.

    Raises:
        UserError: if a value is of another type or out of any sensible range.
    """

    base_model: str
    revision: str | None
    model_type: str
    method: str
    trained: tuple[str, ...]
    num_labels: int
    labels: tuple[str, ...] | None = None
    task: str | None = None
    is_regression: bool = False
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    max_seq_length: int | None = None
    position_query_bypass: bool = False
    #: Whether base or tokenizer come with code of their own, which loading them runs.
    remote_code: bool = False
    cls_dropout: float | None = None
    dtype: str = "float32"
    lora: LoRASettings | None = None
    adapter_type: str | None = None
    adapter_size: int | None = None
    training: dict[str, Any] = field(default_factory=dict)
    lineage: tuple[Origin, ...] = ()
    base_fingerprint: str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    created: str | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ("base_model", "model_type", "method"):
            check_kind(name, getattr(self, name), str)
        for name in (
            "revision",
            "task",
            "adapter_type",
            "base_fingerprint",
            "created",
            "label_column",
        ):
            if getattr(self, name) is not None:
                check_kind(name, getattr(self, name), str)
        for name in (
            "data",
            "training",
            "rank_pattern",
            "metrics",
            "files",
            "checksums",
            "versions",
        ):
            check_kind(name, getattr(self, name), dict)
        for name in ("is_regression", "position_query_bypass", "remote_code"):
            check_kind(name, getattr(self, name), bool)
        check_strings("trained", self.trained)
        for method in self.trained:
            check_one_of("trained", method, PARTS)
        check_one_of("dtype", self.dtype, _DTYPES)
        self._check_task()
        self._check_adapters()
        for file, size in self.files.items():
            check_inside(file)
            check_whole(f"the size of {file}", size, 0, 2**63)
        for file, checksum in self.checksums.items():
            if not isinstance(checksum, str) or not re.fullmatch("[0-9a-f]{64}", checksum):
                raise UserError(f"the checksum of {file} is {checksum!r}, which is no SHA-256")

    def _check_task(self) -> None:
        check_whole("num_labels", self.num_labels, 0, _MOST_LABELS)
        if self.labels is not None:
            check_strings("labels", self.labels)
            if len(self.labels) != self.num_labels:
                raise UserError(f"{len(self.labels)} labels do not name {self.num_labels} outputs")
        if self.text_columns is not None:
            check_strings("text_columns", self.text_columns)
            check_whole("the number of text_columns", len(self.text_columns), 1, 2)
        if self.max_seq_length is not None:
            check_whole("max_seq_length", self.max_seq_length, 1, _MOST_TOKENS)
        if self.cls_dropout is not None:
            check_real("cls_dropout", self.cls_dropout, 0, 1)

    def _check_adapters(self) -> None:
        if self.adapter_type is not None:
            check_one_of("adapter_type", self.adapter_type, ADAPTER_TYPES)
            check_whole("adapter_size", self.adapter_size, 1, _LARGEST_RANK)
        most = self.lora.init_rank if self.lora is not None else 0
        if "peft" in self.trained:
            # The initial rank stands in PEFT's own configuration.
            most = _LARGEST_RANK
        for key, rank in self.rank_pattern.items():
            check_whole(f"the rank of {key}", rank, 0, most)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        base_model: str,
        method: str,
        revision: str | None = None,
        task: str | None = None,
        labels: Sequence[str] | None = None,
        is_regression: bool = False,
        text_columns: Sequence[str] | None = None,
        label_column: str | None = None,
        data: Mapping[str, Any] | None = None,
        max_seq_length: int | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> Description:
        """Describe ``model``.

        What is on it, what of it trains and, for a base from the hub, the exact commit are read
        off the model.
        """
        config: Any = getattr(model, "config", None)
        if (Path(base_model) / "config.json").is_file():
            # A folder stays findable from another working directory.
            base_model = str(Path(base_model).resolve())
        adapter = next(iter(bottlenecks(model).values()), None)
        return cls(
            base_model=base_model,
            revision=getattr(config, "_commit_hash", None) or revision,
            model_type=str(getattr(config, "model_type", type(model).__name__)),
            method=method,
            trained=trained_parts(model),
            num_labels=int(getattr(config, "num_labels", 0)),
            labels=None if labels is None else tuple(labels),
            task=task,
            is_regression=is_regression,
            text_columns=None if text_columns is None else tuple(text_columns),
            label_column=label_column,
            data=dict(data or {}),
            max_seq_length=max_seq_length,
            position_query_bypass=any(
                bool(getattr(m, "position_query_bypass", False)) for m in model.modules()
            ),
            remote_code=brings_code(model) or brings_code(config),
            cls_dropout=getattr(config, "cls_dropout", None),
            dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
            lora=_lora_settings(model),
            adapter_type=None if adapter is None else adapter.adapter_type,
            adapter_size=None if adapter is None else adapter.adapter_A.out_features,
            training=dict(training or {}),
            versions=_versions(),
        )

    @property
    def classes(self) -> tuple[str, ...] | None:
        """What the outputs mean: () a number, None classes that nobody named."""
        return () if self.is_regression else self.labels

    @property
    def torch_dtype(self) -> torch.dtype:
        """Number type of the base's weights."""
        return _DTYPES[self.dtype]

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, source: str) -> Description:
        """Read what ``asdict`` gave.

        A newer format, and a field that is missing or of another type, are refused.
        """
        found = values.get("format_version")
        if not isinstance(found, int) or not 1 <= found <= FORMAT_VERSION:
            raise UserError(
                f"{source} has format version {found!r}, and this program reads up to "
                f"{FORMAT_VERSION}; update adalora."
            )
        known = {f.name for f in fields(cls)}
        try:
            arguments = {name: value for name, value in values.items() if name in known}
            if arguments.get("lora") is not None:
                lora = dict(arguments["lora"])
                arguments["lora"] = LoRASettings(**{**lora, "targets": tuple(lora["targets"])})
            for name in ("trained", "labels", "text_columns"):
                if isinstance(arguments.get(name), list):
                    arguments[name] = tuple(arguments[name])
            arguments["lineage"] = tuple(Origin(**o) for o in arguments.get("lineage", ()))
            return cls(**arguments)
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"{source} is not a description of an artefact: {error}") from error


def brings_code(part: object) -> bool:
    """Whether the class of a model, a configuration or a tokenizer came from where it was loaded.

    transformers puts such code into a package of its own.
    """
    return type(part).__module__.partition(".")[0] == "transformers_modules"


def read_description(folder: str | Path) -> Description:
    """The description in an artefact's folder, refused if that holds no complete artefact."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} holds no complete artefact: {MANIFEST}, which is written last, is missing."
        )
    return Description.from_json(read_json(path), source=str(path))


def _lora_settings(model: nn.Module) -> LoRASettings | None:
    layers = lora_layers(model)
    if not layers:
        return None
    first = next(iter(layers.values()))
    dropout = first.lora_dropout
    return LoRASettings(
        lora_type=kind_of(first),
        init_rank=max(layer.stored_rank for layer in layers.values()),
        lora_alpha=first.stored_alpha,
        lora_dropout=float(dropout.p) if isinstance(dropout, nn.Dropout) else 0.0,
        targets=tuple(layers),
    )


def _versions() -> dict[str, str]:
    found = {"loralib": loralib.__version__}
    for name in ("adalora", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found
