"""Which part of a classifier is its head, and what it is held in.

The head is everything outside the encoder, and the pooler.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from loralib.base import adapter_dtype

# Where PEFT's models hold the classifier; one of prompts has no tuner in between.
_PEFT_WRAPPER = re.compile(r"base_model\.(model\.)?")
# The prompts that PEFT trains are parameters of its wrapper, not of the classifier.
_PEFT_PROMPTS = "prompt_encoder"


def base_path(model: nn.Module) -> str:
    """Path of the encoder inside ``model``, such as ``deberta``; "" if ``model`` is the encoder."""
    prefix = str(getattr(model, "base_model_prefix", "") or "")
    return prefix if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""


def is_head(model: nn.Module, path: str) -> bool:
    """Whether a module or a parameter at ``path`` belongs to the pooler or the classifier.

    BERT keeps its pooler inside the encoder, DeBERTa outside; both are trained from the task.
    The classifier may be one that PEFT has wrapped.
    """
    base = base_path(model)
    if path.startswith(("base_model.", _PEFT_PROMPTS)):
        if path.startswith(_PEFT_PROMPTS):
            return False
        path = _PEFT_WRAPPER.sub("", path, count=1)
    if base:
        if path != base and not path.startswith(f"{base}."):
            return True
        path = path.removeprefix(base).removeprefix(".")
    return path == "pooler" or path.startswith("pooler.")


def head_names(model: nn.Module) -> list[str]:
    """Names of the parameters of pooler and classifier, which every method trains whole."""
    return [name for name, _ in model.named_parameters() if is_head(model, name)]


def head_modules(model: nn.Module) -> list[str]:
    """Paths of pooler and classifier, each the outermost module that is all head."""
    prefix = f"{base_path(model)}."
    found = []
    for name in head_names(model):
        # BERT's pooler lies inside the encoder, one step further down than other heads.
        steps = 2 if name.startswith(prefix) else 1
        found.append(".".join(name.split(".")[:steps]))
    return list(dict.fromkeys(found))


def widen_head(model: nn.Module) -> None:
    """Hold the head in float32 over an encoder in half precision; its inputs are cast to that.

    The head trains. In bfloat16 small steps of it are lost, and float16 has no room for AdamW's
    epsilon: the first step divides zero by zero.
    """
    for path, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if is_head(model, path) and any(adapter_dtype(p) != p.dtype for p in own):
            module.to(adapter_dtype(own[0]))
            module.register_forward_pre_hook(_in_its_own_type)


def _in_its_own_type(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(
        x.to(dtype) if isinstance(x, Tensor) and torch.is_floating_point(x) else x for x in inputs
    )
