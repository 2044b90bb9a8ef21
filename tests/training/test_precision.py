"""bfloat16, and float16 with a gradient scaler: an overflowed step is no step, and its index is.

The gradient scaler is torch's own, on the CPU: accelerate builds one for GPUs alone, so the trainer
here is given it by hand. The same laws run on a GPU as they are, where there is one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from transformers import TrainerCallback

from adalora.adapters.bottleneck import add_bottleneck
from adalora.adapters.freeze import freeze_base
from adalora.adapters.lora import add_lora
from adalora.errors import UserError
from adalora.pretrained.loading import load_classifier
from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.trainer import AdaLoraTrainer

Make = Callable[..., Any]
STEPS = 12
SETTINGS = AdaLoraSettings(
    target_rank=1, init_warmup=2, final_warmup=4, mask_interval=2, orth_reg_weight=0.1
)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


@pytest.fixture(params=DEVICES)
def half(
    request: pytest.FixtureRequest,
    make_model: Make,
    make_arguments: Make,
    examples: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Make]:
    """Makes a trainer that computes in float16 with a gradient scaler; ``model`` and flags."""

    def make(model: Any = None, *, scale: float = 2.0**10, **changes: Any) -> AdaLoraTrainer:
        gpu = request.param == "cuda"
        # The first step makes the momenta; the rate is constant, so that it shows what was skipped.
        values = {"learning_rate": 1e-2, "no_cuda": not gpu, "fp16": gpu, "logging_steps": 1}
        model = make_model() if model is None else model
        trainer = AdaLoraTrainer(
            model=model,
            args=make_arguments(**{**values, **changes}),
            adaptation=AdaLora(model, SETTINGS),
            train_dataset=examples,
            eval_dataset=examples,
        )
        if gpu:
            assert trainer.accelerator.scaler is not None
            trainer.accelerator.scaler._init_scale = scale
        else:
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            trainer.accelerator.native_amp = True
            monkeypatch.setitem(AcceleratorState._shared_state, "_mixed_precision", "fp16")
        return trainer

    yield make
    AcceleratorState._reset_state(True)


class Spoil(TrainerCallback):  # type: ignore[misc]
    """Puts an infinity into one gradient of some steps, as an overflow leaves it, and takes notes.

    Where the Trainer clips, it unscales before this; so the gradient is spoilt as it arises.
    """

    def __init__(self, parameter: torch.nn.Parameter, steps: set[int]) -> None:
        self.parameter, self.steps, self.index = parameter, steps, 0
        self.before: dict[str, Tensor] = {}
        self.rates: list[float] = []
        self.changed: list[bool] = []
        parameter.register_hook(self._spoil)

    def _spoil(self, gradient: Tensor) -> Tensor:
        return gradient * math.inf if self.index in self.steps else gradient

    def _weights(self, model: Any) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_A" in n}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.index = state.global_step
        self.before = self._weights(kwargs["model"])
        self.rates.append(kwargs["lr_scheduler"].get_last_lr()[0])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        after = self._weights(kwargs["model"])
        self.changed.append(any(not torch.equal(after[n], p) for n, p in self.before.items()))


class Averages(TrainerCallback):  # type: ignore[misc]
    """Notes at which steps the importance averages changed."""

    def __init__(self, adaptation: AdaLora) -> None:
        self.adaptation, self.before, self.changed = adaptation, [], []  # type: ignore[var-annotated]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        allocator = self.adaptation.allocator
        assert allocator is not None
        self.before = copy.deepcopy(allocator.importance.state_dict())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        allocator = self.adaptation.allocator
        assert allocator is not None
        now = allocator.importance.state_dict()
        same = all(
            torch.equal(now[kind][name], value)
            for kind, averages in self.before.items()
            for name, value in averages.items()
        )
        self.changed.append(not same)


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_torch", "sgd"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("where", ["lora_B", "classifier.weight"])
def test_an_overflowed_step_changes_neither_weights_nor_averages_and_the_schedules_go_on(
    half: Make, make_model: Make, optimizer: str, clip: float, where: str
) -> None:
    """Also where the infinity is in the head alone, and the adapters' own gradients are finite."""
    overflowed = {3, 6, 10}
    model = make_model()
    trainer = half(model, optim=optimizer, max_grad_norm=clip)
    name = next(n for n, _ in model.named_parameters() if n.endswith(where))
    spoil = Spoil(model.get_parameter(name), overflowed)
    averages = Averages(trainer.adaptation)
    trainer.add_callback(spoil)
    trainer.add_callback(averages)
    trainer.train()
    made = [step not in overflowed for step in range(STEPS)]
    assert spoil.changed == made
    # Importance stands still in the final phase, which begins at step 8.
    assert averages.changed == [ok and step < 8 for step, ok in enumerate(made)]
    assert trainer.adaptation.allocator.skipped_steps == 2
    # Learning rate and budget are functions of the step's index, whatever was skipped.
    rates = [1e-2 * (1 - step / STEPS) for step in range(STEPS)]
    assert spoil.rates == pytest.approx(rates)
    schedule = trainer.adaptation.allocator.schedule
    budgets = [entry["budget"] for entry in trainer.state.log_history if "budget" in entry]
    assert budgets == [schedule.budget(step) for step in range(STEPS)]
    assert sum(trainer.adaptation.rank_pattern().values()) == STEPS
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    # Three overflows halve the scale three times.
    assert trainer.accelerator.scaler.get_scale() == 2.0**7


def test_a_scale_that_starts_too_high_comes_down_and_the_run_ends_whole(half: Make) -> None:
    trainer = half(scale=2.0**40, max_grad_norm=1.0, max_steps=40)
    trainer.train()
    allocator = trainer.adaptation.allocator
    assert 5 < allocator.skipped_steps < allocator.updates_due
    assert allocator.importance.scores().isfinite().all()
    assert sum(trainer.adaptation.rank_pattern().values()) == 12


def test_a_run_of_overflows_alone_says_that_nothing_was_learned(half: Make) -> None:
    trainer = half()
    parameter = next(p for n, p in trainer.model.named_parameters() if n.endswith("lora_B"))
    trainer.add_callback(Spoil(parameter, set(range(STEPS))))
    with pytest.raises(UserError, match="no usable gradient in any of 12 steps"):
        trainer.train()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_a_step_in_half_precision_is_the_float32_step_to_rounding(
    half: Make, make_model: Make, kind: torch.dtype, clip: float
) -> None:
    """The scale is out of the gradient again, for the optimizer and for the clipping."""

    def update(precision: torch.dtype) -> Tensor:
        model = make_model()
        trained = [p for p in model.parameters() if p.requires_grad]
        start = torch.cat([p.detach().flatten() for p in trained])
        flags = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": clip}
        trainer = half(model, **flags, bf16=precision == torch.bfloat16)
        if precision != torch.float16:
            trainer.accelerator.scaler = None
            trainer.accelerator.native_amp = precision == torch.bfloat16
            name = "bf16" if precision == torch.bfloat16 else "no"
            AcceleratorState._shared_state["_mixed_precision"] = name
        trainer.add_callback(StopAfterOneStep())
        with pytest.raises(UserError, match="stopped after 1 of 12 steps"):
            trainer.train()
        return torch.cat([p.detach().cpu().flatten() for p in trained]) - start

    exact = update(torch.float32)
    if clip:
        assert exact.norm().item() == pytest.approx(clip, rel=1e-4)
    error = (update(kind) - exact).norm() / exact.norm()
    assert 0 < error <= rounding(kind)


def rounding(kind: torch.dtype) -> float:
    """Relative error of the models here: two layers round some 20 times each way.

    Each rounding is by at most half an epsilon, and they are independent.
    """
    return math.sqrt(2 * 2 * 20) * torch.finfo(kind).eps / 2


class StopAfterOneStep(TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["svd", "frd", "houlsby", "pfeiffer"])
def test_what_trains_over_a_half_precision_base_is_in_float32(
    method: str, dtype: torch.dtype
) -> None:
    """AdamW's epsilon is 0 in float16, so that a first step there would end in NaN."""
    losses: dict[torch.dtype, Tensor] = {}
    batch = {"input_ids": torch.arange(5, 53).view(4, 12), "labels": torch.tensor([0, 1, 1, 0])}
    for precision in (torch.float32, dtype):
        torch.manual_seed(0)
        model = load_classifier("nano", num_labels=2, cls_dropout=0.0, dtype=precision)
        if method in ("svd", "frd"):
            add_lora(model, lora_type=method, targets=["query", "value"], init_rank=2, lora_alpha=8)  # type: ignore[arg-type]
            freeze_base(model, train="lora")
        else:
            add_bottleneck(model, adapter_type=method, adapter_size=4)  # type: ignore[arg-type]
            freeze_base(model, train="bottleneck")
        trained = [p for p in model.parameters() if p.requires_grad]
        frozen = [p for p in model.parameters() if not p.requires_grad and p.numel() > 1]
        assert {p.dtype for p in trained} == {torch.float32}
        assert {p.dtype for p in frozen} == {precision}
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
        assert all(p.isfinite().all() for p in trained)
        losses[precision] = loss.detach()
    expected = losses[torch.float32].item()
    # The nano model is three times as deep.
    assert losses[dtype].item() == pytest.approx(expected, rel=math.sqrt(3) * rounding(dtype))
