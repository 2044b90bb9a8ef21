"""Which part of a classifier is its head, what it is held in, and which of its rows is which class.

The head is everything outside the encoder, and the pooler.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loralib.base import adapter_dtype

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
        # A PEFT model of prompts holds the classifier itself, others a tuner that holds it.
        tuned = not isinstance(getattr(model, "base_model", None), PreTrainedModel)
        path = path.removeprefix("base_model.model." if tuned else "base_model.")
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


# ---- classes by name ----


class AlignedHead(NamedTuple):
    """A stored head as it goes into a model."""

    #: by name, in the model's shapes and the order of its classes; none where the head starts anew
    tensors: dict[str, Tensor]
    #: what the head was trained for, where that is not what the model is for; None else
    reason: str | None = None
    new: tuple[str, ...] = ()  #: classes that it has no row of, which keep the model's


def class_names(config: Any) -> tuple[str, ...] | None:
    """What a checkpoint's configuration says that its outputs mean.

    Returns:
        The classes in the order of the outputs; () for a number; None where it does not say, as
        transformers' own ``LABEL_0``, ``LABEL_1`` ... do not.
    """
    count = int(config.num_labels)
    if count == 1 and config.problem_type in (None, "regression"):
        return ()
    names = tuple(str(config.id2label.get(index)) for index in range(count))
    default = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    return None if default or len(set(names)) < count else names


def class_order(stored: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    """The place of each class ``wanted`` among those ``stored``; None where it is not there.

    Classes are the same if their names are, without regard to case unless that confuses two.
    """
    fold = all(len({n.casefold() for n in names}) == len(names) for names in (stored, wanted))
    places = {(name.casefold() if fold else name): place for place, name in enumerate(stored)}
    return [places.get(name.casefold() if fold else name) for name in wanted]


def class_dimensions(model: nn.Module) -> dict[str, int]:
    """Name -> dimension of the parameters of the head that have an entry for each class.

    They are those that would be larger with one class more.

    Args:
        model: a transformers classifier, adapted or not, that nothing wraps.
    """
    config: Any = copy.deepcopy(model.config)
    config.num_labels += 1
    with torch.device("meta"):
        larger = dict(type(model)(config).named_parameters())  # type: ignore[arg-type]
    found = {}
    for name in head_names(model):
        sizes = zip(model.get_parameter(name).shape, larger[name].shape, strict=True)
        for dimension, (own, other) in enumerate(sizes):
            if own != other:
                found[name] = dimension
    return found


@torch.no_grad()
def align_head(
    model: nn.Module,
    stored: Mapping[str, Tensor],
    names: Sequence[str] | None,
    wanted: Sequence[str] | None,
    *,
    grow: bool = False,
) -> AlignedHead:
    """Give a stored head the order of the model's classes: rows belong together by their names.

    Args:
        model: a classifier for the classes ``wanted``.
        stored: parameters of its head by name, as they were trained.
        names: the classes that they were trained for, in their order; () for a number; None where
            nobody noted them.
        wanted: the model's classes, likewise; None where they have no names, so that the shapes
            alone decide.
        grow: whether the model may have further classes, whose rows stay as they are.
    """
    if wanted is not None and bool(names) != bool(wanted):
        return AlignedHead({}, _trained_for(names))
    tensors, new = dict(stored), []
    if wanted and names:
        order = class_order(names, wanted)
        new = [name for name, place in zip(wanted, order, strict=True) if place is None]
        if len(names) > len(wanted) - len(new) or (new and not grow):
            return AlignedHead({}, _trained_for(names))
        if order != list(range(len(names))):
            for name, dimension in class_dimensions(model).items():
                if name in stored and stored[name].shape[dimension] == len(names):
                    own = model.get_parameter(name)
                    tensors[name] = _rows(stored[name], dimension, order, own)
    wrong = [name for name, t in tensors.items() if t.shape != model.get_parameter(name).shape]
    if wrong:
        return AlignedHead({}, f"another shape ({', '.join(wrong)})")
    return AlignedHead(tensors, None, tuple(new))


def _rows(stored: Tensor, dimension: int, order: Sequence[int | None], own: Tensor) -> Tensor:
    """``stored`` in the order given, with the rows of ``own`` where there is none."""
    rows = own.detach().to(stored.device, stored.dtype).unbind(dimension)
    known = stored.unbind(dimension)
    return torch.stack(
        [rows[i] if place is None else known[place] for i, place in enumerate(order)], dimension
    )


def _trained_for(names: Sequence[str] | None) -> str:
    if names is None:
        return "classes without names (LABEL_0 and the like say nothing)"
    return f"the classes {', '.join(names)}" if names else "a number"
