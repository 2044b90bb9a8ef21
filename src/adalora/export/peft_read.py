"""Reading the folder that PEFT calls an adapter, and refusing what is no low-rank update.

Options that change what an adapter computes are many, and new ones come with every release of
PEFT. So the options that are understood are listed here, and any other that is switched on is
refused by its name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adalora.errors import UserError
from adalora.export.low_rank import LowRank
from adalora.export.peft_write import CONFIG_FILE, PREFIX, TENSOR_FILE
from adalora.storage.files import listed, not_finite, read_bin, read_json, read_tensors
from adalora.validation import match_patterns

_BIN_FILE = "adapter_model.bin"
_READ = frozenset(
    "peft_type task_type bias r init_r lora_alpha lora_dropout use_rslora rank_pattern "
    "alpha_pattern base_model_name_or_path revision init_lora_weights".split()
)
# Where adapters go (the tensors' names say it), how they are trained, and by what version.
_WITHOUT_EFFECT = frozenset(
    "auto_mapping peft_version inference_mode target_modules exclude_modules modules_to_save "
    "layers_to_transform layers_pattern fan_in_fan_out megatron_core qalora_group_size eva_config "
    "target_r tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step".split()
)
# Starting values that leave the base as it is; the others (PiSSA, OLoRA, LoftQ ...) change it.
_HARMLESS_STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")
_LARGEST = 1e9  # of any number in a configuration; no rank or scale is
_FACTORS = {
    "LORA": {"lora_A.weight": "down", "lora_B.weight": "up"},
    "ADALORA": {"lora_A": "down", "lora_B": "up", "lora_E": "values"},
}


@dataclass(frozen=True)
class PeftAdapter:
    """What an adapter folder holds.

    ``updates`` by module path; ``others``: the parameters that are whole, the head as a rule;
    ``init_rank``: AdaLoRA's, or LoRA's where no pattern says otherwise.
    """

    source: Path
    peft_type: str
    base_model: str | None
    revision: str | None
    init_rank: int
    lora_dropout: float
    updates: dict[str, LowRank]
    others: dict[str, Tensor]


def read_adapter(source: Path) -> PeftAdapter:
    """Read an adapter folder of PEFT, LoRA or AdaLoRA.

    Raises:
        UserError: if a file is missing or damaged, a number is NaN or infinite, shapes do not fit
            together, or the adapter is another one than a low-rank update of linear layers.
    """
    if not (source / CONFIG_FILE).is_file():
        raise UserError(
            f"{source} is no adapter folder of PEFT: it has no {CONFIG_FILE}. Name a folder that "
            "PEFT's save_pretrained wrote."
        )
    config = read_json(source / CONFIG_FILE)
    _check_config(config, source)
    tensors = _tensors(source)
    factors, others = _split(tensors, str(config["peft_type"]), source)
    if not factors:
        raise UserError(f"{source} holds no LoRA factors.")
    alphas = _alphas(config, list(factors), source)
    init_rank = "init_r" if config["peft_type"] == "ADALORA" else "r"
    return PeftAdapter(
        source=source,
        peft_type=str(config["peft_type"]),
        base_model=config.get("base_model_name_or_path") or None,
        revision=config.get("revision") or None,
        init_rank=int(_number(config, init_rank, source)),
        lora_dropout=_number(config, "lora_dropout", source, missing=0.0),
        updates={p: _update(p, f, config, alphas[p], source) for p, f in factors.items()},
        others=others,
    )


def _check_config(config: Mapping[str, Any], source: Path) -> None:
    kind, task = str(config.get("peft_type")), config.get("task_type")
    if kind not in _FACTORS:
        raise UserError(f"{source} is an adapter of type {kind}; LORA and ADALORA can be imported.")
    if task not in ("SEQ_CLS", None):
        raise UserError(
            f"{source} was trained for the task type {task}; adapters for text classification "
            "(SEQ_CLS) can be imported."
        )
    unknown = {
        name: value
        for name, value in config.items()
        if value and name not in _READ and name not in _WITHOUT_EFFECT
    }
    if config.get("bias", "none") != "none":
        unknown["bias"] = config["bias"]
    if config.get("init_lora_weights", True) not in _HARMLESS_STARTS:
        unknown["init_lora_weights"] = config["init_lora_weights"]
    if unknown:
        options = listed([f"{name}={value!r}" for name, value in unknown.items()])
        raise UserError(
            f"{source} uses {options}, which is more than a low-rank update of linear layers. "
            "Merge it into its base with PEFT (merge_and_unload), and start from the result."
        )


def _tensors(source: Path) -> dict[str, Tensor]:
    if (source / TENSOR_FILE).is_file():
        tensors = read_tensors(source / TENSOR_FILE)
    elif (source / _BIN_FILE).is_file():
        tensors = read_bin(source / _BIN_FILE)
    else:
        raise UserError(f"{source} holds neither {TENSOR_FILE} nor {_BIN_FILE}.")
    if broken := not_finite(tensors.items()):
        raise UserError(f"{source} holds NaN or infinity in {listed(broken)}; train it again.")
    foreign = [name for name in tensors if not name.startswith(PREFIX)]
    if foreign:
        raise UserError(
            f"{source} holds {listed(foreign)}, and the names of PEFT begin with {PREFIX!r}."
        )
    return {name.removeprefix(PREFIX): tensor.float() for name, tensor in tensors.items()}


def _split(
    tensors: Mapping[str, Tensor], kind: str, source: Path
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Factors by module path, and everything else."""
    factors: dict[str, dict[str, Tensor]] = defaultdict(dict)
    others = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(.+)\.(lora_[ABE](?:\.weight)?)", name)
        if found is not None and found[2] in _FACTORS[kind]:
            factors[found[1]][_FACTORS[kind][found[2]]] = tensor
        else:
            others[name] = tensor
    strange = [name for name in others if "lora_" in name]
    if strange:
        raise UserError(
            f"{source} holds {listed(strange)}, which is no factor of a linear layer's "
            f"{kind} update; only linear layers can be imported."
        )
    return dict(factors), others


def _update(
    path: str,
    factors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    alpha: float,
    source: Path,
) -> LowRank:
    """One matrix, its scale worked out as PEFT does."""
    adaptive = config["peft_type"] == "ADALORA"
    missing = set(_FACTORS[str(config["peft_type"])].values()) - set(factors)
    shapes = {name: list(tensor.shape) for name, tensor in factors.items()}
    if missing or shapes["down"][:1] != shapes["up"][1:] or shapes.get("values", [0, 1])[1:] != [1]:
        raise UserError(
            f"{source} holds factors of {path} that do not belong together, of shapes "
            f"{listed([str(shape) for shape in shapes.values()])}; its file is damaged, or "
            "of a layer that is not linear."
        )
    down, up = factors["down"], factors["up"]
    rank = down.shape[0]
    if adaptive:
        init_rank = _number(config, "init_r", source)
        pattern = _mapping(config, "rank_pattern", source)
        marked = pattern.get(f"{path}.lora_E", [True] * rank)
        if sum(marked) != rank or factors["values"].shape[0] != rank:
            raise UserError(
                f"{source} holds {rank} triplets of {path}, and its rank_pattern marks "
                f"{sum(marked)}; PEFT slices tensors by the pattern when it saves."
            )
        if alpha <= 0:  # PEFT's words for "the rank": the one left, once a pattern sliced it
            alpha = rank if pattern else init_rank
        return LowRank(down, up, factors["values"], alpha / (init_rank + 1e-5))
    return LowRank(down, up, None, alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _alphas(config: Mapping[str, Any], paths: Sequence[str], source: Path) -> dict[str, float]:
    """Path -> alpha: of the first key of the pattern that matches its end, as PEFT looks it up."""
    pattern = _mapping(config, "alpha_pattern", source)
    alphas = dict.fromkeys(paths, _number(config, "lora_alpha", source))
    try:
        answers = match_patterns([rf"(.*\.)?({key})" for key in pattern], paths)
    except UserError as error:
        raise UserError(f"{source} has a key in alpha_pattern that is refused: {error}.") from error
    for value, matches in reversed(list(zip(pattern.values(), answers, strict=True))):
        alphas |= {path: float(value) for path, one in zip(paths, matches, strict=True) if one}
    return alphas


def _mapping(config: Mapping[str, Any], name: str, source: Path) -> dict[str, Any]:
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise UserError(f"{source / CONFIG_FILE} has {name}={value!r}, and an object was expected.")
    return value


def _number(
    config: Mapping[str, Any], name: str, source: Path, *, missing: float | None = None
) -> float:
    value = config.get(name, missing)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) <= _LARGEST:
        raise UserError(f"{source / CONFIG_FILE} has {name}={value!r}, and a number was expected.")
    return float(value)
