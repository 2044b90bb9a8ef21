"""The Trainer subclass: loss, gradient scale, order of the step, logs, checkpoints."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerState

from adalora.errors import UserError
from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.callbacks import AdaLoraCallback
from adalora.training.trainer import AdaLoraTrainer

SETTINGS = AdaLoraSettings(target_rank=1, init_warmup=2, final_warmup=4, mask_interval=2)


def build(model: Any, arguments: Any, examples: list[Any], **kwargs: Any) -> AdaLoraTrainer:
    settings = kwargs.pop("settings", SETTINGS)
    return AdaLoraTrainer(
        model=model,
        args=arguments,
        adaptation=AdaLora(model, settings) if settings is not None else None,
        train_dataset=examples,
        eval_dataset=examples,
        **kwargs,
    )


def test_evaluation_sees_the_task_loss_alone(
    make_model: Callable[..., Any], make_arguments: Callable[..., Any], examples: list[Any]
) -> None:
    model = make_model()
    heavy = AdaLoraSettings(target_rank=1, orth_reg_weight=100.0)
    trainer = build(model, make_arguments(), examples, settings=heavy)
    batch = {
        "input_ids": torch.stack([row["input_ids"] for row in examples]),
        "labels": torch.tensor([row["labels"] for row in examples]),
    }
    model.eval()
    with torch.no_grad():
        expected = model(**batch).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-6)
    model.train()
    total = trainer.compute_loss(model, dict(batch))
    assert total.item() > expected + 50


@pytest.mark.parametrize(("batch_size", "accumulation"), [(24, 1), (12, 2), (6, 4), (10, 3)])
def test_the_gradient_does_not_depend_on_how_a_batch_is_cut(
    make_model: Callable[..., Any],
    make_arguments: Callable[..., Any],
    examples: list[Any],
    batch_size: int,
    accumulation: int,
) -> None:
    """One step of plain SGD over the same examples; the mean of means is the mean."""

    def step(size: int, groups: int) -> dict[str, torch.Tensor]:
        model = make_model()
        arguments = make_arguments(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=groups,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
        )
        settings = AdaLoraSettings(allocate=False, orth_reg_weight=0.5)
        build(model, arguments, examples[:24], settings=settings).train()
        return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    if 24 % batch_size:
        examples = examples[:20]
        whole, cut = step(20, 1), step(10, 2)
    else:
        whole, cut = step(24, 1), step(batch_size, accumulation)
    for name, parameter in whole.items():
        torch.testing.assert_close(cut[name], parameter, rtol=1e-4, atol=1e-6, msg=name)


def test_the_allocator_is_called_once_per_step_with_the_gradient_still_there(
    make_model: Callable[..., Any], make_arguments: Callable[..., Any], examples: list[Any]
) -> None:
    trainer = build(make_model(), make_arguments(gradient_accumulation_steps=2), examples)
    assert trainer.adaptation is not None
    seen: list[tuple[int, bool]] = []
    step = trainer.adaptation.step

    def spy(index: int) -> Any:
        layer = trainer.adaptation.svd_layers[0]  # type: ignore[union-attr]
        seen.append((index, layer.lora_E.grad is not None))
        return step(index)

    trainer.adaptation.step = spy  # type: ignore[method-assign]
    trainer.train()
    assert seen == [(index, True) for index in range(12)]
    assert trainer.adaptation.allocator is not None
    assert trainer.adaptation.allocator.skipped_steps == 0
    assert sum(trainer.adaptation.rank_pattern().values()) == 12


def test_the_logged_loss_is_the_task_loss_and_the_penalty_stands_beside_it(
    make_model: Callable[..., Any], make_arguments: Callable[..., Any], examples: list[Any]
) -> None:
    settings = AdaLoraSettings(
        target_rank=1, init_warmup=2, final_warmup=4, mask_interval=2, orth_reg_weight=10.0
    )
    trainer = build(make_model(), make_arguments(), examples, settings=settings)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    for entry in logs:
        assert entry["loss"] < 2
        assert entry["orth_penalty"] > 5
        assert "budget" in entry
    assert logs[-1]["budget"] == 12
    assert logs[-1]["mask_threshold"] >= 0


def test_a_schedule_that_leaves_no_decay_stops_the_run_before_its_first_step(
    make_model: Callable[..., Any], make_arguments: Callable[..., Any], examples: list[Any]
) -> None:
    settings = AdaLoraSettings(target_rank=1, init_warmup=6, final_warmup=6)
    trainer = build(make_model(), make_arguments(), examples, settings=settings)
    with pytest.raises(UserError, match="no decay phase, because total_step is 12"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("stop", [3, 6, 10])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    make_model: Callable[..., Any],
    make_arguments: Callable[..., Any],
    examples: list[Any],
    tmp_path: Path,
    stop: int,
) -> None:
    def arguments(name: str) -> Any:
        return make_arguments(
            root_output_dir=str(tmp_path / name), save_strategy="steps", save_steps=stop
        )

    whole = make_model(dropout=0.1)
    build(whole, arguments("whole"), examples).train()

    resumed = make_model(dropout=0.1)
    trainer = build(resumed, arguments("resumed"), examples)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "model" / f"checkpoint-{stop}"))
    for (name, one), two in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_a_checkpoint_does_not_hold_the_base(
    make_model: Callable[..., Any], make_arguments: Callable[..., Any], examples: list[Any]
) -> None:
    from safetensors import safe_open

    model = make_model()
    arguments = make_arguments(save_strategy="steps", save_steps=6)
    build(model, arguments, examples).train()
    file = Path(str(arguments.output_dir)) / "checkpoint-6" / "trainable.safetensors"
    with safe_open(file, framework="pt") as stored:
        names = set(stored.keys())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained <= names
    assert not [name for name in names if name.endswith("word_embeddings.weight")]


def test_the_best_model_is_loaded_at_the_end(
    make_model: Callable[..., Any], make_arguments: Callable[..., Any], examples: list[Any]
) -> None:
    model = make_model()
    arguments = make_arguments(
        save_strategy="steps",
        save_steps=4,
        eval_strategy="steps",
        eval_steps=4,
        load_best_model_at_end=True,
        learning_rate=0.5,
    )
    trainer = build(model, arguments, examples)
    trainer.train()
    assert trainer.state.best_metric is not None
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, abs=1e-6)


def test_the_trainer_serves_methods_without_an_allocator(
    make_model: Callable[..., Any], make_arguments: Callable[..., Any], examples: list[Any]
) -> None:
    model = make_model(lora_type="frd")
    before = {n: p.clone() for n, p in model.named_parameters()}
    trainer = build(model, make_arguments(), examples, settings=None)
    trainer.train()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("lora_" in n or n.startswith(("pooler", "classifier")) for n in changed)


def test_without_a_model_the_error_says_so(make_arguments: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="needs `model`"):
        AdaLoraTrainer(args=make_arguments())


def test_predictions_come_in_the_order_of_the_data_though_training_groups_by_length(
    make_model: Callable[..., Any], make_arguments: Callable[..., Any], examples: list[Any]
) -> None:
    lengths = [2 + (5 * place) % 11 for place in range(len(examples))]
    of_all_lengths = [
        {"input_ids": row["input_ids"][:length], "labels": place % 2}
        for place, (row, length) in enumerate(zip(examples, lengths, strict=True))
    ]

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        ids = torch.nn.utils.rnn.pad_sequence([row["input_ids"] for row in rows], batch_first=True)
        labels = torch.tensor([row["labels"] for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}

    def predictions(**flags: Any) -> tuple[list[int], torch.Tensor]:
        model = make_model()
        arguments = make_arguments(per_device_eval_batch_size=8, **flags)
        trainer = build(model, arguments, of_all_lengths, data_collator=collate)
        assert trainer.evaluate()["eval_loss"] > 0
        found = trainer.predict(of_all_lengths)  # type: ignore[arg-type]
        return found.label_ids.tolist(), torch.as_tensor(found.predictions)  # type: ignore[union-attr]

    labels, usual = predictions()
    grouped_labels, grouped = predictions(train_sampling_strategy="group_by_length")
    assert grouped_labels == labels == [row["labels"] for row in of_all_lengths]
    torch.testing.assert_close(grouped, usual, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flag", ["bf16_full_eval", "fp16_full_eval"])
def test_an_evaluation_in_half_precision_leaves_the_trained_weights(
    flag: str,
    make_model: Callable[..., Any],
    make_arguments: Callable[..., Any],
    examples: list[Any],
) -> None:
    model = make_model()
    model.register_buffer("some", torch.rand(3))
    trainer = build(model, make_arguments(**{flag: True}), examples)
    trainer.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    held = dict(model.named_parameters())
    dtypes = set()
    model.classifier.register_forward_hook(lambda m, args, out: dtypes.add(out.dtype))
    for work in (trainer.evaluate, lambda: trainer.predict(examples)):
        work()
        for name, tensor in model.state_dict().items():
            assert tensor.dtype == before[name].dtype, name
            assert torch.equal(tensor, before[name]), name
    assert all(held[name] is parameter for name, parameter in model.named_parameters())
    assert dtypes == {torch.bfloat16 if flag == "bf16_full_eval" else torch.float16}


def test_a_second_training_has_a_schedule_of_its_own(
    make_model: Callable[..., Any], make_arguments: Callable[..., Any], examples: list[Any]
) -> None:
    settings = AdaLoraSettings(target_rank=1, mask_interval=1)
    trainer = build(make_model(), make_arguments(), examples, settings=settings)
    for steps in (12, 20):
        trainer.args.max_steps = steps
        trainer.train()
        allocator = trainer.adaptation.allocator  # type: ignore[union-attr]
        assert allocator.schedule.total_step == allocator.steps_seen == steps  # type: ignore[union-attr]
        assert sum(trainer.adaptation.rank_pattern().values()) == 12  # type: ignore[union-attr]


def test_a_batch_size_that_fits_is_found(
    make_model: Callable[..., Any],
    make_arguments: Callable[..., Any],
    examples: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, tried = make_model(), []
    forward = model.forward

    @functools.wraps(forward)
    def limited(**inputs: Any) -> Any:
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", limited)
    arguments = make_arguments(auto_find_batch_size=True, max_steps=-1, num_train_epochs=2)
    settings = AdaLoraSettings(target_rank=1, mask_interval=1)
    trainer = build(model, arguments, examples, settings=settings)
    trainer.train()
    assert tried[0] == 8
    found = trainer.state.train_batch_size
    assert found == 5
    assert trainer.state.max_steps == 2 * -(-len(examples) // found)
    allocator = trainer.adaptation.allocator  # type: ignore[union-attr]
    assert allocator.steps_seen == allocator.schedule.total_step == trainer.state.max_steps  # type: ignore[union-attr]


@pytest.mark.parametrize("stock", [True, False])
def test_several_gpus_in_one_process_are_refused(
    stock: bool,
    make_model: Callable[..., Any],
    make_arguments: Callable[..., Any],
    examples: list[Any],
    tmp_path: Path,
) -> None:
    model, arguments = make_model(), make_arguments()
    arguments._n_gpu = 2
    if not stock:
        with pytest.raises(UserError, match=r"2 GPUs are visible.*DataParallel"):
            build(model, arguments, examples)
        return
    callback = AdaLoraCallback(AdaLora(model, SETTINGS))
    with pytest.raises(UserError, match=r"2 GPUs are visible.*DataParallel"):
        callback.on_train_begin(arguments, TrainerState(max_steps=12), None)


def test_a_stock_trainer_that_goes_on_without_the_allocators_state_is_refused(
    make_model: Callable[..., Any], make_arguments: Callable[..., Any]
) -> None:
    state = TrainerState(global_step=5, max_steps=12)
    adaptation = AdaLora(make_model(), SETTINGS)
    with pytest.raises(UserError, match="goes on from step 5"):
        AdaLoraCallback(adaptation).on_train_begin(make_arguments(), state, None)
    penalty_alone = AdaLora(make_model(), AdaLoraSettings(allocate=False))
    AdaLoraCallback(penalty_alone).on_train_begin(make_arguments(), state, None)
