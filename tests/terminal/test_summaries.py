"""The terminal report: what it says at 80 columns, on a plain and on an ASCII output."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from adalora.terminal.summaries import (
    PlanSummary,
    RunSummary,
    Score,
    budget_curve,
    plan_summary,
    rank_table,
    run_summary,
)
from loralib.schedule import BudgetSchedule, GrowthSchedule

KINDS = (
    "attention.self.query_proj",
    "attention.self.key_proj",
    "attention.self.value_proj",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
PATTERN = {
    f"deberta.encoder.layer.{layer}.{kind}.lora_E": (layer + index) % 5
    for layer in range(4)
    for index, kind in enumerate(KINDS)
}


PHASES = {"init_warmup": 100, "final_warmup": 300, "mask_interval": 10, "total_step": 1000}
FALLING = BudgetSchedule(total_rank=96, target_total_rank=48, **PHASES)
RISING = GrowthSchedule(total_rank=48, target_total_rank=96, most=96, **PHASES)


def printed(renderable: RenderableType, width: int = 80, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    output = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=output, width=width, legacy_windows=False).print(renderable)
    output.flush()
    return raw.getvalue().decode(encoding)


def row(text: str, name: str) -> list[str]:
    return next(line for line in text.splitlines() if line.split()[:1] == [name]).split()


def test_the_rank_table_has_a_row_for_each_layer_and_totals() -> None:
    text = printed(rank_table(PATTERN, 4))
    assert f"{sum(PATTERN.values())} of 96 triplets" in text
    assert row(text, "3") == ["3", "3", "4", "0", "1", "2", "3", "13"]
    assert row(text, "total")[-1] == str(sum(PATTERN.values()))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "query" in text
    assert "…" not in text


@pytest.mark.parametrize(
    "path", ["roberta.encoder.layer.7.attention.self.query.lora_E", "h.7.attn.c_proj.lora_E"]
)
def test_other_architectures_get_their_layer_as_row(path: str) -> None:
    assert row(printed(rank_table({path: 2}, 3)), "7") == ["7", "2", "2"]


def test_a_matrix_outside_a_numbered_layer_is_shown_by_its_path() -> None:
    assert row(printed(rank_table({"embeddings.projection.lora_E": 1}, 2)), "embeddings.projection")


def test_two_stacks_with_the_same_numbers_lose_no_matrix() -> None:
    pattern = {"encoder.layer.0.query.lora_E": 1, "decoder.layer.0.query.lora_E": 2}
    assert row(printed(rank_table(pattern, 2)), "total")[-1] == "3"


@pytest.mark.parametrize(
    ("pattern", "message"), [({}, "no matrix was adapted"), ({"layer.0.query.lora_E": 5}, "0..4")]
)
def test_an_impossible_rank_pattern_is_an_error(pattern: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_table(pattern, 4)


def test_the_curve_starts_full_and_ends_at_half_height() -> None:
    lines = budget_curve(FALLING, width=40, height=6).splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("96 █")
    assert lines[3] == "48 " + "█" * 40
    assert lines[2][3:].rstrip().count("█") < 40
    assert lines[-1].endswith("step 1000")


def test_the_curve_of_growth_starts_at_half_height_and_ends_full() -> None:
    lines = budget_curve(RISING, width=40, height=6).splitlines()
    assert lines[0].startswith("96 ")
    assert lines[0].endswith("█" * 12)
    assert lines[3] == "48 " + "█" * 40
    assert lines[2][3:].rstrip().count("█") < 40


def test_growth_is_told_as_growth() -> None:
    grown = replace(summary(Path("run")), grown_from=24)
    text = printed(run_summary(grown))
    assert f"grown 24 -> {sum(PATTERN.values())} in 37 allocations" in text
    assert "pruned" not in text
    plan = PlanSummary("nano on mini-sst2", {"train": 9}, steps=1000, schedule=RISING)
    words = " ".join(printed(plan_summary(plan)).split())
    assert "48 triplets until step 100, rising until step 700 (added every 10 steps)" in words
    assert "all 48" not in words


def test_the_curve_can_be_drawn_in_ascii() -> None:
    assert budget_curve(FALLING, ascii_only=True).isascii()


def test_a_curve_too_small_to_read_is_an_error() -> None:
    with pytest.raises(ValueError, match="too small"):
        budget_curve(FALLING, width=5)


def summary(results: Path) -> RunSummary:
    return RunSummary(
        title="nano on mini-sst2 with AdaLoRA",
        scores=[Score("validation", "accuracy", 0.91, 0.52)],
        rank_pattern=PATTERN,
        init_rank=4,
        mask_events=37,
        parameters_initial=20_000,
        parameters_kept=9_000,
        parameters_head=10_000,
        parameters_total=3_000_000,
        seconds=83.2,
        results=results,
        next_commands=[("See the curves", "tensorboard" + " --flag value" * 9)],
        warnings=["the allocator skipped 1 step"],
    )


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_summary_says_how_good_and_at_what_cost(encoding: str) -> None:
    text = printed(run_summary(summary(Path("output") / "run")), encoding=encoding)
    assert "accuracy 0.9100 (majority class 0.5200)" in text
    assert f"pruned 96 -> {sum(PATTERN.values())} in 37 mask events" in text
    assert "adapter 20,000, 9,000 kept; head 10,000; trained 1.00% of 3,000,000" in text
    assert "1 min 23 s" in text
    assert os.path.join("output", "run") in text
    assert "the allocator skipped 1 step" in text


def test_a_long_command_can_be_copied_whole() -> None:
    text = printed(run_summary(summary(Path("run"))))
    assert all(len(line) <= 80 for line in text.splitlines())
    joined = " ".join(text.replace(" \\\n", " ").split())
    assert "tensorboard" + " --flag value" * 9 in joined


def test_a_run_without_adapters_or_training_still_has_a_summary() -> None:
    text = printed(run_summary(RunSummary("full fine-tuning", [Score("validation", "f1", 0.5)])))
    assert "triplets" not in text
    assert "f1 0.5000" in text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_plan_shows_phases_curve_and_problems(encoding: str) -> None:
    plan = PlanSummary(
        title="nano on mini-sst2",
        examples={"train": 2000, "validation": 400},
        steps=1000,
        schedule=FALLING,
        parameters_start=20_000,
        parameters_end=10_000,
        parameters_head=10_000,
        parameters_total=3_000_000,
        problems=["final_warmup [1800] leaves no decay"],
    )
    text = printed(plan_summary(plan), encoding=encoding)
    assert "2,000 train, 400 validation" in text
    assert "falling until step 700" in " ".join(text.split())
    assert "[1800] leaves no decay" in text
    assert all(len(line) <= 80 for line in text.splitlines())
