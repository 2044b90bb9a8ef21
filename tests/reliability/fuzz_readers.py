#!/usr/bin/env python
"""Feed every reader of files with damaged and hostile ones, and count what is not a sentence.

Each reader gets sound files with their bytes flipped, cut, repeated and exchanged for numbers,
names and nestings that somebody might put there. It may succeed or raise a ``UserError``;
everything else is a crash, kept with its input. Watched all the while: no file appears outside the
folder that the reader was given, and nothing in the input is executed (the inputs try to).

    python tests/reliability/fuzz_readers.py --minutes 3 --seed 0
    python tests/reliability/fuzz_readers.py --minutes 1 --readers tsv,artefact --keep crashes/

Prints a table of inputs tried, read and refused; the exit status is 1 after a crash.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from adalora.adapters.freeze import freeze_base
from adalora.adapters.lora import add_lora
from adalora.artefact.description import Description
from adalora.artefact.reader import load_artefact
from adalora.artefact.writer import save_artefact
from adalora.commands.info import facts_of
from adalora.data.column_choice import choose_columns
from adalora.data.table_reader import form_of, open_table
from adalora.errors import UserError
from adalora.export.peft_read import read_adapter
from adalora.glue.load import DataSource, load_data
from adalora.pretrained.loading import load_classifier, load_tokenizer
from adalora.storage.files import read_bin
from adalora.storage.nested import load_state, save_state
from adalora.storage.snapshots import newest_sound, publish, staging_folder
from adalora.training.arguments.parser import parse_arguments

#: What replaces a number, a text or a piece of one.
ABSURD = [
    *b"-1 0 0.5 1000000 2147483647 1000000000000 99999999999999999999999 1e308 1e999".split(),
    *b'-1e999 NaN Infinity null true [] {} "" "../../x" "/etc/passwd" "a/b" "C:\\\\x"'.split(),
    *b'"\\u0000" "\\ud800" "<script>" "[red]"'.split(),
    *(b"1" * 5000, b"[" * 3000, b'{"a":' * 3000, b'"' + b"x" * 70000 + b'"'),
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\t", b",", b'"'),
    *(b"\xe2\x80\xa8", b"\x1a"),
    *(b"=cmd|' /C calc'!A0", b"$(touch executed)"),
    b"__import__('os').system('touch executed')",
]


def mutate(content: bytes, dice: random.Random) -> bytes:
    """One to four changes anywhere in ``content``."""
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = dice.randrange(len(content) + 1)
        end = min(len(content), at + dice.choice((1, 1, 4, 30, 1000)))
        kind = dice.randrange(7)
        if kind == 0:
            content = content[:at]
        elif kind == 1:
            content = content[:at] + dice.randbytes(end - at) + content[end:]
        elif kind == 2:
            content = content[:at] + content[end:]
        elif kind == 3:
            content = content[:end] + content[at:]
        elif kind == 4:
            content = content[:at] + dice.choice(ABSURD) + content[at:]
        else:
            content = _exchange_value(content, dice)
    return content


def _exchange_value(content: bytes, dice: random.Random) -> bytes:
    """Another value between two marks of JSON, CSV or TSV."""
    marks = [index for index, byte in enumerate(content[:20000]) if byte in b':,\t\n[]{}"']
    if len(marks) < 2:
        return content
    first = dice.randrange(len(marks) - 1)
    return content[: marks[first] + 1] + dice.choice(ABSURD) + content[marks[first + 1] :]


# ---- the readers ----


@dataclass(frozen=True)
class Reader:
    """One way in: sound files, which of them to damage, and what reads them.

    Attributes:
        sound: writes them into an empty folder.
        files: names of those that are damaged, one at a time.
        read: reads the folder; the name is of the file that was damaged.
    """

    sound: Callable[[Path], Any]
    files: tuple[str, ...]
    read: Callable[[Path, str], Any]


ROWS = [{"sentence1": f"text {n}", "sentence2": "pair, \u00e9", "label": n % 2} for n in range(6)]


def _tsv(folder: Path) -> None:
    for name, row in {
        "CoLA": "gj04\t1\t\tA sentence.\n",
        "STS-B": "\t".join(["x"] * 9) + "\t3.5\n",
        "QQP": "1\t2\t3\tWho?\tWhy?\t0\n",
        "RTE": "0\tone\ttwo\tentailment\n",
    }.items():
        (folder / name).mkdir()
        (folder / name / "train.tsv").write_text(row * 5, encoding="utf-8")


def _read_tsv(folder: Path, name: str) -> None:
    task = name.split("/")[0].replace("-", "").lower()
    load_data(DataSource(task_name=task, data_dir=str(folder), need=()))


def _tables(folder: Path) -> None:
    frame = pd.DataFrame(ROWS)
    frame.to_csv(folder / "t.csv", index=False)
    frame.to_csv(folder / "t.tsv", index=False, sep="\t")
    frame.to_json(folder / "t.jsonl", orient="records", lines=True)
    frame.to_json(folder / "t.json", orient="records")
    frame.to_parquet(folder / "t.parquet")
    (folder / "t.txt").write_text("one line\nanother\n", encoding="utf-8")


TABLES = tuple(f"t.{ending}" for ending in ("csv", "tsv", "jsonl", "json", "parquet"))


def _read_training_table(folder: Path, name: str) -> None:
    data = load_data(DataSource(train_file=str(folder / name), need=()))
    assert all(isinstance(text, str) for text in data.splits["train"][data.sentence1_key])


def _read_rows(folder: Path, name: str) -> None:
    with (folder / name).open("rb") as stream:
        table = open_table(stream, str(folder / name), form_of(name) or "lines")
        columns = choose_columns(table, with_label=False).texts if table.columns else ()
        for row in table.texts(columns):
            assert all(isinstance(text, str) for text in row.texts)


def _artefact(folder: Path) -> None:
    if not _CACHE:
        _CACHE["model"] = model = load_classifier("nano", num_labels=2)
        add_lora(model, lora_type="svd", targets=["query"], init_rank=2, lora_alpha=16)
        freeze_base(model, train=["lora"])
        _CACHE["tokenizer"] = load_tokenizer("nano")
    model = _CACHE["model"]
    described = Description.of(model, base_model="nano", method="AdaLoRA", labels=["no", "yes"])
    save_artefact(folder, model, tokenizer=_CACHE["tokenizer"], description=described)


_CACHE: dict[str, Any] = {}


def _read_artefact(folder: Path, name: str) -> None:
    facts_of(folder)
    if name != "adalora.json":
        # Signed anew, as a careful forger would: otherwise the checksum answers every time.
        import hashlib

        values = json.loads((folder / "adalora.json").read_text())
        content = (folder / name).read_bytes()
        values["files"][name] = len(content)
        values["checksums"][name] = hashlib.sha256(content).hexdigest()
        (folder / "adalora.json").write_text(json.dumps(values))
    load_artefact(folder)


def _checkpoint(folder: Path) -> None:
    target = folder / "checkpoint-3"
    aside = staging_folder(target)
    aside.mkdir()
    save_state({"a": {"b": torch.ones(3)}, "n": [1, 2]}, aside / "optimizer.safetensors")
    publish(target, step=3, settings={"learning_rate": 0.1})


def _read_checkpoint(folder: Path, name: str) -> None:
    if name.endswith("optimizer.safetensors"):
        load_state(folder / name)
    newest_sound(folder)


def _bin(folder: Path) -> None:
    torch.save({"classifier.bias": torch.zeros(2)}, folder / "state.bin")


def _peft(folder: Path) -> None:
    from safetensors.torch import save_file

    path = "base_model.model.deberta.encoder.layer.0.attention.self.query_proj"
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 4}
    config |= {"base_model_name_or_path": "nano", "target_modules": ["query_proj"]}
    config |= {"alpha_pattern": {"layer.0": 8}, "lora_dropout": 0.0, "rank_pattern": {}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {
        f"{path}.lora_A.weight": torch.ones(2, 96),
        f"{path}.lora_B.weight": torch.ones(96, 2),
    }
    save_file(tensors, folder / "adapter_model.safetensors")


def _base(folder: Path) -> None:
    from adalora.builtin import nano_path

    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        shutil.copy(nano_path() / file, folder / file)


def _read_base(folder: Path, name: str) -> None:
    if "token" in name:
        load_tokenizer(str(folder))("A text.")
    else:
        load_classifier(str(folder), num_labels=2)


def _flags(folder: Path) -> None:
    values = {"model_name_or_path": "nano", "task_name": "mini-rte", "learning_rate": 1e-3}
    values |= {"apply_lora": True, "lora_r": 2, "max_steps": 4, "seed": 1, "lora_type": "svd"}
    values |= {"root_output_dir": "output", "apply_adalora": True, "init_warmup": 0.1}
    values |= {"per_device_train_batch_size": 4, "report_to": "none", "max_seq_length": 32}
    (folder / "run.json").write_text(json.dumps(values, indent=1))


READERS: dict[str, Reader] = {
    "tsv": Reader(
        _tsv, tuple(f"{n}/train.tsv" for n in ("CoLA", "STS-B", "QQP", "RTE")), _read_tsv
    ),
    "training table": Reader(_tables, TABLES, _read_training_table),
    "rows to predict": Reader(_tables, (*TABLES, "t.txt"), _read_rows),
    "artefact": Reader(
        _artefact,
        ("adalora.json", "adapter.safetensors", "head.safetensors", "adalora.json"),
        _read_artefact,
    ),
    "checkpoint": Reader(
        _checkpoint,
        ("checkpoint-3/manifest.json", "checkpoint-3/optimizer.safetensors"),
        _read_checkpoint,
    ),
    "torch.save file": Reader(_bin, ("state.bin",), lambda f, name: read_bin(f / name)),
    "PEFT adapter": Reader(
        _peft,
        ("adapter_config.json", "adapter_model.safetensors"),
        lambda folder, _: read_adapter(folder),
    ),
    "base model": Reader(
        _base,
        ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"),
        _read_base,
    ),
    "file of flags": Reader(
        _flags, ("run.json",), lambda folder, name: parse_arguments([str(folder / name)])
    ),
}


# ---- trying ----


@dataclass
class Tally:
    """What became of the inputs of one reader."""

    outcomes: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    slowest: float = 0.0


class Fuzzer:
    """Damages the files of one reader again and again.

    Args:
        name: of the reader.
        place: an empty folder.
        seed: of the damage; the same seed gives the same inputs.
    """

    def __init__(self, name: str, place: Path, seed: int) -> None:
        self.reader = READERS[name]
        self.dice = random.Random(f"{name} {seed}")
        self.sound, self.work = place / "sound", place / "work"
        self.sound.mkdir()
        self.reader.sound(self.sound)
        self.tally = Tally()

    def try_one(self, keep: Path | None = None) -> None:
        """Damage one file, read, and note the outcome."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.sound, self.work)
        name = self.dice.choice(self.reader.files)
        damaged = mutate((self.work / name).read_bytes(), self.dice)
        (self.work / name).write_bytes(damaged)
        before = set(self.work.parent.iterdir())
        started = time.monotonic()
        try:
            with _silently():
                self.reader.read(self.work, name)
            outcome = "read"
        except UserError as error:
            outcome = (
                "refused" if "\n" not in str(error) and len(str(error)) < 2000 else "not one line"
            )
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = f"{type(error).__name__}: {str(error)[:100]}"
            self.tally.crashes.append(f"{name}: {traceback.format_exc()}")
        if set(self.work.parent.iterdir()) != before or Path("executed").exists():
            outcome = "wrote outside its folder"
        self.tally.slowest = max(self.tally.slowest, time.monotonic() - started)
        self.tally.outcomes[outcome] += 1
        if outcome not in ("read", "refused") and keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            number = sum(self.tally.outcomes.values())
            (keep / f"{number}-{name.replace('/', '-')}").write_bytes(damaged)

    @property
    def sound_or_told(self) -> bool:
        """Whether every input was read or refused in a sentence."""
        return set(self.tally.outcomes) <= {"read", "refused"}


@contextlib.contextmanager
def _silently() -> Iterator[None]:
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def main() -> int:
    """Fuzz the readers that were asked for, each for its share of the time."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=3.0, help="for all readers together")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--readers", default=",".join(READERS), help="comma-separated")
    parser.add_argument("--keep", type=Path, help="folder for inputs that crash a reader")
    flags = parser.parse_args()
    names = flags.readers.split(",")
    if unknown := set(names) - READERS.keys():
        parser.error(f"no reader {', '.join(unknown)}; there are {', '.join(READERS)}")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    table = Table("reader", "inputs", "read", "refused", "crashes", "slowest (s)")
    good = True
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            fuzzer = Fuzzer(name, Path(place), flags.seed)
            end = time.monotonic() + 60 * flags.minutes / len(names)
            while time.monotonic() < end:
                fuzzer.try_one(flags.keep and flags.keep / name)
        outcomes, tally = fuzzer.tally.outcomes, fuzzer.tally
        good = good and fuzzer.sound_or_told
        count = sum(outcomes.values())
        crashed = count - outcomes["read"] - outcomes["refused"]
        shown = (count, outcomes["read"], outcomes["refused"], crashed, f"{tally.slowest:.1f}")
        table.add_row(name, *map(str, shown))
        for outcome in outcomes.keys() - {"read", "refused"}:
            print(f"{name}: {outcome} ({outcomes[outcome]} times)", file=sys.stderr)
        if tally.crashes:
            print(tally.crashes[0], file=sys.stderr)
    Console(width=100).print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
