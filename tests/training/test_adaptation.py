"""The method over one model: schedule, penalty, step, state, and the errors around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from adalora.errors import UserError
from adalora.training.adaptation import AdaLora, AdaLoraSettings

MATRICES = 12  # six in each of the tiny model's two layers


def train(model: Any, adaptation: AdaLora, examples: list[Any], steps: range) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in steps:
        batch = [examples[(step * 8 + i) % len(examples)] for i in range(8)]
        ids = torch.stack([row["input_ids"] for row in batch])
        labels = torch.tensor([row["labels"] for row in batch])
        (model(input_ids=ids, labels=labels).loss + adaptation.penalty()).backward()
        optimizer.step()
        adaptation.step(step)
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("init_warmup", "final_warmup", "expected"),
    [
        (0.1, 0.3, (10, 30)),
        (7, 0.25, (7, 25)),
        (0, 20, (0, 20)),
        (0.1, 0.001, (10, 2)),
        (0.1, 0.014, (10, 2)),
        (0.001, 0, (0, 0)),
        (5, 1, (5, 1)),
        (98, 0.3, (98, 30)),
    ],
)
def test_warm_ups_are_steps_or_fractions_of_the_run(
    init_warmup: float, final_warmup: float, expected: tuple[int, int]
) -> None:
    settings = AdaLoraSettings(init_warmup=init_warmup, final_warmup=final_warmup)
    assert settings.steps(100) == expected


@pytest.mark.parametrize(("steps", "final"), [(1, 0), (2, 1), (3, 2), (4, 2), (6, 2), (10, 3)])
def test_a_fraction_leaves_a_step_at_the_target_where_there_is_room(steps: int, final: int) -> None:
    settings = AdaLoraSettings(target_rank=1)
    assert settings.schedule(24, 12, steps).final_warmup == final


@pytest.mark.parametrize("final_warmup", [0, 1, 0.001, 0.02, 2, 0.3])
def test_an_evaluation_at_the_end_of_a_run_can_be_the_best(
    final_warmup: float, make_model: Callable[..., Any]
) -> None:
    settings = AdaLoraSettings(target_rank=1, init_warmup=0, final_warmup=final_warmup)
    adaptation = AdaLora(make_model(), settings)
    adaptation.begin(20)
    assert adaptation.allocator is not None
    schedule = adaptation.allocator.schedule
    assert schedule is not None
    passing = [steps for steps in range(1, 21) if adaptation.at_target(steps)]
    assert passing == list(range(passing[0], 21))
    assert all(schedule.budget(steps - 1) == MATRICES for steps in passing)
    assert len(passing) == max(schedule.final_warmup - 1, 1)


@pytest.mark.parametrize(("steps", "fits"), [(2401, True), (2400, False), (20, False)])
def test_a_schedule_without_decay_is_refused_with_its_numbers(steps: int, fits: bool) -> None:
    settings = AdaLoraSettings(target_rank=1, init_warmup=600, final_warmup=1800)
    if fits:
        assert settings.schedule(24, 12, steps).total_step == steps
    else:
        with pytest.raises(UserError, match=rf"600.*1800.*{steps} steps"):
            settings.schedule(24, 12, steps)


def test_a_run_prunes_to_its_target_and_knows_its_pattern(
    make_model: Callable[..., Any], examples: list[Any]
) -> None:
    model = make_model(init_rank=3)
    adaptation = AdaLora(model, AdaLoraSettings(target_rank=1, mask_interval=1))
    assert adaptation.total_rank == 3 * MATRICES
    assert set(adaptation.rank_pattern().values()) == {3}
    adaptation.begin(20)
    train(model, adaptation, examples, range(20))
    adaptation.finish()
    pattern = adaptation.rank_pattern()
    assert sum(pattern.values()) == MATRICES
    nonzero = {
        f"{path}.lora_E": int((layer.lora_E != 0).sum())
        for path, layer in model.named_modules()
        if f"{path}.lora_E" in pattern
    }
    assert nonzero == pattern


def test_the_penalty_is_zero_without_a_coefficient_and_positive_with_one(
    make_model: Callable[..., Any],
) -> None:
    model = make_model()
    assert AdaLora(model, AdaLoraSettings(orth_reg_weight=0)).penalty().item() == 0
    one, two = (AdaLora(model, AdaLoraSettings(orth_reg_weight=w)).penalty() for w in (0.1, 0.2))
    assert one.item() > 0
    torch.testing.assert_close(two, 2 * one)


def test_plain_lora_has_a_penalty_of_its_own(make_model: Callable[..., Any]) -> None:
    model = make_model(lora_type="frd")
    adaptation = AdaLora(model, AdaLoraSettings(allocate=False, orth_reg_weight=0.1))
    penalty = adaptation.penalty()
    penalty.backward()
    assert penalty.isfinite()
    assert adaptation.step(0) == (None, None)
    assert adaptation.rank_pattern() == {}


def test_allocation_on_a_model_without_singular_values_is_refused(
    make_model: Callable[..., Any],
) -> None:
    with pytest.raises(UserError, match="no SVD layer"):
        AdaLora(make_model(lora_type="frd"), AdaLoraSettings())
    with pytest.raises(UserError, match="no LoRA layer"):
        AdaLora(torch.nn.Linear(2, 2), AdaLoraSettings(allocate=False))


def test_a_run_whose_allocator_was_never_called_does_not_end_silently(
    make_model: Callable[..., Any],
) -> None:
    adaptation = AdaLora(make_model(), AdaLoraSettings(target_rank=1))
    with pytest.raises(UserError, match=r"before AdaLora\.begin"):
        adaptation.step(0)
    adaptation.begin(20)
    with pytest.raises(UserError, match="never called"):
        adaptation.finish()


def test_a_step_after_zero_grad_is_found_out_at_the_end(make_model: Callable[..., Any]) -> None:
    adaptation = AdaLora(make_model(), AdaLoraSettings(target_rank=1))
    adaptation.begin(20)
    for step in range(20):
        adaptation.step(step)
    with pytest.raises(UserError, match="no usable gradient in any of 20 steps"):
        adaptation.finish()


@pytest.mark.parametrize("made", [0, 1, 4])
@pytest.mark.parametrize("wrong", [-1, -2, 1, 3, 100])
def test_an_index_that_is_not_the_next_is_refused(
    made: int, wrong: int, make_model: Callable[..., Any], examples: list[Any]
) -> None:
    """Jumping, repeating, or -1, which Lightning's step counter gives in an accumulation."""
    model = make_model()
    adaptation = AdaLora(model, AdaLoraSettings(target_rank=1, mask_interval=1))
    adaptation.begin(20)
    train(model, adaptation, examples, range(made))
    index = made + wrong
    before = adaptation.state_dict()["global_step"]
    with pytest.raises(UserError, match=rf"index {index}, and the next step is {made}:"):
        adaptation.step(index)
    assert adaptation.state_dict()["global_step"] == before


@pytest.mark.parametrize(("stop", "refused"), [(4, True), (8, True), (15, False), (20, False)])
def test_a_run_that_stopped_above_its_target_does_not_pass(
    stop: int, refused: bool, make_model: Callable[..., Any], examples: list[Any]
) -> None:
    model = make_model()
    settings = AdaLoraSettings(target_rank=1, init_warmup=2, final_warmup=7, mask_interval=1)
    adaptation = AdaLora(model, settings)
    adaptation.begin(20)
    train(model, adaptation, examples, range(stop))
    if refused:
        with pytest.raises(UserError, match=rf"stopped after {stop} of 20 steps with \d+ triplets"):
            adaptation.finish()
    else:
        adaptation.finish()


def test_a_second_beginning_is_another_run(
    make_model: Callable[..., Any], examples: list[Any]
) -> None:
    model = make_model()
    adaptation = AdaLora(model, AdaLoraSettings(target_rank=1, mask_interval=1))
    for steps in (20, 12):
        adaptation.begin(steps)
        assert adaptation.budget is adaptation.threshold is None
        train(model, adaptation, examples, range(steps))
        adaptation.finish()
        assert sum(adaptation.rank_pattern().values()) == MATRICES
        assert adaptation.history.entries()[-1]["step"] == steps - 1


# ---- the step that counts itself ----


def loop(
    model: Any,
    adaptation: AdaLora,
    examples: list[Any],
    *,
    steps: int = 20,
    optimizer: Any = None,
    accumulate: int = 1,
    scaler: Any = None,
    bad: tuple[int, ...] = (),
    after: Callable[[int], object] = lambda step: None,
) -> None:
    """A loop of one's own; the gradient of the steps ``bad`` is infinite."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer or torch.optim.AdamW(trained, lr=5e-3)
    for step in range(steps):
        for part in range(accumulate):
            rows = [examples[(step * 8 + part * 4 + i) % len(examples)] for i in range(4)]
            ids = torch.stack([row["input_ids"] for row in rows])
            labels = torch.tensor([row["labels"] for row in rows])
            loss = model(input_ids=ids, labels=labels).loss + adaptation.penalty()
            (loss if scaler is None else scaler.scale(loss)).backward()
        if step in bad:
            trained[0].grad.fill_(torch.inf)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        after(step)
        optimizer.zero_grad()


def started(make_model: Callable[..., Any], steps: int = 20) -> tuple[Any, AdaLora, Any]:
    model = make_model()
    adaptation = AdaLora(model, AdaLoraSettings(target_rank=1, mask_interval=2))
    adaptation.begin(steps)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, adaptation, torch.optim.AdamW(trained, lr=5e-3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_attached_run_is_the_one_that_calls_step(
    accumulate: int, make_model: Callable[..., Any], examples: list[Any]
) -> None:
    called, by_hand, _ = started(make_model)
    loop(called, by_hand, examples, accumulate=accumulate, after=by_hand.step)
    attached, by_itself, optimizer = started(make_model)
    by_itself.attach(optimizer)
    loop(attached, by_itself, examples, accumulate=accumulate, optimizer=optimizer)
    by_itself.finish()
    assert by_itself.counts() == by_hand.counts()
    for (name, one), two in zip(called.named_parameters(), attached.parameters(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_gradient_scaler_leaves_out_is_none(
    fused: bool, make_model: Callable[..., Any], examples: list[Any]
) -> None:
    model, adaptation, _ = started(make_model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3, fused=fused)
    adaptation.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    options: dict[str, Any] = {"optimizer": optimizer, "scaler": scaler, "bad": (0, 1, 7)}
    loop(model, adaptation, examples, **options)
    adaptation.finish()
    counts = adaptation.counts()
    assert counts is not None
    assert counts.steps_seen - counts.skipped_steps == 17
    assert counts.skipped_steps == (3 if fused else 0)
    assert all(torch.isfinite(torch.tensor(s)).all() for s in adaptation.importance().values())
    assert sum(adaptation.rank_pattern().values()) == MATRICES


def test_calling_step_beside_an_attached_optimizer_is_refused(
    make_model: Callable[..., Any], examples: list[Any]
) -> None:
    model, adaptation, optimizer = started(make_model)
    adaptation.attach(optimizer)
    with pytest.raises(UserError, match="counts by itself, and step is not to be called"):
        loop(model, adaptation, examples, optimizer=optimizer, after=adaptation.step)


def test_attaching_anew_or_removing_counts_no_step_twice(
    make_model: Callable[..., Any], examples: list[Any]
) -> None:
    model, adaptation, optimizer = started(make_model)
    adaptation.attach(optimizer)
    handle = adaptation.attach(optimizer)
    loop(model, adaptation, examples, optimizer=optimizer, steps=5)
    assert adaptation.state_dict()["steps_seen"] == 5
    handle.remove()
    loop(model, adaptation, examples, optimizer=optimizer, steps=5)
    assert adaptation.state_dict()["steps_seen"] == 5


def test_what_cannot_be_attached_is_refused(
    make_model: Callable[..., Any], examples: list[Any]
) -> None:
    model, adaptation, _ = started(make_model)
    other = torch.optim.AdamW(make_model().parameters())
    with pytest.raises(UserError, match="no adapter of this model"):
        adaptation.attach(other)
    early = AdaLora(model, AdaLoraSettings(target_rank=1))
    optimizer = torch.optim.AdamW(model.parameters())
    early.attach(optimizer)
    with pytest.raises(UserError, match=r"before AdaLora\.begin"):
        loop(model, early, examples, optimizer=optimizer)


def test_an_attached_run_goes_on_from_its_state(
    make_model: Callable[..., Any], examples: list[Any]
) -> None:
    model, adaptation, optimizer = started(make_model)
    adaptation.attach(optimizer).remove()
    adaptation.attach(optimizer)
    loop(model, adaptation, examples, optimizer=optimizer, steps=7)
    resumed = AdaLora(model, adaptation.settings)
    resumed.begin(20)
    resumed.load_state_dict(adaptation.state_dict())
    resumed.attach(torch.optim.AdamW(model.parameters()))
    loop(model, adaptation, examples, optimizer=optimizer, steps=1)
    assert adaptation.state_dict()["global_step"] == 7
    other = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    resumed.attach(other)
    loop(model, resumed, examples, optimizer=other, steps=13)
    resumed.finish()
    assert resumed.state_dict()["global_step"] == 19


def test_a_target_above_the_start_is_refused(make_model: Callable[..., Any]) -> None:
    adaptation = AdaLora(make_model(init_rank=2), AdaLoraSettings(target_rank=5))
    with pytest.raises(UserError, match=r"target of 60 triplets is above the 24"):
        adaptation.begin(100)


@pytest.mark.parametrize("stop", [1, 5, 12, 18])
def test_resuming_from_the_state_continues_exactly(
    make_model: Callable[..., Any], examples: list[Any], stop: int
) -> None:
    settings = AdaLoraSettings(target_rank=1, mask_interval=3)
    whole = make_model()
    reference = AdaLora(whole, settings)
    reference.begin(20)
    train(whole, reference, examples, range(20))

    first = make_model()
    adaptation = AdaLora(first, settings)
    adaptation.begin(20)
    train(first, adaptation, examples, range(stop))
    second = make_model()
    second.load_state_dict(first.state_dict())
    resumed = AdaLora(second, settings)
    resumed.begin(20)
    resumed.load_state_dict(adaptation.state_dict())
    train(second, resumed, examples, range(stop, 20))

    assert resumed.rank_pattern() == reference.rank_pattern()
    for (name, one), two in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_the_state_of_another_schedule_is_refused(make_model: Callable[..., Any]) -> None:
    adaptations = []
    for total in (20, 30):
        adaptation = AdaLora(make_model(), AdaLoraSettings(target_rank=1))
        adaptation.begin(total)
        adaptations.append(adaptation)
    with pytest.raises(UserError, match=r"20|30"):
        adaptations[1].load_state_dict(adaptations[0].state_dict())
