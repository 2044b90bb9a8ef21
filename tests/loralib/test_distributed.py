"""Two real processes whose averages differ prune alike if they train one model, and else apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, torch, torch.distributed as dist, loralib
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
groups = [dist.new_group([0]), dist.new_group([1])]
for group in (None, groups[rank]):
    torch.manual_seed(0)
    model = torch.nn.Sequential(loralib.SVDLinear(4, 4, r=3), loralib.SVDLinear(4, 4, r=3))
    allocator = loralib.RankAllocator(
        model, 3, 1, 0, 2, 1, 0.5, 0.5, total_step=8, process_group=group
    )
    torch.manual_seed(rank)
    for step in range(8):
        if group is not None and rank == 1 and step > 4:
            break  # a model of its own has a length of its own
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        with torch.no_grad():
            for layer in model:
                layer.lora_E.fill_(1.0)
        allocator.update_and_mask(model, step)
    scores = allocator.importance.scores().tolist()
    kept = [layer.lora_E.flatten().tolist() for layer in model]
    print([round(s, 6) for s in scores], "|", kept, end="|")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_the_processes_of_one_model_decide_one_mask_and_others_their_own(tmp_path: Path) -> None:
    rendezvous = tmp_path / "rendezvous"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rendezvous), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    said = zip(*(out.strip("|\n").split("|") for out, _ in outputs), strict=True)
    scores, kept, _, alone = said
    assert scores[0] != scores[1]
    assert kept[0] == kept[1]
    assert kept[0].count("1.0") == 2
    assert alone[0] != alone[1]
