"""torch.compile: one graph through the whole model, with the results of the plain one."""

from __future__ import annotations

import pytest
import torch

from adalora.adapters.freeze import freeze_base
from adalora.adapters.lora import add_lora
from adalora.pretrained.loading import load_classifier

NAMES = ["query", "key", "value", "intermediate", "layer.output", "attention.output"]


@pytest.mark.slow
@pytest.mark.parametrize(("lora_type", "layers"), [("frd", 1), ("svd", 2)])
def test_the_encoder_compiles_to_one_graph_with_the_same_gradients(
    lora_type: str, layers: int
) -> None:
    model = load_classifier("nano", num_labels=2, cls_dropout=0.0)
    # They are traced one by one, which takes its time.
    model.deberta.encoder.layer = model.deberta.encoder.layer[:layers]
    add_lora(model, lora_type=lora_type, targets=NAMES, init_rank=2, lora_alpha=16)  # type: ignore[arg-type]
    freeze_base(model, train=["lora"])
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    mask = torch.ones(3, 10, dtype=torch.long)
    mask[1, 6:] = 0
    ids = torch.randint(5, 600, mask.shape) * mask
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 1])}
    # fullgraph: a break is an error. The tracing is what can break; no machine code is needed.
    compiled = torch.compile(model.eval(), fullgraph=True, backend="aot_eager")
    results = []
    for run in (model, compiled):
        model.zero_grad()
        output = run(**batch)
        output.loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((output.logits.detach(), gradients))
    (logits, plain), (compiled_logits, traced) = results
    torch.testing.assert_close(compiled_logits, logits, rtol=1e-5, atol=1e-5)
    assert len(traced) == len(plain)
    for one, two in zip(traced, plain, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
