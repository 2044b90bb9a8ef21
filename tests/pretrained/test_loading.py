"""Loading gives the weights stored, in float32, with the head asked for, or one clear sentence."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants as hub
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file
from tests.models import tiny_config
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DistilBertConfig,
    GPT2Config,
    PreTrainedTokenizerFast,
)

from adalora.adapters.head import is_head
from adalora.errors import UserError
from adalora.pretrained.deberta.attention import DisentangledAttention
from adalora.pretrained.loading import load_classifier, load_config, load_tokenizer

SIZES = {"num_hidden_layers": 1, "intermediate_size": 16, "max_position_embeddings": 34}
CONFIGS: dict[str, Callable[[], Any]] = {
    **{
        name: partial(tiny_config, name, **SIZES)
        for name in ("deberta-v2", "deberta", "bert", "electra")
    },
    "roberta": partial(tiny_config, "roberta", **SIZES, pad_token_id=1),
    "albert": partial(tiny_config, "albert", **SIZES, embedding_size=8),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=40, dim=16, n_heads=2, n_layers=1, hidden_dim=16
    ),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A masked language model in half precision per architecture, as the hub has them."""
    root = tmp_path_factory.mktemp("stored")
    torch.manual_seed(0)
    for name, config in CONFIGS.items():
        AutoModelForMaskedLM.from_config(config()).half().save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


@pytest.fixture
def copy(stored: dict[str, Path], tmp_path: Path) -> Path:
    """A DeBERTaV3 of one's own to damage."""
    return Path(shutil.copytree(stored["deberta-v2"], tmp_path / "copy"))


def load(folder: Path, **changes: Any) -> Any:
    return load_classifier(str(folder), **{"num_labels": 3, **changes})


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_the_stored_encoder_comes_back_in_float32(stored: dict[str, Path], kind: str) -> None:
    model = load(stored[kind])
    expected = load_file(stored[kind] / "model.safetensors")
    prefix = f"{model.base_model_prefix}."
    compared = 0
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, name
        if name.startswith(prefix) and "pooler" not in name:
            assert torch.equal(parameter, expected[name].float()), name
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_another_number_type_comes_when_asked_for_and_the_head_stays_in_float32(
    stored: dict[str, Path], kind: str, dtype: torch.dtype
) -> None:
    model = load(stored[kind], dtype=dtype)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if is_head(model, name) else dtype), name
    ids = torch.randint(3, 40, (2, 6))
    result = model(ids, labels=torch.tensor([0, 2]))
    assert result.logits.dtype == torch.float32
    model.train()
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_head(model, name))
    trained = [p for p in model.parameters() if p.requires_grad]
    # The first AdamW step divides by its epsilon, which is 0 in float16.
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    model(ids, labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in trained)


def test_only_deberta_v3_is_patched_and_the_bypass_is_noted(stored: dict[str, Path]) -> None:
    patched = load(stored["deberta-v2"], position_query_bypass=True)
    assert patched.config.position_query_bypass
    assert isinstance(patched.deberta.encoder.layer[0].attention.self, DisentangledAttention)
    for kind in ("deberta", "bert"):
        untouched = load(stored[kind])
        assert not any(isinstance(m, DisentangledAttention) for m in untouched.modules())
        with pytest.raises(UserError, match=f"--position_query_bypass .* is '{kind}'"):
            load(stored[kind], position_query_bypass=True)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("deberta-v2", "dropout"),
        ("deberta", "dropout"),
        ("bert", "dropout"),
        ("roberta", "classifier.dropout"),
        ("electra", "classifier.dropout"),
        ("albert", "dropout"),
        ("distilbert", "dropout"),
    ],
)
def test_cls_dropout_reaches_the_dropout_before_the_classifier(
    stored: dict[str, Path], kind: str, path: str
) -> None:
    before = load(stored[kind])
    after = load(stored[kind], cls_dropout=0.37)
    changed = {
        name
        for name, module in after.named_modules()
        if isinstance(module, torch.nn.Dropout) and module.p != before.get_submodule(name).p
    }
    assert changed == {path}
    assert after.get_submodule(path).p == 0.37


def test_a_head_without_dropout_refuses_cls_dropout(tmp_path: Path) -> None:
    tiny = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
    AutoModelForCausalLM.from_config(tiny).save_pretrained(tmp_path)
    load(tmp_path)
    with pytest.raises(UserError, match=r"--cls_dropout cannot be set: .*gpt2"):
        load(tmp_path, cls_dropout=0.1)


def test_labels_and_problem_type_stand_in_the_configuration(stored: dict[str, Path]) -> None:
    names = ["yes", "perhaps", "no"]
    config = load(stored["bert"], labels=names, task_name="mine").config
    assert config.id2label == {0: "yes", 1: "perhaps", 2: "no"}
    assert config.label2id == {"yes": 0, "perhaps": 1, "no": 2}
    assert (config.num_labels, config.finetuning_task) == (3, "mine")
    assert config.problem_type == "single_label_classification"
    ids = torch.ones(2, 4, dtype=torch.long)
    model = load(stored["deberta-v2"], num_labels=1, is_regression=True)
    result = model(ids, labels=torch.tensor([0.5, 2.0]))
    expected = (result.logits.squeeze(-1) - torch.tensor([0.5, 2.0])).square().mean()
    torch.testing.assert_close(result.loss, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["a", "b"]}, r"2 label names \(a, b\) cannot name 3 outputs"),
        ({"is_regression": True}, "one output, not num_labels=3"),
        ({"cls_dropout": 1.0}, "from 0 to below 1, not 1.0"),
        ({"cls_dropout": -0.1}, "from 0 to below 1, not -0.1"),
    ],
)
def test_what_contradicts_itself_is_refused(
    stored: dict[str, Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(stored["bert"], **changes)


def test_a_new_head_over_a_dropped_one_is_no_alarm(
    stored: dict[str, Path], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    level = logging.getLogger("transformers").level
    load(stored["deberta-v2"])
    noise = capfd.readouterr()
    for word in ("MISSING", "UNEXPECTED", "newly initialized", "LOAD REPORT", "incompatible"):
        assert word not in noise.out + noise.err + caplog.text
    assert logging.getLogger("transformers").level == level


def test_a_head_of_the_same_size_is_kept_and_of_another_starts_anew_aloud(
    stored: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = load(stored["deberta-v2"])
    first.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path).classifier.weight, first.classifier.weight)
    assert "starts anew" not in caplog.text
    second = load(tmp_path, num_labels=2)
    assert second.classifier.weight.shape == (2, 16)
    assert torch.equal(second.pooler.dense.weight, first.pooler.dense.weight)
    assert "its classifier starts anew" in caplog.text


def test_missing_base_weights_are_an_error(copy: Path) -> None:
    change_config(copy, num_hidden_layers=2)
    with pytest.raises(UserError, match=r"lacks 16 weights of the encoder.*layer\.1\."):
        load(copy)


def test_base_weights_of_another_shape_are_an_error(copy: Path) -> None:
    change_config(copy, vocab_size=41)
    with pytest.raises(UserError, match=r"another shape; .*word_embeddings\.weight"):
        load(copy)


def test_a_checkpoint_of_another_architecture_is_an_error(copy: Path) -> None:
    file = copy / "model.safetensors"
    renamed = {f"other.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="not a deberta-v2 checkpoint"):
        load(copy)


def damage_nothing_left(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damage_cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_rubbish(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"rubbish" * 20)


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{not json")


def damage_kind(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')


@pytest.mark.parametrize(
    "damage",
    [damage_nothing_left, damage_cut_short, damage_rubbish, damage_config, damage_kind],
    ids=lambda damage: damage.__name__,
)
def test_damaged_files_give_one_sentence_with_the_folder(
    copy: Path, damage: Callable[[Path], None]
) -> None:
    damage(copy)
    with pytest.raises(UserError, match=r"could not be loaded \(.*fetch them anew") as caught:
        load(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_configuration_is_named(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match=r"copy' has no config\.json"):
        load(copy)
    with pytest.raises(UserError, match=r"has no config\.json or tokenizer_config\.json"):
        load_tokenizer(str(copy))


def test_nano_is_the_built_in_model_whatever_lies_in_the_folder(
    stored: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_in = SimpleNamespace(nano_path=lambda: stored["deberta-v2"])
    monkeypatch.setitem(sys.modules, "adalora.builtin", built_in)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    assert load_classifier("nano", num_labels=2).config.model_type == "deberta-v2"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "~/nowhere", "one/two/three"])
def test_a_path_that_is_no_folder_is_not_asked_of_the_hub(name: str) -> None:
    with pytest.raises(UserError, match="neither a folder"):
        load_config(name, num_labels=2)


def test_code_that_comes_with_a_model_is_refused_unless_asked_for(copy: Path) -> None:
    change_config(copy, model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
    (copy / "own.py").write_text(
        "from transformers import BertConfig\n"
        "class OwnConfig(BertConfig):\n"
        "    model_type = 'own'\n"
    )
    with pytest.raises(UserError, match="--trust_remote_code allows it"):
        load(copy)


@pytest.mark.parametrize(
    ("cause", "offline", "message"),
    [
        (hub_errors.GatedRepoError, False, "gated.*hf auth login"),
        (hub_errors.RevisionNotFoundError, False, "no such revision"),
        (hub_errors.RepositoryNotFoundError, False, "none of that name"),
        (hub_errors.HFValidationError, False, "reads owner/model"),
        (hub_errors.LocalEntryNotFoundError, False, "cannot be reached.*HF_HUB_OFFLINE=1"),
        (hub_errors.LocalEntryNotFoundError, True, r"switched off \(HF_HUB_OFFLINE\)"),
        (ConnectionError, False, "cannot be reached"),
    ],
)
def test_each_refusal_of_the_hub_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, cause: type[Exception], offline: bool, message: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("a long story") from cause.__new__(cause, "deep down")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", offline)
    with pytest.raises(UserError, match=message) as caught:
        load_config("owner/model", num_labels=2)
    assert "'owner/model'" in str(caught.value)
    assert "local folder" in str(caught.value)
    assert "'nano'" in str(caught.value)


def test_with_the_hub_switched_off_the_answer_comes_at_once() -> None:
    # tests/conftest.py switches it off before the libraries are imported, which read that once.
    assert hub.HF_HUB_OFFLINE
    start = time.monotonic()
    with pytest.raises(
        UserError, match="model 'owner/model' could not be had: the hub is switched"
    ):
        load_classifier("owner/model", num_labels=2)
    with pytest.raises(UserError, match="The tokenizer 'owner/model' could not be had"):
        load_tokenizer("owner/model")
    # The first of the hub's retries alone would wait for a second; five of them take twenty-three.
    assert time.monotonic() - start < 10


def words(folder: Path, **settings: Any) -> None:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4, "film": 5}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special, **settings).save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "longest"),
    [
        ("bert", 34),
        ("deberta-v2", 34),
        ("roberta", 32),  # positions are counted from after the padding index, which is 1
    ],
)
def test_a_tokenizer_without_a_limit_takes_the_longest_input_that_the_model_can(
    stored: dict[str, Path], tmp_path: Path, kind: str, longest: int
) -> None:
    folder = Path(shutil.copytree(stored[kind], tmp_path / kind))
    words(folder)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.model_max_length == longest
    assert tokenizer("good film")["input_ids"][:2] == [4, 5]
    with torch.no_grad():
        logits = load(folder).eval()(torch.full((1, longest), 4)).logits
    assert logits.isfinite().all()


def test_a_stated_limit_is_kept_and_another_tokenizer_can_be_named(
    stored: dict[str, Path], tmp_path: Path
) -> None:
    words(tmp_path, model_max_length=17)
    tokenizer = load_tokenizer(str(stored["bert"]), tokenizer_name=str(tmp_path))
    assert tokenizer.model_max_length == 17


@pytest.mark.parametrize("kind", ["deberta-v2", "bert", "roberta"])
def test_a_tokenizer_without_files_is_an_error(stored: dict[str, Path], kind: str) -> None:
    # transformers hands out one that knows special tokens alone: every word would be unknown.
    with pytest.raises(UserError, match=r"no vocabulary.*tokenizer\.json.*--tokenizer_name"):
        load_tokenizer(str(stored[kind]))


@pytest.mark.parametrize(
    ("absent", "advice"),
    [
        ({"sentencepiece"}, "pip install sentencepiece'"),
        ({"google.protobuf"}, "pip install protobuf'"),
        ({"sentencepiece", "google.protobuf"}, "pip install sentencepiece protobuf'"),
    ],
)
def test_what_sentencepiece_files_need_is_said_when_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, copy: Path, absent: set[str], advice: str
) -> None:
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name in absent else find(name, package)

    # Not a SentencePiece file: it fails as any does where the reader is not installed.
    (copy / "spm.model").write_bytes(b"pieces")
    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(UserError, match=advice):
        load_tokenizer(str(copy))


def test_a_damaged_sentencepiece_file_does_not_blame_the_packages(copy: Path) -> None:
    (copy / "spm.model").write_bytes(b"pieces")
    with pytest.raises(UserError, match=r"tokenizer .* could not be loaded") as caught:
        load_tokenizer(str(copy))
    assert "pip install sentencepiece" not in str(caught.value)


def test_debertas_tokenizer_loads_with_its_limit(deberta_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(str(deberta_tokenizer))
    assert tokenizer.model_max_length == 512
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id) == (0, 1, 2)
