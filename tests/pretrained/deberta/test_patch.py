"""The patched model computes what the installed one does, whatever the options and the padding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.models import NO_DROPOUT, deberta_v3_config
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaConfig,
    DebertaForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2ForSequenceClassification,
    DebertaV2Model,
)
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DisentangledSelfAttention,
    build_relative_position,
)

from adalora.adapters.lora import add_lora
from adalora.errors import UserError
from adalora.pretrained.deberta import packing
from adalora.pretrained.deberta.attention import DisentangledAttention
from adalora.pretrained.deberta.patch import patch
from adalora.pretrained.deberta.reference import relative_buckets

# The options of the released checkpoints, shrunken: heads and depth keep their proportions.
SHAPES: dict[str, dict[str, Any]] = {
    "base": {"hidden_size": 48, "num_attention_heads": 12, "num_hidden_layers": 3},
    "small": {"hidden_size": 48, "num_attention_heads": 12, "num_hidden_layers": 2},
    "xsmall": {"hidden_size": 24, "num_attention_heads": 6, "num_hidden_layers": 3},
    "large": {"hidden_size": 64, "num_attention_heads": 16, "num_hidden_layers": 4},
    "v2 with convolution": {"hidden_size": 32, "num_attention_heads": 4, "conv_kernel_size": 3},
    "own position projections": {"hidden_size": 32, "share_att_key": False},
    "content to position": {"hidden_size": 32, "pos_att_type": "c2p"},
    "position to content": {"hidden_size": 32, "pos_att_type": "p2c"},
    "no buckets": {"hidden_size": 32, "position_buckets": -1},
    "neither position term": {"hidden_size": 32, "pos_att_type": []},
    "absolute positions": {
        "hidden_size": 32,
        "relative_attention": False,
        "position_biased_input": True,
    },
}

# The installed scale is a float32 square root, exact where d * terms is a square: 3·12 and 2·8.
EXACT: dict[str, dict[str, Any]] = {
    "shared": {"hidden_size": 48},
    "convolution": {"hidden_size": 48, "conv_kernel_size": 3},
    "own position projections": {"hidden_size": 48, "share_att_key": False},
    "no buckets": {"hidden_size": 48, "position_buckets": -1},
    "few buckets": {"hidden_size": 48, "position_buckets": 16},
    "content to position": {"hidden_size": 32, "pos_att_type": "c2p"},
    "position to content": {"hidden_size": 32, "pos_att_type": "p2c"},
}


def config(**changes: Any) -> DebertaV2Config:
    values: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "position_buckets": 256,
        "max_position_embeddings": 512,
        # Larger weights than a fresh model's, so that attention is far from uniform.
        "initializer_range": 0.2,
        **NO_DROPOUT,
    }
    return deberta_v3_config(**{**values, **changes})


def pair(model_class: Any = DebertaV2ForSequenceClassification, **changes: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    installed = model_class(config(**changes)).eval()
    return installed, patch(copy.deepcopy(installed))


def masks(length: int) -> dict[str, torch.Tensor]:
    full = torch.ones(3, length, dtype=torch.long)
    right, left, holes, single = (full.clone() for _ in range(4))
    right[1, (length + 1) // 2 :] = 0
    left[1, : length // 2] = 0
    holes[2, 1::3] = 0
    single[0, 1:] = 0
    return {"none": full, "right": right, "left": left, "holes": holes, "one token": single}


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("length", [1, 2, 7, 128, 300])
def test_logits_equal_the_installed_models(shape: str, length: int) -> None:
    installed, patched = pair(**SHAPES[shape])
    ids = torch.randint(1, 64, (3, length))
    with torch.no_grad():
        for padding, mask in masks(length).items():
            # What is far apart is told by two masks; every mask by the shorter lengths.
            if length == 300 and padding not in ("right", "holes"):
                continue
            expected = installed(input_ids=ids, attention_mask=mask).logits
            got = patched(input_ids=ids, attention_mask=mask).logits
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5, msg=padding)


def test_logits_at_the_longest_length_equal_the_installed_models() -> None:
    installed, patched = pair()
    ids = torch.randint(1, 64, (1, 512))
    with torch.no_grad():
        expected, got = installed(input_ids=ids).logits, patched(input_ids=ids).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding", ["none", "right", "left", "holes", "one token"])
@pytest.mark.parametrize("changes", EXACT.values(), ids=list(EXACT))
@pytest.mark.parametrize("recurring", [False, True], ids=["exact sizes", "recurring sizes"])
def test_logits_and_gradients_agree_in_float64(
    changes: dict[str, Any], padding: str, recurring: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What half precision does, where it can be told from rounding.
    monkeypatch.setattr(packing, "makes_kernels_per_size", lambda device, dtype: recurring)
    installed, patched = (model.double() for model in pair(**changes))
    ids = torch.randint(1, 64, (3, 37))
    losses = []
    for model in (installed, patched):
        result = model(ids, attention_mask=masks(37)[padding], labels=torch.tensor([0, 1, 0]))
        result.loss.backward()
        losses.append(result.logits.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-12)
    for (name, one), two in zip(installed.named_parameters(), patched.parameters(), strict=True):
        if one.grad is None:
            assert two.grad is None, name
        else:
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("model_class", [DebertaV2Model, DebertaV2ForMaskedLM])
def test_every_form_of_the_model_is_patched(model_class: Any) -> None:
    installed, patched = pair(model_class)
    assert list(installed.state_dict()) == list(patched.state_dict())
    assert not [m for m in patched.modules() if isinstance(m, DisentangledSelfAttention)]
    ids = torch.randint(1, 64, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(patched(ids)[0], installed(ids)[0], rtol=0, atol=1e-5)


def test_parameters_are_shared_not_copied_and_patching_twice_is_patching_once() -> None:
    model = DebertaV2ForSequenceClassification(config())
    weight = model.deberta.encoder.layer[0].attention.self.query_proj.weight
    patch(patch(model))
    attention = model.deberta.encoder.layer[0].attention.self
    assert isinstance(attention, DisentangledAttention)
    assert attention.query_proj.weight is weight


def test_attention_and_hidden_states_are_returned_when_asked() -> None:
    installed, patched = pair()
    ids = torch.randint(1, 64, (2, 9))
    with torch.no_grad():
        one = installed(ids, output_attentions=True, output_hidden_states=True)
        two = patched(ids, output_attentions=True, output_hidden_states=True)
    for a, b in zip(
        one.attentions + one.hidden_states, two.attentions + two.hidden_states, strict=True
    ):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    plain = patch(DebertaV2ForSequenceClassification(config())).train()
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable({"use_reentrant": False})
    ids, labels = torch.randint(1, 64, (2, 9)), torch.tensor([0, 1])
    for model in (plain, saving):
        model(ids, labels=labels).loss.backward()
    for one, two in zip(plain.parameters(), saving.parameters(), strict=True):
        if one.grad is not None:
            assert torch.equal(one.grad, two.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padding", ["none", "right", "holes", "one token"])
def test_half_precision_stays_finite_and_near(dtype: torch.dtype, padding: str) -> None:
    _, patched = pair(initializer_range=0.05)
    ids, mask = torch.randint(1, 64, (3, 20)), masks(20)[padding]
    with torch.no_grad():
        expected = patched(ids, attention_mask=mask).logits
        result = patched.to(dtype)(ids, attention_mask=mask, output_hidden_states=True)
    # Padded rows too: what is not finite there would reach the loss through a gradient of zero.
    assert all(states.isfinite().all() for states in result.hidden_states)
    got = result.logits.float()
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)


def test_padding_does_not_change_a_real_tokens_answer() -> None:
    _, patched = pair()
    ids = torch.randint(1, 64, (1, 12))
    longer = torch.cat([ids, torch.zeros(1, 20, dtype=torch.long)], dim=1)
    mask = (torch.arange(32) < 12).long().unsqueeze(0)
    with torch.no_grad():
        alone = patched(ids).logits
        padded = patched(longer, attention_mask=mask).logits
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [1, 5, 129, 130, 300, 511])
@pytest.mark.parametrize(("buckets", "longest"), [(256, 512), (32, 128), (-1, -1)])
def test_buckets_equal_the_installed_ones(length: int, buckets: int, longest: int) -> None:
    states = torch.zeros(1, length, 4)
    expected = build_relative_position(states, states, buckets, longest)[0]
    got = relative_buckets(length, buckets=buckets, max_position=longest)
    assert torch.equal(got, expected)
    assert torch.equal(got, -got.T)


def test_the_bypass_takes_the_adapter_out_of_the_positional_query_alone() -> None:
    torch.manual_seed(0)
    model = patch(DebertaV2ForSequenceClassification(config())).eval()
    ids = torch.randint(1, 64, (2, 12))
    with torch.no_grad():
        base = model(ids).logits
    add_lora(model, lora_type="svd", targets=["query"], init_rank=4, lora_alpha=64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_E"):
                parameter.fill_(3.0)
        through = model(ids).logits
        patch(model, position_query_bypass=True)
        assert model.config.position_query_bypass
        around = model(ids).logits
        # What the bypass must compute: contents by the adapted weight, positions by the base's.
        query = model.deberta.encoder.layer[0].attention.self.query_proj
        table = torch.randn(6, 32)
        attention = model.deberta.encoder.layer[0].attention.self
        expected = table @ query.weight.T + query.bias
        torch.testing.assert_close(attention._base_query(table), expected)
    assert (through - base).abs().max() > 1e-3
    assert (around - through).abs().max() > 1e-4


def test_the_bypassed_model_is_the_installed_one_with_a_positional_query_of_its_own() -> None:
    # With the projections of positions apart, the installed model can be given W for the positional
    # query and W + ΔW for the contents: an oracle that owes nothing to our attention.
    bypassed = patch(DebertaV2ForSequenceClassification(config(hidden_size=48))).double().eval()
    patch(bypassed, position_query_bypass=True)
    state = bypassed.state_dict()
    oracle = DebertaV2ForSequenceClassification(config(hidden_size=48, share_att_key=False))
    add_lora(bypassed, lora_type="svd", targets=["query"], init_rank=4, lora_alpha=64)
    for index, layer in enumerate(bypassed.deberta.encoder.layer):
        prefix = f"deberta.encoder.layer.{index}.attention.self"
        query = layer.attention.self.query_proj
        query.lora_E.data.fill_(3.0)
        for end in ("weight", "bias"):
            state[f"{prefix}.pos_key_proj.{end}"] = state[f"{prefix}.key_proj.{end}"]
            state[f"{prefix}.pos_query_proj.{end}"] = state[f"{prefix}.query_proj.{end}"]
        adapted = state[f"{prefix}.query_proj.weight"] + query.delta_weight()
        state[f"{prefix}.query_proj.weight"] = adapted.detach()
    oracle.double().load_state_dict(state)
    ids = torch.randint(1, 64, (2, 12))
    with torch.no_grad():
        expected, got = oracle.eval()(ids).logits, bypassed(ids).logits
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        through = patch(bypassed, position_query_bypass=False)(ids).logits
    assert (through - expected).abs().max() > 1e-3


def test_position_tables_are_projected_once_whatever_the_batch() -> None:
    _, patched = pair()
    seen: list[torch.Size] = []
    for layer in patched.deberta.encoder.layer:
        for projection in (layer.attention.self.query_proj, layer.attention.self.key_proj):
            projection.register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    patched(torch.randint(1, 64, (5, 9)))
    # 17 of 512 distances occur at length 9.
    assert seen == [torch.Size([45, 32]), torch.Size([45, 32]), *[torch.Size([17, 32])] * 2] * 2


def test_the_bypass_refuses_a_merged_adapter() -> None:
    model = patch(DebertaV2ForSequenceClassification(config()), position_query_bypass=True)
    add_lora(model, lora_type="svd", targets=["query"], init_rank=2, lora_alpha=8)
    for layer in model.deberta.encoder.layer:
        layer.attention.self.query_proj.merge()
    with pytest.raises(UserError, match="query_proj is merged"):
        model(torch.randint(1, 64, (1, 4)))


@pytest.mark.parametrize(
    ("kind", "model_class", "config_class"),
    [
        ("bert", BertForSequenceClassification, BertConfig),
        ("deberta", DebertaForSequenceClassification, DebertaConfig),
    ],
)
def test_another_architecture_is_refused_by_name(
    kind: str, model_class: Any, config_class: Any
) -> None:
    small = config_class(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    with pytest.raises(UserError, match=f"'{kind}'"):
        patch(model_class(small))
