"""``adalora import``: what PEFT wrote is a run that computes what PEFT computes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from adalora.artefact.reader import load_artefact
from adalora.errors import UserError
from adalora.export import peft_import
from adalora.export.convert import export_run
from adalora.export.peft_import import import_adapter

peft = pytest.importorskip("peft", reason="needs the extra adalora[peft]")

# PEFT says this of its own files as well, where a matrix has rank 0.
pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape")
NAMES = ["nano", "bert", "roberta", "electra", "deberta", "deberta-v2"]
TARGETS = {
    "nano": ["query_proj", "value_proj", "intermediate.dense"],
    "deberta-v2": ["query_proj", "value_proj", "intermediate.dense"],
    "deberta": ["in_proj", "intermediate.dense"],
}
POOLERS = {"nano": ["pooler"], "deberta-v2": ["pooler"], "deberta": ["pooler"]}


@pytest.fixture
def adapter_of(base_of, plain_base, tmp_path):
    """An adapter folder that PEFT wrote, with random factors, and the model it came from."""

    def make(name, kind="lora", folder="theirs", base=None, num_labels=3, **settings):
        base = base or base_of(name, num_labels)
        settings = {
            "task_type": "SEQ_CLS",
            "target_modules": TARGETS.get(name, ["query", "value", "intermediate.dense"]),
            "modules_to_save": POOLERS.get(name),
            "lora_alpha": 8,
        } | settings
        if kind == "lora":
            config = peft.LoraConfig(**({"r": 4} | settings))
        else:
            config = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, **settings)
        model = peft.get_peft_model(plain_base(base, num_labels), config)
        model.peft_config["default"].base_model_name_or_path = str(base)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    width = 1.0 if "lora_E" in parameter_name else 0.1
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * width)
        if kind == "adalora":
            prune(model)
        model.save_pretrained(tmp_path / folder)
        return tmp_path / folder, model.eval()

    return make


def prune(model):
    """As PEFT's allocator leaves it: some singular values zero, and a pattern that says which."""
    pattern = {}
    for turn, (name, value) in enumerate(
        (n, p) for n, p in model.named_parameters() if "lora_E" in n
    ):
        keep = [(index + turn) % 3 != 0 and turn != 1 for index in range(4)]
        value.data[[not kept for kept in keep]] = 0
        pattern[name.removeprefix("base_model.model.")] = keep
    model.peft_config["default"].rank_pattern = pattern


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["lora", "adalora"])
def test_the_run_computes_what_peft_computes(
    adapter_of, batches_for, logits_of, difference, tmp_path, name, kind
):
    folder, model = adapter_of(name, kind)
    batches = batches_for(model)
    done = import_adapter(folder, output=tmp_path / "run", labels=["no", "maybe", "yes"])
    assert done.checked_by == f"PEFT {peft.__version__}"
    artefact = load_artefact(tmp_path / "run" / "model")
    assert difference(logits_of(artefact.model, batches), logits_of(model, batches)) < 1e-5
    assert artefact.description.labels == ("no", "maybe", "yes")
    assert artefact.description.trained == ("lora",)
    assert artefact.tokenizer is not None
    if kind == "adalora":
        assert 0 in artefact.description.rank_pattern.values()


def test_plain_lora_stays_plain_bit_for_bit(adapter_of, tmp_path):
    folder, _ = adapter_of("bert", lora_dropout=0.05)
    import_adapter(folder, output=tmp_path / "run")
    theirs = load_file(folder / "adapter_model.safetensors")
    ours = load_file(tmp_path / "run" / "model" / "adapter.safetensors")
    assert len(ours) == 12
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[f"base_model.model.{name}.weight"])
    settings = load_artefact(tmp_path / "run" / "model").description.lora
    assert (settings.lora_type, settings.init_rank, settings.lora_alpha) == ("frd", 4, 8)
    assert settings.lora_dropout == 0.05


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"query": 2, r"layer\.1\..*value": 7}},
        {"alpha_pattern": {"query": 3.5, "bert.encoder.layer.0.attention.self.value": 20}},
        {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 1}, "use_rslora": True},
        {"target_modules": ["query"], "layers_to_transform": [1]},
        {"target_modules": "all-linear"},  # the pooler too: its update goes into our head
        {"lora_alpha": 0},
    ],
)
def test_every_scale_and_rank_that_peft_knows(
    adapter_of, batches_for, logits_of, difference, tmp_path, settings
):
    folder, model = adapter_of("bert", **settings)
    batches = batches_for(model)
    import_adapter(folder, output=tmp_path / "run")
    ours = load_artefact(tmp_path / "run" / "model").model
    assert difference(logits_of(ours, batches), logits_of(model, batches)) < 1e-5


def test_a_bin_file_is_read_without_unpickling(
    adapter_of, batches_for, logits_of, difference, tmp_path
):
    folder, model = adapter_of("bert")
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    import_adapter(folder, output=tmp_path / "run")
    ours = load_artefact(tmp_path / "run" / "model").model
    batches = batches_for(model)
    assert difference(logits_of(ours, batches), logits_of(model, batches)) < 1e-5


def test_a_regression_is_imported_as_one(adapter_of, tmp_path):
    folder, _ = adapter_of("bert", num_labels=1)
    done = import_adapter(folder, output=tmp_path / "run")
    assert done.description.is_regression
    assert done.description.num_labels == 1


def test_without_peft_the_merged_weights_are_the_measure(adapter_of, tmp_path, monkeypatch):
    folder, _ = adapter_of("bert", target_modules="all-linear", use_rslora=True)
    monkeypatch.setattr(peft_import, "is_installed", lambda package: False)
    done = import_adapter(folder, output=tmp_path / "run")
    assert done.checked_by == "the merged weights (PEFT is not installed)"
    assert done.agreement.difference < 1e-5


@pytest.mark.parametrize("to", ["lora", "peft-adalora"])
def test_there_and_back_again(run_of, expected_of, logits_of, difference, tmp_path, to):
    batches, expected = expected_of(run_of("nano"))
    export_run(run_of("nano"), to=to, output=tmp_path / "there")
    import_adapter(tmp_path / "there", output=tmp_path / "back", base_model="nano")
    artefact = load_artefact(tmp_path / "back" / "model")
    assert difference(logits_of(artefact.model, batches), expected) < 1e-5
    before = load_artefact(run_of("nano") / "model").description.rank_pattern
    kept = {name: rank for name, rank in artefact.description.rank_pattern.items() if rank}
    assert kept == {name: rank for name, rank in before.items() if rank}
    settings = artefact.description.lora
    assert (settings.lora_type, settings.init_rank, settings.lora_alpha) == ("svd", 4, 8)
    export_run(tmp_path / "back", to=to, output=tmp_path / "again")
    one, two = (
        load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("there", "again")
    )
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_a_pooler_that_peft_did_not_save_is_named(adapter_of, base_of, tmp_path):
    """PEFT leaves DeBERTa's new pooler random, frozen and unsaved unless it is told otherwise."""
    encoder = AutoModelForSequenceClassification.from_pretrained(base_of("deberta-v2")).deberta
    encoder.save_pretrained(tmp_path / "encoder")
    folder, _ = adapter_of("deberta-v2", base=tmp_path / "encoder", modules_to_save=None)
    with pytest.raises(
        UserError, match=r"holds pooler\.dense\.bias, pooler\.dense\.weight: it was"
    ):
        import_adapter(folder, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def retensor(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "no adapter folder of PEFT"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "holds neither adapter_model"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 99), "is damaged"),
        (lambda f: edit(f, peft_type="IA3"), "type IA3; LORA and ADALORA"),
        (lambda f: edit(f, task_type="CAUSAL_LM"), "task type CAUSAL_LM"),
        (lambda f: edit(f, use_dora=True), "uses use_dora=True, which is more than"),
        (lambda f: edit(f, bias="all"), "uses bias='all'"),
        (lambda f: edit(f, init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (lambda f: edit(f, a_new_option={"b": 1}), r"a_new_option=\{'b': 1\}"),
        (lambda f: edit(f, lora_alpha="8"), "lora_alpha='8', and a number"),
        (lambda f: edit(f, alpha_pattern=["query"]), "an object was expected"),
        (lambda f: edit(f, alpha_pattern={"(": 1}), "not a regular expression"),
        (lambda f: edit(f, base_model_name_or_path=None), "name it with --base_model"),
        (lambda f: edit(f, base_model_name_or_path="./gone"), "'./gone'"),
        (
            lambda f: retensor(f, lambda t: t[f"{QUERY}.lora_A.weight"].fill_(float("nan"))),
            r"NaN or infinity in .*query\.lora_A",
        ),
        (
            lambda f: retensor(f, lambda t: t.pop(f"{QUERY}.lora_B.weight")),
            "do not belong together",
        ),
        (
            lambda f: retensor(
                f, lambda t: t.update({f"{QUERY}.lora_B.weight": torch.ones(24, 3)})
            ),
            "do not belong together",
        ),
        (
            lambda f: retensor(f, lambda t: t.update({f"{QUERY}.lora_A.weight": torch.ones(4, 5)})),
            r"a matrix .*query of shape \[24, 5\], and the base model's is \[24, 24\]",
        ),
        (
            lambda f: retensor(
                f, lambda t: t.update({f"{QUERY}.lora_magnitude_vector": torch.ones(1)})
            ),
            "no factor of a linear layer",
        ),
        (
            lambda f: retensor(f, lambda t: t.update({"bert.x": torch.ones(1)})),
            "names of PEFT begin",
        ),
        (
            lambda f: retensor(
                f,
                lambda t: t.update(
                    {"base_model.model.bert.embeddings.word_embeddings.weight": torch.ones(1)}
                ),
            ),
            "neither an adapter nor part of the head",
        ),
        (
            lambda f: retensor(
                f, lambda t: [t.pop(name) for name in list(t) if "classifier" in name]
            ),
            "holds no classifier",
        ),
    ],
)
def test_an_adapter_that_cannot_be_imported_is_refused_in_a_sentence(
    adapter_of, tmp_path, damage, message
):
    folder, _ = adapter_of("bert")
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        import_adapter(folder, output=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_triplets_that_do_not_fit_the_pattern_are_refused(adapter_of, tmp_path):
    folder, _ = adapter_of("bert", "adalora")
    config = json.loads((folder / "adapter_config.json").read_text())
    edit(folder, rank_pattern={name: [True] * 4 for name in config["rank_pattern"]})
    with pytest.raises(UserError, match="its rank_pattern marks 4"):
        import_adapter(folder, output=tmp_path / "run")


def test_another_base_is_refused_by_what_it_lacks(adapter_of, base_of, tmp_path):
    folder, _ = adapter_of("bert")
    with pytest.raises(UserError, match="the base model has nothing there"):
        import_adapter(folder, output=tmp_path / "run", base_model=str(base_of("roberta")))


def test_an_earlier_import_is_replaced_on_demand_and_nothing_else_is(adapter_of, tree, tmp_path):
    folder, _ = adapter_of("bert")
    run = tmp_path / "run"
    import_adapter(folder, output=run)
    with pytest.raises(UserError, match="exists already"):
        import_adapter(folder, output=run)
    import_adapter(folder, output=run, overwrite=True)
    (run / "notes.txt").write_text("mine")
    before = tree(run)
    with pytest.raises(UserError, match="does not look like an earlier result"):
        import_adapter(folder, output=run, overwrite=True)
    assert tree(run) == before
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="is no adapter folder"):
        import_adapter(folder, output=tmp_path / "other")
