"""The tasks of GLUE as data: columns, label words, splits, files. Nothing heavy is imported."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from adalora.errors import UserError

MINI_PREFIX = "mini-"
#: What is said where neither a task nor a file is given.
NO_DATA = (
    "No data was named: give --task_name (a GLUE task, or mini-sst2 and so on for the built-in "
    "miniature), or your own --train_file and --validation_file."
)
Column = int  # counted from 0; -1 is the last


@dataclass(frozen=True)
class Layout:
    """Where the texts and the label stand in an official TSV file.

    ``label`` is None where the file has none. ``width`` is the least number of columns of a row.
    """

    sentence1: Column
    sentence2: Column | None
    label: Column | None
    width: int
    header: bool = True


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: as the Hub and the original's ``--task_name`` have it.
        folder: in the official download.
        sentence1_key: the Hub's name of the (first) text.
        sentence2_key: of the second, or None.
        labels: words in the Hub's order of class indices; None for regression.
        metrics: what GLUE reports, the first being the one to look at.
        training: layout of train.tsv and dev.tsv.
        test: layout of test.tsv.
        splits: split name -> file in the folder.
        numeric_labels: the files hold class indices instead of words.
        skip_short_rows: rows with too few columns are left out (QQP has some).
    """

    name: str
    folder: str
    sentence1_key: str
    sentence2_key: str | None
    labels: tuple[str, ...] | None
    metrics: tuple[str, ...]
    training: Layout | None
    test: Layout
    splits: tuple[tuple[str, str], ...] = (
        *(("train", "train.tsv"), ("validation", "dev.tsv"), ("test", "test.tsv")),
    )
    numeric_labels: bool = False
    skip_short_rows: bool = False

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number instead of a class."""
        return self.labels is None

    @property
    def validation_splits(self) -> tuple[str, ...]:
        """Names of the validation sets; MNLI has two."""
        return tuple(name for name, _ in self.splits if name.startswith("validation"))

    @property
    def test_splits(self) -> tuple[str, ...]:
        """Names of the test sets; MNLI has two."""
        return tuple(name for name, _ in self.splits if name.startswith("test"))


_ENTAILMENT = ("entailment", "not_entailment")
# The Hub's order. The original's own processor had contradiction first.
_NLI = ("entailment", "neutral", "contradiction")
_PAIR = Layout(sentence1=1, sentence2=2, label=-1, width=4)
_PAIR_TEST = Layout(sentence1=1, sentence2=2, label=None, width=3)
_TEXT_TEST = Layout(sentence1=1, sentence2=None, label=None, width=2)


def _inference(name: str, texts: tuple[str, str], numeric: bool = False) -> Task:
    """A task of two classes whose files have the layout of the later GLUE tasks."""
    labels = _ENTAILMENT[::-1] if numeric else _ENTAILMENT
    folder, metrics = name.upper(), ("accuracy",)
    return Task(name, folder, *texts, labels, metrics, _PAIR, _PAIR_TEST, numeric_labels=numeric)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="cola",
            folder="CoLA",
            sentence1_key="sentence",
            sentence2_key=None,
            labels=("unacceptable", "acceptable"),
            metrics=("matthews_correlation",),
            training=Layout(sentence1=3, sentence2=None, label=1, width=4, header=False),
            test=_TEXT_TEST,
            numeric_labels=True,
        ),
        Task(
            name="sst2",
            folder="SST-2",
            sentence1_key="sentence",
            sentence2_key=None,
            labels=("negative", "positive"),
            metrics=("accuracy",),
            training=Layout(sentence1=0, sentence2=None, label=1, width=2),
            test=_TEXT_TEST,
            numeric_labels=True,
        ),
        Task(
            name="mrpc",
            folder="MRPC",
            sentence1_key="sentence1",
            sentence2_key="sentence2",
            labels=("not_equivalent", "equivalent"),
            metrics=("accuracy", "f1"),
            training=Layout(sentence1=3, sentence2=4, label=0, width=5),
            test=Layout(sentence1=3, sentence2=4, label=None, width=5),
            numeric_labels=True,
        ),
        Task(
            name="stsb",
            folder="STS-B",
            sentence1_key="sentence1",
            sentence2_key="sentence2",
            labels=None,
            metrics=("pearson", "spearmanr"),
            training=Layout(sentence1=7, sentence2=8, label=-1, width=10),
            test=Layout(sentence1=7, sentence2=8, label=None, width=9),
        ),
        Task(
            name="qqp",
            folder="QQP",
            sentence1_key="question1",
            sentence2_key="question2",
            labels=("not_duplicate", "duplicate"),
            metrics=("accuracy", "f1"),
            training=Layout(sentence1=3, sentence2=4, label=5, width=6),
            test=_PAIR_TEST,
            numeric_labels=True,
            skip_short_rows=True,
        ),
        Task(
            name="mnli",
            folder="MNLI",
            sentence1_key="premise",
            sentence2_key="hypothesis",
            labels=_NLI,
            metrics=("accuracy",),
            training=Layout(sentence1=8, sentence2=9, label=-1, width=11),
            test=Layout(sentence1=8, sentence2=9, label=None, width=10),
            splits=(
                ("train", "train.tsv"),
                ("validation_matched", "dev_matched.tsv"),
                ("validation_mismatched", "dev_mismatched.tsv"),
                ("test_matched", "test_matched.tsv"),
                ("test_mismatched", "test_mismatched.tsv"),
            ),
        ),
        _inference("qnli", ("question", "sentence")),
        _inference("rte", ("sentence1", "sentence2")),
        _inference("wnli", ("sentence1", "sentence2"), numeric=True),
        Task(
            name="ax",
            folder="diagnostic",
            sentence1_key="premise",
            sentence2_key="hypothesis",
            labels=_NLI,
            metrics=("accuracy",),
            training=None,
            test=_PAIR_TEST,
            splits=(("test", "diagnostic.tsv"),),
        ),
    )
}
_ALIASES = {"sst-2": "sst2", "sts-b": "stsb", "diagnostic": "ax", "mnli-m": "mnli"}


def resolve_task(name: str) -> tuple[Task, bool]:
    """The task that ``name`` means, and whether its built-in miniature is meant.

    Raises:
        UserError: if there is no such task; the nearest is named.
    """
    lower = name.lower()
    is_mini = lower.startswith(MINI_PREFIX)
    short = lower.removeprefix(MINI_PREFIX)
    task = TASKS.get(_ALIASES.get(short, short))
    if task is None:
        known = [*TASKS, *(MINI_PREFIX + other for other in TASKS)]
        nearest = difflib.get_close_matches(lower, known, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise UserError(
            f"There is no task {name!r}; {hint}The tasks are {', '.join(TASKS)}, and the same with "
            f"{MINI_PREFIX!r} before them for the built-in miniatures."
        )
    return task, is_mini
