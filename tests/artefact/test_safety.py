"""Whatever a folder holds, loading says what is wrong; whatever fails, nothing is lost."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from adalora.adapters.bottleneck import add_bottleneck
from adalora.adapters.freeze import freeze_base
from adalora.adapters.lora import add_lora
from adalora.artefact.description import Description
from adalora.artefact.reader import load_artefact
from adalora.artefact.warm_start import load_lora
from adalora.artefact.writer import save_artefact, sole_writer
from adalora.errors import UserError
from adalora.pretrained.loading import load_tokenizer


def build(tiny, base, method="lora", **settings):
    model = tiny("bert", **settings)
    model.save_pretrained(base)
    if method == "lora":
        add_lora(model, lora_type="svd", targets=["query"], init_rank=2, lora_alpha=16)
    if method == "bottleneck":
        add_bottleneck(model, adapter_type="houlsby", adapter_size=3)
    freeze_base(model, train=method)
    return model


def describe(model, base, **changes):
    labels = [f"class{n}" for n in range(model.config.num_labels)]
    return Description.of(
        model, base_model=str(base), **({"method": "test", "labels": labels} | changes)
    )


def save(run, model, base, *, overwrite=False, lineage=None, **changes):
    return save_artefact(
        run,
        model,
        tokenizer=None,
        description=describe(model, base, **changes),
        lineage=lineage,
        overwrite=overwrite,
    )


@pytest.fixture
def run(tiny, tmp_path):
    """A sound artefact."""
    model = build(tiny, tmp_path / "base")
    save(tmp_path / "run", model, tmp_path / "base")
    return tmp_path / "run"


def edit(run, **changes):
    path = run / "adalora.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_lora(run, **changes):
    edit(run, lora=json.loads((run / "adalora.json").read_text())["lora"] | changes)


def sign(run, *names):
    """Make the description fit what the files hold now, as a careful forger would."""
    values = json.loads((run / "adalora.json").read_text())
    for name in names or values["files"]:
        content = (run / name).read_bytes()
        values["files"][name] = len(content)
        values["checksums"][name] = hashlib.sha256(content).hexdigest()
    (run / "adalora.json").write_text(json.dumps(values))


def retensor(run, file, change):
    tensors = load_file(run / file)
    change(tensors)
    save_file(tensors, run / file)
    sign(run, file)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


QUERY = "bert.encoder.layer.0.attention.self.query"
A, H = "adapter.safetensors", "head.safetensors"


def resize(name, *shape):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


def poison(value, name):
    return lambda tensors: tensors[name].view(-1)[0].fill_(value)


def pickled(run):
    torch.save({"a": torch.zeros(2)}, run / A)
    sign(run, A)


def junk(run):
    (run / H).write_bytes(b"\xff" * 300)
    sign(run, H)


DAMAGE = {
    "missing": (lambda r: (r / A).unlink(), r"adapter\.safetensors is missing"),
    "truncated": (
        lambda r: (r / A).write_bytes((r / A).read_bytes()[:-9]),
        "bytes long instead of",
    ),
    "one bit": (lambda r: flip(r / H), r"head\.safetensors is not the file that was saved"),
    "a folder": (lambda r: ((r / A).unlink(), (r / A).mkdir()), r"adapter\.safetensors is missing"),
    "pickle": (pickled, "is a pickle file of torch.save, and safetensors was expected"),
    "junk": (junk, "damaged or is not a safetensors file"),
    "missing key": (
        lambda r: retensor(r, H, lambda t: t.pop("classifier.bias")),
        r"lacks classifier\.bias",
    ),
    "missing factor": (
        lambda r: retensor(r, A, lambda t: t.pop(f"{QUERY}.lora_B")),
        r"lacks .*query\.lora_B",
    ),
    "extra key": (
        lambda r: retensor(r, A, lambda t: t.update(extra=torch.zeros(1))),
        "holds extra, which this model does not train",
    ),
    "base weight": (
        lambda r: retensor(r, A, lambda t: t.update({f"{QUERY}.weight": torch.zeros(16, 16)})),
        r"holds .*query\.weight, which this model does not train",
    ),
    "shape": (
        lambda r: retensor(r, A, resize(f"{QUERY}.lora_B", 16, 3)),
        r"another shape: .*lora_B \(\[16, 3\], expected \[16, 2\]\)",
    ),
    "rank": (
        lambda r: retensor(r, A, resize(f"{QUERY}.lora_A", 3, 16)),
        r"says rank 2 of .*query, and .* one of shape \[3, 16\]",
    ),
    "head shape": (
        lambda r: retensor(r, H, resize("classifier.weight", 2, 9)),
        r"another shape: classifier\.weight \(\[2, 9\], expected \[2, 16\]\)",
    ),
    "nan": (lambda r: retensor(r, A, poison(float("nan"), f"{QUERY}.lora_E")), "NaN or infinity"),
    "infinity": (lambda r: retensor(r, H, poison(float("inf"), "classifier.bias")), "NaN or inf"),
    "newer": (lambda r: edit(r, format_version=2), "format version 2.*update adalora"),
    "unlisted": (lambda r: edit(r, files={}), r"does not list (adapter|head)\.safetensors"),
    "outside": (lambda r: edit(r, files={"../base/config.json": 1}), "outside its folder"),
    "outside, below": (lambda r: edit(r, files={"a/../../b": 1}), "outside its folder"),
    "absolute": (lambda r: edit(r, files={"/etc/passwd": 1}), "outside its folder"),
    "drive": (lambda r: edit(r, files={"C:\\x": 1}), "outside its folder"),
    "negative size": (lambda r: edit(r, files={A: -1}), "the size of adapter"),
    "no checksum": (lambda r: edit(r, checksums={A: "x"}), "which is no SHA-256"),
    "huge rank": (lambda r: edit_lora(r, init_rank=10**9), "init_rank is 1000000000"),
    "large rank": (
        lambda r: edit_lora(r, init_rank=99_999),
        "init_rank 99999 is above the largest",
    ),
    "negative rank": (lambda r: edit_lora(r, init_rank=-1), "init_rank is -1"),
    "fraction": (lambda r: edit_lora(r, init_rank=2.0), r"init_rank is 2\.0"),
    "negative kept": (
        lambda r: edit(r, rank_pattern={f"{QUERY}.lora_E": -1}),
        "the rank of .* is -1",
    ),
    "more than all": (
        lambda r: edit(r, rank_pattern={f"{QUERY}.lora_E": 3}),
        "the rank of .* is 3, and must be a whole number from 0 to 2",
    ),
    "alpha": (lambda r: edit_lora(r, lora_alpha=float("inf")), "lora_alpha is inf"),
    "dropout": (lambda r: edit_lora(r, lora_dropout=-1), "lora_dropout is -1"),
    "type": (lambda r: edit_lora(r, lora_type="sora"), "lora_type 'sora' is unknown"),
    "target": (lambda r: edit_lora(r, targets=["bert.absent"]), "bert.absent"),
    "not a layer": (
        lambda r: (edit_lora(r, targets=["bert.encoder"]), edit(r, rank_pattern={})),
        "bert.encoder",
    ),
    "huge labels": (lambda r: edit(r, num_labels=10**12, labels=None), "num_labels is 1000000"),
    "many labels": (
        lambda r: edit(r, num_labels=999_999, labels=None),
        "num_labels 999999, and no tensor of head",
    ),
    "no labels": (lambda r: edit(r, num_labels=0, labels=None), "num_labels 0, and no tensor"),
    "few names": (lambda r: edit(r, labels=["one"]), "1 labels do not name 2 outputs"),
    "same names": (lambda r: edit(r, labels=["one", "one"]), "labels names something twice"),
    "name types": (lambda r: edit(r, labels=[1, 2]), "labels is .*a list of texts"),
    "length": (lambda r: edit(r, max_seq_length=-4), "max_seq_length is -4"),
    "method": (lambda r: edit(r, trained=["lora", "magic"]), "trained 'magic' is unknown"),
    "base": (lambda r: edit(r, base_model=7), "base_model is 7, and must be a text"),
    "columns": (lambda r: edit(r, text_columns=["a", "b", "c"]), "number of text_columns is 3"),
    "adapter": (lambda r: edit(r, adapter_type="houlsby", adapter_size=10**9), "adapter_size is 1"),
    "bottleneck": (
        lambda r: edit(r, adapter_type="houlsby", adapter_size=9000),
        "adapter_size 9000, and adapter.safetensors holds none",
    ),
    "lineage": (lambda r: edit(r, lineage=[{"where": 1}]), "is not a description"),
    "metrics": (lambda r: edit(r, metrics=[1]), "metrics is .*an object"),
    "binary": (lambda r: (r / "adalora.json").write_bytes(b"\xff\xfe\0"), "cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_told_in_one_sentence(run, kind):
    damage, message = DAMAGE[kind]
    damage(run)
    with pytest.raises(UserError, match=message) as refused:
        load_artefact(run)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["missing", "truncated", "one bit", "pickle", "nan", "outside"])
def test_a_run_does_not_start_from_damage_either(tiny, run, kind):
    damage, message = DAMAGE[kind]
    damage(run)
    fresh = build(tiny, run.parent / "again")
    before = {name: p.detach().clone() for name, p in fresh.named_parameters()}
    with pytest.raises(UserError, match=message):
        load_lora(fresh, run)
    assert all(torch.equal(p, before[name]) for name, p in fresh.named_parameters())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda r: retensor(r, "model.safetensors", lambda t: t.pop("classifier.bias")),
            "does not",
        ),
        (
            lambda r: retensor(r, "model.safetensors", resize("classifier.weight", 2, 9)),
            r"does not fit its config\.json: classifier\.weight",
        ),
        (
            lambda r: retensor(r, "model.safetensors", lambda t: t.update(extra=torch.zeros(1))),
            r"does not fit its config\.json: extra",
        ),
        (
            lambda r: retensor(r, "model.safetensors", poison(float("nan"), "classifier.bias")),
            r"NaN or infinity in classifier\.bias",
        ),
        (lambda r: edit(r, num_labels=777, labels=None), "num_labels 777, and no tensor of model"),
        (lambda r: flip(r / "model.safetensors"), "not the file that was saved"),
        (lambda r: (r / "config.json").unlink(), r"config\.json is missing"),
    ],
)
def test_damage_of_a_whole_model_is_told_as_well(tiny, tmp_path, damage, message):
    model = build(tiny, tmp_path / "base", "full")
    save(tmp_path / "run", model, tmp_path / "base")
    damage(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        load_artefact(tmp_path / "run")


def test_a_bottleneck_of_another_size_is_refused_before_it_is_made(tiny, tmp_path):
    model = build(tiny, tmp_path / "base", "bottleneck")
    save(tmp_path / "run", model, tmp_path / "base")
    edit(tmp_path / "run", adapter_size=100_000)
    with pytest.raises(UserError, match=r"adapter_size 100000, and .* holds 3"):
        load_artefact(tmp_path / "run")


def test_nan_in_a_bin_file_is_refused(tiny, tmp_path):
    model = build(tiny, tmp_path / "base")
    state = model.state_dict()
    state[f"{QUERY}.lora_E"] = torch.full((2, 1), float("nan"))
    torch.save(state, tmp_path / "lora.bin")
    with pytest.raises(UserError, match=r"NaN or infinity in .*lora_E"):
        load_lora(model, tmp_path / "lora.bin")


# --- labels and the card --------------------------------------------------------------------------

ODD = ("tab\t", 'quote"', "back`tick", "line\nbreak", "émoji 🙂", "|pipe|", "---", "\ud800", "")


def test_labels_of_odd_characters_round_trip(tiny, tmp_path):
    model = build(tiny, tmp_path / "base", num_labels=len(ODD))
    save(tmp_path / "run", model, tmp_path / "base", labels=ODD)
    assert load_artefact(tmp_path / "run").description.labels == ODD
    assert tuple(load_artefact(tmp_path / "run").model.config.id2label.values()) == ODD
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.library_name == "adalora"


def test_the_card_says_base_method_scores_and_use(tiny, tmp_path):
    model = build(tiny, tmp_path / "base")
    description = describe(model, "someone/base", task="rte", max_seq_length=32)
    metrics = {"validation": {"eval_accuracy": 0.5, "eval_loss": 0.7, "eval_runtime": 3.0}}
    written = save_artefact(
        tmp_path / "run", model, tokenizer=None, description=description, metrics=metrics
    )
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.base_model == "someone/base"
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.metrics == ["accuracy"]
    for part in ("adalora.load", "adalora predict", "| validation | accuracy | 0.5000 |"):
        assert part in card.text
    assert written.base_fingerprint in card.text
    assert "runtime" not in card.text


def test_a_readme_that_is_not_ours_stays(tiny, tmp_path):
    model = build(tiny, tmp_path / "base")
    readme = tmp_path / "run" / "README.md"
    readme.parent.mkdir()
    readme.write_text("my notes")
    save(tmp_path / "run", model, tmp_path / "base")
    assert readme.read_text() == "my notes"
    readme.unlink()
    save(tmp_path / "run", model, tmp_path / "base", overwrite=True)
    ours = readme.read_text()
    save(tmp_path / "run", model, tmp_path / "base", overwrite=True, method="other")
    assert readme.read_text() != ours  # ours is renewed
    lines = readme.read_text().splitlines()
    readme.write_text("\n".join(line for line in lines if "adalora model card" not in line))
    kept = readme.read_text()
    save(tmp_path / "run", model, tmp_path / "base", overwrite=True)
    assert readme.read_text() == kept  # the marker was taken out
    readme.write_text("edited")
    load_artefact(tmp_path / "run")  # a card is no part of what is checked


# --- saving that fails ----------------------------------------------------------------------------


def content(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def test_files_of_the_users_are_not_replaced_unasked(tiny, tmp_path):
    model = build(tiny, tmp_path / "base", "full")
    with pytest.raises(UserError, match=r"holds config\.json, model\.safetensors already"):
        save(tmp_path / "base", model, tmp_path / "base")


def test_a_place_that_is_no_folder_is_refused(tiny, tmp_path):
    model = build(tiny, tmp_path / "base")
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"cannot be (made|written)"):
            save(place, model, tmp_path / "base")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_target_is_refused(tiny, tmp_path):
    model = build(tiny, tmp_path / "base")
    if os.geteuid() == 0:
        # Permissions do not bind root; the kernel's own file system takes no files from anybody.
        target = Path("/proc/self")
        message = "could not be written to /proc/self"
    else:
        target = tmp_path / "fixed"
        target.mkdir(mode=0o555)
        message = "could not be written"
    with pytest.raises(UserError, match=message):
        save(target, model, tmp_path / "base")


@pytest.mark.parametrize("limit", [1, 300, 1000, 1500, 2000, 3000, 9000, 30_000, 45_000])
def test_a_full_disk_leaves_the_old_artefact(run, limit):
    before = content(run)
    artefact = load_artefact(run)
    artefact.model.classifier.bias.data.fill_(7)
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, allowed[1]))
    try:
        with pytest.raises(UserError, match=r"could not be written.*as it was"):
            save_artefact(
                run,
                artefact.model,
                tokenizer=load_tokenizer("nano"),
                description=artefact.description,
                overwrite=True,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert content(run) == before  # and nothing was left beside it
    assert [path.name for path in run.iterdir() if path.is_dir()] == []
    load_artefact(run)


TWO_WRITERS = """
import sys, time
from adalora.artefact import load_artefact, save_artefact
from adalora.errors import UserError
from adalora.pretrained.loading import load_tokenizer
source, target, value = sys.argv[1:]
artefact = load_artefact(source)
for parameter in artefact.model.parameters():
    if parameter.requires_grad:
        parameter.data.fill_(float(value))
print("ready", flush=True)
sys.stdin.readline()
saved = refused = 0
while saved < 15:
    time.sleep(0.005)
    try:
        save_artefact(target, artefact.model, tokenizer=None,
                      description=artefact.description, overwrite=True)
        saved += 1
    except UserError as error:
        assert "Another process is saving" in str(error), error
        refused += 1
print(saved, refused)
"""


@pytest.mark.slow
def test_of_two_writers_one_wins_and_nothing_is_mixed(run, tmp_path):
    target = tmp_path / "target"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_WRITERS, str(run), str(target), value],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for value in ("1", "2")
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    counts = []
    for writer in writers:
        out, err = writer.communicate(timeout=120)
        assert writer.returncode == 0, err[-2000:]
        counts.append([int(word) for word in out.split()])
    assert [saved for saved, _ in counts] == [15, 15]
    model = load_artefact(target).model
    values = {float(v) for p in model.parameters() if p.requires_grad for v in p.detach().unique()}
    assert values in ({1.0}, {2.0})
    assert not list(target.glob(".artefact-*"))


def test_a_second_writer_is_refused_and_a_dead_ones_leavings_are_removed(tiny, run):
    model = build(tiny, run.parent / "base")
    before = content(run)
    left = run / ".artefact-dead"
    with sole_writer(run):
        left.mkdir()
        with pytest.raises(UserError, match="Another process is saving to"):
            save(run, model, run.parent / "base", overwrite=True)
    assert content(run) == before
    save(run, model, run.parent / "base", overwrite=True)
    assert not left.exists()


# --- lineage --------------------------------------------------------------------------------------


def test_lineage_names_what_a_model_started_from_and_what_that_started_from(tiny, run, tmp_path):
    second = build(tiny, tmp_path / "base")
    start = load_lora(second, run)
    one = save(tmp_path / "second", second, tmp_path / "base", lineage=start.origins)
    (origin,) = one.lineage
    assert origin.path == str(run.resolve())
    assert origin.sha256 == hashlib.sha256((run / A).read_bytes()).hexdigest()
    assert origin.method == "test"
    third = build(tiny, tmp_path / "base")
    start = load_lora(third, tmp_path / "second")
    two = save(tmp_path / "third", third, tmp_path / "base", lineage=start.origins)
    assert [o.path for o in two.lineage] == [str(tmp_path / "second"), str(run)]
    assert load_artefact(tmp_path / "third").description.lineage == two.lineage
    # And from the original's file, of which no more is known than its bytes.
    torch.save(third.state_dict(), tmp_path / "lora.bin")
    fourth = build(tiny, tmp_path / "base")
    start = load_lora(fourth, tmp_path / "lora.bin")
    (origin,) = save(tmp_path / "fourth", fourth, tmp_path / "base", lineage=start.origins).lineage
    assert (origin.path, origin.method) == (str(tmp_path / "lora.bin"), None)
    assert save(tmp_path / "fifth", build(tiny, tmp_path / "base"), tmp_path / "base").lineage == ()


def test_a_run_does_not_start_from_adapters_of_another_base(tiny, run, tmp_path, caplog):
    fresh = build(tiny, tmp_path / "again")
    fresh.bert.encoder.layer[0].output.dense.bias.data += 1
    before = {name: p.detach().clone() for name, p in fresh.named_parameters()}
    with pytest.raises(
        UserError, match=r"trained on another base.*sha256:.*this model has sha256:"
    ):
        load_lora(fresh, run)
    assert all(torch.equal(p, before[name]) for name, p in fresh.named_parameters())
    # Of another number type they cannot be compared, and may well be the same.
    half = tiny("bert").to(torch.bfloat16)
    add_lora(half, lora_type="svd", targets=["query"], init_rank=2, lora_alpha=16)
    load_lora(half, run)
    assert "was trained on a base in float32 and this one is in bfloat16" in caplog.text
