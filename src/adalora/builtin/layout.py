"""Writing the miniature in the layout of the official GLUE download, quirks included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adalora.builtin.miniature import MINI_TASKS, generate, splits_of

Row = dict[str, Any]
_NLI = ("entailment", "neutral", "contradiction")
_ENTAILMENT = ("entailment", "not_entailment")
_FOLDERS = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
    "ax": "diagnostic",
}
_MNLI_HEADER = [
    "index",
    "promptID",
    "pairID",
    "genre",
    "sentence1_binary_parse",
    "sentence2_binary_parse",
    "sentence1_parse",
    "sentence2_parse",
    "sentence1",
    "sentence2",
]


def write_tsv(folder: Path, tasks: Sequence[str] = MINI_TASKS) -> None:
    """Write ``folder``/<official folder>/{train,dev,test}.tsv of every task."""
    for task in tasks:
        target = folder / _FOLDERS[task]
        target.mkdir(parents=True, exist_ok=True)
        for split in splits_of(task):
            is_test = split.startswith("test")
            lines = _LAYOUTS[task](generate(task, split), is_test)
            text = "".join("\t".join(map(str, line)) + "\n" for line in lines)
            encoding = "utf-8-sig" if task == "mrpc" else "utf-8"
            (target / _file_name(task, split)).write_text(text, encoding=encoding, newline="")


def _file_name(task: str, split: str) -> str:
    if task == "ax":
        return "diagnostic.tsv"
    return f"{split.replace('validation', 'dev')}.tsv"


def _cola(rows: list[Row], is_test: bool) -> list[list[Any]]:
    if is_test:
        return [["index", "sentence"], *([r["idx"], r["sentence"]] for r in rows)]
    return [["gj04", r["label"], "" if r["label"] else "*", r["sentence"]] for r in rows]


def _sst2(rows: list[Row], is_test: bool) -> list[list[Any]]:
    if is_test:
        return [["index", "sentence"], *([r["idx"], r["sentence"]] for r in rows)]
    return [["sentence", "label"], *([r["sentence"], r["label"]] for r in rows)]


def _mrpc(rows: list[Row], is_test: bool) -> list[list[Any]]:
    header = ["index" if is_test else "Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
    first = "idx" if is_test else "label"
    return [
        header,
        *([r[first], 2 * r["idx"], 2 * r["idx"] + 1, r["sentence1"], r["sentence2"]] for r in rows),
    ]


def _stsb(rows: list[Row], is_test: bool) -> list[list[Any]]:
    header = [
        "index",
        "genre",
        "filename",
        "year",
        "old_index",
        "source1",
        "source2",
        "sentence1",
        "sentence2",
    ]
    fixed = ["main-mini", "mini", "2023"]
    lines = [
        [r["idx"], *fixed, r["idx"], "none", "none", r["sentence1"], r["sentence2"]] for r in rows
    ]
    if is_test:
        return [header, *lines]
    scored = ([*line, f"{r['label']:.3f}"] for line, r in zip(lines, rows, strict=True))
    return [[*header, "score"], *scored]


def _qqp(rows: list[Row], is_test: bool) -> list[list[Any]]:
    if is_test:
        return [
            ["id", "question1", "question2"],
            *([r["idx"], r["question1"], r["question2"]] for r in rows),
        ]
    return [
        ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        *(
            [r["idx"], 2 * r["idx"], 2 * r["idx"] + 1, r["question1"], r["question2"], r["label"]]
            for r in rows
        ),
    ]


def _mnli(rows: list[Row], is_test: bool) -> list[list[Any]]:
    lines = [
        [r["idx"], r["idx"], r["idx"], "mini", "-", "-", "-", "-", r["premise"], r["hypothesis"]]
        for r in rows
    ]
    if is_test:
        return [_MNLI_HEADER, *lines]
    labelled = (
        [*line, _NLI[r["label"]], _NLI[r["label"]]] for line, r in zip(lines, rows, strict=True)
    )
    return [[*_MNLI_HEADER, "label1", "gold_label"], *labelled]


def _pair(
    first: str, second: str, labels: Sequence[Any]
) -> Callable[[list[Row], bool], list[list[Any]]]:
    def lines(rows: list[Row], is_test: bool) -> list[list[Any]]:
        header = ["index", first, second]
        if is_test:
            return [header, *([r["idx"], r[first], r[second]] for r in rows)]
        return [
            [*header, "label"],
            *([r["idx"], r[first], r[second], labels[r["label"]]] for r in rows),
        ]

    return lines


def _ax(rows: list[Row], is_test: bool) -> list[list[Any]]:
    header = ["index", "sentence1", "sentence2"]
    return [header, *([r["idx"], r["premise"], r["hypothesis"]] for r in rows)]


_LAYOUTS: dict[str, Callable[[list[Row], bool], list[list[Any]]]] = {
    "cola": _cola,
    "sst2": _sst2,
    "mrpc": _mrpc,
    "stsb": _stsb,
    "qqp": _qqp,
    "mnli": _mnli,
    "qnli": _pair("question", "sentence", _ENTAILMENT),
    "rte": _pair("sentence1", "sentence2", _ENTAILMENT),
    "wnli": _pair("sentence1", "sentence2", (0, 1)),
    "ax": _ax,
}
