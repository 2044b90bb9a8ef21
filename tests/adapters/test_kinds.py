"""A kind of adapter is described in one place, and everything else works from that description."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import loralib
from adalora.adapters.bottleneck import add_bottleneck
from adalora.adapters.freeze import count_parameters, freeze_base, trained_parts
from adalora.adapters.head import head_names
from adalora.adapters.kinds import LORA_KINDS, PARTS, LoRAKind, added_names, kind_of, lora_layers
from adalora.adapters.lora import add_lora
from adalora.adapters.merge import merge_adapters, merged_model
from adalora.artefact.description import Description
from adalora.artefact.reader import load_artefact
from adalora.artefact.warm_start import load_lora
from adalora.artefact.writer import save_artefact
from adalora.errors import UserError
from adalora.export.convert import formats_for
from loralib.base import LinearAdapter


class GainLinear(LinearAdapter):
    """W + diag(gain) B A · alpha / r: what someone might add, in a few lines."""

    FACTORS: ClassVar[Mapping[str, int | None]] = {**LinearAdapter.FACTORS, "lora_gain": None}

    def _add_adapter(self) -> None:
        super()._add_adapter()
        self.lora_gain = nn.Parameter(self.lora_B.new_ones(self.out_features))

    def _product(self) -> tuple[Tensor, Tensor]:
        down, up = super()._product()
        return down, self.lora_gain.unsqueeze(1) * up


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """The one place."""
    monkeypatch.setitem(LORA_KINDS, "toy", LoRAKind(GainLinear, "LoRA with gains"))
    return "toy"


@torch.no_grad()
def perturb(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.3)


def test_a_kind_added_in_one_place_is_saved_loaded_merged_counted_and_started_from(
    toy: str, tiny: Any, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    model = tiny("bert")
    model.save_pretrained(tmp_path / "base")
    before = model(**batch).logits
    paths = add_lora(model, lora_type=toy, targets=["query"], init_rank=2, lora_alpha=6)
    torch.testing.assert_close(model(**batch).logits, before)
    trained = freeze_base(model, train="lora")
    assert {n.rpartition(".")[2] for n in set(trained) - set(head_names(model))} == {
        *GainLinear.FACTORS
    }
    layer = lora_layers(model)[paths[0]]
    size = 2 * (layer.in_features + layer.out_features) + layer.out_features
    assert count_parameters(model).adapter_initial == len(paths) * size
    perturb(model)
    expected = model(**batch).logits
    assert not torch.allclose(expected, before)

    description = Description.of(model, base_model=str(tmp_path / "base"), method="Toy")
    assert (description.trained, description.lora and description.lora.lora_type) == (
        ("lora",),
        "toy",
    )
    assert formats_for(description) == ["merged", "onnx"]
    save_artefact(tmp_path / "run", model, tokenizer=None, description=description)
    loaded = load_artefact(tmp_path / "run").model
    assert isinstance(loaded.get_submodule(paths[0]), GainLinear)
    torch.testing.assert_close(loaded(**batch).logits, expected)

    fresh = tiny("bert")
    add_lora(fresh, lora_type=toy, targets=["query"], init_rank=3, lora_alpha=6)
    start = load_lora(fresh, tmp_path / "run")
    assert start.origins[0].method == "Toy"
    torch.testing.assert_close(fresh(**batch).logits, expected, rtol=1e-5, atol=1e-5)

    torch.testing.assert_close(merged_model(loaded)(**batch).logits, expected)
    assert merge_adapters(loaded) == len(paths)
    assert not lora_layers(loaded)
    torch.testing.assert_close(loaded(**batch).logits, expected)


def test_a_kind_that_is_not_described_is_refused(toy: str, tiny: Any) -> None:
    model = tiny("bert")
    add_lora(model, lora_type=toy, targets=["query"], init_rank=2, lora_alpha=6)
    del LORA_KINDS[toy]
    with pytest.raises(UserError, match=r"GainLinear is no kind of LoRA layer.*frd, svd, dora"):
        Description.of(model, base_model="base", method="Toy")
    with pytest.raises(UserError, match="lora_type 'toy' is unknown; choose frd, svd, dora"):
        add_lora(tiny("bert"), lora_type=toy, targets=["query"], init_rank=2, lora_alpha=6)


def test_each_layer_is_of_its_own_kind() -> None:
    for name, kind in LORA_KINDS.items():
        layer = kind.layer.from_linear(nn.Linear(4, 4), r=1, lora_alpha=1)
        assert kind_of(layer) == name


@pytest.mark.parametrize("methods", [["lora"], ["bottleneck"], ["bitfit"], ["lora", "bitfit"]])
def test_what_was_frozen_is_read_off_again_and_the_base_is_what_is_left(
    tiny: Any, methods: list[Any]
) -> None:
    base = {name for name, _ in tiny("deberta-v2").named_parameters()}
    model = tiny("deberta-v2")
    add_lora(model, lora_type="svd", targets=["query"], init_rank=2, lora_alpha=6)
    add_bottleneck(model, adapter_type="houlsby", adapter_size=3)
    freeze_base(model, train=methods)
    assert trained_parts(model) == tuple(methods)
    everything = {name for name, _ in model.named_parameters()}
    assert everything - added_names(model) == base
    for name in ("lora", "bottleneck"):
        assert set(PARTS[name].parameters(model)) <= added_names(model)
    next(p for n, p in model.named_parameters() if "word_embeddings" in n).requires_grad_(True)
    assert trained_parts(model)[-1] == "full"


def test_an_anchor_and_a_count_are_added_and_no_part_of_the_base(tiny: Any) -> None:
    model = tiny("bert")
    (path, *_) = add_lora(
        model, lora_type="svd", targets=["query"], init_rank=2, lora_alpha=6, lora_init="pissa"
    )
    added = {name.rpartition(".")[2] for name in added_names(model) if name.startswith(path)}
    assert added == {*loralib.SVDLinear.FACTORS, "ranknum", "lora_anchor_A", "lora_anchor_B"}


def test_a_dora_matrix_keeps_its_norms_at_rank_0(
    tiny: Any, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    """Without triplets it still scales its base: it is not stored as if it were its base."""
    model = tiny("bert")
    model.save_pretrained(tmp_path / "base")
    add_lora(model, lora_type="dora", targets=["query"], init_rank=2, lora_alpha=6)
    freeze_base(model, train="lora")
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.factors()["lora_magnitude"].mul_(1.5)
    pattern = {f"{path}.lora_E": 0 for path in lora_layers(model)}
    description = Description.of(model, base_model=str(tmp_path / "base"), method="DoRA")
    save_artefact(
        tmp_path / "run", model, tokenizer=None, description=description, rank_pattern=pattern
    )
    loaded = load_artefact(tmp_path / "run").model
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)
