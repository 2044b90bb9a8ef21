"""A loaded artefact answers as its model does, whatever the order, the batches and the merging."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import adalora
from adalora.artefact.reader import load_artefact
from adalora.builtin.miniature import generate
from adalora.errors import UserError
from adalora.inference.classifier import Prediction

TEXTS = [
    "the doctor repaired the old boat near the river",
    "yes",
    "",
    "the child has seen the garden and the house and the boat and the river and the dog",
    "a bird sang",
]


def alone(folder, texts):
    """Logits of each text by itself, straight from the model."""
    artefact = load_artefact(folder)
    length = artefact.description.max_seq_length
    rows = [
        artefact.model(
            **artefact.tokenizer(
                *((text,) if isinstance(text, str) else text),
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
        ).logits
        for text in texts
    ]
    return torch.cat(rows).detach()


@pytest.mark.parametrize("batch_size", [2, 64])
@pytest.mark.parametrize("method", ["lora", "frd", "bitfit", "bottleneck", "full"])
def test_answers_come_in_the_order_given_and_are_the_models(make, method, batch_size):
    folder = make(method)
    classifier = adalora.load(folder, batch_size=batch_size, device="cpu")
    expected = alone(folder, TEXTS)
    torch.testing.assert_close(classifier.logits(TEXTS), expected, rtol=1e-5, atol=1e-5)
    answers = classifier(TEXTS)
    for answer, row in zip(answers, expected.softmax(dim=-1), strict=True):
        assert list(answer.probabilities) == ["no", "yes"] == list(classifier.labels)
        assert list(answer.probabilities.values()) == pytest.approx(row.tolist(), abs=1e-5)
        assert answer.label == max(answer.probabilities, key=answer.probabilities.get)
        assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_one_text_gives_one_answer_and_a_list_gives_a_list(make):
    classifier = adalora.load(make(), device="cpu")
    one = classifier("a bird sang")
    assert isinstance(one, Prediction)
    assert classifier(["a bird sang"]) == [one]
    assert classifier([]) == []
    assert not classifier.model.training
    assert classifier.tokenizer("a bird")["input_ids"]


def test_pairs_are_tuples_alone_or_in_a_list(mnli):
    classifier = adalora.load(mnli, device="cpu")
    rows = [(r["premise"], r["hypothesis"]) for r in generate("mnli", "validation_matched")[:5]]
    expected = alone(mnli, rows)
    torch.testing.assert_close(classifier.logits(rows), expected, rtol=1e-5, atol=1e-5)
    assert classifier(rows[0]).label == classifier(rows)[0].label
    assert classifier.labels == ("entailment", "neutral", "contradiction")
    assert classifier.names == ("mini-mnli",)


def test_the_roots_of_a_run_and_its_artefact_are_the_same(mnli):
    one, other = (adalora.load(path, device="cpu") for path in (mnli, mnli / "model"))
    assert one(("a", "b")).probabilities == pytest.approx(other(("a", "b")).probabilities)


def test_regression_gives_a_number(make):
    folder = make(labels=None, columns=("sentence1", "sentence2"))
    classifier = adalora.load(folder, device="cpu")
    assert classifier.labels is None
    value = classifier(("a bird", "a dog"))
    assert isinstance(value, float)
    assert value == pytest.approx(float(alone(folder, [("a bird", "a dog")])), abs=1e-5)


@pytest.mark.parametrize("method", ["lora", "frd", "bitfit", "full"])
def test_merged_weights_answer_the_same(make, method):
    folder = make(method)
    merged = adalora.load(folder, device="cpu", merged=True)
    assert {type(m).__name__ for m in merged.model.modules()} & {"SVDLinear"} == set()
    expected = adalora.load(folder, device="cpu").logits(TEXTS)
    torch.testing.assert_close(merged.logits(TEXTS), expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_merged_is_refused(make):
    with pytest.raises(UserError, match="Bottleneck adapters"):
        adalora.load(make("bottleneck"), device="cpu", merged=True)
    with pytest.raises(UserError, match="position_query_bypass"):
        adalora.load(make(position_query_bypass=True), device="cpu", merged=True)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([1], "Input 1 is 1, where a text"),
        (["a", None], "Input 2 is None"),
        (["a", ("a", "b")], "Input 2 is a pair, and this classifier takes single texts"),
        (("a", "b", "c"), r"Input 1 is \('a', 'b', 'c'\)"),
    ],
)
def test_what_is_no_text_is_refused(make, inputs, message):
    classifier = adalora.load(make(), device="cpu")
    with pytest.raises(UserError, match=message):
        classifier(inputs)


def test_two_texts_in_a_list_are_not_taken_for_a_pair(mnli):
    classifier = adalora.load(mnli, device="cpu")
    with pytest.raises(UserError, match=r"takes pairs: \(first, second\) \(premise, hypothesis\)"):
        classifier(["one", "two"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cud"}, "device 'cud' cannot be used"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"base_model": "absent/model"}, "absent/model"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, settings, message):
    with pytest.raises(UserError, match=message):
        adalora.load(make(), **({"device": "cpu"} | settings))


def test_a_place_without_an_artefact_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        adalora.load(tmp_path / "absent")
    (tmp_path / "model" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no complete artefact.*finish the run first"):
        adalora.load(tmp_path)


def test_an_output_that_is_not_finite_is_not_answered(make):
    classifier = adalora.load(make(), device="cpu")
    classifier.model.classifier.bias.data[0] = float("nan")
    with pytest.raises(UserError, match="output for input 1 is not finite"):
        classifier("a")


def test_importing_the_package_loads_nothing_heavy(environment):
    program = "import adalora, sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "False\n"
    assert callable(adalora.load)
    assert not hasattr(adalora, "laod")


# --- several adapters on one base -----------------------------------------------------------------


@pytest.fixture
def folders(make, mnli):
    """Artefacts of other labels, ranks, methods and heads over the same base."""
    return {
        "mnli": mnli,
        "lora": make("lora", rank=4, seed=1),
        "frd": make("frd", labels=("a", "b", "c", "d"), seed=2),
        "bitfit": make("bitfit", seed=3),
        "bottleneck": make("bottleneck", seed=4),
        "number": make("lora", labels=None, columns=("one", "two"), seed=5),
    }


def storages(model):
    """Address -> bytes of the memory that the parameters lie in."""
    return {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()
    }


def inputs_of(classifier):
    columns = classifier.description.text_columns
    return TEXTS if len(columns) == 1 else [(text, "a bird sang") for text in TEXTS]


@pytest.mark.parametrize(
    "first",
    [
        "mnli",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("bitfit", "bottleneck", "number")),
    ],
)
def test_each_adapter_answers_as_if_it_were_alone(folders, first):
    classifier = adalora.load(folders[first], device="cpu", name=first)
    for name, folder in folders.items():
        if name != first:
            assert classifier.add(folder, name) == name
    assert classifier.active == first
    assert set(classifier.names) == set(folders)
    for name in (*folders, *reversed(folders)):
        classifier.use(name)
        alone = adalora.load(folders[name], device="cpu")
        assert classifier.labels == alone.labels
        texts = inputs_of(classifier)
        torch.testing.assert_close(
            classifier.logits(texts), alone.logits(texts), rtol=1e-5, atol=1e-5
        )


def test_the_base_is_in_memory_once(folders):
    classifier = adalora.load(folders["mnli"], device="cpu")
    base = {
        name: parameter.data_ptr()
        for name, parameter in classifier.model.deberta.named_parameters()
        if "lora_" not in name and "ranknum" not in name
    }
    memory = storages(classifier.model)
    only_base = sum(
        parameter.untyped_storage().nbytes()
        for name, parameter in classifier.model.deberta.named_parameters()
        if name in base
    )
    for name, folder in folders.items():
        if name == "mnli":
            continue
        classifier.add(folder, name)
        with classifier.using(name):
            model = classifier.model
            for path, parameter in model.deberta.named_parameters():
                own = name == "bitfit" and path.endswith("bias")
                if path in base and not own:
                    assert parameter.data_ptr() == base[path], path
            memory |= storages(model)
    added = sum(memory.values()) - only_base
    assert len(classifier.names) == 6
    assert added < 0.5 * only_base  # six adapters and heads, and not once more the base


def test_a_tokenizer_of_the_same_files_is_in_memory_once(folders, make):
    classifier = adalora.load(folders["lora"], device="cpu", name="lora")
    tokenizer = classifier.tokenizer
    others = {"frd": folders["frd"], "mnli": folders["mnli"], "shorter": make(longest=48)}
    for name, shared in (("frd", True), ("mnli", True), ("shorter", False)):
        classifier.add(others[name], name)
        with classifier.using(name):
            assert (classifier.tokenizer is tokenizer) == shared


def test_adding_does_not_change_the_one_in_use(folders):
    classifier = adalora.load(folders["lora"], device="cpu", name="lora")
    before = {n: p.detach().clone() for n, p in classifier.model.named_parameters()}
    for name in ("bitfit", "bottleneck", "frd"):
        classifier.add(folders[name], name)
    for name, parameter in classifier.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_with_block_restores_the_adapter_before_it(folders):
    classifier = adalora.load(folders["lora"], device="cpu", name="one")
    classifier.add(folders["frd"], "two")
    with classifier.using("two") as same:
        assert same is classifier
        assert classifier.active == "two"
        with classifier.using("one"):
            assert classifier.active == "one"
        assert classifier.active == "two"
    assert classifier.active == "one"
    with pytest.raises(RuntimeError, match="inside"), classifier.using("two"):
        raise RuntimeError("inside")
    assert classifier.active == "one"


def test_names_must_exist_and_be_free(folders):
    classifier = adalora.load(folders["lora"], device="cpu", name="one")
    with pytest.raises(UserError, match="no adapter 'two'; there are one"):
        classifier.use("two")
    with pytest.raises(UserError, match="adapter 'one' already"):
        classifier.add(folders["frd"], "one")
    assert classifier.names == ("one",)
    assert classifier.add(folders["frd"]) == folders["frd"].name


def test_what_has_no_base_to_share_is_refused(folders, make):
    merged = adalora.load(folders["lora"], device="cpu", merged=True)
    with pytest.raises(UserError, match="is merged"):
        merged.add(folders["frd"])
    whole = make("full")
    with pytest.raises(UserError, match="was fine-tuned whole"):
        adalora.load(whole, device="cpu").add(folders["frd"])
    with pytest.raises(UserError, match="was fine-tuned whole"):
        adalora.load(folders["frd"], device="cpu").add(whole)


def test_an_adapter_of_another_base_is_refused_with_both_fingerprints(folders, make):
    classifier = adalora.load(folders["lora"], device="cpu", name="one")
    half = make("lora", dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"sha256:[0-9a-f]{64} \(bfloat16\).*sha256:[0-9a-f]{64}"):
        classifier.add(half, "half")
    assert classifier.names == ("one",)
