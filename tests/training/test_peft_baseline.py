"""PEFT's methods in our Trainer: as in a loop written after PEFT's own documentation."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adalora.adapters.freeze import freeze_base
from adalora.adapters.peft_method import add_peft, read_peft_values
from adalora.artefact.description import Description
from adalora.artefact.reader import load_artefact
from adalora.artefact.writer import save_artefact
from adalora.errors import UserError
from adalora.pretrained.loading import load_classifier
from adalora.storage.nested import load_state
from adalora.storage.snapshots import snapshots
from adalora.training.arguments.method import MethodArguments
from adalora.training.arguments.parser import parse_arguments
from adalora.training.build import build_adaptation
from adalora.training.checkpointing.settings import resume_settings
from adalora.training.peft_adaptation import PeftAdaLora
from adalora.training.trainer import AdaLoraTrainer

peft = pytest.importorskip("peft", reason="needs the extra adalora[peft]")

Make = Callable[..., Any]
MODULES = ["query", "key", "value", "intermediate", "layer.output", "attention.output"]
ADALORA: dict[str, Any] = {
    "peft_type": "ADALORA",
    "init_r": 3,
    "target_r": 1,
    "tinit": 2,
    "tfinal": 4,
    "deltaT": 2,
    "orth_reg_weight": 0.3,
    "target_modules": MODULES,
}
LORA = {"peft_type": "LORA", "r": 2, "target_modules": MODULES}


@pytest.fixture
def base(make_model: Make, tmp_path: Path) -> Callable[[], Any]:
    """Loads one tiny DeBERTaV3 after another, all the same."""
    plain = make_model()
    folder = tmp_path / "base"
    type(plain)(plain.config).save_pretrained(folder)

    def load() -> Any:
        torch.manual_seed(5)
        return load_classifier(str(folder), num_labels=2)

    return load


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[..., str]:
    def write(content: Any) -> str:
        path = tmp_path / "method.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def wrap(model: nn.Module, values: dict[str, Any], steps: int | None = 12) -> Any:
    torch.manual_seed(7)
    return add_peft(model, values, total_steps=steps, source="method.json")


def trainer_of(model: Any, arguments: Any, examples: list[Any], **kwargs: Any) -> AdaLoraTrainer:
    adaptive = model.peft_config["default"].peft_type == "ADALORA"
    return AdaLoraTrainer(
        model=model,
        args=arguments,
        adaptation=PeftAdaLora(model) if adaptive else None,
        train_dataset=examples,
        eval_dataset=examples,
        **kwargs,
    )


def collate(examples: list[Any]) -> dict[str, Tensor]:
    return {
        "input_ids": torch.stack([row["input_ids"] for row in examples]),
        "labels": torch.tensor([row["labels"] for row in examples]),
    }


@pytest.mark.parametrize("values", [ADALORA, LORA], ids=["AdaLoRA", "LoRA"])
def test_the_trainer_does_what_pefts_documentation_says(
    base: Any, make_arguments: Make, examples: list[Any], values: dict[str, Any]
) -> None:
    """One batch of all examples, so that their order matters to rounding alone."""
    flags = {"lr_scheduler_type": "constant", "per_device_train_batch_size": 48}
    trainer = trainer_of(wrap(base(), values), make_arguments(**flags), examples)
    trainer.train()

    theirs = wrap(base(), values)
    optimizer = torch.optim.AdamW(
        [p for p in theirs.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0
    )
    theirs.train()
    for step in range(12):
        theirs(**collate(examples)).loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        if values is ADALORA:
            theirs.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    for (name, mine), other in zip(
        trainer.model.named_parameters(), theirs.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg=name)
    if values is ADALORA:
        pattern = theirs.peft_config["default"].rank_pattern
        adaptation: Any = trainer.adaptation
        assert adaptation.rank_pattern() == {
            name.removesuffix(".default"): sum(kept) for name, kept in pattern.items()
        }
        assert sum(adaptation.rank_pattern().values()) == 12
        assert adaptation.counts().mask_events == 3
        steps = [(one["step"], one["budget"]) for one in adaptation.history.entries()]
        assert len(steps) == 3
        assert steps[-1][1] == 12
        last = adaptation.history.entries()[-1]["ranks"]
        assert {f"{name}.lora_E": rank for name, rank in last.items()} == adaptation.rank_pattern()


def test_the_evaluated_and_the_logged_loss_are_the_tasks_alone(
    base: Any, make_arguments: Make, examples: list[Any]
) -> None:
    model = wrap(base(), {**ADALORA, "orth_reg_weight": 50.0})
    trainer = trainer_of(model, make_arguments(logging_steps=1, max_steps=7), examples)
    assert model.train()(**collate(examples)).loss > 10
    before = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        expected = model.get_base_model().eval()(**collate(examples)).loss.item()
    assert before == pytest.approx(expected, abs=1e-5)
    trainer.train()
    first = trainer.state.log_history[1]
    assert first["loss"] < 2
    assert first["orth_penalty"] > 10
    assert first["budget"] == 36
    assert trainer.state.log_history[-2]["budget"] == 12


@pytest.mark.parametrize("values", [ADALORA, LORA], ids=["AdaLoRA", "LoRA"])
def test_a_resumed_run_ends_as_one_that_never_stopped(
    base: Any, make_arguments: Make, examples: list[Any], tmp_path: Path, values: dict[str, Any]
) -> None:
    flags = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer_of(
        wrap(base(), values), make_arguments(root_output_dir=str(tmp_path / "a"), **flags), examples
    )
    whole.train()
    first = snapshots(Path(str(whole.args.output_dir)))[0]
    resumed = trainer_of(
        wrap(base(), values), make_arguments(root_output_dir=str(tmp_path / "b"), **flags), examples
    )
    shutil.copytree(first, Path(str(resumed.args.output_dir)) / first.name)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=True)
    for (name, mine), theirs in zip(
        whole.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    if values is ADALORA:
        # Half way, where PEFT's allocator has averages; it drops them when it prunes for good.
        states = [
            snapshots(Path(str(trainer.args.output_dir)))[1] / "allocator.safetensors"
            for trainer in (whole, resumed)
        ]
        assert states[0].read_bytes() == states[1].read_bytes()
        assert load_state(states[0])["exp_avg_ipt"]
        one, two = whole.adaptation, resumed.adaptation
        assert one.rank_pattern() == two.rank_pattern()  # type: ignore[union-attr]
        assert one.counts() == two.counts()
        assert one.history.entries() == two.history.entries()  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")
@pytest.mark.parametrize("values", [ADALORA, LORA], ids=["AdaLoRA", "LoRA"])
def test_peft_alone_loads_what_the_run_leaves(
    base: Any,
    make_arguments: Make,
    examples: list[Any],
    tmp_path: Path,
    values: dict[str, Any],
) -> None:
    model = wrap(base(), values)
    trainer = trainer_of(model, make_arguments(), examples)
    trainer.train()
    model.eval()
    pattern = {} if trainer.adaptation is None else trainer.adaptation.rank_pattern()
    description = Description.of(model, base_model=str(tmp_path / "base"), method="PEFT")
    save_artefact(
        tmp_path / "out", model, tokenizer=None, description=description, rank_pattern=pattern
    )
    inputs = {"input_ids": collate(examples)["input_ids"]}
    expected = model(**inputs).logits
    ours = load_artefact(tmp_path / "out")
    assert ours.description.rank_pattern == pattern
    alone = peft.PeftModel.from_pretrained(base(), str(tmp_path / "out"))
    for loaded in (alone, ours.model):
        torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {"peft_type": "LORA", "r": 2, "target_modules": ["dense"]},
        {"peft_type": "LORA", "r": 2, "target_modules": "all-linear"},
        {"peft_type": "IA3", "target_modules": ["key", "layer.output"], "feedforward_modules": []},
        {"peft_type": "LOHA", "r": 2, "target_modules": MODULES},
        {"peft_type": "LN_TUNING", "target_modules": ["LayerNorm"]},
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
    ],
    ids=lambda values: values["peft_type"] + str(values.get("target_modules", ""))[:14],
)
def test_other_methods_train_too_and_the_head_whole(
    base: Any, make_arguments: Make, examples: list[Any], values: dict[str, Any]
) -> None:
    plain = base()
    model = wrap(base(), values)
    trainer = trainer_of(model, make_arguments(max_steps=3), examples)
    trainer.train()
    head = {"pooler.dense.weight", "pooler.dense.bias", "classifier.weight", "classifier.bias"}
    found = {
        re.sub(r"base_model\.(model\.)?|modules_to_save\.default\.", "", name)
        for name, p in model.named_parameters()
        if p.requires_grad and ("pooler" in name or "classifier" in name)
    }
    assert found == head
    for name in head:
        path, _, leaf = name.rpartition(".")
        module = model.get_base_model().get_submodule(path.partition(".")[0])
        saved = module.modules_to_save["default"]
        below = path.partition(".")[2]
        now = (saved.get_submodule(below) if below else saved).get_parameter(leaf)
        assert not torch.equal(now, plain.get_parameter(name)), name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON file"),
        ([], 'needs an object with "peft_type"'),
        ({"r": 2}, 'needs an object with "peft_type"'),
    ],
)
def test_a_file_that_describes_no_method_is_told(file_of: Any, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_peft_values(file_of(content))
    with pytest.raises(UserError, match="is no file"):
        read_peft_values("nowhere.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LORRA"}, "no peft_type 'LORRA'; did you mean LORA"),
        ({"task_type": "CAUSAL_LM"}, "text classification is SEQ_CLS"),
        ({"rank": 2}, "LORA has no argument 'rank'"),
        ({"r": 0}, "PEFT refuses it: .*r"),
        ({"r": "two"}, "PEFT refuses it"),
        ({"target_modules": ["nothing"]}, "PEFT refuses it: No modules were targeted"),
        ({**ADALORA, "target_r": 3}, r"target_r \(3\) must be below init_r \(3\)"),
        ({**ADALORA, "tinit": 9}, "tinit 9 and tfinal 4 fill the 12 steps"),
        ({**ADALORA, "tinit": -1}, "tinit -1; it must be at least 0"),
        ({**ADALORA, "beta1": 2.0}, "PEFT refuses it"),
        ({**ADALORA, "orth_reg_weight": -1.0}, "PEFT refuses it: .*orth_reg_weight"),
        (
            {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3},
            "needs a model that takes past_key_values",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:30],
)
def test_what_cannot_be_trained_is_told_in_a_sentence(
    base: Any, changes: dict[str, Any], message: str
) -> None:
    values = changes if len(changes) > 1 and "peft_type" in changes else {**LORA, **changes}
    if changes.get("peft_type") == "LORRA":
        values = {"peft_type": "LORRA"}
    with pytest.raises(UserError, match=message) as caught:
        wrap(base(), values)
    assert "\n" not in str(caught.value)


def test_fractions_of_the_run_become_its_steps(base: Any) -> None:
    model = wrap(base(), {**ADALORA, "tinit": 0.1, "tfinal": 0.3}, steps=200)
    config = model.peft_config["default"]
    assert (config.tinit, config.tfinal, config.total_step) == (20, 60, 200)
    untrained = wrap(base(), ADALORA, steps=None).peft_config["default"]
    assert (untrained.tinit, untrained.tfinal, untrained.total_step) == (0, 0, 1)


def test_a_run_that_pruned_nothing_does_not_end_silently(base: Any) -> None:
    adaptation = PeftAdaLora(wrap(base(), ADALORA))
    adaptation.begin(12)
    with pytest.raises(UserError, match="pruned nothing"):
        adaptation.finish()
    with pytest.raises(UserError, match="leaves no step to prune in"):
        adaptation.begin(6)


@pytest.mark.parametrize(
    "flags",
    [
        {"apply_lora": True, "lora_r": 2},
        {"apply_adapter": True},
        {"apply_bitfit": True},
        {"reg_loss_wgt": 1.0},
    ],
)
def test_two_methods_at_once_are_refused(file_of: Any, flags: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="are two methods; give one"):
        MethodArguments(peft_config=file_of(LORA), **flags)


def test_name_and_settings_come_from_the_files_content(file_of: Any, tmp_path: Path) -> None:
    method = MethodArguments(peft_config=file_of(ADALORA))
    assert method.name == "PEFT AdaLoRA"
    assert MethodArguments(peft_config=file_of({"peft_type": "lora"})).name == "PEFT LoRA"

    def settings(content: Any) -> dict[str, Any]:
        flags = ["--model_name_or_path", "nano", "--task_name", "mini-rte"]
        return resume_settings(parse_arguments([*flags, "--peft_config", file_of(content)]))

    assert settings(LORA) == settings(dict(reversed(LORA.items())))
    assert settings(LORA) != settings({**LORA, "r": 3})


def test_label_smoothing_would_lose_pefts_penalty(
    base: Any, make_arguments: Make, examples: list[Any]
) -> None:
    with pytest.raises(UserError, match="--label_smoothing_factor"):
        trainer_of(wrap(base(), ADALORA), make_arguments(label_smoothing_factor=0.1), examples)


def test_without_peft_the_extra_is_named(base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'adalora\[peft\]'"):
        wrap(base(), LORA)


def test_only_adalora_has_an_adaptation(base: Any, file_of: Any) -> None:
    for values, kind in ((ADALORA, PeftAdaLora), (LORA, type(None))):
        method = MethodArguments(peft_config=file_of(values))
        assert isinstance(build_adaptation(wrap(base(), values), method), kind)
    model = base()
    freeze_base(model, train="full")
    assert build_adaptation(model, MethodArguments()) is None
