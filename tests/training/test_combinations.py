"""Ways to train, each with AdaLoRA, against the plain run or a loop written out by hand.

Plain descent is compared number by number: Adam divides a gradient by its own size, so that where
nothing but rounding is left of one, a step of full length goes either way. All of it in float64, so
that what differs by more than 1e-9 differs in more than rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback

from adalora.errors import UserError
from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.trainer import AdaLoraTrainer

Make = Callable[..., Any]
STEPS = 12
ROUNDING = 1e-9
SETTINGS = AdaLoraSettings(
    target_rank=1, init_warmup=2, final_warmup=4, mask_interval=2, orth_reg_weight=0.1
)
DESCENT: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0}


@pytest.fixture
def ragged(examples: list[Any]) -> list[dict[str, Any]]:
    """The examples with 4 to 12 tokens each, padded on the right."""
    rows = []
    for index, row in enumerate(examples):
        mask = (torch.arange(12) < 4 + index % 9).long()
        rows.append({**row, "input_ids": row["input_ids"] * mask, "attention_mask": mask})
    return rows


@pytest.fixture
def build(make_model: Make, make_arguments: Make, ragged: list[Any], tmp_path: Path) -> Make:
    """Makes a trainer over a fresh model; ``count`` examples, a ``method``, and flags."""

    def make(name: str = "run", **flags: Any) -> AdaLoraTrainer:
        method = flags.pop("method", SETTINGS)
        count = flags.pop("count", len(ragged))
        optimizer = flags.pop("optimizer", None)
        model = make_model(dropout=flags.pop("dropout", 0.0)).double()
        # As load_classifier says it; without it the installed model takes its loss in float32.
        model.config.problem_type = "single_label_classification"
        trained = [p for p in model.parameters() if p.requires_grad]
        return AdaLoraTrainer(
            model=model,
            args=make_arguments(root_output_dir=str(tmp_path / name), **flags),
            adaptation=None if method is None else AdaLora(model, method),
            train_dataset=ragged[:count],
            eval_dataset=ragged[:16],
            optimizers=(None if optimizer is None else optimizer(trained), None),
        )

    return make


def trained(trainer: AdaLoraTrainer) -> dict[str, Tensor]:
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def assert_same(one: AdaLoraTrainer, two: AdaLoraTrainer, *, rounding: float = 0.0) -> None:
    """Parameters, averages, budgets and ranks; ``rounding`` is relative to the largest number."""
    pairs = [(trained(one), trained(two))]
    assert one.adaptation is not None
    assert two.adaptation is not None
    states = [trainer.adaptation.state_dict() for trainer in (one, two)]
    pairs += [tuple(s["importance"]["sensitivity"] for s in states)]  # type: ignore[arg-type]
    for first, second in pairs:
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            within = rounding * tensor.abs().max().item()
            torch.testing.assert_close(second[name], tensor, rtol=0, atol=within, msg=name)
    assert one.adaptation.rank_pattern() == two.adaptation.rank_pattern()
    assert one.adaptation.budget == two.adaptation.budget == STEPS


def by_hand(
    make_model: Make, rows: list[Any], *, clip: float = 0.0, smoothing: float = 0.0
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The method in the paper's order over batches of eight, without any Trainer."""
    model = make_model().double().train()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    adaptation = AdaLora(model, SETTINGS)
    adaptation.begin(STEPS)
    for step in range(STEPS):
        batch = [rows[(step * 8 + i) % len(rows)] for i in range(8)]
        ids, mask = (torch.stack([r[k] for r in batch]) for k in ("input_ids", "attention_mask"))
        logits = model(input_ids=ids, attention_mask=mask).logits
        labels = torch.tensor([row["labels"] for row in batch])
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing) + adaptation.penalty()
        model.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters.values(), clip)
        with torch.no_grad():
            for parameter in parameters.values():
                parameter -= 0.5 * (1 - step / STEPS) * parameter.grad
        adaptation.step(step)
    return {n: p.detach() for n, p in parameters.items()}, adaptation.rank_pattern()


@pytest.mark.parametrize(
    ("flags", "written_out"),
    [
        ({}, {}),
        ({"max_grad_norm": 0.05}, {"clip": 0.05}),
        ({"max_grad_norm": 1e9}, {}),
        ({"label_smoothing_factor": 0.2}, {"smoothing": 0.2}),
        ({"label_smoothing_factor": 0.2, "max_grad_norm": 0.05}, {"clip": 0.05, "smoothing": 0.2}),
    ],
)
def test_clipping_and_label_smoothing_are_what_the_textbook_says(
    build: Make,
    make_model: Make,
    ragged: list[Any],
    flags: dict[str, Any],
    written_out: dict[str, float],
) -> None:
    trainer = build(**{**DESCENT, **flags}, train_sampling_strategy="sequential")
    trainer.train()
    parameters, pattern = by_hand(make_model, ragged, **written_out)
    for name, tensor in trained(trainer).items():
        torch.testing.assert_close(tensor, parameters[name], rtol=ROUNDING, atol=1e-12, msg=name)
    assert trainer.adaptation.rank_pattern() == pattern


@pytest.mark.parametrize(
    ("count", "size", "groups"),
    [(24, 6, 2), (20, 6, 2), (23, 4, 3), (13, 4, 3), (24, 5, 3), (23, 5, 3), (13, 1, 12)],
)
def test_accumulation_weighs_every_example_alike(
    build: Make, count: int, size: int, groups: int
) -> None:
    """Also in the last group of an epoch, which has fewer batches, and in its last batch."""
    runs = []
    for name, one, several in (("whole", size * groups, 1), ("cut", size, groups)):
        runs.append(
            build(
                name,
                **DESCENT,
                count=count,
                per_device_train_batch_size=one,
                gradient_accumulation_steps=several,
            )
        )
        runs[-1].train()
    assert_same(*runs, rounding=ROUNDING)
    losses = [[e["loss"] for e in run.state.log_history if "loss" in e] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize(
    ("flags", "rounding"),
    [
        # The forward pass is repeated with the same dropout: the same numbers.
        ({"gradient_checkpointing": True}, 0.0),
        ({"gradient_checkpointing": True, "gradient_accumulation_steps": 2, "max_steps": 12}, None),
        # Six steps an epoch.
        ({"max_steps": -1, "num_train_epochs": 2}, 0.0),
        ({"max_grad_norm": 1e9}, 0.0),
        ({"full_determinism": True, "seed": 42}, ROUNDING),
    ],
    ids=str,
)
def test_what_must_change_nothing_changes_nothing(
    build: Make, flags: dict[str, Any], rounding: float | None, deterministic: None
) -> None:
    plain_flags = {k: v for k, v in flags.items() if k == "gradient_accumulation_steps"}
    plain = build("plain", **DESCENT, **plain_flags, dropout=0.1)
    plain.train()
    other = build("other", **{**DESCENT, **flags}, dropout=0.1)
    other.train()
    assert_same(plain, other, rounding=rounding or 0.0)


def test_gradient_checkpointing_computes_each_layer_twice(build: Make) -> None:
    counts = []
    for checkpointing in (False, True):
        run = build(str(checkpointing), max_steps=8, gradient_checkpointing=checkpointing)
        layer = next(m for n, m in run.model.named_modules() if n.endswith("value_proj"))
        calls: list[int] = []
        layer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        run.train()
        counts.append(len(calls))
    assert counts == [8, 16]


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts back what ``--full_determinism`` sets for the whole process."""
    for name in (
        "CUDA_LAUNCH_BLOCKING",
        "CUBLAS_WORKSPACE_CONFIG",
        "FLASH_ATTENTION_DETERMINISTIC",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


def test_full_determinism_repeats_a_run_bit_for_bit(build: Make, deterministic: None) -> None:
    runs = []
    for name in ("one", "two"):
        runs.append(build(name, full_determinism=True, dropout=0.1))
        runs[-1].train()
        assert torch.are_deterministic_algorithms_enabled()
    assert_same(*runs)


@pytest.mark.slow
def test_a_compiled_model_trains_as_the_plain_one(build: Make) -> None:
    """Traced and differentiated as a graph; machine code would take minutes and prove no more."""
    plain = build("plain", **DESCENT)
    compiled = build("compiled", **DESCENT, torch_compile=True, torch_compile_backend="aot_eager")
    for run in (plain, compiled):
        run.train()
    assert_same(plain, compiled, rounding=ROUNDING)


def test_the_three_forms_of_adamw_are_one_method(build: Make) -> None:
    """One parameter after the other, lists of them, and fused."""
    rates = {"learning_rate": 1e-3, "max_grad_norm": 1.0, "adam_epsilon": 1e-3}
    runs = {
        "loop": build("loop", **rates, optim="adamw_torch"),
        "fused": build("fused", **rates, optim="adamw_torch_fused"),
        "foreach": build(
            "foreach",
            **rates,
            optimizer=lambda p: torch.optim.AdamW(
                p, lr=1e-3, eps=1e-3, weight_decay=0.0, foreach=True
            ),
        ),
    }
    for run in runs.values():
        run.train()
    for name in ("fused", "foreach"):
        assert_same(runs["loop"], runs[name], rounding=ROUNDING)


@pytest.mark.parametrize("optimizer", ["adafactor", "sgd", "rmsprop", "adagrad", "adamw_torch"])
def test_every_optimizer_learns_prunes_and_resumes_exactly(build: Make, optimizer: str) -> None:
    flags = {
        "optim": optimizer,
        "learning_rate": 0.5 if optimizer == "sgd" else 1e-2,
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": 6,
    }
    whole = build("whole", **flags)
    start = {name: tensor.clone() for name, tensor in trained(whole).items()}
    before = whole.evaluate()["eval_loss"]
    whole.train()
    assert whole.evaluate()["eval_loss"] < before
    assert sum(whole.adaptation.rank_pattern().values()) == STEPS
    still = [n for n, t in trained(whole).items() if torch.equal(t, start[n])]
    # Those whose triplets were pruned before they ever grew.
    assert [name for name in still if not name.endswith("lora_E")] == []
    resumed = build("resumed", **flags)
    resumed.train(str(Path(str(whole.args.output_dir)) / "checkpoint-6"))
    assert_same(whole, resumed)


# --- early stopping -------------------------------------------------------------------------------

STOPPING: dict[str, Any] = {
    "max_steps": 24,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "load_best_model_at_end": True,
    "early_stopping_patience": 2,
}
LATE = AdaLoraSettings(target_rank=1, init_warmup=2, final_warmup=12, mask_interval=2)


class NoBetter(TrainerCallback):  # type: ignore[misc]
    """Every evaluation is worse than the one before."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["metrics"]["eval_loss"] = 1.0 + state.global_step


def stopping(build: Make, name: str, **flags: Any) -> AdaLoraTrainer:
    trainer: AdaLoraTrainer = build(name, **{**STOPPING, **flags})
    # Before the callback that decides.
    trainer.callback_handler.callbacks.insert(0, NoBetter())
    return trainer


@pytest.mark.parametrize(("method", "best", "stopped"), [(None, 2, 6), (LATE, 14, 18)])
def test_patience_begins_where_the_budget_has_reached_its_target(
    build: Make, method: AdaLoraSettings | None, best: int, stopped: int
) -> None:
    """The final phase begins after step 13 of 24: no model of more triplets is taken for best."""
    trainer = stopping(build, "run", method=method)
    trainer.train()
    assert trainer.state.global_step == stopped
    assert trainer.state.best_global_step == best
    if trainer.adaptation is not None:
        assert sum(trainer.adaptation.rank_pattern().values()) == 12
        kept = sum(int((t != 0).sum()) for n, t in trained(trainer).items() if n.endswith("lora_E"))
        assert kept <= 12


def test_a_resumed_run_has_the_patience_that_was_left(build: Make) -> None:
    whole = stopping(build, "whole", method=LATE, early_stopping_patience=3)
    whole.train()
    assert whole.state.global_step == 20
    folder = Path(str(whole.args.output_dir))
    resumed = stopping(build, "resumed", method=LATE, early_stopping_patience=3)
    resumed.train(str(folder / "checkpoint-16"))
    assert resumed.state.global_step == 20
    assert_parameters(whole, resumed)
    # One that had stopped makes no step more; with more patience it goes on.
    again = stopping(build, "again", method=LATE, early_stopping_patience=3)
    again.train(str(folder / "checkpoint-20"))
    assert again.state.global_step == 20
    on = stopping(build, "on", method=LATE, early_stopping_patience=4)
    on.train(str(folder / "checkpoint-20"))
    assert on.state.global_step == 22


def assert_parameters(one: AdaLoraTrainer, two: AdaLoraTrainer) -> None:
    mine, theirs = trained(one), trained(two)
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def test_a_metric_that_no_evaluation_gives_is_named(build: Make) -> None:
    trainer = build(**STOPPING, method=None, metric_for_best_model="f2")
    with pytest.raises(UserError, match=r"'f2', and an evaluation gives loss"):
        trainer.train()
