"""Small files of the layout of GLUE and of the tokenizer of DeBERTaV3, where those are absent."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece

from adalora.builtin.miniature import generate, write_tsv

#: Task -> (its test file, the examples that the official one has).
TESTS = {
    "cola": ("CoLA/test.tsv", 1063),
    "sst2": ("SST-2/test.tsv", 1821),
    "mrpc": ("MRPC/test.tsv", 1725),
    "stsb": ("STS-B/test.tsv", 1379),
    "qnli": ("QNLI/test.tsv", 5463),
    "rte": ("RTE/test.tsv", 3000),
    "wnli": ("WNLI/test.tsv", 146),
    "ax": ("diagnostic/diagnostic.tsv", 1104),
}
#: What is special in DeBERTaV3's vocabulary, by its number there.
SPECIAL = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]"}


def write_glue(folder: Path) -> None:
    """The miniature as the official download, its test sets repeated to the official length."""
    write_tsv(folder, list(TESTS))
    for task, (name, count) in TESTS.items():
        file = folder / name
        encoding = "utf-8-sig" if task == "mrpc" else "utf-8"
        header, *rows = file.read_text(encoding=encoding).splitlines()
        cells = [row.split("\t", 1)[1] for row in rows]
        lines = [header, *(f"{index}\t{cells[index % len(cells)]}" for index in range(count))]
        file.write_text("".join(f"{line}\n" for line in lines), encoding=encoding, newline="")


def write_tokenizer(folder: Path) -> None:
    """A SentencePiece model of some hundred pieces, with the files that DeBERTaV3 has around it."""
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(row["sentence"] for row in generate("sst2", "validation")),
        model_writer=pieces,
        vocab_size=120,
        minloglevel=2,
        **{f"{name}_id": number for number, name in enumerate(SPECIAL)},
        **{f"{name}_piece": piece for name, piece in SPECIAL.items()},
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spm.model").write_bytes(pieces.getvalue())
    config = {"model_type": "deberta-v2", "vocab_size": 128, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    settings = {
        "do_lower_case": False,
        "vocab_type": "spm",
        "tokenizer_class": "DebertaV2Tokenizer",
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
