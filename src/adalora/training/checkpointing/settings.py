"""The settings that decide the result of a run, which a resumed run must share with its checkpoint.

Everything that changes the batches, the budget, the updates or the numbers computed is compared,
the data and the tokenizer by what they hold; where they lie, where results go, how often they are
logged, evaluated or saved is not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from adalora.glue.load import TaskData
from adalora.training.arguments.parser import RunArguments
from adalora.training.protocol import Adaptation

#: Fields of TrainingArguments that change what is computed.
_TRAINING = (
    "seed data_seed full_determinism use_deterministic_algorithms "
    "per_device_train_batch_size gradient_accumulation_steps dataloader_drop_last "
    "train_sampling_strategy ignore_data_skip "
    "learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay max_grad_norm "
    "optim optim_args optim_target_modules adam_beta1 adam_beta2 adam_epsilon "
    "label_smoothing_factor neftune_noise_alpha bf16 fp16 tf32 cls_dropout"
).split()

#: Flags of a run that change nothing in its training.
_WITHOUT_EFFECT = frozenset(
    # where things are, and how they are fetched
    "cache_dir use_auth_token use_fast_tokenizer trust_remote_code data_dir overwrite_cache "
    # other data than the training data
    "validation_file test_file max_val_samples max_test_samples "
    # starting weights, which the checkpoint has gone beyond
    "lora_path adapter_path "
    # records
    "tb_writter_loginterval".split()
)
#: What tokenizers disagree on: case, accents, scripts, spaces, digits, marks, what is unknown.
_PROBE = "The QUICK brown fox isn't  naïve: 東京, Ünïcödé\t1234.5 [MASK] <s>☃"
#: Settings of the data and the tokenizer by content.
TRAINING_DATA, CLASSES, TOKENIZER = "training_data", "classes", "tokenizer"
#: By which checkpoints without these know the data.
_DATA_FLAG = "train_file"


def data_settings(
    data: TaskData, tokenizer: PreTrainedTokenizerBase, samples: int | None
) -> dict[str, Any]:
    """What a run is trained on, whatever file it lies in; read once, in pieces.

    Args:
        data: with a training set.
        tokenizer: that it is read by.
        samples: how many examples count, from the first; None for all.
    """
    rows = data.splits["train"]
    rows = rows.select(range(min(samples or len(rows), len(rows))))
    keys = [key for key in (data.sentence1_key, data.sentence2_key) if key is not None]
    return {
        CLASSES: None if data.labels is None else list(data.labels),
        TRAINING_DATA: f"{len(rows)} examples, sha256 {_digest(rows, [*keys, 'label'])}",
        TOKENIZER: f"sha256 {_of_tokenizer(tokenizer)}",
    }


def _digest(rows: Dataset, columns: list[str]) -> str:
    """Hexadecimal digits of the SHA-256 of the columns' values, so many rows at a time."""
    digest = hashlib.sha256()
    for piece in rows.select_columns(columns).with_format(None).iter(batch_size=10_000):
        digest.update(json.dumps([piece[column] for column in columns]).encode())
    return digest.hexdigest()[:16]


def _of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Likewise, of a tokenizer's vocabulary, and of what it makes of a difficult sentence."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Of itself: a call would take out the truncation that the tokenizer was stored with.
    tokens = tokenizer.tokenize(_PROBE) if backend is None else backend.encode(_PROBE).tokens
    parts = [sorted(tokenizer.get_vocab().items()), tokens, tokenizer.padding_side]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def resume_settings(arguments: RunArguments) -> dict[str, Any]:
    """The flags of model, method and data that decide the result of a run."""
    settings: dict[str, Any] = {}
    for part in (arguments.model, arguments.method, arguments.data):
        settings |= {
            field.name: getattr(part, field.name)
            for field in dataclasses.fields(part)
            if field.name not in _WITHOUT_EFFECT
        }
    # What the file says, not where it lies.
    settings["peft_config"] = arguments.method.peft_values
    # A checkpoint has gone beyond where its factors started, unless they came out of the base.
    if settings["lora_init"] != "pissa":
        del settings["lora_init"]
    return settings


def trainer_settings(
    training: Any, *, examples: int | None, total_steps: int, adaptation: Adaptation | None
) -> dict[str, Any]:
    """The settings that a Trainer knows, by the name of the flag where there is one.

    ``examples`` are for training, None where nobody knows; ``total_steps`` those of the whole run;
    the method's warm-ups are given in steps.
    """
    settings = {name: getattr(training, name) for name in _TRAINING if hasattr(training, name)}
    settings |= {"processes": training.world_size, "train_examples": examples}
    settings["total_steps"] = total_steps
    if training.max_steps <= 0:
        settings["num_train_epochs"] = training.num_train_epochs
    if adaptation is not None:
        method = dataclasses.asdict(adaptation.settings)
        method["init_warmup"], method["final_warmup"] = adaptation.settings.steps(total_steps)
        method["reg_orth_coef"] = method.pop("orth_reg_weight")
        method["apply_adalora"] = method.pop("allocate") and not method["prune_lora"]
        method["total_rank"] = adaptation.total_rank
        settings |= method
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """Setting -> ``there X, here Y``, for those that both sides know and that differ.

    The file that the data lies in is one only where its content is not known.
    """
    known = TRAINING_DATA in there and TRAINING_DATA in here
    return {
        name: f"there {there[name]}, here {value}"
        for name, value in here.items()
        if name in there and there[name] != value and not (known and name == _DATA_FLAG)
    }
