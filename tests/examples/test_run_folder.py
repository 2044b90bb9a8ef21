"""What a run of the program leaves: the files that were promised, and that they agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.program import SMALL

from adalora.artefact.reader import load_artefact
from adalora.builtin.miniature import generate
from adalora.results.record import RunRecord
from adalora.training.arguments.parser import parse_arguments
from adalora.training.checkpointing.settings import resume_settings
from adalora.training.make_record import given_flags


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


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
    trained: tuple[Path, str],
) -> None:
    root, printed = trained
    record = RunRecord.read(root)
    assert (record.method, record.task, record.seed) == ("AdaLoRA", "mini-mnli", 6)
    assert tuple(record.command[: len(SMALL)]) == SMALL
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
