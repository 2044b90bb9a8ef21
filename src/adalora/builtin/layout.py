"""Writing the miniature in the layout of the official GLUE download, quirks included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adalora.builtin.miniature import MINI_TASKS, Row, generate, splits_of

#: Folders that are not the task's name in capitals.
_FOLDERS = {"cola": "CoLA", "sst2": "SST-2", "stsb": "STS-B", "ax": "diagnostic"}
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
#: Classes that the files have as words.
_WORDS = {"mnli": _NLI, "qnli": _ENTAILMENT, "rte": _ENTAILMENT}
_STSB = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2"
_STSB_LINE = "{idx}|main-mini|mini|2023|{idx}|none|none|{sentence1}|{sentence2}"
_MNLI = (
    "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|"
    "sentence2_parse|sentence1|sentence2"
)
_MNLI_LINE = "{idx}|{idx}|{idx}|mini|-|-|-|-|{premise}|{hypothesis}"
_MRPC = "|#1 ID|#2 ID|#1 String|#2 String"
_MRPC_LINE = "|{first}|{second}|{sentence1}|{sentence2}"
_QQP_LINE = "{idx}|{first}|{second}|{question1}|{question2}|{label}"
_TEXT = ("index|sentence", "{idx}|{sentence}")
_PAIR = ("index|sentence1|sentence2", "{idx}|{sentence1}|{sentence2}")
_QNLI = ("index|question|sentence", "{idx}|{question}|{sentence}")
#: Header and line of train.tsv and dev.tsv, then of test.tsv, with | for a tab.
_LAYOUTS = {
    "cola": ("", "gj04|{label}|{star}|{sentence}", *_TEXT),
    "sst2": ("sentence|label", "{sentence}|{label}", *_TEXT),
    "mrpc": (f"Quality{_MRPC}", f"{{label}}{_MRPC_LINE}", f"index{_MRPC}", f"{{idx}}{_MRPC_LINE}"),
    "stsb": (f"{_STSB}|score", f"{_STSB_LINE}|{{label:.3f}}", _STSB, _STSB_LINE),
    "qqp": (
        *("id|qid1|qid2|question1|question2|is_duplicate", _QQP_LINE),
        *("id|question1|question2", "{idx}|{question1}|{question2}"),
    ),
    "mnli": (f"{_MNLI}|label1|gold_label", f"{_MNLI_LINE}|{{word}}|{{word}}", _MNLI, _MNLI_LINE),
    "qnli": (f"{_QNLI[0]}|label", f"{_QNLI[1]}|{{word}}", *_QNLI),
    "rte": (f"{_PAIR[0]}|label", f"{_PAIR[1]}|{{word}}", *_PAIR),
    "wnli": (f"{_PAIR[0]}|label", f"{_PAIR[1]}|{{label}}", *_PAIR),
    "ax": ("", "", "index|sentence1|sentence2", "{idx}|{premise}|{hypothesis}"),
}


def write_tsv(folder: Path, tasks: Sequence[str] = MINI_TASKS) -> None:
    """Write ``folder``/<official folder>/{train,dev,test}.tsv of every task."""
    for task in tasks:
        target = folder / _FOLDERS.get(task, task.upper())
        target.mkdir(parents=True, exist_ok=True)
        for split in splits_of(task):
            header, line = _LAYOUTS[task][2:] if split.startswith("test") else _LAYOUTS[task][:2]
            line = line.replace("|", "\t")
            lines = [line.format(**_fields(task, row)) for row in generate(task, split)]
            lines = [header.replace("|", "\t"), *lines] if header else lines
            name = "diagnostic" if task == "ax" else split.replace("validation", "dev")
            encoding = "utf-8-sig" if task == "mrpc" else "utf-8"
            text = "".join(f"{one}\n" for one in lines)
            (target / f"{name}.tsv").write_text(text, encoding=encoding, newline="")


def _fields(task: str, row: Row) -> Row:
    """What a line names: the example, and what only the files have of it."""
    label, index = row["label"], row["idx"]
    word = _WORDS[task][label] if task in _WORDS else None
    star = "" if label else "*"
    return {**row, "first": 2 * index, "second": 2 * index + 1, "star": star, "word": word}
