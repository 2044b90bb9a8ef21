"""BERT and its like on real tokens only compute what the installed models do with padding."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import NO_DROPOUT, tiny_config
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from adalora.adapters.lora import add_lora
from adalora.pretrained.deberta import packing as packing_module
from adalora.pretrained.deberta.packing import PackedMask, Packing
from adalora.pretrained.loading import load_classifier
from adalora.pretrained.sdpa import attend, current_batch, packed_batch
from adalora.pretrained.unpadded import LAYERS, is_unpadded, unpad_encoder

KINDS = (*LAYERS, "mpnet")
#: What attention works on: groups of exact or of recurring lengths on a CPU, elsewhere all at once.
WAYS = ("groups", "recurring", "at once")
PAD, WIDTH = 1, 16
_MORE: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 12, "classifier_dropout_prob": 0.0},
    "distilbert": {
        "dim": WIDTH,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 24,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
    },
    "electra": {"embedding_size": 12},
    "modernbert": {
        "layer_types": ["full_attention", "sliding_attention"],
        "local_attention": 8,
        **dict.fromkeys(("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"), 2),
    },
}
MASKS = {
    "none": [[1] * 21] * 3,
    "right": [[1] * 21, [1] * 5 + [0] * 16, [1] + [0] * 20],
    "holes": [[1] * 21, [1, 0] * 5 + [0] * 11, [1] * 9 + [0] * 12],
    "left": [[1] * 21, [0] * 5 + [1] * 16, [1] + [0] * 20],
}


def classifier(kind: str, **changes: Any) -> PreTrainedModel:
    values: dict[str, Any] = {
        "pad_token_id": PAD,
        "num_labels": 3,
        "max_position_embeddings": 64,
        # Larger weights than a fresh model's, so that attention is far from uniform.
        "initializer_range": 0.2,
        **NO_DROPOUT,
        **_MORE.get(kind, {}),
        **changes,
    }
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        tiny_config(kind, **values)
    )
    return model.train()


def pair(kind: str, **changes: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """As installed and padded, with its readable attention where that is right; and ours."""
    installed = classifier(kind, **changes)
    ours = copy.deepcopy(installed)
    # ModernBERT's is not finite in float64 at padding beyond the window; MPNet has no other.
    if kind not in ("modernbert", "mpnet"):
        installed.set_attn_implementation("eager")
    unpad_encoder(ours)
    assert any(map(is_unpadded, ours.modules()))
    return installed, ours


def batch(mask: list[list[int]]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    real = torch.tensor(mask)
    ids = torch.randint(3, 40, real.shape).masked_fill(real == 0, PAD)
    return {"input_ids": ids, "attention_mask": real, "labels": torch.tensor([0, 1, 2])}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    found: str = request.param
    monkeypatch.setattr(
        packing_module, "makes_kernels_per_size", lambda device, dtype: found == "recurring"
    )
    if found == "at once":
        monkeypatch.setattr(Packing, "in_groups", property(lambda self: False))
    return found


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """How many places the linear layers compute."""
    seen: set[int] = set()
    linear = nn.functional.linear

    def counted(x: Tensor, *others: Any) -> Tensor:
        seen.add(x.shape[:-1].numel())
        return linear(x, *others)

    monkeypatch.setattr(nn.functional, "linear", counted)
    return seen


@pytest.mark.parametrize(
    ("kind", "padding"),
    [
        *((kind, "holes") for kind in KINDS),
        *product(("bert", "modernbert", "mpnet"), ("none", "right", "left")),
    ],
)
def test_logits_states_and_gradients_are_the_installed_models(
    kind: str, padding: str, way: str
) -> None:
    inputs = batch(MASKS[padding])
    real = inputs["attention_mask"][..., None].bool()
    installed, ours = (model.double() for model in pair(kind))
    # Rotary positions are in float32 whatever the model is in.
    close = {"rtol": 1e-10, "atol": 1e-6 if kind == "modernbert" else 1e-12}
    one, two = (model(**inputs, output_hidden_states=True) for model in (installed, ours))
    torch.testing.assert_close(two.logits, one.logits, **close)
    for a, b in zip(one.hidden_states, two.hidden_states, strict=True):
        torch.testing.assert_close(b * real, a * real, **close)
    one.loss.backward()
    two.loss.backward()
    for (name, a), b in zip(installed.named_parameters(), ours.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, msg=name, **close)


@pytest.mark.parametrize("kind", KINDS)
def test_no_padding_is_computed(kind: str, way: str, rows: set[int]) -> None:
    _, ours = pair(kind)
    inputs = batch(MASKS["right"])
    ours(**inputs)
    tokens = int(inputs["attention_mask"].sum())
    # The head sees one state of each sequence; recurring sizes are multiples of 16.
    assert rows - {3} == {32 if way == "recurring" else tokens}


@pytest.mark.parametrize("kind", KINDS)
def test_the_collators_mask_is_answered_as_the_mask_is(kind: str, way: str) -> None:
    _, ours = pair(kind)
    inputs = batch(MASKS["right"])
    packed = PackedMask.of(inputs["attention_mask"])
    assert torch.equal(ours(**inputs).logits, ours(**{**inputs, "attention_mask": packed}).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_answered_alike_in_any_company(kind: str, way: str) -> None:
    _, ours = pair(kind)
    ours.eval()
    inputs = batch(MASKS["right"])
    together = ours(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    for row, length in enumerate((21, 5, 1)):
        alone = ours(inputs["input_ids"][row : row + 1, :length]).logits
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert", "mpnet"])
def test_positions_and_embeddings_that_are_given_count(kind: str, way: str) -> None:
    installed, ours = pair(kind)
    inputs = batch(MASKS["holes"])
    embedded = ours.get_input_embeddings()(inputs.pop("input_ids")).detach()
    places = torch.arange(21).flip(0)[None] + 2
    for more in ({}, {"position_ids": places}):
        one, two = (model(inputs_embeds=embedded, **inputs, **more) for model in (installed, ours))
        torch.testing.assert_close(two.logits, one.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "mpnet"])
def test_a_tuple_is_returned_when_asked(kind: str) -> None:
    _, ours = pair(kind)
    inputs = batch(MASKS["right"])
    encoder = ours.base_model
    del inputs["labels"]
    named = encoder(**inputs, output_hidden_states=True)
    plain = encoder(**inputs, output_hidden_states=True, return_dict=False)
    assert plain[0].equal(named.last_hidden_state)
    for a, b in zip(plain[-1], named.hidden_states, strict=True):
        assert a.equal(b)
        assert a.shape == (3, 21, WIDTH)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet"])
def test_attention_probabilities_come_from_the_padded_way(kind: str) -> None:
    installed, ours = pair(kind)
    inputs = batch(MASKS["right"])
    one, two = (model(**inputs, output_attentions=True) for model in (installed, ours))
    torch.testing.assert_close(two.logits, one.logits, rtol=0, atol=1e-5)
    for a, b in zip(one.attentions, two.attentions, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"is_decoder": True}, {"chunk_size_feed_forward": 1}], ids=["decoder", "chunks"]
)
def test_what_cannot_be_packed_is_computed_as_installed(
    changes: dict[str, Any], rows: set[int]
) -> None:
    installed, ours = pair("bert", **changes)
    inputs = batch(MASKS["right"])
    torch.testing.assert_close(ours(**inputs).logits, installed(**inputs).logits, rtol=0, atol=1e-5)
    assert 27 not in rows


def test_it_is_switched_off_and_put_on_once(rows: set[int]) -> None:
    _, ours = pair("bert")
    unpad_encoder(ours, unpad=False)
    assert not any(map(is_unpadded, ours.modules()))
    ours(**batch(MASKS["right"]))
    assert rows - {3} == {63}
    rows.clear()
    unpad_encoder(ours)
    copy.deepcopy(ours)(**batch(MASKS["right"]))
    assert rows - {3} == {27}
    assert len(ours.base_model._forward_pre_hooks) == 1


@pytest.mark.parametrize("kind", ["deberta", "bert"])
def test_another_kind_and_another_attention_are_left_as_they_are(kind: str) -> None:
    model = classifier(kind, relative_attention=False)
    model.set_attn_implementation("eager")
    unpad_encoder(model)
    assert not any(map(is_unpadded, model.modules()))
    assert not model.base_model._forward_pre_hooks


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "modernbert"])
def test_gradient_checkpointing_gives_the_same_gradients(kind: str, reentrant: bool) -> None:
    _, plain = pair(kind)
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    saving.enable_input_require_grads()
    for model in (plain, saving):
        model(**batch(MASKS["holes"])).loss.backward()
    for one, two in zip(plain.parameters(), saving.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(two.grad, one.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padding", ["right", "holes"])
@pytest.mark.parametrize("kind", ["bert", "mpnet", "modernbert"])
def test_half_precision_stays_finite_and_near(
    kind: str, padding: str, dtype: torch.dtype, way: str
) -> None:
    _, ours = pair(kind, initializer_range=0.05)
    inputs = batch(MASKS[padding])
    exact = ours(**inputs).logits
    result = ours.to(dtype)(**inputs, output_hidden_states=True)
    result.loss.backward()
    # Padded places too: what is not finite there would reach the loss by a gradient of zero.
    assert all(states.isfinite().all() for states in result.hidden_states)
    assert all(p.grad.isfinite().all() for p in ours.parameters() if p.grad is not None)
    torch.testing.assert_close(result.logits.float(), exact, rtol=0.05, atol=0.05)


def test_dropout_of_probabilities_is_fair(way: str) -> None:
    torch.manual_seed(0)
    packing = Packing.of(torch.tensor(MASKS["right"]), recurring=way == "recurring")
    assert packing is not None
    # Every head has the same values, and draws for itself.
    tensors = [torch.randn(len(packing.rows), 1, 4).expand(-1, 3000, 4) for _ in range(3)]
    exact, drawn = (
        attend(*tensors, packed_batch(packing), scale=2.0, dropout=chance)[: len(packing.tokens)]
        for chance in (0.0, 0.5)
    )
    # The last sequence has one token: its own value, doubled or dropped.
    assert set((drawn / exact)[-1].round(decimals=3).unique().tolist()) == {0.0, 2.0}
    torch.testing.assert_close(drawn.mean(1), exact.mean(1), rtol=0, atol=0.15)


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_dropout_is_of_training_alone(kind: str, way: str) -> None:
    _, ours = pair(kind, attention_probs_dropout_prob=0.5)
    inputs = batch(MASKS["right"])
    one, two = (ours(**inputs).logits for _ in range(2))
    assert not one.equal(two)
    ours.eval()
    one, two = (ours(**inputs).logits for _ in range(2))
    assert one.equal(two)


def test_a_call_that_fails_leaves_nothing_behind() -> None:
    _, ours = pair("bert")
    inputs = batch(MASKS["right"])
    with pytest.raises(IndexError):
        ours(**{**inputs, "input_ids": inputs["input_ids"] + 1000})
    assert current_batch.get() is None
    ours(**inputs)
    assert current_batch.get() is None


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_adapters_change_nothing_but_the_update(kind: str, way: str) -> None:
    installed, ours = (model.double() for model in pair(kind))
    for model in (installed, ours):
        torch.manual_seed(2)
        add_lora(
            model, lora_type="svd", targets=["re:.*[.](query|q|dense)"], init_rank=2, lora_alpha=4
        )
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.1)
        model(**batch(MASKS["holes"])).loss.backward()
    for (name, a), b in zip(installed.named_parameters(), ours.parameters(), strict=True):
        if a.grad is not None and "lora_" in name:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_a_loaded_classifier_has_it_and_saves_as_before(kind: str, tmp_path: Path) -> None:
    classifier(kind).save_pretrained(tmp_path / "before")
    model = load_classifier(str(tmp_path / "before"), num_labels=3)
    assert any(map(is_unpadded, model.modules()))
    model.save_pretrained(tmp_path / "after")
    before, after = (AutoModel.from_pretrained(tmp_path / name) for name in ("before", "after"))
    assert before.config.to_diff_dict().keys() >= {"model_type"}
    assert type(after) is type(before)
    assert not is_unpadded(after)
    padded = load_classifier(str(tmp_path / "before"), num_labels=3, unpad=False)
    assert not any(map(is_unpadded, padded.modules()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "modernbert", "mpnet"])
def test_an_exported_graph_takes_the_padded_way(kind: str) -> None:
    _, ours = pair(kind)
    inputs = batch(MASKS["right"])
    exact = ours.eval()(**inputs).logits
    del inputs["labels"]
    graph = torch.export.export(ours, (), inputs)
    torch.testing.assert_close(graph.module()(**inputs).logits, exact, rtol=0, atol=1e-5)
