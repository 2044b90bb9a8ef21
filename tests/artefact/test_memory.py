"""Memory in proportion: a model is held once, whatever is done with it.

Measured in a process of its own, step by step, by the kernel's own record of the most that was
resident, which is reset before each step. It counts the pages of a mapped file, which the kernel
drops when memory is short: those are allowed once, and named apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.models import deberta_v3_config
from transformers import DebertaV2ForSequenceClassification

PROGRAM = """
import json, sys
import torch
from adalora.adapters import add_lora, freeze_base
from adalora.artefact import *
from adalora.adapters.merge import merged_model
from adalora.pretrained.loading import load_classifier

def resident(what):
    for line in open("/proc/self/status"):
        if line.startswith(what):
            return int(line.split()[1]) * 1024

class Steps(dict):
    def take(self, name, work):
        open("/proc/self/clear_refs", "w").write("5")
        before = resident("VmRSS"), resident("RssAnon")
        result = work()
        peak, anonymous = resident("VmHWM") - before[0], resident("RssAnon") - before[1]
        self[name] = {"peak": peak, "held": anonymous}
        return result

base, dtype, folder = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3]
steps = Steps()
load = lambda: load_classifier(base, num_labels=2, dtype=dtype)
model = steps.take("load", load)

def adapt():
    add_lora(model, lora_type="svd", targets=["query", "value"], init_rank=2, lora_alpha=8)
    freeze_base(model, train="lora")
    # Every page is there from here on.
    BaseEncoder.of(model).fingerprint()

def description():
    return Description.of(
        model, base_model=base, revision=None, method="AdaLoRA", task=None, labels=["no", "yes"],
        is_regression=False, text_columns=["text"], max_seq_length=64, training={},
    )

def save():
    save_artefact(folder + "/run", model, tokenizer=None, description=description())

def whole():
    freeze_base(model, train="full")
    save_trainable(model, folder + "/all.safetensors")

steps.take("adapt", adapt)
steps.take("save the adapters", save)
steps.take("save every parameter", whole)
if dtype == torch.float32:
    steps.take("merge", lambda: merged_model(model))
steps.take("read every parameter", lambda: load_trainable(model, folder + "/all.safetensors"))
steps["sizes"] = {"model": sum(p.nbytes for p in model.parameters())}
del model
steps.take("load the run", lambda: load_artefact(folder + "/run"))
print(json.dumps(steps))
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A DeBERTaV3 of 38 million parameters in two number types; most of it is one table."""
    root = tmp_path_factory.mktemp("bases")
    config = deberta_v3_config(
        vocab_size=60_000,
        hidden_size=512,
        num_attention_heads=8,
        intermediate_size=2048,
        position_buckets=64,
    )
    torch.manual_seed(0)
    model = DebertaV2ForSequenceClassification(config)
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype).save_pretrained(root / str(dtype))
    return {str(path.name).removeprefix("torch."): path for path in root.iterdir()}


def can_measure() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not can_measure(), reason="needs Linux's record of resident memory")
@pytest.mark.parametrize(
    ("stored", "dtype"),
    [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32")],
)
def test_a_model_is_held_once(
    bases: dict[str, Path], tmp_path: Path, stored: str, dtype: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(bases[stored]), dtype, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    steps = json.loads(done.stdout.splitlines()[-1])
    size = steps.pop("sizes")["model"]
    file = (bases[stored] / "model.safetensors").stat().st_size
    # Less than a copy of the largest table, and room for what libraries load.
    margin = 0.1 * size + 16 * 2**20
    same = stored == dtype
    assert steps["load"]["peak"] < (0 if same else file + size) + margin
    assert steps["load"]["held"] < (0 if same else size) + margin
    # Pages of the mapped file come in when they are first looked at.
    assert steps["adapt"]["peak"] < (size if same else 0) + margin
    assert steps["adapt"]["held"] < margin
    for step in ("save the adapters", "save every parameter"):
        assert steps[step]["peak"] < margin, step
    if dtype == "float32":
        # What was adapted is new, the rest is the model's own.
        assert steps["merge"]["peak"] < margin
    # The file that is read, and what was the base's mapped file becomes the model's own.
    assert steps["read every parameter"]["peak"] < 2 * size + margin
    assert steps["load the run"]["held"] < (0 if same else size) + margin
