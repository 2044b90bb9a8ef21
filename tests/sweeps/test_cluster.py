"""The same runs through Ray, on a cluster of one node that the test starts for itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adalora.commands.sweep import main
from adalora.errors import UserError

TEXT = """
base:
  {model_name_or_path: nano, max_steps: 2, max_seq_length: 32, max_val_samples: 16,
   per_device_train_batch_size: 8, apply_lora: true, lora_r: 1}
tasks: [mini-rte]
methods: {lora: {}, broken: {lora_path: absent.bin}}
seeds: [1]
"""


@pytest.mark.slow
def test_runs_on_a_cluster_come_back_whole(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'adalora[sweep]'")
    path, folder = tmp_path / "mine.yaml", tmp_path / "out"
    path.write_text(TEXT, encoding="utf-8")
    assert main([str(path), "--output", str(folder), "--executor", "ray"]) == 1
    found = {
        line["cell"]["method"]: line
        for line in map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    }
    assert {name: line["status"] for name, line in found.items()} == {
        "lora": "finished",
        "broken": "failed",
    }
    assert "absent.bin" in found["broken"]["error"]
    run = folder / found["lora"]["folder"]
    assert (run / "run.json").is_file()
    assert (run / "model" / "adapter.safetensors").is_file()
    assert (run / "output.txt").read_text(encoding="utf-8")


def test_a_cluster_needs_its_executor(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs --executor ray"):
        main([str(tmp_path / "x.yaml"), "--ray_address", "auto"])
