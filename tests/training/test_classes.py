"""Classes are matched by their names wherever they meet, never by their place."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import tiny_classifier
from tests.program import run_program
from transformers import AutoModelForSequenceClassification

from adalora.adapters.head import align_head, class_dimensions, class_names, class_order
from adalora.adapters.lora import add_lora
from adalora.artefact.warm_start import load_lora
from adalora.builtin import nano_path
from adalora.cli import main
from adalora.errors import UserError
from adalora.pretrained.loading import load_checkpoint, load_tokenizer

NLI = ("contradiction", "entailment", "neutral")
ORDERS = list(itertools.permutations(NLI))
#: One step of training that moves nothing that a test could see.
STILL = (
    *("--max_steps", "1", "--learning_rate", "1e-12", "--lr_scheduler_type", "constant"),
    *("--per_device_train_batch_size", "2", "--max_seq_length", "16", "--report_to", "none"),
    *("--disable_tqdm", "True", "--save_strategy", "no"),
)


def marked(names: Sequence[str], *, likes: str | None = None) -> dict[str, torch.Tensor]:
    """An output layer whose rows say their class; a bias makes it answer ``likes``."""
    rows = [float(sum(map(ord, name.casefold()))) / 1000 for name in names]
    bias = [50.0 if name == likes else 0.5 for name in names]
    return {"classifier.weight": torch.tensor(rows), "classifier.bias": torch.tensor(bias)}


def mark(model: Any, names: Sequence[str], likes: str | None = None) -> Any:
    with torch.no_grad():
        for name, values in marked(names, likes=likes).items():
            parameter = model.get_parameter(name)
            parameter.copy_(values[:, None].expand_as(parameter) if parameter.dim() > 1 else values)
    return model


Checkpoint = Callable[..., Path]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A fine-tuned model on disk, with a tokenizer: ``checkpoint(("no", "yes"), likes="yes")``."""

    def make(names: Sequence[str], *, likes: str | None = None, named: bool = True) -> Path:
        folder = tmp_path / f"model-{'-'.join(names)}"
        words = {"id2label": dict(enumerate(names))} if named else {"num_labels": len(names)}
        model = tiny_classifier("bert", vocab_size=681, num_hidden_layers=1, **words)
        mark(model, names, likes).save_pretrained(folder)
        load_tokenizer("nano").save_pretrained(folder)
        return folder

    return make


def write(path: Path, labels: Sequence[str]) -> Path:
    rows = [f"text number {number},{label}" for number, label in enumerate(labels)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def train(root: Path, base: Path, labels: Sequence[str], *more: object, expect: int = 0) -> Any:
    file = write(root.with_suffix(".csv"), labels)
    return run_program(
        *("--model_name_or_path", base, "--train_file", file, "--do_train", *STILL),
        *("--apply_lora", "--lora_module", "query", "--lora_r", "1", "--root_output_dir", root),
        *more,
        expect=expect,
    )


def rows_of(root: Path) -> dict[str, float]:
    """Class -> what its row of the saved head says."""
    described = json.loads((root / "model" / "adalora.json").read_text())
    head = load_file(root / "model" / "head.safetensors")
    weights = head["classifier.weight"].mean(dim=1).tolist()
    return dict(zip(described["labels"], weights, strict=True))


def says(name: str) -> Any:
    return pytest.approx(float(marked([name])["classifier.weight"][0]), abs=1e-4)


# --- the rule -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "wanted", "order"),
    [
        (("a", "b"), ("b", "a"), [1, 0]),
        (("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), NLI, [0, 2, 1]),
        (("a", "A"), ("A", "a"), [1, 0]),
        (("a", "b"), ("A", "a"), [None, 0]),
        (("a", "b"), ("c", "b"), [None, 1]),
        (("Straße",), ("STRASSE",), [0]),
        (("1", "01"), ("01", "1.0"), [1, None]),
    ],
)
def test_classes_are_the_same_if_their_names_are(stored, wanted, order):
    assert class_order(stored, wanted) == order


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"id2label": {0: "no", 1: "yes"}}, ("no", "yes")),
        ({"num_labels": 2}, None),
        ({"id2label": {0: "LABEL_1", 1: "LABEL_0"}}, None),
        ({"id2label": {0: "yes", 1: "yes"}}, None),
        ({"num_labels": 1}, ()),
        ({"num_labels": 1, "problem_type": "multi_label_classification"}, None),
    ],
)
def test_a_configuration_names_its_classes_or_does_not(settings, names):
    assert class_names(tiny_classifier("bert", **settings).config) == names


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "roberta", "electra", "deberta"])
@pytest.mark.parametrize("classes", [3, 16])
def test_the_parameters_with_a_row_per_class_are_found_even_among_square_ones(kind, classes):
    model = tiny_classifier(kind, num_labels=classes)
    last = "classifier.out_proj" if kind in ("roberta", "electra") else "classifier"
    before = torch.get_rng_state()
    assert class_dimensions(model) == {f"{last}.weight": 0, f"{last}.bias": 0}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("names", "wanted", "reason"),
    [
        (None, NLI, "classes without names"),
        ((), NLI, "a number"),
        (NLI, (), "the classes contradiction, entailment, neutral"),
        (NLI, ("contradiction", "entailment", "other"), "the classes contradiction"),
        (NLI, NLI[:2], "the classes contradiction"),
        (NLI, (*NLI, "other"), "the classes contradiction"),
    ],
)
def test_a_head_of_other_classes_is_not_taken(names, wanted, reason):
    model = tiny_classifier("bert", num_labels=max(len(wanted), 1))
    stored = {"classifier.weight": torch.ones(max(len(names or NLI), 1), 16)}
    aligned = align_head(model, stored, names, wanted)
    assert aligned.tensors == {}
    assert reason in aligned.reason


# --- a labelled checkpoint: --model_name_or_path --------------------------------------------------


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_a_labelled_checkpoint_gives_each_class_its_row(checkpoint, order):
    folder = checkpoint([name.upper() for name in order])
    model, untrained = load_checkpoint(str(folder), num_labels=3, labels=NLI)
    assert untrained is None
    assert model.config.id2label == dict(enumerate(NLI))
    for row, name in zip(model.classifier.weight, NLI, strict=True):
        assert row.mean().item() == says(name)


def test_training_takes_the_rows_by_name(checkpoint, tmp_path):
    base = checkpoint(("neutral", "ENTAILMENT", "contradiction"))
    train(tmp_path / "run", base, NLI * 2)
    assert rows_of(tmp_path / "run") == {name: says(name) for name in NLI}


@pytest.mark.parametrize(
    ("names", "named", "reason"),
    [
        (NLI, False, "classes without names"),
        (("red", "green", "blue"), True, "the classes red, green, blue"),
        (("contradiction", "entailment"), True, "the classes contradiction, entailment"),
        ((*NLI, "other"), True, "the classes contradiction, entailment, neutral, other"),
        (("score",), True, "a number"),
    ],
)
def test_a_head_of_other_classes_starts_anew_aloud(checkpoint, caplog, names, named, reason):
    base = checkpoint(names, named=named)
    model, untrained = load_checkpoint(str(base), num_labels=3, labels=NLI)
    assert reason in untrained
    assert f"was fine-tuned for {reason}" in caplog.text
    weights, bias = model.classifier.weight.detach(), model.classifier.bias.detach()
    assert float(bias.abs().max()) == 0
    assert 0 < float(weights.abs().max()) < 0.2
    assert abs(float(weights.mean())) < 0.02


def test_a_head_that_is_new_is_no_news_and_a_number_stays_a_number(checkpoint, caplog):
    model, untrained = load_checkpoint(nano_path().as_posix(), num_labels=2)
    assert untrained is None
    before = load_file(nano_path() / "model.safetensors")["classifier.weight"].float()
    model, untrained = load_checkpoint("nano", num_labels=2, labels=("no", "yes"))
    assert torch.equal(model.classifier.weight, before)
    assert "anew" not in caplog.text
    assert untrained == "nothing yet"
    base = checkpoint(("score",), likes="score")
    model, untrained = load_checkpoint(str(base), num_labels=1, is_regression=True)
    assert (untrained, float(model.classifier.bias)) == (None, 50)


def test_a_labelled_checkpoint_is_evaluated_by_name(checkpoint, tmp_path):
    # The file lacks a class that the model has, and is written in other letters.
    base = checkpoint(("neutral", "entailment", "contradiction"), likes="entailment")
    file = write(tmp_path / "dev.csv", ["Entailment"] * 3 + ["Contradiction"])
    root = tmp_path / "run"
    flags = ("--do_eval", "--do_predict", "--test_file", file, "--root_output_dir", root)
    run_program("--model_name_or_path", base, "--validation_file", file, *STILL, *flags)
    results = json.loads((root / "eval_results_custom.json").read_text())
    assert results["eval_accuracy"] == 0.75
    answers = (root / "test_results_custom.txt").read_text().split()[3::2]
    assert answers == ["entailment"] * 4


@pytest.mark.parametrize("named", [True, False])
def test_a_head_that_was_never_trained_is_not_evaluated(checkpoint, tmp_path, named):
    base = checkpoint(("red", "green"), named=named)
    flags = ("--task_name", "mini-rte", "--do_eval", *STILL)
    done = run_program(
        "--model_name_or_path", base, *flags, "--root_output_dir", tmp_path / "run", expect=2
    )
    reason = "the classes red, green" if named else "classes without names"
    assert f"was trained for {reason}" in done.stderr
    assert "the data has entailment, not_entailment" in done.stderr
    assert "Add --do_train" in done.stderr
    assert not (tmp_path / "run" / "eval_results_mini-rte.json").exists()


# --- adapters: --lora_path ------------------------------------------------------------------------


@pytest.fixture
def trained(checkpoint: Checkpoint, tmp_path: Path) -> tuple[Path, Path]:
    """A base, and a run on it whose head answers ``b`` to everything."""
    base = checkpoint(("b", "a"), likes="b")
    train(tmp_path / "first", base, ["a", "b"])
    assert rows_of(tmp_path / "first") == {"a": says("a"), "b": says("b")}
    plain = tmp_path / "plain"
    tiny_classifier("bert", vocab_size=681, num_hidden_layers=1).bert.save_pretrained(plain)
    load_tokenizer("nano").save_pretrained(plain)
    return plain, tmp_path / "first"


def test_a_run_goes_on_with_a_new_class(trained, tmp_path):
    base, first = trained
    labels = ["_new", "B", "a"]  # sorted otherwise than before
    done = train(tmp_path / "next", base, labels, "--lora_path", first)
    rows = rows_of(tmp_path / "next")
    assert (rows["a"], rows["B"]) == (says("a"), says("b"))
    assert abs(rows["_new"]) < 0.02
    assert "has no row for _new" in done.stderr


@pytest.mark.parametrize("labels", [["a", "c"], ["1", "2"], ["0.5", "1.5"]])
def test_a_run_of_other_classes_lends_no_head(trained, tmp_path, labels):
    base, first = trained
    done = train(tmp_path / "next", base, labels, "--lora_path", first)
    assert "holds a head of the classes a, b; the model's head starts anew" in done.stderr
    head = load_file(tmp_path / "next" / "model" / "head.safetensors")
    assert float(head["classifier.bias"].abs().max()) < 1e-6


def test_a_run_is_evaluated_by_its_own_classes(trained, tmp_path, capsys):
    base, first = trained
    file = write(tmp_path / "dev.csv", ["B"] * 4)
    flags = ("--do_eval", "--apply_lora", "--lora_module", "query", "--lora_r", "1", *STILL)
    given = ("--model_name_or_path", base, "--validation_file", file, "--lora_path", first)
    run_program(*given, *flags, "--root_output_dir", tmp_path / "eval")
    results = json.loads((tmp_path / "eval" / "eval_results_custom.json").read_text())
    assert results["eval_accuracy"] == 1
    assert main(["eval", str(first), "--validation_file", str(file), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["validation"]["accuracy"] == 1
    assert main(["predict", str(first), str(file), "--column", "text"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {line[lines[0].index("label")] for line in lines[1:]} == {"b"}


def test_a_label_that_training_lacks_is_refused_by_name_file_and_row(trained, tmp_path, capsys):
    _, first = trained
    file = write(tmp_path / "dev.csv", ["b", "a", "maybe"])
    assert main(["eval", str(first), "--validation_file", str(file)]) == 2
    assert f"{file}, line 4: the label 'maybe' does not occur" in capsys.readouterr().err


def test_indices_stand_for_no_names_in_files_of_ones_own(trained, tmp_path, capsys):
    _, first = trained
    file = write(tmp_path / "dev.csv", ["0", "1"])
    assert main(["eval", str(first), "--validation_file", str(file)]) == 2
    assert "line 2: the label '0' does not occur in training; the labels are a, b" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("by_index", [True, False])
def test_a_file_without_names_has_the_order_of_glues_own_or_none(tmp_path, caplog, by_index):
    def adapted(names):
        model = tiny_classifier("bert", id2label=dict(enumerate(names)))
        add_lora(model, lora_type="frd", targets=["query"], init_rank=1, lora_alpha=1)
        return model

    state = mark(adapted(NLI), NLI).state_dict()
    save_file({n: t for n, t in state.items() if "lora_" in n or "classifier" in n}, tmp_path / "f")
    (tmp_path / "f").rename(tmp_path / "f.safetensors")
    fresh = adapted(NLI)
    before = fresh.classifier.weight.detach().clone()
    start = load_lora(fresh, tmp_path / "f.safetensors", labels=NLI, by_index=by_index)
    assert start.has_head
    assert (start.untrained is None) == by_index
    assert torch.equal(fresh.classifier.weight, before) != by_index
    assert ("classes without names" in caplog.text) != by_index


def test_a_labelled_model_of_transformers_answers_as_its_own_pipeline_does(checkpoint):
    """What is permuted is the whole answer: logits by name are those of the checkpoint."""
    folder = checkpoint(("c", "a", "b"))
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    torch.nn.init.normal_(theirs.classifier.weight)
    theirs.save_pretrained(folder)
    ours, _ = load_checkpoint(str(folder), num_labels=3, labels=("a", "b", "c"))
    ids = torch.randint(3, 600, (2, 9))
    expected, found = theirs(ids).logits, ours.eval()(ids).logits
    torch.testing.assert_close(found, expected[:, [1, 2, 0]])


def test_more_classes_than_a_head_has_rows_are_told_from_nothing():
    with pytest.raises(UserError, match="cannot name"):
        load_checkpoint("nano", num_labels=3, labels=("a", "b"))
