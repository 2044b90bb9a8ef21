"""A baseline of PEFT from the command line to an answer, and what other commands make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.program import run_program

from adalora.cli import main

pytest.importorskip("peft", reason="needs the extra adalora[peft]")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "text-classification" / "peft"
FLAGS = (
    *("--model_name_or_path", "nano", "--task_name", "mini-sst2", "--do_train", "--do_eval"),
    *("--max_steps", "12", "--per_device_train_batch_size", "8", "--learning_rate", "2e-3"),
    *("--max_val_samples", "32", "--report_to", "none", "--disable_tqdm", "True"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of PEFT's AdaLoRA."""
    root: Path = tmp_path_factory.mktemp("peft") / "run"
    values = json.loads((EXAMPLES / "adalora.json").read_text(encoding="utf-8"))
    file = root.parent / "method.json"
    file.write_text(json.dumps({**values, "deltaT": 2}))
    done = run_program(*FLAGS, "--peft_config", str(file), "--root_output_dir", str(root))
    assert "Warning:" not in done.stdout + done.stderr
    assert "triplets    pruned 144 -> 72" in done.stdout
    return root


def test_the_run_says_what_it_pruned_and_leaves_pefts_folder(run: Path) -> None:
    pattern = json.loads((run / "rank_pattern.json").read_text())
    assert len(pattern) == 36
    assert sum(pattern.values()) == 72
    names = {path.name for path in (run / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "adalora.json"} <= names
    assert not {"adapter.safetensors", "head.safetensors"} & names
    config = json.loads((run / "model" / "adapter_config.json").read_text())
    assert config["total_step"] == 12
    assert (config["tinit"], config["tfinal"]) == (1, 4)


def test_predict_eval_and_info_read_it(run: Path, tmp_path: Path, capsys: Any) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a great film\na dull film\n")
    assert main(["predict", str(run), str(texts)]) == 0
    rows = capsys.readouterr().out.strip().splitlines()
    assert [row.split("\t")[1] in ("negative", "positive") for row in rows[1:]] == [True, True]
    assert main(["info", str(run)]) == 0
    assert "PEFT AdaLoRA" in capsys.readouterr().out


@pytest.mark.parametrize("to", ["merged", "lora", "peft-adalora", "loralib"])
def test_exports_of_our_layers_point_to_the_import(
    run: Path, tmp_path: Path, capsys: Any, to: str
) -> None:
    assert main(["export", str(run), "--to", to, "--output", str(tmp_path / "out")]) == 2
    assert "adalora import'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_import_makes_a_run_of_ours_of_it(run: Path, tmp_path: Path, capsys: Any) -> None:
    target = str(tmp_path / "ours")
    assert main(["import", str(run / "model"), "--output", target]) == 0
    assert "against PEFT" in capsys.readouterr().out
    assert main(["export", target, "--to", "merged", "--output", str(tmp_path / "plain")]) == 0
