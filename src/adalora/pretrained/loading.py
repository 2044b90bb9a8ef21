"""Loading a pretrained encoder with a classification head: from the hub, a folder, or built in.

Weights come in float32 unless asked otherwise, whatever the checkpoint holds (hub files of
DeBERTaV3 are half precision). A new head is expected and not reported; base weights that are
missing are an error.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from adalora.adapters.head import align_head, class_dimensions, class_names, widen_head
from adalora.errors import UserError
from adalora.pretrained import deberta
from adalora.pretrained.loading_errors import explain_loading_errors, quiet_transformers
from adalora.pretrained.unpadded import unpad_encoder
from adalora.storage.files import listed
from adalora.validation import check_model_sizes

logger = logging.getLogger(__name__)
NANO = "nano"
# A tokenizer without a stated limit says 1e30.
_NO_LIMIT = 1_000_000
# These count positions from after the padding index, so the first rows of the table go unused.
_OFFSET_POSITIONS = frozenset(
    {"camembert", "data2vec-text", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"}
)
# What configurations call the dropout before the classifier: BERT, RoBERTa and ELECTRA; ALBERT;
# DistilBERT. DeBERTa reads cls_dropout, which its configuration need not have.
_CLS_DROPOUT_NAMES = ("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout")


def load_config(
    name: str,
    *,
    num_labels: int | None,
    cache_dir: str | None = None,
    revision: str = "main",
    token: bool | str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedConfig:
    """The configuration of ``name`` for ``num_labels`` outputs; None for those that it states.

    Raises:
        UserError: if it cannot be had.
    """
    source = _resolve(name, one_of=("config.json",))
    with explain_loading_errors(name), quiet_transformers():
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            source,
            cache_dir=cache_dir,
            revision=revision,
            token=token,
            trust_remote_code=trust_remote_code,
        )
    check_model_sizes(config, name)
    if num_labels is not None:
        config.num_labels = num_labels
    return config


class Loaded(NamedTuple):
    """A classifier, and what its head was trained for where it starts anew; None else.

    Without ``labels`` nobody knows, and a head of the right shape is taken for a trained one.
    """

    model: PreTrainedModel
    untrained: str | None = None


def load_classifier(name: str, **settings: Any) -> PreTrainedModel:
    """The model of ``load_checkpoint``, which has the arguments and says what can be wrong."""
    return load_checkpoint(name, **settings).model


def load_checkpoint(
    name: str,
    *,
    num_labels: int,
    labels: Sequence[str] | None = None,
    is_regression: bool = False,
    task_name: str | None = None,
    config_name: str | None = None,
    cache_dir: str | None = None,
    revision: str = "main",
    token: bool | str | None = None,
    cls_dropout: float | None = None,
    dtype: torch.dtype = torch.float32,
    position_query_bypass: bool = False,
    unpad: bool = True,
    trust_remote_code: bool = False,
    head_follows: bool | Collection[str] = False,
) -> Loaded:
    """Load an encoder with a head of ``num_labels`` outputs; DeBERTaV3 comes patched.

    A head that the checkpoint has for the same ``labels`` gets their order (``align_head``); one
    for others, or for classes without names, starts anew with a warning.

    Args:
        name: hub id, local folder, or ``nano`` for the built-in model.
        num_labels: outputs; 1 for regression.
        labels: their names, in the order of the class indices.
        is_regression: train on squared error.
        task_name: noted in the configuration as ``finetuning_task``.
        config_name: another source of the configuration.
        cache_dir: where hub files are kept.
        revision: branch, tag or commit on the hub.
        token: hub token, or True for the stored one.
        cls_dropout: dropout before the classifier, in [0, 1); None keeps the model's own.
        dtype: type of the encoder's weights in memory; the head is in float32 at least.
        position_query_bypass: DeBERTaV3 only, see ``adalora.pretrained.deberta.patch``.
        unpad: run the encoder on real tokens only, where it is of a kind that can.
        trust_remote_code: run code that comes with the model.
        head_follows: the caller fills the head, so that one of another shape is no news; or names
            of the parameters of it that the caller fills, where the checkpoint must have the rest.

    Raises:
        UserError: if the model cannot be had, lacks base weights, is damaged, or has no
            classification form; if the labels are not ``num_labels`` many, or a regression has
            more than one output; if ``cls_dropout`` is no probability or the model has no dropout
            before its classifier; the bypass is asked for on another architecture; or a part of
            the head comes from nowhere.
    """
    _check_request(num_labels, labels, is_regression, cls_dropout)
    config = load_config(
        config_name or name,
        num_labels=None,
        cache_dir=cache_dir,
        revision=revision,
        token=token,
        trust_remote_code=trust_remote_code,
    )
    stored = None if config_name else class_names(config)
    config.num_labels = num_labels
    describe_task(config, labels=labels, is_regression=is_regression, task_name=task_name)
    if cls_dropout is not None:
        _set_cls_dropout(config, cls_dropout)
    with explain_loading_errors(name), quiet_transformers():
        model: PreTrainedModel
        model, report = AutoModelForSequenceClassification.from_pretrained(
            _resolve(name),
            config=config,
            cache_dir=cache_dir,
            revision=revision,
            token=token,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check_base(model, report, name)
    wanted = () if is_regression else labels
    untrained = None
    if head_follows is False and wanted is not None:
        untrained = _align(model, report, name, stored, wanted)
    else:
        _check_head(report, name, head_follows)
    # The first DeBERTa makes two biases of each layer in float32, and cannot multiply by the rest.
    torch.nn.Module.to(model, dtype)
    widen_head(model)
    if cls_dropout is not None:
        _check_cls_dropout(model, cls_dropout, name)
    if config.model_type == "deberta-v2":
        deberta.patch(model, position_query_bypass=position_query_bypass, unpad=unpad)
    elif position_query_bypass:
        raise UserError(
            f"--position_query_bypass concerns DeBERTaV3, and {name!r} is {config.model_type!r}; "
            "leave it out."
        )
    else:
        unpad_encoder(model, unpad=unpad)
    return Loaded(model, untrained)


def describe_task(
    config: PreTrainedConfig,
    *,
    labels: Sequence[str] | None,
    is_regression: bool,
    task_name: str | None = None,
) -> None:
    """Write into ``config`` what the outputs of a classifier mean.

    Args:
        config: for as many outputs as there are ``labels``; changed in place.
        labels: their names, in the order of the class indices; None leaves what is there.
        is_regression: the output is a number, trained on squared error.
        task_name: noted as ``finetuning_task``.
    """
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = "regression" if is_regression else "single_label_classification"
    if task_name is not None:
        config.finetuning_task = task_name


def load_tokenizer(
    name: str,
    *,
    tokenizer_name: str | None = None,
    cache_dir: str | None = None,
    use_fast: bool = True,
    revision: str = "main",
    token: bool | str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """The tokenizer of ``tokenizer_name``, or of the model ``name``.

    Its own code, if it brings some, is run with ``trust_remote_code`` alone, and nobody is asked.

    Raises:
        UserError: if it cannot be had.
    """
    wanted = tokenizer_name or name
    source = _resolve(wanted, one_of=("config.json", "tokenizer_config.json"))
    with explain_loading_errors(wanted, what="tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source,
            cache_dir=cache_dir,
            use_fast=use_fast,
            revision=revision,
            token=token,
            trust_remote_code=trust_remote_code,
        )
    # Without its files transformers makes a tokenizer of special tokens alone, and says nothing.
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        files = ", ".join(tokenizer.vocab_files_names.values())
        raise UserError(
            f"The tokenizer of {wanted!r} has no vocabulary: none of its files is there ({files}). "
            "Name a complete one with --tokenizer_name."
        )
    if tokenizer.model_max_length > _NO_LIMIT:
        with explain_loading_errors(name), quiet_transformers():
            config = AutoConfig.from_pretrained(
                _resolve(name),
                cache_dir=cache_dir,
                revision=revision,
                token=token,
                trust_remote_code=trust_remote_code,
            )
        tokenizer.model_max_length = longest_input(config)
    return tokenizer


def longest_input(config: PreTrainedConfig) -> int:
    """Tokens that the model has positions for; 512 where its configuration does not say."""
    positions = int(getattr(config, "max_position_embeddings", 512))
    if config.model_type in _OFFSET_POSITIONS:
        return positions - (config.pad_token_id or 0) - 1
    return positions


def _check_request(
    num_labels: int, labels: Sequence[str] | None, is_regression: bool, cls_dropout: float | None
) -> None:
    if labels is not None and len(labels) != num_labels:
        raise UserError(
            f"{len(labels)} label names ({', '.join(labels)}) cannot name {num_labels} outputs."
        )
    if is_regression and num_labels != 1:
        raise UserError(f"A regression has one output, not num_labels={num_labels}.")
    if cls_dropout is not None and not 0 <= cls_dropout < 1:
        raise UserError(f"--cls_dropout is a probability from 0 to below 1, not {cls_dropout}.")


def _set_cls_dropout(config: PreTrainedConfig, probability: float) -> None:
    """Write it into the configuration: from_pretrained(**kwargs) drops what config.json lacks."""
    if config.model_type.startswith("deberta"):
        config.cls_dropout = probability
    for name in _CLS_DROPOUT_NAMES:
        if hasattr(config, name):
            setattr(config, name, probability)


def _check_cls_dropout(model: PreTrainedModel, probability: float, name: str) -> None:
    """Refuse a model whose head the probability did not reach."""
    base = f"{model.base_model_prefix}."
    if not any(
        isinstance(module, nn.Dropout) and module.p == probability
        for path, module in model.named_modules()
        if not path.startswith(base)
    ):
        raise UserError(
            f"--cls_dropout cannot be set: {name!r} ({model.config.model_type}) has no dropout of "
            "its own before the classifier; leave it out."
        )


def _resolve(name: str, one_of: Sequence[str] = ()) -> str:
    """A folder or a hub id; what looks like a folder must be one, with ``one_of`` the files."""
    if name == NANO:
        from adalora.builtin import nano_path

        return str(nano_path())
    path = Path(name).expanduser()
    if path.is_dir():
        if one_of and not any((path / file).is_file() for file in one_of):
            raise UserError(
                f"The folder {name!r} has no {' or '.join(one_of)}, so it holds no pretrained "
                "model. Name the folder that save_pretrained wrote, a hub id, or 'nano'."
            )
        return str(path)
    if path.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"{name!r} is neither a folder with a pretrained model, nor a hub id, nor 'nano'."
        )
    return name


def _check_base(model: PreTrainedModel, report: dict[str, Any], name: str) -> None:
    """Refuse a base with weights of the encoder missing or of another shape."""
    prefix = f"{model.base_model_prefix}."
    pooler = f"{prefix}pooler."
    wrong = [k for k in _drawn(report) if k.startswith(prefix) and not k.startswith(pooler)]
    if wrong:
        raise UserError(
            f"The model {name!r} lacks {len(wrong)} weights of the encoder, or has them in another "
            f"shape; the first is {wrong[0]}. It is not a {model.config.model_type} checkpoint of "
            "this configuration."
        )


@torch.no_grad()
def _align(
    model: PreTrainedModel,
    report: dict[str, Any],
    name: str,
    stored: Sequence[str] | None,
    wanted: Sequence[str],
) -> str | None:
    """Put the rows of the checkpoint's head in the order ``wanted``, or start them anew, aloud.

    Returns:
        What the head was trained for, where that is not this; None where its rows were taken.
    """
    untrained = "nothing yet"
    if name == NANO or set(rows := class_dimensions(model)) & set(report["missing_keys"]):
        return untrained
    if set(rows) & set(_drawn(report)):
        untrained = align_head(model, {}, stored, wanted).reason or "another number of labels"
    else:
        own = {row: model.get_parameter(row).detach().clone() for row in rows}
        aligned = align_head(model, own, stored, wanted)
        for row, tensor in aligned.tensors.items():
            model.get_parameter(row).copy_(tensor)
        if aligned.reason is None:
            return None
        untrained = aligned.reason
        for parameter in map(model.get_parameter, rows):
            # As transformers draws a classifier.
            spread = getattr(model.config, "initializer_range", 0.02)
            parameter.normal_(0, spread) if parameter.dim() > 1 else parameter.zero_()
    logger.warning("%s was fine-tuned for %s; its classifier starts anew.", name, untrained)
    return untrained


def _check_head(report: dict[str, Any], name: str, follows: bool | Collection[str]) -> None:
    """Say when a head of another shape starts anew; refuse one that nobody fills."""
    if follows is False and report["mismatched_keys"]:
        logger.warning(
            "%s was fine-tuned for another number of labels; its classifier starts anew.", name
        )
    lost = [] if isinstance(follows, bool) else [k for k in _drawn(report) if k not in follows]
    if lost:
        raise UserError(
            f"Neither the base {name!r} nor what fills its head holds {listed(lost)}: it was drawn "
            "at random when that head was trained, and not saved, so what was trained cannot be "
            "rebuilt. Train again with it saved (PEFT: in modules_to_save)."
        )


def _drawn(report: dict[str, Any]) -> list[str]:
    """Names of the parameters that the checkpoint lacks or has in another shape."""
    return sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
