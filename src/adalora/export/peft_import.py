"""``adalora import`` from beginning to end: an adapter of PEFT becomes the artefact of a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adalora.adapters.freeze import freeze_base
from adalora.adapters.head import is_head
from adalora.adapters.kinds import LORA_KINDS
from adalora.adapters.lora import add_lora
from adalora.adapters.peft_method import check_peft_patterns
from adalora.adapters.targets import ARCHITECTURES
from adalora.artefact.description import Description
from adalora.artefact.reader import load_artefact
from adalora.artefact.writer import save_artefact
from adalora.errors import UserError
from adalora.export.convert import quietly
from adalora.export.formats import is_installed
from adalora.export.low_rank import LowRank
from adalora.export.peft_read import PeftAdapter, read_adapter
from adalora.export.peft_write import CONFIG_FILE
from adalora.export.verify import Agreement, measure, predictor, random_batches
from adalora.pretrained.loading import load_classifier, load_tokenizer
from adalora.storage.atomic import complete_or_absent
from adalora.storage.files import read_json

if TYPE_CHECKING:
    from adalora.export.formats import Predict


_TOLERANCE = 1e-5
#: The layer with one row per label, by architecture one or the other.
_LAST_LAYERS = ("classifier.weight", "classifier.out_proj.weight")


@dataclass(frozen=True)
class Import:
    """What was read and written, and how well it agrees with the adapter."""

    target: Path
    description: Description
    agreement: Agreement
    checked_by: str
    has_tokenizer: bool


def import_adapter(
    source: str | Path,
    *,
    output: str | Path,
    base_model: str | None = None,
    labels: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Import:
    """Write the run that a LoRA or AdaLoRA adapter of PEFT amounts to.

    Args:
        source: folder that PEFT's ``save_pretrained`` wrote.
        output: root folder of the run, with ``model/`` in it; ``model/`` holds the artefact.
        base_model: hub id or folder of the base; None for the one that the adapter names.
        labels: names of the classes, which PEFT does not keep.
        overwrite: replace an earlier import that is there, once the new one is complete.

    Raises:
        UserError: if the adapter cannot be read or is none that can be imported, its base lacks
            something it needs, the target is there or cannot be written, or the result does not
            compute what the adapter computes. Nothing is left behind then.
    """
    folder, target = Path(source), Path(output)

    def replaceable(path: Path) -> bool:
        return path.is_dir() and {entry.name for entry in path.iterdir()} <= {"model"}

    with (
        quietly(),
        complete_or_absent(
            target, overwrite=overwrite, replaceable=replaceable, protected=[folder]
        ) as new,
    ):
        adapter = read_adapter(folder)
        base = base_model or adapter.base_model
        if base is None:
            raise UserError(f"{folder} does not name its base model; name it with --base_model.")
        model = _load_base(adapter, base, labels)
        check_peft_patterns(model, read_json(folder / CONFIG_FILE), folder)
        rank_pattern = build(model, adapter)
        tokenizer = _tokenizer(adapter, base)
        save_artefact(
            new / "model",
            model,
            tokenizer=tokenizer,
            description=Description.of(
                model,
                base_model=base,
                revision=adapter.revision,
                method=f"{'AdaLoRA' if adapter.peft_type == 'ADALORA' else 'LoRA'}, from PEFT",
                labels=labels,
                is_regression=_labels_of(adapter) == 1,
            ),
            rank_pattern=rank_pattern,
        )
        artefact = load_artefact(new / "model")
        batches = random_batches(artefact.model, max_length=None)
        peer, checked_by = _peer(adapter, base, labels)
        agreement = measure(
            artefact.model, peer, batches, tolerance=_TOLERANCE, what=f"{folder} by {checked_by}"
        )
    return Import(target, artefact.description, agreement, checked_by, tokenizer is not None)


def _labels_of(adapter: PeftAdapter) -> int:
    """Outputs of the classifier in the adapter's file."""
    for name in _LAST_LAYERS:
        if name in adapter.others:
            return adapter.others[name].shape[0]
    raise UserError(
        f"{adapter.source} holds no classifier ({' or '.join(_LAST_LAYERS)}), so its answers would "
        "be random. PEFT keeps it in modules_to_save, which task_type SEQ_CLS sets."
    )


def _load_base(adapter: PeftAdapter, base: str, labels: Sequence[str] | None) -> PreTrainedModel:
    number = _labels_of(adapter)
    model = load_classifier(
        base,
        num_labels=number,
        labels=labels,
        is_regression=number == 1,
        revision=adapter.revision or "main",
        head_follows=adapter.others.keys(),
    )
    if model.config.model_type not in ARCHITECTURES:
        raise UserError(
            f"{base} is a {model.config.model_type} model; adapters of {', '.join(ARCHITECTURES)} "
            "can be imported."
        )
    return model


def _tokenizer(adapter: PeftAdapter, base: str) -> PreTrainedTokenizerBase | None:
    """The adapter's own, or the base's; None where neither has one."""
    if (adapter.source / "tokenizer_config.json").is_file():
        return load_tokenizer(str(adapter.source))
    try:
        return load_tokenizer(base, revision=adapter.revision or "main")
    except UserError:
        return None


def _peer(adapter: PeftAdapter, base: str, labels: Sequence[str] | None) -> tuple[Predict, str]:
    """The adapter as PEFT computes it; without PEFT, the base with the products added to it."""
    model = _load_base(adapter, base, labels)
    if is_installed("peft"):
        from peft import PeftModel, __version__

        peft_model = PeftModel.from_pretrained(model, str(adapter.source))
        return predictor(peft_model), f"PEFT {__version__}"
    return predictor(add_products(model, adapter)), "the merged weights (PEFT is not installed)"


@torch.no_grad()
def build(model: PreTrainedModel, adapter: PeftAdapter) -> dict[str, int]:
    """Put adapters and head on ``model``, a base from ``load_classifier``.

    Returns:
        The rank pattern, ``<module>.lora_E`` -> triplets; empty for plain LoRA.

    Raises:
        UserError: if the adapter does not fit the base, or something of the head is in neither.
    """
    _check(model, adapter)
    # We train the pooler whole and never adapt it, so an update of it becomes part of it.
    add_products(model, adapter, to_head_alone=True)
    updates = {path: u for path, u in adapter.updates.items() if not is_head(model, path)}
    if not updates:
        raise UserError(f"{adapter.source} adapts the head alone, and nothing of the encoder.")
    form, rank, alpha = _form(adapter, list(updates.values()))
    add_lora(
        model,
        lora_type=form,
        targets=["re:" + "|".join(re.escape(path) for path in updates)],
        init_rank=rank,
        lora_alpha=alpha,
        lora_dropout=adapter.lora_dropout,
    )
    freeze_base(model, train="lora")
    layer_class = LORA_KINDS[form].layer
    for path, update in updates.items():
        layer, kept = model.get_submodule(path), update.rank
        layer.get_parameter("lora_A")[:kept] = update.down
        layer.get_parameter("lora_B")[:, :kept] = update.up
        if form == "svd":
            values = torch.ones(kept, 1) if update.values is None else update.values
            beyond = update.scale / layer_class.scale_for(alpha, rank)
            layer.get_parameter("lora_E")[:kept] = values * beyond
    if form == "frd":
        return {}
    return {f"{path}.lora_E": update.rank for path, update in updates.items()}


@torch.no_grad()
def add_products(
    model: PreTrainedModel, adapter: PeftAdapter, *, to_head_alone: bool = False
) -> PreTrainedModel:
    """Add every update into its weight: what the adapter computes, worked out without layers."""
    for name, tensor in adapter.others.items():
        model.get_parameter(name).copy_(tensor)
    for path, update in adapter.updates.items():
        if is_head(model, path) or not to_head_alone:
            model.get_parameter(f"{path}.weight").add_(update.delta())
    return model


def _form(adapter: PeftAdapter, updates: list[LowRank]) -> tuple[str, int, float]:
    """Type, initial rank and alpha of the layers that can hold ``updates``."""
    rank = max(update.rank for update in updates)
    if adapter.peft_type == "LORA" and len({(u.rank, u.scale) for u in updates}) == 1:
        return "frd", rank, updates[0].scale * rank
    if adapter.peft_type == "ADALORA":
        rank = max(rank, adapter.init_rank)
    # The largest scale is the common one: where all are equal, nothing is left to the values.
    largest = max(abs(update.scale) for update in updates)
    return "svd", rank, round(LORA_KINDS["svd"].layer.alpha_for(largest, rank), 6) or 1.0


def _check(model: PreTrainedModel, adapter: PeftAdapter) -> None:
    modules = dict(model.named_modules())
    for path, update in adapter.updates.items():
        layer = modules.get(path)
        if not isinstance(layer, nn.Linear):
            found = "nothing" if layer is None else type(layer).__name__
            raise UserError(
                f"{adapter.source} adapts {path}, and the base model has {found} there instead of "
                "a linear layer; name the base that it was trained on."
            )
        shape = torch.Size((update.up.shape[0], update.down.shape[1]))
        _check_shape(f"a matrix {path}", shape, layer.weight, adapter)
    head = {name: p for name, p in model.named_parameters() if is_head(model, name)}
    for name, tensor in adapter.others.items():
        if name not in head:
            raise UserError(
                f"{adapter.source} holds {name}, which is neither an adapter nor part of the head "
                "(pooler and classifier) of the base model; such an adapter cannot be imported."
            )
        _check_shape(name, tensor.shape, head[name], adapter)


def _check_shape(name: str, shape: torch.Size, expected: Tensor, adapter: PeftAdapter) -> None:
    if shape != expected.shape:
        raise UserError(
            f"{adapter.source} holds {name} of shape {list(shape)}, and the base model's is "
            f"{list(expected.shape)}; name the base that it was trained on."
        )
