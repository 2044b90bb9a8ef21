"""``adalora import`` from beginning to end: an adapter of PEFT becomes the artefact of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adalora.checkpoints import Description, load_artefact, save_artefact
from adalora.errors import UserError
from adalora.export.formats import is_installed
from adalora.export.peft_build import add_products, build
from adalora.export.peft_source import PeftAdapter, read_adapter
from adalora.export.quiet import quietly
from adalora.export.target import complete_or_absent
from adalora.export.verify import Agreement, measure, predictor, random_batches
from adalora.pretrained import load_classifier, load_tokenizer

if TYPE_CHECKING:
    from adalora.export.formats import Predict

__all__ = ["ARCHITECTURES", "Import", "import_adapter"]

ARCHITECTURES = ("deberta-v2", "deberta", "bert", "roberta", "electra")
_TOLERANCE = 1e-5
#: The layer with one row per label: BERT and DeBERTa; RoBERTa and ELECTRA.
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
    force: bool = False,
) -> Import:
    """Write the run that a LoRA or AdaLoRA adapter of PEFT amounts to.

    Args:
        source: folder that PEFT's ``save_pretrained`` wrote.
        output: root folder of the run, with ``model/`` in it; ``model/`` holds the artefact.
        base_model: hub id or folder of the base; None for the one that the adapter names.
        labels: names of the classes, which PEFT does not keep.
        force: replace an earlier import that is there, once the new one is complete.

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
        complete_or_absent(target, force=force, replaceable=replaceable, protected=[folder]) as new,
    ):
        adapter = read_adapter(folder)
        base = base_model or adapter.base_model
        if base is None:
            raise UserError(f"{folder} does not name its base model; name it with --base.")
        model = _load_base(adapter, base, labels)
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
