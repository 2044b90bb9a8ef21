"""Loading a pretrained encoder with a classification head: from the hub, a folder, or built in.

Weights come in float32 unless asked otherwise, whatever the checkpoint holds (hub files of
DeBERTaV3 are half precision). A new head is expected and not reported; base weights that are
missing are an error.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from adalora import deberta
from adalora.errors import UserError

__all__ = ["load_classifier", "load_config", "load_tokenizer"]

logger = logging.getLogger(__name__)
NANO = "nano"
# A tokenizer without a stated limit says 1e30.
_NO_LIMIT = 1_000_000


def load_config(
    name: str,
    *,
    num_labels: int,
    cache_dir: str | None = None,
    revision: str = "main",
    token: bool | str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedConfig:
    """The configuration of ``name`` for ``num_labels`` outputs.

    Raises:
        UserError: if it cannot be had.
    """
    source = _resolve(name)
    with _told_in_a_sentence(name):
        return AutoConfig.from_pretrained(
            source,
            num_labels=num_labels,
            cache_dir=cache_dir,
            revision=revision,
            token=token,
            trust_remote_code=trust_remote_code,
        )


def load_classifier(
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
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load an encoder with a head of ``num_labels`` outputs; DeBERTaV3 comes patched.

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
        cls_dropout: dropout before the classifier; None keeps the model's own.
        dtype: type of the weights in memory.
        position_query_bypass: DeBERTaV3 only, see ``adalora.deberta.patch``.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: if the model cannot be had, lacks base weights, is damaged, or has no
            classification form; or the bypass is asked for on another architecture.
    """
    config = load_config(
        config_name or name,
        num_labels=num_labels,
        cache_dir=cache_dir,
        revision=revision,
        token=token,
        trust_remote_code=trust_remote_code,
    )
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = "regression" if is_regression else "single_label_classification"
    if task_name is not None:
        config.finetuning_task = task_name
    if cls_dropout is not None:
        # from_pretrained(**kwargs) would drop what config.json does not have. DeBERTa reads the
        # first name, BERT, RoBERTa and ELECTRA the second.
        config.cls_dropout = cls_dropout
        config.classifier_dropout = cls_dropout
    with _told_in_a_sentence(name), _quiet():
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
    if config.model_type == "deberta-v2":
        deberta.patch(model, position_query_bypass=position_query_bypass)
    elif position_query_bypass:
        raise UserError(
            f"--position_query_bypass concerns DeBERTaV3, and {name!r} is {config.model_type!r}; "
            "leave it out."
        )
    return model


def load_tokenizer(
    name: str,
    *,
    tokenizer_name: str | None = None,
    cache_dir: str | None = None,
    use_fast: bool = True,
    revision: str = "main",
    token: bool | str | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer of ``tokenizer_name``, or of the model ``name``.

    Raises:
        UserError: if it cannot be had.
    """
    wanted = tokenizer_name or name
    with _told_in_a_sentence(wanted, what="tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            _resolve(wanted), cache_dir=cache_dir, use_fast=use_fast, revision=revision, token=token
        )
    if tokenizer.model_max_length > _NO_LIMIT:
        with _told_in_a_sentence(name):
            config = AutoConfig.from_pretrained(
                _resolve(name), cache_dir=cache_dir, revision=revision, token=token
            )
        tokenizer.model_max_length = getattr(config, "max_position_embeddings", 512)
    return tokenizer


def _resolve(name: str) -> str:
    """A folder or a hub id; what looks like a folder must be one."""
    if name == NANO:
        from adalora.builtin import nano_path

        return str(nano_path())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / "tokenizer_config.json").is_file():
            raise UserError(
                f"The folder {name!r} has no config.json, so it holds no pretrained model."
            )
        return str(path)
    if path.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name!r} is neither a folder with a pretrained model nor a hub id.")
    return name


@contextlib.contextmanager
def _told_in_a_sentence(name: str, what: str = "model") -> Iterator[None]:
    """Turn what the libraries raise into one sentence about ``name``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each hub, file and format problem has a class of its own
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise UserError(
                f"The {what} {name!r} brings code of its own, which is refused; "
                "--trust_remote_code allows it if you trust its author."
            ) from error
        if what == "tokenizer" and ("sentencepiece" in text or "tiktoken" in text):
            raise UserError(
                f"The tokenizer of {name!r} needs the packages sentencepiece and protobuf: "
                "type 'pip install sentencepiece protobuf'."
            ) from error
        if Path(name).expanduser().is_dir() or name == NANO:
            raise UserError(f"The {what} in {name!r} could not be loaded: {text[:300]}") from error
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            reason = "the hub is switched off (HF_HUB_OFFLINE) and it is not in the cache"
        else:
            reason = f"the hub said: {text[:200]}"
        raise UserError(
            f"The {what} {name!r} could not be had: {reason}. Name a local folder, or 'nano' for "
            "the built-in model."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report on a head that is new, which is what is wanted here."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)


def _check_base(model: PreTrainedModel, report: dict[str, Any], name: str) -> None:
    """Refuse a base with weights missing or of another shape; say when a head starts anew."""
    prefix = f"{model.base_model_prefix}."
    pooler = f"{prefix}pooler."

    def base(keys: Sequence[str]) -> list[str]:
        return sorted(k for k in keys if k.startswith(prefix) and not k.startswith(pooler))

    mismatched = [entry[0] for entry in report["mismatched_keys"]]
    wrong = base([*report["missing_keys"], *mismatched])
    if wrong:
        raise UserError(
            f"The model {name!r} lacks {len(wrong)} weights of the encoder, or has them in another "
            f"shape; the first is {wrong[0]}. It is not a {model.config.model_type} checkpoint of "
            "this configuration."
        )
    if mismatched:
        logger.warning(
            "%s was fine-tuned for another number of labels; its classifier starts anew.", name
        )
