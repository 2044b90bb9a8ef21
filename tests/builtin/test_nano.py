"""The stored nano model: its size and shape, loading without a network, and its tokenizer."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.conftest import Glue
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from adalora.builtin import nano_path
from adalora.builtin.miniature import generate

MEBIBYTE = 2**20
WITHOUT_HELPERS = """
import sys
for name in ("sentencepiece", "google.protobuf", "tiktoken"):
    sys.modules[name] = None  # importing it raises ImportError
from transformers import AutoTokenizer
print(AutoTokenizer.from_pretrained(sys.argv[1])("The rich king sold the old ship.").input_ids)
"""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(nano_path(), local_files_only=True)


@pytest.fixture(scope="module")
def loaded() -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        nano_path(),
        num_labels=3,
        dtype=torch.float32,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )


def test_at_most_three_million_parameters(loaded: Any) -> None:
    model, _ = loaded
    assert sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000


def test_the_whole_encoder_comes_from_the_file(loaded: Any) -> None:
    model, information = loaded
    assert not [name for name in information["missing_keys"] if name.startswith("deberta.")]
    assert not information["unexpected_keys"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_the_configuration_has_the_third_versions_shape() -> None:
    config = json.loads((nano_path() / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["DebertaV2ForSequenceClassification"]
    assert config["model_type"] == "deberta-v2"
    assert config["relative_attention"] is True
    assert config["share_att_key"] is True
    assert config["position_biased_input"] is False
    assert config["norm_rel_ebd"] == "layer_norm"
    assert sorted(config["pos_att_type"]) == ["c2p", "p2c"]
    assert config["type_vocab_size"] == 0
    assert config["position_buckets"] > 0
    assert config["max_position_embeddings"] == 512


def test_the_weights_are_stored_in_half_precision() -> None:
    with safe_open(nano_path() / "model.safetensors", framework="pt") as file:
        types = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert types == {"F16"}


def test_special_ids_are_debertas(tokenizer: Any) -> None:
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    assert tokenizer.convert_tokens_to_ids(pieces) == [0, 1, 2, 3]
    assert tokenizer.mask_token == "[MASK]"
    assert tokenizer.mask_token_id is not None
    assert tokenizer.model_max_length == 512
    ids = tokenizer("The king.", "The ship.").input_ids
    assert ids[0] == tokenizer.cls_token_id
    assert ids.count(tokenizer.sep_token_id) == 2
    assert ids[-1] == tokenizer.sep_token_id


def test_every_piece_has_a_row_of_the_embedding(tokenizer: Any, loaded: Any) -> None:
    model, _ = loaded
    assert len(tokenizer) <= model.config.vocab_size
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings


@pytest.mark.parametrize(
    "text",
    [
        "The wealthy cook cleaned the large garden near the river in March.",
        "Zebra-quality JUXTAPOSITIONS cost $12.50 (or 9% more); who's #1 @ home?",
    ],
)
def test_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_saved_tokenizer_reloads_identically(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    texts = [row["sentence1"] for row in generate("mrpc", "test")]
    assert again(texts).input_ids == tokenizer(texts).input_ids
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.model_max_length == tokenizer.model_max_length


@pytest.mark.slow
def test_the_tokenizer_needs_neither_sentencepiece_nor_protobuf_nor_a_network(
    tokenizer: Any,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HELPERS, str(nano_path())],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = tokenizer("The rich king sold the old ship.").input_ids
    assert json.loads(done.stdout.strip().splitlines()[-1]) == expected


@pytest.mark.parametrize(("name", "columns"), [("RTE", (1, 2)), ("STS-B", (7, 8)), ("CoLA", (3,))])
def test_real_english_has_next_to_no_unknown_pieces(
    tokenizer: Any, glue: Glue, name: str, columns: tuple[int, ...]
) -> None:
    with open(glue.folder / name / "dev.tsv", encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = [row[column] for row in rows for column in columns]
    ids = [i for one in tokenizer(texts, truncation=True).input_ids for i in one]
    assert ids.count(tokenizer.unk_token_id) / len(ids) < 0.001


def test_the_stored_model_is_under_six_megabytes() -> None:
    assert sum(file.stat().st_size for file in nano_path().iterdir()) < 6 * MEBIBYTE


def test_all_committed_files_together_are_under_eight_megabytes(project_root: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=project_root, capture_output=True, check=False
    )
    if listed.returncode:
        pytest.skip("needs a git checkout, and this is a copy without one")
    names = [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    files = [project_root / name for name in names]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 8_000_000
