"""Every method behind the flags: what it adds, how it starts, what it trains, and what it leaves.

The formulas of ``docs/fine-tuning-methods.md`` are the expectations.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.models import DEBERTA_V3, NO_DROPOUT, tiny_config
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from adalora.adapters.freeze import count_parameters
from adalora.adapters.head import head_names
from adalora.adapters.merge import merge_adapters
from adalora.adapters.peft_method import is_peft
from adalora.artefact.description import Description
from adalora.artefact.reader import load_artefact
from adalora.artefact.writer import save_artefact
from adalora.errors import UserError
from adalora.pretrained.loading import load_classifier
from adalora.training import build
from adalora.training.arguments.method import MethodArguments
from adalora.training.build import adapt, build_adaptation, build_model

H, I, L, V = 16, 24, 2, 40  # noqa: E741 - width, inner width, layers, vocabulary
RANK, SIZE = 2, 3
MODULES = "query,key,value,intermediate,layer.output,attention.output"
LORA = {"apply_lora": True, "lora_r": RANK, "lora_alpha": 4, "lora_module": MODULES}
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "text-classification" / "peft"
SIDES = L * (8 * H + 2 * (H + I))  # in + out of the six matrices of every layer
OUTPUTS = L * (5 * H + I)
BIASES = L * (7 * H + I) + H


@dataclass(frozen=True)
class Case:
    """Flags, parameters outside the head, whether it merges, and how exactly it starts."""

    flags: dict[str, Any]
    parameters: int | None
    merges: bool = True
    exact: bool = True
    peft: bool = field(default=False)


CASES = {
    "full": Case({}, None),
    "bitfit": Case({"apply_bitfit": True}, BIASES),
    "houlsby": Case(
        {"apply_adapter": True, "adapter_type": "houlsby", "adapter_size": SIZE},
        2 * L * (2 * H * SIZE + SIZE + H),
        merges=False,
    ),
    "pfeiffer": Case(
        {"apply_adapter": True, "adapter_type": "pfeiffer", "adapter_size": SIZE},
        L * (2 * H * SIZE + SIZE + H),
        merges=False,
    ),
    "frd": Case(LORA, RANK * SIDES),
    "frd orthogonal": Case({**LORA, "lora_init": "orthogonal"}, RANK * SIDES),
    "frd pissa": Case({**LORA, "lora_init": "pissa"}, RANK * SIDES, exact=False),
    "frd rank-stabilised": Case({**LORA, "lora_scaling": "rank_stabilised"}, RANK * SIDES),
    "dora": Case({**LORA, "lora_type": "dora"}, RANK * SIDES + OUTPUTS, exact=False),
    "dora pissa": Case(
        {**LORA, "lora_type": "dora", "lora_init": "pissa"}, RANK * SIDES + OUTPUTS, exact=False
    ),
    "svd": Case({**LORA, "lora_type": "svd"}, RANK * (SIDES + 6 * L)),
    "svd lora": Case({**LORA, "lora_type": "svd", "lora_init": "lora"}, RANK * (SIDES + 6 * L)),
    "svd orthogonal": Case(
        {**LORA, "lora_type": "svd", "lora_init": "orthogonal"}, RANK * (SIDES + 6 * L)
    ),
    "svd pissa": Case(
        {**LORA, "lora_type": "svd", "lora_init": "pissa"}, RANK * (SIDES + 6 * L), exact=False
    ),
    "PEFT LoRA": Case({"peft_config": str(EXAMPLES / "lora.json")}, 2 * SIDES, peft=True),
    "PEFT AdaLoRA": Case(
        {"peft_config": str(EXAMPLES / "adalora.json")}, 4 * (SIDES + 6 * L), peft=True
    ),
}
each_method = pytest.mark.parametrize("name", list(CASES))
each_model = pytest.mark.parametrize("model_type", ["bert", "deberta-v2"])


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny random base, made once."""
    made: dict[str, Path] = {}

    def make(model_type: str) -> Path:
        if model_type not in made:
            sizes = {"vocab_size": V, "hidden_size": H, "num_hidden_layers": L}
            extra = DEBERTA_V3 if model_type == "deberta-v2" else {}
            config = tiny_config(
                model_type,
                **{**sizes, "intermediate_size": I, "initializer_range": 0.2},
                **{**extra, **NO_DROPOUT},
            )
            torch.manual_seed(1)
            made[model_type] = tmp_path_factory.mktemp(model_type)
            AutoModelForSequenceClassification.from_config(config).save_pretrained(made[model_type])
        return made[model_type]

    return make


@pytest.fixture
def adapted(base_of: Callable[[str], Path]) -> Callable[[str, str], tuple[nn.Module, nn.Module]]:
    """The base with its head, and the same with a method on it, both in evaluation mode."""

    def make(model_type: str, name: str) -> tuple[nn.Module, nn.Module]:
        if CASES[name].peft:
            pytest.importorskip("peft", reason="needs the extra adalora[peft]")
        torch.manual_seed(2)
        base = load_classifier(str(base_of(model_type)), num_labels=2).eval()
        method = MethodArguments(**CASES[name].flags)
        return base, adapt(copy.deepcopy(base), method, total_steps=40).model.eval()

    return make


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Thirty-two sequences, labelled by whether token 5 occurs."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(6, V, (32, 9), generator=generator)
    ids[::2, 3] = 5
    mask = torch.ones_like(ids)
    mask[::3, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": (ids == 5).any(dim=1).long()}


def train(model: nn.Module, batch: dict[str, Tensor], steps: int) -> list[float]:
    """Losses of so many steps of AdamW; the model is in evaluation mode afterwards."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0
    )
    losses = []
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


@each_method
@each_model
def test_the_parameters_are_as_many_as_the_formula_says(
    adapted: Any, model_type: str, name: str
) -> None:
    base, model = adapted(model_type, name)
    counts, whole = count_parameters(model), count_parameters(base)
    expected = CASES[name].parameters
    if expected is None:
        expected = whole.total - whole.head
    elif name == "bitfit" and model_type == "deberta-v2":
        expected += H  # the LayerNorm over the table of relative positions
    assert counts.adapter_initial == expected
    assert counts.head == whole.head == sum(base.get_parameter(n).numel() for n in head_names(base))
    assert counts.trainable == expected + whole.head


@each_method
@each_model
def test_the_model_starts_as_its_base(
    adapted: Any, batch: dict[str, Tensor], model_type: str, name: str
) -> None:
    base, model = adapted(model_type, name)
    expected, found = (m(**inputs_of(batch)).logits for m in (base, model))
    if CASES[name].exact:
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-7)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@each_method
@each_model
def test_what_trains_gets_a_gradient_and_the_rest_stays_bit_for_bit(
    adapted: Any, batch: dict[str, Tensor], model_type: str, name: str
) -> None:
    _, model = adapted(model_type, name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = train(model, batch, 30)
    assert losses[-1] < 0.8 * losses[0]
    for n, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, n
        assert torch.equal(parameter, before[n]) != parameter.requires_grad, n


@each_method
@each_model
def test_what_was_trained_comes_back_from_the_artefact_and_merges_where_it_can(
    adapted: Any,
    base_of: Any,
    batch: dict[str, Tensor],
    tmp_path: Path,
    model_type: str,
    name: str,
) -> None:
    case = CASES[name]
    _, model = adapted(model_type, name)
    train(model, batch, 4)
    description = Description.of(model, base_model=str(base_of(model_type)), method=name)
    save_artefact(tmp_path / "run", model, tokenizer=None, description=description)
    loaded = load_artefact(tmp_path / "run").model
    expected = model(**inputs_of(batch)).logits
    torch.testing.assert_close(loaded(**inputs_of(batch)).logits, expected, rtol=1e-5, atol=1e-5)
    if "pissa" not in name:
        stored = dict(loaded.named_parameters())
        for n, parameter in model.named_parameters():
            assert torch.equal(stored[n], parameter), n
    if not case.merges or case.peft:
        with pytest.raises(UserError, match=r"cannot be merged|merged by PEFT alone"):
            merge_adapters(loaded)
        return
    merged = merge_adapters(loaded)
    assert merged == (6 * L if "apply_lora" in case.flags else 0)
    assert not [n for n, _ in loaded.named_parameters() if "lora" in n]
    torch.testing.assert_close(loaded(**inputs_of(batch)).logits, expected, rtol=1e-4, atol=1e-5)


# ---- what is peculiar to one of them ----


@each_model
def test_orthonormal_factors_have_no_penalty_and_gaussian_ones_do(
    adapted: Any, model_type: str
) -> None:
    def penalty(name: str) -> float:
        _, model = adapted(model_type, name)
        flags = {**CASES[name].flags, "reg_orth_coef": 1.0}
        method = build_adaptation(model, MethodArguments(**flags))
        return float(method.penalty().detach())  # type: ignore[union-attr]

    assert penalty("svd orthogonal") == pytest.approx(0, abs=1e-5)
    assert penalty("svd pissa") == pytest.approx(0, abs=1e-5)
    # Rows of length 0.02 * 4 are far from unit ones.
    assert penalty("svd") > 1


def test_orthonormal_rows_come_from_the_seed(adapted: Any) -> None:
    _, one = adapted("bert", "frd orthogonal")
    _, two = adapted("bert", "frd orthogonal")
    for (n, mine), theirs in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, theirs), n
        if n.endswith("lora_A"):
            torch.testing.assert_close(mine @ mine.T, torch.eye(RANK))
        if n.endswith("lora_B"):
            assert not mine.any()


def test_the_start_of_lora_moves_as_lora_does_at_the_first_step(
    adapted: Any, batch: dict[str, Tensor]
) -> None:
    """From one lora_A, lora_B has the gradient of plain LoRA's; as published it has none."""
    _, plain = adapted("bert", "frd")
    _, ours = adapted("bert", "svd lora")
    _, published = adapted("bert", "svd")
    sides = dict(plain.named_parameters())
    with torch.no_grad():
        for n, parameter in ours.named_parameters():
            if n in sides:
                parameter.copy_(sides[n])
    for model in (plain, ours, published):
        model(**batch).loss.backward()
    found = [n for n in sides if n.endswith("lora_B")]
    assert found
    for n in found:
        gradient = ours.get_parameter(n).grad
        torch.testing.assert_close(gradient, sides[n].grad, rtol=1e-4, atol=1e-8)
        assert gradient is not None
        assert gradient.any()
        assert not published.get_parameter(n).grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["frd pissa", "svd pissa"])
def test_pissa_starts_from_the_largest_singular_triplets(adapted: Any, name: str) -> None:
    _, model = adapted("bert", name)
    for path, layer in model.named_modules():
        if not hasattr(layer, "is_anchored"):
            continue
        down, up = layer._product()
        left, values, right = torch.linalg.svd(layer.weight.detach().double())
        principal = left[:, :RANK] * values[:RANK] @ right[:RANK]
        torch.testing.assert_close((up @ down).double(), principal, rtol=1e-4, atol=1e-5), path
        # The residual has what is left: its largest value is the next one.
        residual = layer.weight.detach().double() - principal
        assert torch.linalg.matrix_norm(residual, 2) == pytest.approx(float(values[RANK]))


def test_pissa_leaves_the_shared_base_as_it_is_and_a_plain_update_of_twice_the_rank(
    adapted: Any, base_of: Any, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    base, model = adapted("bert", "svd pissa")
    train(model, batch, 3)
    for n, parameter in base.named_parameters():
        if n not in head_names(base):
            assert torch.equal(model.get_parameter(n), parameter), n
    description = Description.of(model, base_model=str(base_of("bert")), method="PiSSA")
    written = save_artefact(tmp_path / "run", model, tokenizer=None, description=description)
    assert written.lora is not None
    assert written.lora.init_rank == 2 * RANK
    assert set(written.rank_pattern.values()) == {2 * RANK}
    loaded = load_artefact(tmp_path / "run").model
    for path in written.lora.targets:
        torch.testing.assert_close(
            loaded.get_submodule(path).delta_weight(),
            model.get_submodule(path).delta_weight(),
            rtol=1e-4,
            atol=1e-5,
        )


def test_rank_stabilised_scaling_divides_by_the_root_of_the_rank(adapted: Any) -> None:
    _, model = adapted("bert", "frd rank-stabilised")
    layer = model.bert.encoder.layer[0].output.dense
    assert layer.scaling == pytest.approx(4 / math.sqrt(RANK))
    assert Description.of(model, base_model="b", method="m").lora.lora_alpha == pytest.approx(  # type: ignore[union-attr]
        4 * math.sqrt(RANK)
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, "LoRA"),
        ({"lora_type": "dora", "lora_init": "pissa"}, "DoRA (PiSSA)"),
        (
            {"lora_init": "orthogonal", "lora_scaling": "rank_stabilised", "lora_plus_ratio": 16},
            "LoRA (orthonormal start, rsLoRA, LoRA+ 16)",
        ),
    ],
)
def test_the_name_tells_the_options(flags: dict[str, Any], expected: str) -> None:
    assert MethodArguments(**{**LORA, **flags}).name == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({**LORA, "lora_init": "gausian"}, "choose gaussian, lora, orthogonal or pissa"),
        ({"lora_init": "orthogonal"}, "needs --apply_lora"),
        (
            {**LORA, "lora_type": "svd", "lora_init": "lora", "lora_plus_ratio": 8},
            "which --lora_init lora, the start of --apply_adalora, does not start",
        ),
        ({**LORA, "lora_scaling": "rs"}, "choose standard or rank_stabilised"),
        ({"lora_scaling": "rank_stabilised"}, "needs --apply_lora"),
        ({**LORA, "lora_init": "pissa", "lora_path": "x.bin"}, "give one"),
        (
            {**LORA, "lora_type": "svd", "apply_adalora": True, "lora_init": "pissa"},
            "pruning would cut them out",
        ),
        ({**LORA, "lora_type": "doora"}, "choose frd, svd or dora"),
        (
            {**LORA, "lora_type": "dora", "apply_adalora": True},
            "needs --apply_lora --lora_type svd",
        ),
        ({**LORA, "lora_plus_ratio": 0.0}, "must be above 0"),
        ({"lora_plus_ratio": 16.0}, "needs --apply_lora"),
    ],
)
def test_flags_that_do_not_go_together_are_told(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MethodArguments(**flags)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"lora_r": 9}, "2 x 9 is above the largest rank"), ({"lora_alpha": 0}, "divides by lora")],
)
def test_pissa_refuses_what_it_cannot_start(
    base_of: Any, changes: dict[str, Any], message: str
) -> None:
    model = load_classifier(str(base_of("bert")), num_labels=2)
    with pytest.raises(UserError, match=message):
        adapt(model, MethodArguments(**{**LORA, "lora_init": "pissa", **changes}))


@pytest.mark.parametrize(
    ("flags", "path"),
    [(LORA, "lora_path"), ({"apply_adapter": True, "adapter_type": "houlsby"}, "adapter_path")],
)
@pytest.mark.parametrize("content", [None, b"no tensors"])
def test_what_a_run_starts_from_is_refused_before_its_base_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, Any],
    path: str,
    content: bytes | None,
) -> None:
    monkeypatch.setattr(build, "load_checkpoint", lambda *_, **__: pytest.fail("it was loaded"))
    file = tmp_path / "start.safetensors"
    if content is not None:
        file.write_bytes(content)
    method = MethodArguments(**{**flags, path: str(file)})
    data: Any = None
    arguments: Any = SimpleNamespace(method=method)
    with pytest.raises(UserError, match=r"start\.safetensors (does not exist|is damaged)"):
        build_model(arguments, data)


@each_method
def test_a_model_without_memory_can_be_planned(base_of: Any, name: str) -> None:
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(base_of("bert"))
        model = AutoModelForSequenceClassification.from_config(config)
    model = adapt(model, MethodArguments(**CASES[name].flags), total_steps=40).model
    counts = count_parameters(model)
    assert counts.adapter_initial == (CASES[name].parameters or counts.total - counts.head)


def test_a_wrapped_model_is_known_as_pefts_and_another_is_not(adapted: Any) -> None:
    _, model = adapted("bert", "PEFT LoRA")
    assert is_peft(model)
    assert not is_peft(adapted("bert", "frd")[1])


def test_a_run_goes_on_from_a_dora_artefact(
    adapted: Any, base_of: Any, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    _, model = adapted("bert", "dora")
    train(model, batch, 3)
    description = Description.of(model, base_model=str(base_of("bert")), method="DoRA")
    save_artefact(tmp_path / "run", model, tokenizer=None, description=description)
    flags = {**LORA, "lora_type": "dora", "lora_r": RANK + 1, "lora_path": str(tmp_path / "run")}
    further = adapt(adapted("bert", "full")[0], MethodArguments(**flags)).model.eval()
    torch.testing.assert_close(
        further(**inputs_of(batch)).logits, model(**inputs_of(batch)).logits, rtol=1e-5, atol=1e-5
    )
    plain = {**flags, "lora_type": "frd"}
    with pytest.raises(UserError, match=r"lora_magnitude.*choose the lora_type it was trained"):
        adapt(adapted("bert", "full")[0], MethodArguments(**plain))
