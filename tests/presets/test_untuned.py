"""With ``--apply_adalora`` and nothing more said, a run has all that it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adalora.errors import UserError
from adalora.presets import untuned
from adalora.training.arguments.parser import parse_arguments

BASE = ["--model_name_or_path", "nano", "--task_name", "mini-rte", "--do_train"]


def parse(*flags: str, folder: Path) -> object:
    return parse_arguments([*BASE, "--root_output_dir", str(folder), *flags])


def test_the_flag_alone_is_a_whole_method(tmp_path: Path) -> None:
    arguments = parse("--apply_adalora", folder=tmp_path)
    method = arguments.method
    assert method.apply_lora
    assert method.lora_type == "svd"
    assert (method.lora_r, method.target_rank) == (4, 2)
    assert len(method.target_modules) == 6
    assert 0 < method.init_warmup < 1
    assert 0 < method.final_warmup < 1
    assert arguments.training.learning_rate == pytest.approx(1e-3)
    assert method.lora_init == "lora"
    assert method.reg_orth_coef == pytest.approx(0.1)


def test_what_the_user_says_wins(tmp_path: Path) -> None:
    flags = [
        "--apply_adalora",
        "--learning_rate=4e-3",
        "--init_warmup",
        "7",
        "--reg_orth_coef",
        "0",
    ]
    arguments = parse(*flags, folder=tmp_path)
    assert arguments.training.learning_rate == pytest.approx(4e-3)
    assert arguments.method.lora_init == "lora"
    assert arguments.method.init_warmup == 7
    assert arguments.method.reg_orth_coef == 0


def test_the_originals_spelling_keeps_the_published_start(tmp_path: Path) -> None:
    words = ["--apply_lora", "--lora_type", "svd", "--lora_r", "8"]
    assert parse("--apply_adalora", *words, folder=tmp_path).method.lora_init == "gaussian"
    # One half of it alone says nothing of the start.
    for half in (["--apply_lora"], ["--lora_type", "svd"]):
        assert parse("--apply_adalora", *half, folder=tmp_path).method.lora_init == "lora"


def test_a_flag_that_does_not_go_with_the_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add --lora_init gaussian"):
        parse("--apply_adalora", "--lora_plus_ratio", "8", folder=tmp_path)
    words = ["--lora_plus_ratio", "8", "--lora_init", "gaussian"]
    assert parse("--apply_adalora", *words, folder=tmp_path).method.lora_plus_ratio == 8


@pytest.mark.parametrize(
    ("flags", "ranks"),
    [
        (["--lora_r", "12"], (12, 6)),
        (["--target_rank", "8"], (16, 8)),
        (["--lora_r", "1"], (1, 1)),
        (["--lora_r", "9", "--target_rank", "5"], (9, 5)),
    ],
)
def test_one_rank_decides_the_other(
    flags: list[str], ranks: tuple[int, int], tmp_path: Path
) -> None:
    method = parse("--apply_adalora", *flags, folder=tmp_path).method
    assert (method.lora_r, method.target_rank) == ranks


def test_a_total_is_left_as_the_user_gave_it(tmp_path: Path) -> None:
    method = parse("--apply_adalora", "--target_total_rank", "30", folder=tmp_path).method
    assert method.target_total_rank == 30
    assert method.lora_r == 4


@pytest.mark.parametrize(
    "given", [{}, {"apply_adalora": False}, {"apply_adalora": True, "lora_type": "frd"}]
)
def test_nothing_is_added_where_adalora_was_not_asked_for(given: dict[str, Any]) -> None:
    assert untuned(given) == {}


def test_nothing_is_added_to_a_preset(tmp_path: Path) -> None:
    words = ["--preset", "rte/adalora-0.3M", "--apply_adalora"]
    assert parse(*words, folder=tmp_path).method.lora_init == "gaussian"


@pytest.mark.parametrize("flag", ["--apply_rankselector", "--apply-adalora", "--apply_adalora=yes"])
def test_every_spelling_of_the_flag_asks_for_it(flag: str, tmp_path: Path) -> None:
    assert parse(flag, "--lora-r=8", folder=tmp_path).method.target_rank == 4


def test_another_form_is_still_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--apply_adalora needs"):
        parse("--apply_adalora", "--apply_lora", "--lora_type", "frd", folder=tmp_path)


def test_a_file_of_flags_is_filled_in_too(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(
        json.dumps(
            {
                "model_name_or_path": "nano",
                "task_name": "mini-rte",
                "apply_adalora": True,
                "root_output_dir": str(tmp_path),
            }
        )
    )
    method = parse_arguments([str(file)]).method
    assert method.apply_lora
    assert method.lora_type == "svd"
    assert method.lora_r == 4
