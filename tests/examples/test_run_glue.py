"""run_glue.py: what it resumes, refuses and trains; called in this process."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.program import SMALL, run_program

from adalora.builtin.miniature import generate
from adalora.storage.atomic import locked_folder


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


# --- resuming and overwriting ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_resumed_from_a_checkpoint_ends_as_it_would_have(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    finished, _ = trained
    root = tmp_path / "resumed"
    (root / "model").mkdir(parents=True)
    shutil.copytree(finished / "model" / "checkpoint-6", root / "model" / "checkpoint-6")
    run_program(
        *SMALL,
        *("--task_name", "mini-mnli", "--do_train", "--root_output_dir", str(root)),
        *("--logging_steps", "4", "--save_steps", "6"),
        # As one continues a seed script, which overwrites.
        *("--overwrite_output_dir", "--resume_from_checkpoint", "True"),
    )
    assert read(root / "rank_pattern.json") == read(finished / "rank_pattern.json")
    loss = [read(folder / "train_results.json")["train_loss"] for folder in (root, finished)]
    assert loss[0] == loss[1]
    for name in ("adapter.safetensors", "head.safetensors"):
        mine, theirs = (load_file(x / "model" / name) for x in (root, finished))
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert value.equal(theirs[key]), key


def test_a_run_whose_flags_were_changed_is_not_resumed_unasked(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    finished, _ = trained
    root = tmp_path / "run"
    shutil.copytree(finished / "model" / "checkpoint-6", root / "model" / "checkpoint-6")
    done = run_program(
        *SMALL,
        *("--task_name", "mini-mnli", "--do_train", "--root_output_dir", str(root)),
        *("--lora_alpha", "8", "--max_seq_length", "32"),
        expect=2,
    )
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "lora_alpha: there 16, here 8; max_seq_length: there 48, here 32" in error
    assert "--force_resume" in error
    assert [path.name for path in (root / "model").iterdir()] == ["checkpoint-6"]


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with locked_folder(tmp_path):
        done = run_program(
            *SMALL,
            *("--task_name", "mini-rte", "--do_train", "--root_output_dir", str(tmp_path)),
            expect=2,
        )
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert f"is in use by process {os.getpid()}" in error
    assert not (tmp_path / "log.txt").exists()


def test_an_earlier_runs_files_are_not_lost_unasked(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    (root / "model").mkdir(parents=True)
    precious = root / "model" / "adapter.safetensors"
    precious.write_bytes(b"mine")
    done = run_program(
        *SMALL, "--task_name", "mini-rte", "--do_train", "--root_output_dir", str(root), expect=2
    )
    assert "--overwrite_output_dir" in done.stderr
    assert precious.read_bytes() == b"mine"


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--task_name", "mini-rt"), "mini-rte"),
        (("--task_name", "mini-rte", "--lora_modul", "query"), "--lora_module"),
        (("--task_name", "mini-rte", "--target_rank", "3"), "--target_rank 3 is above --lora_r 2"),
        (("--task_name", "mini-rte", "--init_warmup", "9"), "no decay phase"),
        (("--task_name", "mini-rte", "--lora_module", "query,quary"), "quary"),
        (("--task_name", "mini-rte", "--model_name_or_path", "absent/model"), "absent/model"),
        (("--task_name", "rte", "--data_dir", "/absent"), "/absent"),
    ],
)
def test_a_mistake_ends_in_one_sentence_before_any_work(
    tmp_path: Path, flags: tuple[str, ...], says: str
) -> None:
    root = tmp_path / "run"
    done = run_program(*SMALL, "--do_train", "--root_output_dir", str(root), *flags, expect=2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert says in errors[0]
    assert "Traceback" not in done.stderr
    assert not list(root.rglob("*.safetensors"))


# --- data of other kinds, other methods -----------------------------------------------------------


def test_own_files_without_a_task_train_and_predict(tmp_path: Path) -> None:
    rows = [
        (row["sentence"], "good" if row["label"] else "bad") for row in generate("sst2", "train")
    ]
    for name, part in {"train": rows[:200], "dev": rows[200:260], "test": rows[260:280]}.items():
        lines = [json.dumps({"review": text, "label": label}) for text, label in part]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    root = tmp_path / "run"
    run_program(
        *SMALL,
        *("--train_file", str(tmp_path / "train.jsonl")),
        *("--validation_file", str(tmp_path / "dev.jsonl")),
        *("--test_file", str(tmp_path / "test.jsonl")),
        *("--do_train", "--do_eval", "--do_predict", "--root_output_dir", str(root)),
    )
    predicted = (root / "test_results_custom.txt").read_text().splitlines()[1:]
    assert len(predicted) == 20
    assert {line.split("\t")[1] for line in predicted} <= {"good", "bad"}
    assert read(root / "eval_results_custom.json")["eval_samples"] == 60


@pytest.mark.parametrize(
    ("method", "trained_part"),
    [
        (("--apply_lora", "--lora_r", "2"), "lora_"),
        (("--apply_adapter", "--adapter_type", "houlsby", "--adapter_size", "4"), "adapter"),
        (("--apply_bitfit",), "bias"),
    ],
)
def test_the_other_methods_train_through_the_same_program(
    tmp_path: Path, method: tuple[str, ...], trained_part: str
) -> None:
    root = tmp_path / "run"
    run_program(
        *("--model_name_or_path", "nano", "--task_name", "mini-stsb", "--do_train", "--do_eval"),
        *("--per_device_train_batch_size", "8", "--max_steps", "4", "--max_val_samples", "32"),
        *("--learning_rate", "1e-3", "--root_output_dir", str(root), *method),
    )
    stored = load_file(root / "model" / "adapter.safetensors")
    assert stored
    assert all(trained_part in name for name in stored)
    assert set(read(root / "eval_results_mini-stsb.json")) >= {"eval_pearson", "eval_spearmanr"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--bf16", "--base_dtype", "bfloat16"),
        (
            *("--torch_compile", "--torch_compile_backend", "aot_eager", "--max_seq_length", "16"),
            # One shape, compiled once.
            *("--pad_to_max_length", "--max_val_samples", "16"),
        ),
        ("--group_by_length",),
        ("--no_unpad", "--pad_to_max_length"),
    ],
)
def test_ways_to_compute_leave_the_allocation_whole(tmp_path: Path, flags: tuple[str, ...]) -> None:
    root = tmp_path / "run"
    run_program(
        *SMALL,
        *("--task_name", "mini-rte", "--do_train", "--do_eval", "--root_output_dir", str(root)),
        *flags,
    )
    assert sum(read(root / "rank_pattern.json").values()) == 36
    stored = load_file(root / "model" / "adapter.safetensors")
    # Adapters stay in float32 whatever the base and the products are in.
    assert {str(tensor.dtype) for tensor in stored.values()} == {"torch.float32"}
    assert 0 < read(root / "train_results.json")["train_loss"] < 2


@pytest.mark.slow
def test_a_run_that_stops_early_stops_at_its_budget(tmp_path: Path) -> None:
    """Nothing is learned, so that no evaluation is better than the first that counts, at step 6."""
    root = tmp_path / "run"
    run_program(
        *SMALL,
        *("--task_name", "mini-rte", "--do_train", "--do_eval", "--root_output_dir", str(root)),
        *("--learning_rate", "0", "--final_warmup", "8", "--early_stopping_patience", "1"),
        *("--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps"),
        *("--save_steps", "2", "--load_best_model_at_end", "--metric_for_best_model", "accuracy"),
        *("--gradient_checkpointing", "--label_smoothing_factor", "0.1"),
        *("--base_dtype", "float16", "--gradient_accumulation_steps", "3"),
        *("--per_device_train_batch_size", "2", "--max_val_samples", "16"),
    )
    assert read(root / "model" / "trainer_state.json")["global_step"] == 8
    assert read(root / "model" / "trainer_state.json")["best_global_step"] == 6
    assert sum(read(root / "rank_pattern.json").values()) == 36


def test_a_run_that_ends_above_its_budget_says_so(tmp_path: Path) -> None:
    done = run_program(
        *SMALL,
        *("--task_name", "mini-rte", "--do_train", "--root_output_dir", str(tmp_path / "run")),
        *("--final_warmup", "0", "--mask_interval", "5"),
    )
    # The last pruning, at step 10, left 36; step 11 gave the others new values.
    assert "with 72 triplets, above its target of 36" in " ".join(done.stdout.split())
