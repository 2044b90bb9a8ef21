"""``adalora plan`` and the command around it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from tests.program import unchanged_process

from adalora import __version__
from adalora.cli import main

ADALORA = (sys.executable, "-m", "adalora")
MATRICES = ("query", "key", "value", "intermediate", "layer.output", "attention.output")
FLAGS = (
    *("--model_name_or_path", "nano", "--task_name", "mini-rte", "--do_train"),
    *("--apply_lora", "--apply_adalora", "--lora_type", "svd", "--lora_r", "4"),
    *("--target_rank", "2", "--per_device_train_batch_size", "32", "--num_train_epochs", "4"),
)

GROW = ("--init_warmup", "0.1", "--allocation", "grow", "--lora_module", ",".join(MATRICES))


@pytest.fixture
def adalora(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command in this process, and gives what it printed."""

    def run(*words: str, expect: int = 0) -> Any:
        capsys.readouterr()
        with unchanged_process():
            assert main(words) == expect
        return capsys.readouterr()

    return run


def test_a_sound_plan_shows_steps_budget_and_parameters(adalora: Any) -> None:
    done = adalora("plan", *FLAGS, "--init_warmup", "0.1", "--final_warmup", "0.3")
    words = " ".join(done.out.split())
    # 1600 examples, 50 steps of 32 in each of 4 epochs; 36 matrices of 4 triplets, 2 kept.
    assert "1,600 train" in words
    assert "all 144 triplets until step 20, falling until step 140" in words
    assert "then 72 until step 200" in words
    assert "█" in done.out or "#" in done.out or "•" in done.out


def test_a_plan_of_growth_shows_the_budget_rising(adalora: Any) -> None:
    done = adalora("plan", *FLAGS, "--final_warmup", "0.3", *GROW)
    words = " ".join(done.out.split())
    # One triplet in each of 36 matrices at first, two on average at the end, room for four.
    assert "36 triplets until step 20, rising until step 140 (added every 10 steps)" in words
    assert "then 72 until step 200" in words
    start, end = re.findall(r"adapter ([\d,]+), about ([\d,]+) at the end", words)[0]
    assert int(start.replace(",", "")) == 2 * int(end.replace(",", ""))
    assert "No problems found" in words


def test_a_schedule_that_does_not_fit_is_shown_and_fails(adalora: Any) -> None:
    done = adalora("plan", *FLAGS, "--init_warmup", "150", "--final_warmup", "50", expect=1)
    assert "no decay phase" in " ".join(done.out.split())


@pytest.mark.parametrize("words", [(), ("--help",), ("help",)])
def test_help_lists_the_commands(run_command: Any, words: tuple[str, ...]) -> None:
    assert "plan" in run_command([*ADALORA, *words]).stdout


def test_the_version_is_printed(run_command: Any) -> None:
    assert run_command([*ADALORA, "--version"]).stdout.strip() == __version__


def test_an_unknown_command_is_named(run_command: Any) -> None:
    done = run_command([*ADALORA, "plann"], expect=2)
    assert done.stderr.startswith("error: There is no command 'plann'")
