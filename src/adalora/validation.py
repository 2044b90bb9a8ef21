"""Numbers that no real run or model has, refused before anything is made by them.

A configuration with a million layers is damage, or meant to keep a machine busy; a learning rate
that is NaN is a slip of the pen. Both would be found out late, or never.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

from adalora.errors import UserError
from adalora.shell import program

__all__ = [
    "BELOW_ONE",
    "DATA_RANGES",
    "METHOD_RANGES",
    "TRAINING_RANGES",
    "check_inside",
    "check_kind",
    "check_model_sizes",
    "check_numbers",
    "check_one_of",
    "check_real",
    "check_strings",
    "check_whole",
    "require_our_loralib",
    "told",
]

#: The largest number below 1, for ranges that leave 1 out.
BELOW_ONE = math.nextafter(1.0, 0.0)
#: Far beyond any published encoder.
_MODEL = {
    "num_hidden_layers": (1, 1_000),
    "hidden_size": (1, 100_000),
    "intermediate_size": (1, 1_000_000),
    "num_attention_heads": (1, 10_000),
    "vocab_size": (1, 10_000_000),
    "max_position_embeddings": (1, 10_000_000),
    "max_relative_positions": (-1, 10_000_000),
    "position_buckets": (-1, 1_000_000),
    "type_vocab_size": (0, 10_000),
    "embedding_size": (1, 100_000),
}


def check_numbers(arguments: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Refuse a field of ``arguments`` that is out of its range; None is none, and passes.

    Raises:
        UserError: naming the first.
    """
    for name, (least, most) in ranges.items():
        value = getattr(arguments, name)
        # Written so that NaN, which compares with nothing, is refused.
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} is {value}; it must be from {least:.9g} to {most:.9g}.")


def check_model_sizes(config: Any, name: str) -> None:
    """Refuse a configuration whose sizes no model has.

    Raises:
        UserError: naming the first of them.
    """
    for field, (least, most) in _MODEL.items():
        value = getattr(config, field, None)
        if isinstance(value, int | float) and not least <= value <= most:
            raise UserError(
                f"The configuration of {name!r} says {field} {value}, and from {least} to {most} "
                "is believed: it is damaged, or meant to do damage; fetch it anew."
            )


_KINDS = {str: "a text", dict: "an object", bool: "true or false"}


def check_kind(name: str, value: Any, kind: type) -> None:
    """Refuse a value of another type."""
    if not isinstance(value, kind):
        raise UserError(f"{name} is {value!r:.80}, and must be {_KINDS[kind]}")


def check_one_of(name: str, value: Any, known: Collection[str]) -> None:
    """Refuse a word that is not known."""
    if value not in known:
        raise UserError(f"{name} {value!r} is unknown; it is one of {', '.join(known)}")


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    """Refuse what is no whole number from ``least`` to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{name} is {value!r}, and must be a whole number from {least} to {most}")


def check_real(name: str, value: Any, least: float, most: float) -> None:
    """Refuse what is no finite number from ``least`` to ``most``."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not least <= value <= most:
        raise UserError(f"{name} is {value!r}, and must be a number from {least:g} to {most:g}")


def check_strings(name: str, value: Any) -> None:
    """Refuse what is no tuple of texts that differ."""
    if not isinstance(value, tuple) or not all(isinstance(one, str) for one in value):
        raise UserError(f"{name} is {value!r:.80}, and must be a list of texts")
    if len(set(value)) != len(value):
        raise UserError(f"{name} names something twice: {', '.join(value):.80}")


def check_inside(file: Any) -> None:
    """Refuse the name of a file that is not plainly inside the folder.

    Links are followed: the hub's cache is made of them.
    """
    path = PurePosixPath(str(file))
    if any(len(part.encode(errors="replace")) > 255 for part in path.parts):
        raise UserError(f"it names a file of {len(str(file))} characters, which no folder can hold")
    if path.is_absolute() or {"..", "."} & set(str(file).split("/")) or re.search(r"[\\:\0]", file):
        raise UserError(f"it names the file {file!r}, which is outside its folder")


_REQUIRED_NAMES = ("SVDLinear", "RankAllocator", "compute_orth_regu")


def require_our_loralib() -> None:
    """Check that the importable ``loralib`` is this repository's.

    Raises:
        UserError: if ``loralib`` is missing, or is a namespace or package without the names of
            AdaLoRA, or states a version below 1.0.
    """
    advice = (
        "adalora needs the loralib of its own repository, version 1.0 or later: "
        f"type '{program('pip')} install -e loralib -e .' in the project's root"
    )
    try:
        module = importlib.import_module("loralib")
    except ModuleNotFoundError as error:
        if error.name != "loralib":
            raise
        raise UserError(f"no loralib is installed; {advice}") from None
    version = str(getattr(module, "__version__", ""))
    missing = [name for name in _REQUIRED_NAMES if not hasattr(module, name)]
    major = version.partition(".")[0]
    if not missing and major.isdigit() and int(major) >= 1:
        return
    found = f"version {version}" if version else "no version stated"
    if missing:
        found += f", without {' and '.join(missing)}"
    origin = getattr(module, "__file__", None) or "a folder that is not a package"
    raise UserError(f"the wrong loralib is installed ({found}, {origin}); {advice}")


def told(text: str) -> dict[str, str]:
    """The ``metadata`` of a field whose flag is explained by ``text``."""
    return {"help": text}


#: Of DataArguments.
DATA_RANGES = {"max_seq_length": (4, 10_000_000)}
#: Of MethodArguments.
METHOD_RANGES = {
    "lora_r": (1, 100_000),
    "lora_alpha": (-1e9, 1e9),
    "adapter_size": (1, 100_000),
    "target_total_rank": (0, 1e9),
    "init_warmup": (0, 1e9),
    "final_warmup": (0, 1e9),
    "mask_interval": (1, 1e9),
    "beta1": (1e-9, BELOW_ONE),
    "beta2": (1e-9, BELOW_ONE),
    "reg_orth_coef": (0, 1e9),
    "reg_loss_wgt": (0, 1e9),
}
#: Of AdaLoraTrainingArguments.
TRAINING_RANGES = {
    "learning_rate": (0, 1e6),
    "weight_decay": (0, 1e6),
    "num_train_epochs": (0, 1e6),
    "max_steps": (-1, 1e9),
    "seed": (0, 2**32 - 1),
    "data_seed": (0, 2**32 - 1),
    "per_device_train_batch_size": (1, 1e6),
    "per_device_eval_batch_size": (1, 1e6),
    "gradient_accumulation_steps": (1, 1e6),
    "max_grad_norm": (0, 1e9),
    "adam_beta1": (0, BELOW_ONE),
    "adam_beta2": (0, BELOW_ONE),
    "adam_epsilon": (0, 1),
    "label_smoothing_factor": (0, BELOW_ONE),
    "neftune_noise_alpha": (0, 1e9),
    "save_steps": (0, 1e9),
    "eval_steps": (0, 1e9),
    "dataloader_num_workers": (0, 1_000),
    "ddp_timeout": (1, 1e9),
}
