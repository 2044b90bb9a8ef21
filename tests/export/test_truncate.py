"""``adalora truncate``: what is left is the nearest of all runs with so many triplets."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from adalora.artefact.reader import load_artefact
from adalora.artefact.stored import ADAPTER_FILE
from adalora.cli import main
from adalora.errors import UserError
from adalora.export.convert import export_run
from adalora.export.low_rank import LowRank, low_rank_updates
from adalora.export.truncate import triplets_of, truncate_run
from adalora.storage.files import read_tensors


def deltas(run):
    return {path: u.delta().double() for path, u in low_rank_updates(load_artefact(run)).items()}


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("frd", {}),
        ("svd", {}),
        ("pruned", {"lora_alpha": -3}),
        ("svd", {"lora_alpha": -3}),
        ("frd+bitfit", {}),
        ("frd", {"dtype": torch.bfloat16}),
    ],
    ids=str,
)
def test_the_largest_singular_values_of_all_matrices_are_kept(
    run_of, logits_of, batches_for, difference, tmp_path, method, changes
):
    run = run_of("bert", method, **changes)
    done = truncate_run(run, target_rank=1, output=tmp_path / "small")
    before, after = deltas(run), deltas(tmp_path / "small")
    assert list(after) == list(before)
    assert sum(done.rank_pattern.values()) == len(before)
    assert len(set(done.rank_pattern.values())) > 1
    whole = {path: torch.linalg.svd(delta) for path, delta in before.items()}
    largest = torch.cat([values for _, values, _ in whole.values()]).sort(descending=True).values
    threshold = (largest[len(before) - 1] + largest[len(before)]) / 2
    for path, (u, values, v) in whole.items():
        rank = done.rank_pattern[f"{path}.lora_E"]
        assert rank == int((values > threshold).sum())
        nearest = u[:, :rank] * values[:rank] @ v[:rank]
        torch.testing.assert_close(after[path], nearest, atol=2e-6, rtol=0)
    squares = largest.square()
    assert done.kept == pytest.approx(float(squares[: len(before)].sum() / squares.sum()), abs=1e-6)
    lost = sum(float((after[path] - before[path]).square().sum()) for path in before)
    assert lost == pytest.approx(float(squares[len(before) :].sum()), rel=1e-4)

    # A run like any other: of its kind and scale, with its head, its tokenizer and its history.
    source, small = load_artefact(run), load_artefact(tmp_path / "small")
    settings = (source.description.lora, small.description.lora)
    assert settings[0] == settings[1]
    assert small.description.method.endswith("truncated to a mean rank of 1")
    assert small.description.metrics == {}
    assert small.description.lineage[0].path == str((run / "model").resolve())
    assert small.tokenizer is not None
    own = read_tensors(run / "model" / ADAPTER_FILE)
    for name, tensor in read_tensors(tmp_path / "small" / "model" / ADAPTER_FILE).items():
        assert "lora_" in name or torch.equal(tensor, own[name])
        assert tensor.dtype == own.get(name, tensor).dtype
    batches = batches_for(small.model)
    moved = difference(logits_of(small.model, batches), logits_of(source.model, batches))
    assert moved > 1e-3


def test_a_truncated_run_is_exported_and_truncated_again(run_of, tmp_path):
    run = run_of("bert", "frd")
    truncate_run(run, target_rank=3, output=tmp_path / "three")
    truncate_run(tmp_path / "three", target_rank=1, output=tmp_path / "one")
    truncate_run(run, target_rank=1, output=tmp_path / "at-once")
    for path, delta in deltas(tmp_path / "one").items():
        torch.testing.assert_close(delta, deltas(tmp_path / "at-once")[path], atol=2e-6, rtol=0)
    assert len(load_artefact(tmp_path / "one").description.lineage) == 2
    export_run(tmp_path / "one", to="merged", output=tmp_path / "merged")
    export_run(tmp_path / "one", to="loralib", output=tmp_path / "one.bin")


def test_no_other_choice_of_as_many_triplets_is_nearer() -> None:
    torch.manual_seed(0)
    updates = [
        LowRank(torch.randn(3, 7), torch.randn(5, 3), torch.randn(3, 1), 0.5),
        LowRank(torch.randn(2, 4), torch.randn(6, 2), None, -2.0),
    ]
    triplets = []
    for update in updates:
        u, values, v = triplets_of(update)
        identity = torch.eye(len(values), dtype=torch.float64)
        torch.testing.assert_close(u.T @ u, identity)
        torch.testing.assert_close(v @ v.T, identity)
        torch.testing.assert_close(u * values @ v, update.delta().double(), atol=1e-5, rtol=0)
        assert (values.diff() <= 0).all()
        triplets += values.tolist()
    best = sum(value**2 for value in sorted(triplets)[-2:])
    assert all(sum(v**2 for v in two) <= best for two in itertools.combinations(triplets, 2))
    # What rounding alone leaves of a product of lower rank is no triplet.
    flat = replace(updates[1], up=torch.ones(6, 2), down=torch.ones(2, 4))
    assert (triplets_of(flat)[1] > 0).tolist() == [True, False]


def test_an_adapter_folder_of_peft_is_truncated_like_a_run(plain_base, base_of, tmp_path):
    peft = pytest.importorskip("peft", reason="needs the extra adalora[peft]")
    base = base_of("bert")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    model = peft.get_peft_model(plain_base(base, 3), config)
    model.peft_config["default"].base_model_name_or_path = str(base)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "theirs")
    done = truncate_run(tmp_path / "theirs", target_rank=2, output=tmp_path / "small")
    assert done.before == 2 * sum(done.rank_pattern.values()) == 4 * len(done.rank_pattern)
    for path, delta in deltas(tmp_path / "small").items():
        theirs = model.get_submodule(f"base_model.model.{path}").get_delta_weight("default")
        u, values, v = torch.linalg.svd(theirs.double())
        rank = done.rank_pattern[f"{path}.lora_E"]
        torch.testing.assert_close(delta, u[:, :rank] * values[:rank] @ v[:rank], atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("method", "rank", "message"),
    [
        ("frd", 3, None),
        ("frd", 4, "has 48 triplets in 12 matrices, and --target_rank 4 asks for 48"),
        ("svd", 2, "--target_rank 2 asks for 24"),
        ("frd", 0, "--target_rank 0"),
        ("houlsby", 1, "This run has no LoRA adapters"),
        ("full", 1, "This run has no LoRA adapters"),
    ],
)
def test_what_cannot_be_truncated_is_refused_and_leaves_nothing(
    run_of, tmp_path, method, rank, message
):
    run = run_of("bert", method)
    if message is None:
        truncate_run(run, target_rank=rank, output=tmp_path / "small")
        return
    with pytest.raises(UserError) as caught:
        truncate_run(run, target_rank=rank, output=tmp_path / "small")
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_was_kept_and_replaces_on_demand_alone(run_of, tmp_path, capsys):
    run, target = run_of("bert", "frd"), tmp_path / "small"
    words = ["truncate", str(run), "--target_rank", "2", "-o", str(target)]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "(48 triplets truncated to 24)" in said
    assert "of the update's squared Frobenius norm" in said
    assert main(words) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert main([*words[:3], "two", *words[4:]]) == 2
