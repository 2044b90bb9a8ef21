"""Runs to export: on the built-in nano DeBERTaV3 and on small models of the BERT family.

Weights are large enough for the adapters to move the logits a thousand times as far as the
tolerances, and the ranks of the pruned ones go from 0 to the initial rank.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.models import tiny_config
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from adalora.adapters.bottleneck import add_bottleneck
from adalora.adapters.freeze import freeze_base
from adalora.adapters.lora import add_lora
from adalora.artefact.description import Description
from adalora.artefact.reader import load_artefact
from adalora.artefact.writer import save_artefact
from adalora.builtin import nano_path
from adalora.pretrained.loading import load_classifier, load_tokenizer

TARGETS = ("query", "key", "value", "intermediate", "layer.output", "attention.output")
LABELS = ("no", "maybe", "yes")
INIT_RANK = 4
RANKS = (0, 3, INIT_RANK, 1, 2)
WORDS = "[PAD] [UNK] [CLS] [SEP] a good bad film plot is was not very the it".split()


def _make_base(folder: Path, model_type: str, num_labels: int, dtype: torch.dtype) -> None:
    extra = {"embedding_size": 24} if model_type == "electra" else {}
    if model_type.startswith("deberta"):
        extra = {"type_vocab_size": 0}
    config = tiny_config(
        model_type,
        vocab_size=len(WORDS) + 30,
        hidden_size=24,
        intermediate_size=32,
        max_position_embeddings=40,
        num_labels=num_labels,
        initializer_range=0.2,
        **extra,
    )
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(config).to(dtype).save_pretrained(folder)
    raw = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", model_max_length=38
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a base model: ``base_of("bert")``, ``base_of("nano")``."""

    @functools.cache
    def make(name: str, num_labels: int = 3, dtype: torch.dtype = torch.float32) -> Path:
        if name == "nano":
            return nano_path()
        folder = tmp_path_factory.mktemp(f"base-{name}")
        _make_base(folder, name, num_labels, dtype)
        return folder

    return make


@pytest.fixture(scope="session")
def run_of(
    tmp_path_factory: pytest.TempPathFactory, base_of: Callable[..., Path]
) -> Callable[..., Path]:
    """Root folder of a run, made once: ``run_of("bert", "svd")``. Not to be changed.

    The method is ``svd``, ``frd``, ``pruned`` (plain LoRA, pruned), ``houlsby``, ``bitfit`` or
    ``full``, or several joined by ``+``.
    """

    @functools.cache
    def make(
        name: str,
        method: str = "svd",
        *,
        ranks: tuple[int, ...] = RANKS,
        bypass: bool = False,
        num_labels: int = 3,
        lora_alpha: float = 8,
        dtype: torch.dtype = torch.float32,
    ) -> Path:
        base = base_of(name, num_labels, dtype)
        model = load_classifier(
            str(base),
            num_labels=num_labels,
            position_query_bypass=bypass,
            is_regression=num_labels == 1,
            dtype=dtype,
        )
        parts = method.split("+")
        kinds = {"svd": "lora", "frd": "lora", "pruned": "lora", "houlsby": "bottleneck"}
        train = [kinds.get(part, part) for part in parts]
        if "lora" in train:
            kind = "svd" if "svd" in parts else "frd"
            add_lora(
                model,
                lora_type=kind,
                targets=TARGETS,
                init_rank=INIT_RANK,
                lora_alpha=lora_alpha,
                lora_dropout=0.1,
            )
        if "houlsby" in parts:
            add_bottleneck(model, adapter_type="houlsby", adapter_size=3)
        freeze_base(model, train=train)
        _randomise(model)
        pattern = _prune(model, ranks) if {"svd", "pruned"} & set(parts) else {}
        root = tmp_path_factory.mktemp(f"run-{name}-{method}")
        save_artefact(
            root / "model",
            model,
            tokenizer=load_tokenizer(str(base)),
            description=Description.of(
                model,
                base_model=name if name == "nano" else str(base),
                method="AdaLoRA" if method == "svd" else method,
                labels=LABELS if num_labels == 3 else None,
                is_regression=num_labels == 1,
                max_seq_length=38,
            ),
            rank_pattern=pattern,
        )
        return root

    return make


@torch.no_grad()
def _randomise(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            width = 1.0 if name.endswith("lora_E") else 0.1
            noise = torch.randn(parameter.shape, generator=generator) * width
            parameter.add_(noise.to(parameter.dtype))


@torch.no_grad()
def _prune(model: PreTrainedModel, ranks: tuple[int, ...]) -> dict[str, int]:
    """Zero all but the last triplets of each matrix, as many as its turn of ``ranks`` says."""
    pattern = {}
    layers = [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]
    for turn, (name, layer) in enumerate(layers):
        rank = ranks[turn % len(ranks)]
        if hasattr(layer, "lora_E"):
            layer.lora_E[: INIT_RANK - rank] = 0
        else:
            layer.lora_A[: INIT_RANK - rank] = 0
            layer.lora_B[:, : INIT_RANK - rank] = 0
        pattern[f"{name}.lora_E"] = rank
    return pattern


Batches = list[dict[str, Tensor]]


@pytest.fixture(scope="session")
def batches_for() -> Callable[[PreTrainedModel], Batches]:
    """Five batches of different shapes, with paddings; drawn here, not by the code under test."""

    def make(model: PreTrainedModel) -> Batches:
        generator = torch.Generator().manual_seed(7)
        found = []
        for rows, length in ((1, 1), (1, 6), (2, 13), (4, 21), (3, 37)):
            ids = torch.randint(4, model.config.vocab_size, (rows, length), generator=generator)
            mask = torch.ones_like(ids)
            for row in range(1, rows):
                mask[row, max(1, length - 5 * row) :] = 0
            found.append({"input_ids": ids * mask, "attention_mask": mask})
        return found

    return make


@pytest.fixture(scope="session")
def logits_of() -> Callable[[torch.nn.Module, Batches], list[Tensor]]:
    @torch.no_grad()
    def compute(model: torch.nn.Module, batches: Batches) -> list[Tensor]:
        model.eval()
        return [model(**batch).logits.float() for batch in batches]

    return compute


@pytest.fixture(scope="session")
def difference() -> Callable[[list[Tensor], list[Tensor]], float]:
    def largest(one: list[Tensor], two: list[Tensor]) -> float:
        return max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True))

    return largest


@pytest.fixture(scope="session")
def expected_of(
    batches_for: Callable[[PreTrainedModel], Batches],
    logits_of: Callable[[torch.nn.Module, Batches], list[Tensor]],
    difference: Callable[[list[Tensor], list[Tensor]], float],
) -> Callable[[Path], tuple[Batches, list[Tensor]]]:
    """Batches, and the logits of a run on them; checks that its adapters matter."""

    @functools.cache
    def make(run: Path) -> tuple[Batches, list[Tensor]]:
        model = load_artefact(run / "model").model.float()
        batches = batches_for(model)
        expected = logits_of(model, batches)
        ends = ("lora_B", "adapter_B.weight", "adapter_B.bias")
        last = [p for name, p in model.named_parameters() if name.endswith(ends)]
        for parameter in last:
            parameter.data.zero_()
        assert not last or difference(expected, logits_of(model, batches)) > 0.01
        return batches, expected

    return make


@pytest.fixture(scope="session")
def plain_base() -> Callable[..., PreTrainedModel]:
    """A base as a user of PEFT loads it."""

    def load(folder: Path, num_labels: int = 3) -> PreTrainedModel:
        return AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=num_labels, ignore_mismatched_sizes=True, dtype=torch.float32
        )

    return load


@pytest.fixture
def tree() -> Callable[[Path], dict[str, str]]:
    """Relative path -> digest of every file under a folder, to see that nothing changed."""

    def walk(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): (
                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            )
            for path in sorted(folder.rglob("*"))
        }

    return walk
