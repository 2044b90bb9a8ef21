"""run_glue.py as its users start it: what it leaves, resumes, distributes and refuses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from adalora.artefact.reader import load_artefact
from adalora.builtin.layout import write_tsv
from adalora.builtin.miniature import generate
from adalora.results.record import RunRecord
from adalora.storage.lock import locked_folder
from adalora.training.arguments.parser import parse_arguments
from adalora.training.checkpointing.settings import resume_settings
from adalora.training.make_record import given_flags

Start = Any


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


# --- what a run leaves ----------------------------------------------------------------------------


def test_the_folder_of_a_run_holds_what_was_promised(trained: tuple[Path, str]) -> None:
    root, _ = trained
    names = {path.name for path in root.iterdir()}
    assert {"model", "log", "log.txt", "rank_pattern.json", "train_results.json"} <= names
    assert {"eval_results_mini-mnli.json", "eval_results_mini-mnli-mm.json"} <= names
    tests = {f"test_results_{name}.txt" for name in ("mini-mnli", "mini-mnli-mm", "ax")}
    assert tests <= names
    model = {path.name for path in (root / "model").iterdir()}
    assert {"adalora.json", "adapter.safetensors", "head.safetensors", "checkpoint-12"} <= model
    assert "tokenizer.json" in model
    assert "Traceback" not in (root / "log.txt").read_text()


def test_the_record_of_a_run_agrees_with_its_other_files(
    trained: tuple[Path, str], small: tuple[str, ...]
) -> None:
    root, printed = trained
    record = RunRecord.read(root)
    assert (record.method, record.task, record.seed) == ("AdaLoRA", "mini-mnli", 6)
    assert tuple(record.command[: len(small)]) == small
    assert record.rank_pattern == read(root / "rank_pattern.json")
    assert (record.steps, record.init_rank, record.mask_events) == (12, 2, 6)
    assert record.train_loss == read(root / "train_results.json")["train_loss"]
    for split, name in {"matched": "mini-mnli", "mismatched": "mini-mnli-mm"}.items():
        scores = record.scores[f"validation_{split}"]
        results = read(root / f"eval_results_{name}.json")
        assert scores["last"] == {"accuracy": results["eval_accuracy"]}
        assert (scores["main"], scores["samples"]) == ("accuracy", 64)
    counts = record.parameters
    stored = load_file(root / "model" / "adapter.safetensors")
    kept = sum(t.numel() for name, t in stored.items() if "ranknum" not in name)
    assert counts["adapter_kept"] == kept < counts["adapter_initial"]
    # Batches of eight sentence pairs, real tokens only.
    assert record.tokens_per_second is not None
    assert record.seconds is not None
    tokens = record.tokens_per_second * record.seconds / (12 * 8)
    assert 5 < tokens < 48
    assert not set(record.flags) & {"output_dir", "run_name", "use_cpu", "report_to", "debug"}
    for warning in record.warnings:
        assert " ".join(warning["message"].split()[:4]) in " ".join(printed.split())


def test_the_flags_of_a_record_make_the_run_again(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    root, _ = trained
    record = RunRecord.read(root)
    path = tmp_path / "again.json"
    path.write_text(json.dumps(dict(record.flags)), encoding="utf-8")
    again, first = parse_arguments([str(path)]), parse_arguments(list(record.command))
    assert given_flags(again) == given_flags(first) == dict(record.flags)
    assert resume_settings(again) == resume_settings(first)


def test_every_answer_on_the_validation_sets_is_kept(trained: tuple[Path, str]) -> None:
    root, _ = trained
    for name in ("mini-mnli", "mini-mnli-mm"):
        header, *lines = (root / f"eval_predictions_{name}.tsv").read_text().splitlines()
        assert header == "index\tlabel\tprediction"
        rows = [line.split("\t") for line in lines]
        assert [int(row[0]) for row in rows] == list(range(64))
        right = sum(row[1] == row[2] for row in rows) / 64
        assert right == read(root / f"eval_results_{name}.json")["eval_accuracy"]


def test_the_history_tells_the_course_of_the_ranks(trained: tuple[Path, str]) -> None:
    root, _ = trained
    history = read(root / "history.json")
    assert [entry["step"] for entry in history["allocations"]] == [4, 6, 8, 9, 10, 11]
    pattern = {k.removesuffix(".lora_E"): v for k, v in read(root / "rank_pattern.json").items()}
    assert history["allocations"][-1]["ranks"] == pattern
    assert [sum(one["ranks"].values()) for one in history["allocations"]] == [
        entry["budget"] for entry in history["allocations"]
    ]
    assert {name: len(scores) for name, scores in history["importance"].items()} == dict.fromkeys(
        pattern, 2
    )
    assert [entry["step"] for entry in history["log_history"] if "loss" in entry] == [4, 8, 12]


def test_ranks_fall_to_the_target_and_the_artefact_holds_the_survivors(
    trained: tuple[Path, str],
) -> None:
    root, _ = trained
    pattern = read(root / "rank_pattern.json")
    # Six layers of six matrices, at mean rank 1 of 2.
    assert len(pattern) == 36
    assert sum(pattern.values()) == 36
    assert set(pattern.values()) <= {0, 1, 2}
    stored = load_file(root / "model" / "adapter.safetensors")
    kept = {name: len(value) for name, value in stored.items() if name.endswith("lora_E")}
    assert kept == {name: rank for name, rank in pattern.items() if rank}


def test_scores_are_of_each_validation_set_and_training_is_described(
    trained: tuple[Path, str],
) -> None:
    root, _ = trained
    for name in ("mini-mnli", "mini-mnli-mm"):
        results = read(root / f"eval_results_{name}.json")
        assert results["eval_samples"] == 64
        assert results["eval_accuracy"] * 64 == pytest.approx(round(results["eval_accuracy"] * 64))
    training = read(root / "train_results.json")
    assert training["train_samples"] == 3000
    assert 0 < training["train_loss"] < 2


def test_predictions_have_a_line_for_each_test_example(trained: tuple[Path, str]) -> None:
    root, _ = trained
    for name in ("mini-mnli", "mini-mnli-mm", "ax"):
        header, *lines = (root / f"test_results_{name}.txt").read_text().splitlines()
        assert header == "index\tprediction"
        assert [line.split("\t")[0] for line in lines] == [str(index) for index in range(40)]
        words = {line.split("\t")[1] for line in lines}
        assert words <= {"entailment", "neutral", "contradiction"}


def test_tensorboard_gets_the_originals_tags(trained: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root, _ = trained
    tags: dict[str, list[Any]] = {}
    for folder in {path.parent for path in (root / "log").rglob("events*")}:
        events = EventAccumulator(str(folder))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            tags.setdefault(tag, []).extend(events.Scalars(tag))
    for family in ("Ranknum/", "Budget/", "Orth_regu_loss/", "train/"):
        assert any(tag.startswith(family) for tag in tags), sorted(tags)
    assert "train/loss" in tags
    budget = [event.value for event in tags["Budget/total_rank"]]
    assert budget == sorted(budget, reverse=True)
    assert budget[-1] == 36


def test_the_summary_says_score_triplets_ranks_place_and_what_next(
    trained: tuple[Path, str],
) -> None:
    root, printed = trained
    flat = " ".join(printed.split())
    for part in ("majority", "72", "36", "query", "layer", "run_debertav3_mnli.sh"):
        assert part in flat
    assert str(root) in printed.replace("\n", "")


def test_the_artefact_loads_and_answers(trained: tuple[Path, str]) -> None:
    root, _ = trained
    artefact = load_artefact(root / "model")
    row = generate("mnli", "test_matched")[0]
    inputs = artefact.tokenizer(row["premise"], row["hypothesis"], return_tensors="pt")
    assert artefact.model.eval()(**inputs).logits.shape == (1, 3)


# --- resuming and overwriting ---------------------------------------------------------------------


def test_a_run_resumed_from_a_checkpoint_ends_as_it_would_have(
    trained: tuple[Path, str], run_program: Start, small: tuple[str, ...], tmp_path: Path
) -> None:
    finished, _ = trained
    root = tmp_path / "resumed"
    (root / "model").mkdir(parents=True)
    shutil.copytree(finished / "model" / "checkpoint-6", root / "model" / "checkpoint-6")
    run_program(
        *small,
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
    trained: tuple[Path, str], run_program: Start, small: tuple[str, ...], tmp_path: Path
) -> None:
    finished, _ = trained
    root = tmp_path / "run"
    shutil.copytree(finished / "model" / "checkpoint-6", root / "model" / "checkpoint-6")
    done = run_program(
        *small,
        *("--task_name", "mini-mnli", "--do_train", "--root_output_dir", str(root)),
        *("--lora_alpha", "8", "--max_seq_length", "32"),
        expect=2,
    )
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "lora_alpha: there 16, here 8; max_seq_length: there 48, here 32" in error
    assert "--force_resume" in error
    assert [path.name for path in (root / "model").iterdir()] == ["checkpoint-6"]


def test_two_runs_do_not_write_to_one_folder(
    run_program: Start, small: tuple[str, ...], tmp_path: Path
) -> None:
    with locked_folder(tmp_path):
        done = run_program(
            *small,
            *("--task_name", "mini-rte", "--do_train", "--root_output_dir", str(tmp_path)),
            expect=2,
        )
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert f"is in use by process {os.getpid()}" in error
    assert not (tmp_path / "log.txt").exists()


def test_an_earlier_runs_files_are_not_lost_unasked(
    trained: tuple[Path, str], run_program: Start, small: tuple[str, ...], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    (root / "model").mkdir(parents=True)
    precious = root / "model" / "adapter.safetensors"
    precious.write_bytes(b"mine")
    done = run_program(
        *small, "--task_name", "mini-rte", "--do_train", "--root_output_dir", str(root), expect=2
    )
    assert "--overwrite_output_dir" in done.stderr
    assert precious.read_bytes() == b"mine"


# --- several processes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_end_as_one_with_the_same_global_batch(
    run_program: Start, small: tuple[str, ...], tmp_path: Path, project_root: Path
) -> None:
    model = tmp_path / "nano"
    shutil.copytree(project_root / "src" / "adalora" / "builtin" / "nano", model)
    config = read(model / "config.json")
    # Dropout draws from each process's own generator: without it the runs are comparable.
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    roots = {}
    for processes in (1, 2):
        root = roots[processes] = tmp_path / f"of-{processes}"
        run_program(
            *small,
            *("--model_name_or_path", str(model), "--task_name", "mini-rte", "--do_train"),
            *("--do_eval", "--cls_dropout", "0", "--root_output_dir", str(root)),
            *("--per_device_train_batch_size", str(8 // processes), "--max_train_samples", "96"),
            *("--logging_steps", "5"),
            processes=processes,
        )
    one, two = roots[1], roots[2]
    assert read(one / "rank_pattern.json") == read(two / "rank_pattern.json")
    histories = [read(root / "model" / "trainer_state.json")["log_history"] for root in (one, two)]
    losses, penalties = (
        [[entry[key] for entry in history if key in entry] for history in histories]
        for key in ("loss", "orth_penalty")
    )
    assert len(losses[0]) == 3
    totals = [read(root / "train_results.json")["train_loss"] for root in (one, two)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-4)
    # float32 sums in another order, through twelve steps of AdamW.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert penalties[0] == pytest.approx(penalties[1], rel=1e-4)
    for file in ("adapter.safetensors", "head.safetensors"):
        mine, theirs = (load_file(root / "model" / file) for root in (one, two))
        for key, value in mine.items():
            error = (value - theirs[key]).norm() / value.norm().clamp(min=1e-3)
            assert error < 1e-2, key
    results = [read(root / "eval_results_mini-rte.json") for root in (one, two)]
    assert results[0]["eval_samples"] == results[1]["eval_samples"] == 64
    assert results[0]["eval_loss"] == pytest.approx(results[1]["eval_loss"], rel=1e-3)


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
    run_program: Start, small: tuple[str, ...], tmp_path: Path, flags: tuple[str, ...], says: str
) -> None:
    root = tmp_path / "run"
    done = run_program(*small, "--do_train", "--root_output_dir", str(root), *flags, expect=2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert says in errors[0]
    assert "Traceback" not in done.stderr
    assert not list(root.rglob("*.safetensors"))


# --- data of other kinds, other methods -----------------------------------------------------------


def test_own_files_without_a_task_train_and_predict(
    run_program: Start, small: tuple[str, ...], tmp_path: Path
) -> None:
    rows = [
        (row["sentence"], "good" if row["label"] else "bad") for row in generate("sst2", "train")
    ]
    for name, part in {"train": rows[:200], "dev": rows[200:260], "test": rows[260:280]}.items():
        lines = [json.dumps({"review": text, "label": label}) for text, label in part]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    root = tmp_path / "run"
    run_program(
        *small,
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
    run_program: Start, tmp_path: Path, method: tuple[str, ...], trained_part: str
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


@pytest.mark.parametrize(
    "flags",
    [
        ("--bf16", "--base_dtype", "bfloat16"),
        ("--torch_compile", "--torch_compile_backend", "aot_eager", "--max_seq_length", "16"),
        ("--group_by_length",),
        ("--no_unpad", "--pad_to_max_length"),
    ],
)
def test_ways_to_compute_leave_the_allocation_whole(
    run_program: Start, small: tuple[str, ...], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    root = tmp_path / "run"
    run_program(
        *small,
        *("--task_name", "mini-rte", "--do_train", "--do_eval", "--root_output_dir", str(root)),
        *flags,
    )
    assert sum(read(root / "rank_pattern.json").values()) == 36
    stored = load_file(root / "model" / "adapter.safetensors")
    # Adapters stay in float32 whatever the base and the products are in.
    assert {str(tensor.dtype) for tensor in stored.values()} == {"torch.float32"}
    assert 0 < read(root / "train_results.json")["train_loss"] < 2


def test_a_run_that_stops_early_stops_at_its_budget(
    run_program: Start, small: tuple[str, ...], tmp_path: Path
) -> None:
    """Nothing is learned, so that no evaluation is better than the first that counts, at step 6."""
    root = tmp_path / "run"
    run_program(
        *small,
        *("--task_name", "mini-rte", "--do_train", "--do_eval", "--root_output_dir", str(root)),
        *("--learning_rate", "0", "--final_warmup", "8", "--early_stopping_patience", "1"),
        *("--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps"),
        *("--save_steps", "2", "--load_best_model_at_end", "--metric_for_best_model", "accuracy"),
        *("--gradient_checkpointing", "--label_smoothing_factor", "0.1"),
        *("--base_dtype", "float16", "--gradient_accumulation_steps", "3"),
    )
    assert read(root / "model" / "trainer_state.json")["global_step"] == 8
    assert read(root / "model" / "trainer_state.json")["best_global_step"] == 6
    assert sum(read(root / "rank_pattern.json").values()) == 36


def test_a_run_that_ends_above_its_budget_says_so(
    run_program: Start, small: tuple[str, ...], tmp_path: Path
) -> None:
    done = run_program(
        *small,
        *("--task_name", "mini-rte", "--do_train", "--root_output_dir", str(tmp_path / "run")),
        *("--final_warmup", "0", "--mask_interval", "5"),
    )
    # The last pruning, at step 10, left 36; step 11 gave the others new values.
    assert "with 72 triplets, above its target of 36" in " ".join(done.stdout.split())


# --- commands that people have in their history ---------------------------------------------------


def mnli_command(project_root: Path) -> list[str]:
    """The command as the README shows it."""
    readme = (project_root / "README.md").read_text(encoding="utf-8")
    (block,) = [
        block.split("```")[0]
        for block in readme.split("```bash\n")[1:]
        if "--task_name mnli" in block.split("```")[0]
    ]
    return block.replace("\\\n", " ").split()


def test_the_readmes_mnli_command_runs_verbatim_but_for_its_size(
    project_root: Path, run_command: Start, tmp_path: Path
) -> None:
    write_tsv(tmp_path / "glue", ["mnli"])
    (tmp_path / "examples").symlink_to(project_root / "examples")
    run_command(
        [
            *mnli_command(project_root),
            *("--model_name_or_path", "nano", "--data_dir", str(tmp_path / "glue")),
            *("--max_steps", "4", "--init_warmup", "1", "--final_warmup", "1"),
            *("--mask_interval", "1", "--max_val_samples", "32"),
        ],
        cwd=tmp_path,
    )
    pattern = read(tmp_path / "output" / "glue" / "mnli" / "rank_pattern.json")
    assert (len(pattern), sum(pattern.values())) == (36, 36)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb"])
def test_a_task_script_trains_and_evaluates(
    task: str, project_root: Path, run_command: Start, tmp_path: Path
) -> None:
    write_tsv(tmp_path / "glue", [task])
    run_command(
        [
            *("bash", str(project_root / "scripts" / f"run_debertav3_{task}.sh")),
            *("--model_name_or_path", "nano", "--data_dir", str(tmp_path / "glue")),
            *("--max_steps", "3", "--init_warmup", "1", "--final_warmup", "1"),
            *("--mask_interval", "1", "--max_val_samples", "32"),
            *("--root_output_dir", str(tmp_path / "run")),
        ],
        cwd=tmp_path,
    )
    pattern = read(tmp_path / "run" / "rank_pattern.json")
    assert len(pattern) == 36
    assert (tmp_path / "run" / f"eval_results_{task}.json").is_file()
