"""Every variant of the paper's tables 4 and 5, and growth: start, gradients, learning, resuming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import loralib
from adalora.adapters.freeze import count_parameters
from adalora.errors import UserError
from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.arguments.parser import parse_arguments
from adalora.training.trainer import AdaLoraTrainer

Make = Callable[..., Any]
STEPS = 40
MATRICES = 12
RANK = 3


@dataclass(frozen=True)
class Variant:
    lora_type: str
    settings: AdaLoraSettings


ADALORA = AdaLoraSettings(target_rank=1, mask_interval=2)
GROWN = replace(ADALORA, target_rank=2, allocation="grow")
PRUNED = replace(ADALORA, prune_lora=True, orth_reg_weight=0.0)
FIXED = AdaLoraSettings(allocate=False)
VARIANTS = {
    # Table 4.
    "AdaLoRA": Variant("svd", ADALORA),
    "sensitivity only": Variant("svd", replace(ADALORA, importance_score="sensitivity")),
    "magnitude": Variant("svd", replace(ADALORA, importance_score="magnitude")),
    "pruned LoRA": Variant("frd", PRUNED),
    "pruned LoRA by magnitude": Variant("frd", replace(PRUNED, importance_score="magnitude")),
    # Table 5.
    "LoRA with the regulariser": Variant("frd", replace(FIXED, orth_reg_weight=0.1)),
    "fixed-rank SVD": Variant("svd", FIXED),
    "coefficient 0": Variant("svd", replace(ADALORA, orth_reg_weight=0.0)),
    # IncreLoRA.
    "grown": Variant("svd", GROWN),
    # Controls, and ElaLoRA.
    "uniform": Variant("svd", replace(ADALORA, allocation="uniform")),
    "random": Variant("svd", replace(ADALORA, allocation="random")),
    "frozen": Variant("svd", replace(ADALORA, allocation="frozen")),
    "exchanged": Variant("svd", replace(GROWN, allocation="exchange")),
    "grown by sensitivity": Variant("svd", replace(GROWN, importance_score="sensitivity")),
}
ALLOCATED = [name for name, variant in VARIANTS.items() if variant.settings.allocate]


def batch_of(examples: list[Any], step: int) -> dict[str, torch.Tensor]:
    rows = [examples[(step * 16 + i) % len(examples)] for i in range(16)]
    return {
        "input_ids": torch.stack([row["input_ids"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


@pytest.fixture
def start(make_model: Make) -> Callable[[str], tuple[Any, AdaLora]]:
    def make(name: str) -> tuple[Any, AdaLora]:
        model = make_model(lora_type=VARIANTS[name].lora_type, init_rank=RANK)
        adaptation = AdaLora(model, VARIANTS[name].settings)
        adaptation.begin(STEPS)
        return model, adaptation

    return make


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_starts_as_its_base_learns_and_touches_nothing_else(
    name: str, start: Make, examples: list[Any]
) -> None:
    model, adaptation = start(name)
    batch = batch_of(examples, 0)
    with torch.no_grad():
        logits = model(**batch).logits
        for layer in adaptation.layers:
            layer.merge()
        assert torch.equal(model(**batch).logits, logits)
        for layer in adaptation.layers:
            layer.unmerge()
    before = {path: p.detach().clone() for path, p in model.named_parameters()}
    trained = {path: p for path, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=5e-3, weight_decay=0.0)
    losses, nonzero, moved = [], set(), set()
    for step in range(STEPS):
        loss = model(**batch_of(examples, step)).loss
        (loss + adaptation.penalty()).backward()
        with_gradient = {path for path, p in model.named_parameters() if p.grad is not None}
        assert with_gradient == set(trained)
        nonzero |= {path for path, p in trained.items() if (p.grad != 0).any()}
        optimizer.step()
        # Before the allocator's step: a matrix that is pruned to rank 0 ends where it started.
        moved |= {path for path, p in model.named_parameters() if not torch.equal(p, before[path])}
        adaptation.step(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    adaptation.finish()
    assert nonzero == moved == set(trained)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


@pytest.mark.parametrize("name", ALLOCATED)
def test_an_allocated_variant_ends_at_its_budget_and_counts_by_formula(
    name: str, start: Make, examples: list[Any]
) -> None:
    model, adaptation = start(name)
    settings = VARIANTS[name].settings
    first = {"grow": 1, "exchange": settings.target_rank}.get(settings.allocation, RANK)
    for not_or_just_begun in (AdaLora(model, settings), adaptation):
        assert set(not_or_just_begun.rank_pattern().values()) == {first}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for step in range(STEPS):
        (model(**batch_of(examples, step)).loss + adaptation.penalty()).backward()
        optimizer.step()
        adaptation.step(step)
        optimizer.zero_grad()
    pattern = adaptation.rank_pattern()
    assert len(pattern) == MATRICES
    assert sum(pattern.values()) == settings.target_rank * MATRICES
    one = 1 if VARIANTS[name].lora_type == "svd" else 0
    expected = whole = 0
    for key, rank in pattern.items():
        layer = model.get_submodule(key.removesuffix(".lora_E"))
        triplet = layer.in_features + layer.out_features + one
        expected, whole = expected + rank * triplet, whole + RANK * triplet
        # What was pruned, or has not grown, is exactly zero.
        alive = layer.lora_E[:, 0] != 0 if one else (layer.lora_B != 0).any(dim=0)
        assert int(alive.sum()) == rank
    counts = count_parameters(model, pattern)
    assert (counts.adapter_initial, counts.adapter_kept) == (whole, expected)


@pytest.mark.parametrize("lora_type", ["frd", "svd"])
def test_the_penalty_reaches_the_factors_and_nothing_else(make_model: Make, lora_type: str) -> None:
    model = make_model(lora_type=lora_type, init_rank=RANK)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith("lora_B"):
                parameter.normal_()  # plain LoRA's starts at zero, where its cosines have no slope
    AdaLora(model, replace(FIXED, orth_reg_weight=0.3)).penalty().backward()
    reached = {path for path, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    factors = ("lora_A", "lora_B")
    assert reached == {path for path, _ in model.named_parameters() if path.endswith(factors)}


def test_with_coefficient_0_the_gradient_is_that_of_the_task(
    make_model: Make, examples: list[Any]
) -> None:
    gradients = []
    for weight in (0.0, 0.1, None):
        model = make_model(init_rank=RANK)
        loss = model(**batch_of(examples, 0)).loss
        if weight is not None:
            settings = replace(ADALORA, orth_reg_weight=weight)
            loss = loss + AdaLora(model, settings).penalty()
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    none, some, task = gradients
    assert all(torch.equal(a, b) for a, b in zip(none, task, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(some, task, strict=True))


# --- through the Trainer --------------------------------------------------------------------------


@pytest.fixture
def build(make_model: Make, make_arguments: Make, examples: list[Any], tmp_path: Path) -> Make:
    def make(folder: str, name: str, **changes: Any) -> AdaLoraTrainer:
        variant = VARIANTS[name]
        model = make_model(lora_type=variant.lora_type, init_rank=RANK, dropout=0.1)
        values = {"save_strategy": "steps", "save_steps": 5, "logging_steps": 5} | changes
        settings = replace(variant.settings, init_warmup=2, final_warmup=4)
        return AdaLoraTrainer(
            model=model,
            args=make_arguments(root_output_dir=str(tmp_path / folder), **values),
            adaptation=AdaLora(model, settings),
            train_dataset=examples,
        )

    return make


RESUMED = (
    *("magnitude", "pruned LoRA", "LoRA with the regulariser", "fixed-rank SVD"),
    *("grown by sensitivity", "exchanged", "random", "frozen"),
)


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_of_a_variant_ends_as_if_it_had_not_stopped(build: Make, name: str) -> None:
    whole = build("whole", name)
    whole.train()
    for step in (5, 10):
        checkpoint = Path(whole.args.output_dir) / f"checkpoint-{step}"
        resumed = build(f"from-{step}", name, save_steps=12)
        torch.manual_seed(step)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        for (path, one), two in zip(
            whole.model.named_parameters(), resumed.model.parameters(), strict=True
        ):
            assert torch.equal(one, two), path
        assert resumed.adaptation.rank_pattern() == whole.adaptation.rank_pattern()
        assert resumed.adaptation.state_dict().keys() == whole.adaptation.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sensitivity only", "importance_score: there uncertainty, here sensitivity"),
        ("magnitude", "importance_score: there uncertainty, here magnitude"),
        ("grown", "allocation: there prune, here grow"),
    ],
)
def test_a_run_goes_on_with_the_variant_it_began_with(build: Make, name: str, says: str) -> None:
    first = build("first", "AdaLoRA", max_steps=7)
    first.train()
    checkpoint = Path(first.args.output_dir) / "checkpoint-5"
    with pytest.raises(UserError) as caught:
        build("second", name, max_steps=7).train(resume_from_checkpoint=str(checkpoint))
    assert says in str(caught.value)
    forced = build("third", name, max_steps=7, force_resume=True)
    with pytest.raises(UserError, match="does not fit this run: the state is of another alloc"):
        forced.train(resume_from_checkpoint=str(checkpoint))


# --- flags ----------------------------------------------------------------------------------------

MINIMAL = ["--model_name_or_path", "nano", "--task_name", "mini-rte"]
LORA = [*MINIMAL, "--apply_lora", "--lora_r", "4"]
# A learning rate of one's own leaves the start as published.
SVD = [*LORA, "--lora_type", "svd", "--apply_adalora", "--learning_rate", "1e-3"]


@pytest.mark.parametrize(
    ("words", "name", "settings"),
    [
        (SVD, "AdaLoRA", {}),
        ([*SVD, "--importance_score", "sensitivity"], "AdaLoRA, by sensitivity", {}),
        ([*SVD, "--allocation", "grow"], "AdaLoRA, grown", {"allocation": "grow"}),
        ([*SVD, "--allocation", "random"], "AdaLoRA, at random", {"allocation": "random"}),
        ([*LORA, "--prune_lora"], "pruned LoRA", {"prune_lora": True, "allocate": True}),
        ([*LORA, "--reg_orth_coef", "0.1"], "LoRA", {"allocate": False}),
    ],
)
def test_flags_name_a_variant(words: list[str], name: str, settings: dict[str, Any]) -> None:
    method = parse_arguments(words).method
    assert method.name == name
    made = method.settings
    assert made.importance_score == method.importance_score
    assert {key: getattr(made, key) for key in settings} == settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*SVD, "--importance_score", "x"], "'x'; choose uncertainty, sensitivity or magnitude"),
        ([*SVD, "--allocation", "x"], "--allocation is 'x'; choose prune, grow, exchange"),
        ([*LORA, "--importance_score", "magnitude"], "does nothing without --apply_adalora"),
        ([*LORA, "--allocation", "grow"], "--allocation grow does nothing without"),
        ([*SVD, "--prune_lora"], "--prune_lora needs --apply_lora --lora_type frd"),
        ([*MINIMAL, "--prune_lora"], "--prune_lora needs --apply_lora"),
        (
            [*LORA, "--prune_lora", "--lora_init", "pissa"],
            "--lora_init pissa and --prune_lora do not go together",
        ),
        (
            [*LORA, "--lora_type", "frd", "--apply_adalora"],
            "lora_type is 'frd'. To prune plain LoRA, give --prune_lora",
        ),
    ],
)
def test_flags_without_sense_get_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_arguments(words)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"importance_score": "x"}, "importance_score is 'x'"),
        ({"allocation": "x"}, "allocation is 'x'"),
        ({"allocation": "grow", "prune_lora": True}, "cannot grow"),
    ],
)
def test_settings_without_sense_get_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdaLoraSettings(**settings)


def test_the_model_must_have_the_layers_of_the_variant(make_model: Make) -> None:
    with pytest.raises(UserError, match="prune_lora prunes plain LoRA and this model has no such"):
        AdaLora(make_model(lora_type="svd"), PRUNED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_rank": 4}, "to at most 36.*the target of 48"),
        ({"target_rank": 0}, "from 12 triplets.*the target of 0"),
        ({"final_warmup": 1}, "needs? at least 2 steps"),
        ({"init_warmup": 30, "final_warmup": 10}, "no growth phase"),
    ],
)
def test_a_growth_that_cannot_be_is_refused(
    make_model: Make, change: dict[str, Any], message: str
) -> None:
    adaptation = AdaLora(make_model(init_rank=RANK), replace(GROWN, **change))
    with pytest.raises(UserError, match=message):
        adaptation.begin(STEPS)


def test_svd_layers_and_growth_leave_the_default_call_as_it_was(make_model: Make) -> None:
    model = make_model(init_rank=RANK)
    by_position = loralib.RankAllocator(model, RANK, 1, 2, 4, 2, 0.85, 0.85, 20, 12, None, 500)
    assert (by_position.importance_score, by_position.allocation) == ("uncertainty", "prune")
    assert by_position.target_rank == 12
