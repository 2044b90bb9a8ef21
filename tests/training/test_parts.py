"""The smaller parts of a run: step counts, the consistency loss, state files."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import kl_div
from transformers import TrainerState

from adalora.errors import UserError, exit_with_message
from adalora.storage.files import is_finite, read_tensors, unshare_for_safetensors, write_tensors
from adalora.storage.nested import load_state, save_state
from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.arguments.parser import parse_arguments
from adalora.training.build import count_steps, seed_everything
from adalora.training.losses import StepExamples, consistency_loss, mask_tokens
from adalora.training.run import next_commands
from adalora.training.trainer import AdaLoraTrainer


@pytest.mark.parametrize("set_before", [None, ":16:8"])
def test_deterministic_algorithms_come_with_what_cublas_needs(
    set_before: str | None, make_arguments: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.setenv(name, "")  # so that it is as it was afterwards
    monkeypatch.delenv(name)
    if set_before is not None:
        monkeypatch.setenv(name, set_before)
    try:
        seed_everything(make_arguments())
        assert os.environ.get(name) == set_before
        seed_everything(make_arguments(use_deterministic_algorithms=True))
        assert os.environ[name] == (set_before or ":4096:8")
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("examples_count", [1, 7, 8, 33, 48])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("epochs", [1.0, 2.5])
def test_steps_are_counted_as_the_trainer_counts_them(
    make_model: Callable[..., Any],
    make_arguments: Callable[..., Any],
    examples: list[Any],
    examples_count: int,
    accumulation: int,
    epochs: float,
) -> None:
    arguments = make_arguments(
        max_steps=-1, num_train_epochs=epochs, gradient_accumulation_steps=accumulation
    )
    trainer = AdaLoraTrainer(
        model=make_model(), args=arguments, train_dataset=examples[:examples_count]
    )
    loader = trainer.get_train_dataloader()
    expected = trainer.set_initial_training_values(arguments, loader)[-1]
    assert count_steps(examples_count, arguments) == expected


def test_max_steps_overrides_the_epochs(make_arguments: Callable[..., Any]) -> None:
    assert count_steps(1000, make_arguments(max_steps=7)) == 7


def test_masking_spares_special_tokens_and_takes_its_share() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (64, 128))
    masked = mask_tokens(ids, probability=0.3, unknown_id=3, special_ids=[0, 1, 2])
    special = torch.isin(ids, torch.tensor([0, 1, 2]))
    assert torch.equal(masked[special], ids[special])
    share = (masked != ids)[~special].float().mean().item()
    assert share == pytest.approx(0.3, abs=0.03)
    assert mask_tokens(ids, probability=0, unknown_id=3, special_ids=[]) is ids


def test_the_consistency_loss_is_two_losses_and_a_divergence(
    make_model: Callable[..., Any], examples: list[Any]
) -> None:
    model = make_model().double().eval()
    inputs = {
        "input_ids": torch.stack([row["input_ids"] for row in examples[:8]]),
        "labels": torch.tensor([row["labels"] for row in examples[:8]]),
    }
    other = inputs["input_ids"].roll(1, dims=1)
    one = model(**inputs)
    two = model(input_ids=other, labels=inputs["labels"])
    mean = ((one.logits + two.logits) / 2).softmax(-1)
    divergences = [
        kl_div(x.logits.log_softmax(-1), mean, reduction="none").mean().item() for x in (one, two)
    ]
    expected = one.loss.item() + two.loss.item() + 0.5 * 3.0 * sum(divergences)
    got = consistency_loss(model, inputs, other, weight=3.0)
    assert got.item() == pytest.approx(expected, abs=1e-6)
    same = consistency_loss(model, inputs, inputs["input_ids"], weight=3.0)
    assert same.item() == pytest.approx(2 * one.loss.item(), abs=1e-6)


def test_a_state_file_gives_back_what_was_put_in(tmp_path: Path) -> None:
    state = {"step": 3, "names": ["a", "b"], "average": {"x.lora_A": torch.rand(2, 3)}, "deep": {}}
    save_state(state, tmp_path / "state.safetensors")
    loaded = load_state(tmp_path / "state.safetensors")
    assert loaded["step"] == 3
    assert loaded["names"] == ["a", "b"]
    assert torch.equal(loaded["average"]["x.lora_A"], state["average"]["x.lora_A"])  # type: ignore[index]


def test_what_is_written_is_copied_only_where_the_format_asks_for_it(tmp_path: Path) -> None:
    table = torch.arange(12.0).view(3, 4)
    tensors = {
        "alone": torch.ones(2),
        "table": table,
        "tied": table,
        "row": table[1],
        "across": table.T,
        "empty": torch.empty(0),
    }
    plain = unshare_for_safetensors(tensors)
    assert plain["alone"].data_ptr() == tensors["alone"].data_ptr()
    assert len({tensor.data_ptr() for name, tensor in plain.items() if name != "empty"}) == 5
    write_tensors(tmp_path / "t.safetensors", tensors)
    stored = read_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in tensors.items())
    # A part of a table that is written too, and two parts that only border on one another.
    halves = unshare_for_safetensors({"left": table.flatten()[:6], "right": table.flatten()[6:]})
    assert halves["right"].data_ptr() - halves["left"].data_ptr() == 24


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_number_that_is_none_is_found_anywhere(dtype: torch.dtype) -> None:
    sound = torch.linspace(-3, 3, 1001).to(dtype)
    assert is_finite(sound)
    assert is_finite(torch.empty(0, dtype=dtype))
    for fault in (float("nan"), float("inf"), -float("inf")):
        for place in (0, 500, 1000):
            spoilt = sound.clone()
            spoilt[place] = fault
            assert not is_finite(spoilt)


@pytest.mark.parametrize("content", [None, b"", b"not a state", b"\x80\x04pickle"])
def test_a_missing_or_damaged_state_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "allocator.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"allocator\.safetensors is (missing|damaged)"):
        load_state(path)


def test_a_user_error_is_a_sentence_and_status_two(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise UserError("--lora_r is 0; it must be at least 1.")

    assert exit_with_message(fails) == 2
    assert capsys.readouterr().err == "error: --lora_r is 0; it must be at least 1.\n"
    assert exit_with_message(lambda: None) == 0
    assert exit_with_message(lambda: 1) == 1


def test_the_command_for_ones_own_data_goes_on_with_adalora(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.csv", "dev.csv"):
        (tmp_path / name).write_text("sentence,label\nfine,yes\nbad,no\n")
    flags = ["--task_name", "mini-rte", "--model_name_or_path", "nano", "--root_output_dir", "out"]
    arguments = parse_arguments([*flags, "--apply_adalora"], program="adalora train")
    commands = dict(next_commands(arguments, script=None))
    assert "The same on the real task" not in " ".join(commands)
    own = next(command for reason, command in commands.items() if "your own data" in reason)
    program, verb, *words = shlex.split(own)
    assert (Path(program).name, verb) == ("adalora", "train")
    proposed = parse_arguments(words, program="adalora train")
    assert proposed.method.apply_adalora
    assert proposed.data.train_file == "train.csv"


@pytest.mark.parametrize("here", [".", "elsewhere", "my folder"])
def test_the_next_commands_name_programs_and_files_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    """Also from another folder, in a shell that knows nothing of the environment."""
    for folder in ("elsewhere", "my folder"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / here)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    run = str(tmp_path / "a run")
    flags = ["--task_name", "mini-sst2", "--model_name_or_path", "nano", "--root_output_dir", run]
    arguments = parse_arguments([*flags, "--report_to", "tensorboard"], program="run_glue.py")
    script = Path(__file__).resolve().parents[2] / "examples/text-classification/run_glue.py"
    commands = [shlex.split(command) for _, command in next_commands(arguments, script)]
    assert len(commands) == 4
    predict, curves, task, own = commands
    program = predict[predict.index("|") + 1]
    for path in (program, curves[0], own[0]):
        assert shutil.which(path), path
    for path in (task[1], own[1]):
        assert Path(path).is_file(), path
    assert Path(predict[-1]).resolve() == tmp_path / "a run"


def test_a_task_of_pairs_is_tried_with_a_pair(tmp_path: Path) -> None:
    flags = ["--task_name", "mini-rte", "--model_name_or_path", "nano"]
    arguments = parse_arguments([*flags, "--root_output_dir", str(tmp_path)], program="run_glue.py")
    (_, single), *_ = next_commands(arguments, script=None)
    (_, pair), *_ = next_commands(arguments, script=None, pairs=True)
    for command, texts in ((single, 1), (pair, 2)):
        typing = command.split(" | ")[0]
        out = subprocess.run(["bash", "-c", typing], capture_output=True, text=True, check=True)
        assert len(out.stdout.splitlines()) == 1
        assert len(out.stdout.split("\t")) == texts


@pytest.mark.parametrize("steps", [50, 99, 101, 630, 3_000, 85_000])
def test_log_records_follow_the_length_of_the_run(
    make_arguments: Callable[..., Any], steps: int
) -> None:
    state = TrainerState(max_steps=steps)
    state.compute_steps(make_arguments(logging_steps=None, max_steps=steps), steps)
    assert 50 <= steps / state.logging_steps <= 100


def test_the_number_of_steps_that_is_given_counts(make_arguments: Callable[..., Any]) -> None:
    arguments = make_arguments(logging_steps=7)
    assert arguments.logging_steps == 7
    state = TrainerState(max_steps=3)
    state.compute_steps(make_arguments(logging_steps=None, max_steps=3), 3)
    assert state.logging_steps == 1


def test_evaluation_does_not_follow_the_log_records(make_arguments: Callable[..., Any]) -> None:
    arguments = make_arguments(logging_steps=None, eval_strategy="steps")
    assert arguments.eval_steps == 500


def test_ranks_are_recorded_a_hundred_times_unless_a_number_is_given(
    make_model: Callable[..., Any],
) -> None:
    model = make_model()
    for given, expected in ((None, 6), (10, 10)):
        adaptation = AdaLora(model, AdaLoraSettings(target_rank=1), log_interval=given)
        adaptation.begin(630)
        assert adaptation.allocator is not None
        assert adaptation.allocator.log_interval == expected


def test_a_step_is_the_mean_over_its_examples_however_they_are_divided() -> None:
    """Three micro-batches of four and one of two, in one process."""
    losses = torch.arange(14.0, dtype=torch.float64)
    examples = StepExamples((4, 4, 4, 2), 14)
    means = [part.mean() for part in losses.split(4)]
    weights = [examples.weight(last=index == 3, processes=1) for index in range(4)]
    mean = sum(w * m for w, m in zip(weights, means, strict=True)) / 4
    assert float(mean) == pytest.approx(float(losses.mean()), rel=1e-15)
    assert StepExamples((4, 4), 16).weight(last=False, processes=2) == 1
