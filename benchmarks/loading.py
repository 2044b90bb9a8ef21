"""What a model costs in memory while it is loaded, adapted and saved, against its size.

Each way in a process of its own, step by step. ``peak`` is the most that was resident above what
was before the step, pages of a mapped file among it, which the kernel drops when memory is short;
``held`` is what the process has for itself alone after it. Both in units of the model as held.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.processes import answer_of
from benchmarks.resident import resident_bytes

#: Pieces of DeBERTaV3's vocabulary; its table is more than half of the base model.
VOCABULARY = 128_100
#: Type in the file -> types in memory.
TYPES = {"float32": ("float32", "bfloat16"), "float16": ("float32", "bfloat16", "float16")}


def measure(*, layers: int) -> Iterator[dict[str, Any]]:
    """Ours for every pair of types, and the naive way: build, read, copy."""
    from transformers import DebertaV2ForSequenceClassification

    from benchmarks.contenders import make_config

    result: dict[str, Any] = {"layers": layers}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = DebertaV2ForSequenceClassification(make_config(layers, VOCABULARY))
        result["MiB in float32"] = sum(p.nbytes for p in model.parameters()) / 2**20
        for stored in TYPES:
            model.to(getattr(torch, stored)).save_pretrained(Path(folder) / stored)
        del model
        for stored, held in TYPES.items():
            for dtype in held:
                name = f"{stored} file, {dtype} in memory"
                result[name] = _apart(Path(folder) / stored, dtype, "ours")
                yield result
        result["naive, float32"] = _apart(Path(folder) / "float32", "float32", "naive")
    yield result


def _apart(base: Path, dtype: str, way: str) -> dict[str, Any]:
    steps: dict[str, Any] = answer_of("benchmarks.loading", str(base), dtype, way)
    return steps


class _Steps(dict[str, Any]):
    """Bytes per step."""

    def take(self, name: str, work: Callable[[], Any]) -> Any:
        # Resets the kernel's record of the most that was resident.
        Path("/proc/self/clear_refs").write_text("5")
        before, own = resident_bytes("VmRSS"), resident_bytes("RssAnon")
        result = work()
        self[name] = {
            "peak": resident_bytes("VmHWM") - before,
            "held": resident_bytes("RssAnon") - own,
        }
        return result


def _in_this_process(base: str, dtype: torch.dtype, way: str) -> None:
    from adalora.adapters.freeze import freeze_base
    from adalora.adapters.lora import add_lora
    from adalora.adapters.trainable import load_trainable, save_trainable
    from adalora.artefact.base_encoder import BaseEncoder
    from adalora.pretrained.loading import load_classifier
    from benchmarks.contenders import ALPHA, RANK, TARGETS

    steps = _Steps()
    if way == "naive":
        model: Any = steps.take("load", lambda: _naive(base))
    else:
        model = steps.take("load", lambda: load_classifier(base, num_labels=2, dtype=dtype))
        options: Any = {"lora_type": "svd", "targets": TARGETS}
        steps.take("adapt", lambda: add_lora(model, init_rank=RANK, lora_alpha=ALPHA, **options))
        steps.take("fingerprint of the base", BaseEncoder.of(model).fingerprint)
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/trained.safetensors"
            freeze_base(model, train="lora")
            steps.take("save the adapters", lambda: save_trainable(model, file))
            freeze_base(model, train="full")
            steps.take("save every parameter", lambda: save_trainable(model, file))
            steps.take("read every parameter", lambda: load_trainable(model, file))
    size = sum(p.nbytes for p in model.parameters())
    print(json.dumps({s: {k: v / size for k, v in cost.items()} for s, cost in steps.items()}))


def _naive(base: str) -> torch.nn.Module:
    """Build the model with random weights, read the file whole, copy."""
    from safetensors.torch import load
    from transformers import AutoConfig, DebertaV2ForSequenceClassification

    model = DebertaV2ForSequenceClassification(AutoConfig.from_pretrained(base))
    model.load_state_dict(load((Path(base) / "model.safetensors").read_bytes()))
    return model


if __name__ == "__main__":
    _in_this_process(sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3])
