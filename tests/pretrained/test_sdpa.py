"""The attention that BERT and its like train with on a CPU, against the formula in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_classifier, tiny_config
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from adalora.glue.load import load_data
from adalora.pretrained.dropout import FastDropout, keep_mask
from adalora.pretrained.sdpa import encoder_attention, use_fast_attention
from adalora.pretrained.unpadded import is_unpadded
from adalora.training.arguments.parser import parse_arguments
from adalora.training.build import build_model, data_source

BATCH, HEADS, LENGTH, WIDTH = 3, 2, 17, 8


class Layer(nn.Module):
    is_causal = False


def drawn(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(BATCH, HEADS, LENGTH, WIDTH, dtype=dtype) for _ in range(3)]


def real() -> Tensor:
    """[batch, 1, queries, keys], True where a key is a token."""
    lengths = torch.tensor([LENGTH, 5, 1])
    return (torch.arange(LENGTH) < lengths[:, None])[:, None, None].expand(-1, -1, LENGTH, -1)


def masks() -> dict[str, Tensor | None]:
    additive = torch.zeros(BATCH, 1, LENGTH, LENGTH, dtype=torch.float64)
    return {"none": None, "bool": real(), "added": additive.masked_fill(~real(), -math.inf)}


def by_formula(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, factors: Tensor | float
) -> Tensor:
    scores = query @ key.transpose(-1, -2) / math.sqrt(WIDTH)
    if mask is not None:
        scores = scores.masked_fill(~real(), -math.inf)
    return (torch.softmax(scores, -1) * factors @ value).transpose(1, 2)


@pytest.mark.parametrize("name", ["none", "bool", "added"])
@pytest.mark.parametrize("chance", [0.0, 0.25])
def test_output_and_gradients_are_those_of_the_formula(name: str, chance: float) -> None:
    mask = masks()[name]
    torch.manual_seed(5)
    kept = keep_mask(torch.empty(BATCH, HEADS, LENGTH, LENGTH), chance) if chance else None
    factors = 1.0 if kept is None else kept.double() / (1 - chance)
    results = []
    for ours in (True, False):
        leaves = [x.clone().requires_grad_() for x in drawn()]
        if ours:
            torch.manual_seed(5)
            out, weights = encoder_attention(Layer(), *leaves, mask, dropout=chance)
            assert weights is None
        else:
            out = by_formula(*leaves, mask, factors)
        out.square().sum().backward()
        results.append([out, *(x.grad for x in leaves)])
    for got, expected in zip(*results, strict=True):
        assert got is not None
        assert expected is not None
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_keeps_its_dtype_and_its_distance(dtype: torch.dtype) -> None:
    exact = [x.to(dtype).double() for x in drawn()]
    torch.manual_seed(5)
    factors = keep_mask(torch.empty(BATCH, HEADS, LENGTH, LENGTH), 0.1).double() / 0.9
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        out, _ = encoder_attention(Layer(), *(x.to(dtype) for x in exact), real(), dropout=0.1)
    assert out.dtype == dtype
    expected = by_formula(*exact, real(), factors)
    # Scores, probabilities, their product with the mask and the output are rounded once each.
    bound = 8 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=bound)


def test_what_no_encoder_asks_for_is_answered_by_transformers() -> None:
    query, key, value = drawn()
    causal = Layer()
    causal.is_causal = True
    out, _ = encoder_attention(causal, query, key, value, None, dropout=0.0)
    first = value[:, :, 0]  # the first query of a causal layer sees the first key only
    torch.testing.assert_close(out[:, 0], first)
    # Fewer key heads than query heads: transformers repeats them.
    shared = Layer()
    shared.num_key_value_groups = HEADS
    one = [x[:, :1] for x in (key, value)]
    out, _ = encoder_attention(shared, query, *one, None, dropout=0.5)
    assert out.shape == (BATCH, LENGTH, HEADS, WIDTH)


def small_bert(**values: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config("bert", **values))


def test_a_model_with_it_evaluates_as_before_and_saves_as_before(tmp_path: Path) -> None:
    model = small_bert().eval()
    ids = torch.randint(5, 40, (2, 9))
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    before = model(ids, attention_mask=mask).logits
    model.save_pretrained(tmp_path / "before")
    use_fast_attention(model)
    assert model.config._attn_implementation == "adalora_encoder"
    assert model(ids, attention_mask=mask).logits.equal(before)
    model.save_pretrained(tmp_path / "after")
    configs = [
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("before", "after")
    ]
    assert configs[0] == configs[1]


def test_a_model_trains_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_bert(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0).train()
    use_fast_attention(model)
    ids = torch.randint(5, 40, (2, 9))

    def refuse(*args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("torch's attention was asked")

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", refuse)
    answers = [model(ids).logits for _ in range(2)]
    assert not answers[0].equal(answers[1])
    answers[0].sum().backward()
    query = model.bert.encoder.layer[0].attention.self.query.weight.grad
    assert query is not None
    assert query.abs().sum() > 0


def test_another_choice_of_attention_stands() -> None:
    model = small_bert(attn_implementation="eager")
    use_fast_attention(model)
    assert model.config._attn_implementation == "eager"


def built(kind: str, folder: Path) -> nn.Module:
    """What a run builds on a small encoder of this kind."""
    tiny_classifier(kind).save_pretrained(folder / "base")
    table = folder / "table.tsv"
    table.write_text("sentence\tlabel\nfine\tyes\nbad\tno\n")
    flags = ["--model_name_or_path", str(folder / "base"), "--root_output_dir", str(folder)]
    flags += ["--train_file", str(table), "--validation_file", str(table), "--apply_lora"]
    flags += [
        "--lora_r",
        "2",
        "--lora_dropout",
        "0.2",
        "--lora_module",
        "intermediate",
        "--do_train",
    ]
    arguments = parse_arguments(flags, program="adalora train")
    return build_model(arguments, load_data(data_source(arguments))).model


def test_a_run_builds_every_base_model_with_both(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = built("bert", tmp_path)
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert {type(module) for module in dropouts} == {FastDropout}
    assert {module.p for module in dropouts} == {0.1, 0.2}
    assert any(map(is_unpadded, model.modules()))
    assert "computes padding" not in caplog.text


def test_a_run_says_that_its_encoder_computes_padding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not any(map(is_unpadded, built("deberta", tmp_path).modules()))
    assert "base (deberta) computes padding as well" in caplog.text
