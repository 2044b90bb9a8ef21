"""One door to the data: the official files, the user's own, the miniature, or the hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, config, load_dataset

from adalora.builtin.miniature import generate
from adalora.data.column_choice import NOTHING_ASKED, Asked
from adalora.data.label_rule import LabelRule
from adalora.data.own_files import read_files
from adalora.data.table_reader import USUAL, Reading
from adalora.data.understood import FileRead, Understood
from adalora.errors import UserError, is_out_of_memory
from adalora.glue.metrics import compute_glue_metrics, main_metric_of
from adalora.glue.tasks import MINI_PREFIX, NO_DATA, Task, resolve_task
from adalora.glue.tsv import find_file, read_split
from adalora.storage.hub import limit_waiting

HUB_NAME = "nyu-mll/glue"


@dataclass(frozen=True)
class DataSource:
    """What the user asked for; the first that is given counts, in the order of the fields.

    ``classes`` are those of a head that answers as it is: the user's own files are read by them; ()
    stands for numbers, None for what the files say. ``need`` names the kinds of split the run
    cannot do without (train, validation, test); others are read where they exist. ``columns``,
    ``task_type`` and ``reading`` say of the user's own files what would be found out otherwise.
    """

    task_name: str | None = None
    data_dir: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    test_file: str | None = None
    cache_dir: str | None = None
    classes: tuple[str, ...] | None = None
    need: tuple[str, ...] = ("train", "validation")
    columns: Asked = NOTHING_ASKED
    task_type: str | None = None
    reading: Reading = USUAL

    def __post_init__(self) -> None:
        has_files = bool(self.train_file or self.validation_file or self.test_file)
        if self.task_name is None and not has_files:
            raise UserError(NO_DATA)
        if self.columns != NOTHING_ASKED and not has_files:
            raise UserError(
                "--text_column, --pair_column and --label_column name columns of your own files, "
                "--train_file and so on; GLUE's are known."
            )
        if self.data_dir is not None and self.task_name is None:
            raise UserError(f"--data_dir {self.data_dir!r} needs --task_name to know which task.")


@dataclass(frozen=True)
class TaskData:
    """Examples ready to be tokenised.

    ``splits`` have the columns ``sentence1_key``, ``sentence2_key`` (if not None), ``label`` and
    ``idx``; labels are class indices, or float32 for regression, and -1 where there is none.
    ``origin`` says in a sentence where they came from, ``label_column`` what the column of labels
    is called there, and ``understood`` what else there is to say of them.
    """

    splits: DatasetDict
    task: Task | None
    sentence1_key: str
    sentence2_key: str | None
    labels: tuple[str, ...] | None
    validation_splits: tuple[str, ...]
    test_splits: tuple[str, ...]
    origin: str
    label_column: str | None = None
    understood: Understood = field(default_factory=Understood)

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number instead of a class."""
        return self.labels is None

    @property
    def num_labels(self) -> int:
        """Outputs of the classifier."""
        return 1 if self.labels is None else len(self.labels)

    def majority_score(self, split: str, samples: int | None = None) -> float:
        """Main metric on ``split`` of always giving the most frequent class of the training set.

        For regression, whose main metric is a correlation, it is 0.

        Args:
            split: an evaluation set.
            samples: how many of its examples count, from the first; None for all.
        """
        references = self.splits[split]["label"][:samples]
        source = self.splits["train"]["label"] if "train" in self.splits else references
        if self.is_regression:
            return 0.0
        most = Counter(source).most_common(1)[0][0]
        task = None if self.task is None else self.task.name
        scores = compute_glue_metrics(
            task, [most] * len(references), list(references), labels=self.labels, warn=False
        )
        return scores[main_metric_of(self.task, self.is_regression)]


def load_data(source: DataSource) -> TaskData:
    """Read what ``source`` asks for.

    Raises:
        UserError: if a file, a column, a label or a needed split is wrong or missing, or the hub
            is out of reach.
    """
    task, is_mini = (None, False) if source.task_name is None else resolve_task(source.task_name)
    if task is not None and source.data_dir is not None:
        data = _from_folder(task, Path(source.data_dir).expanduser())
    elif source.train_file or source.validation_file or source.test_file:
        data = _from_files(source, task)
    elif task is not None and is_mini:
        rows = {name: generate(task.name, name) for name, _ in task.splits}
        data = _of_task(task, rows, f"the built-in miniature of {task.name}")
    else:
        # DataSource saw to it that a task is named where no files are.
        data = _from_hub(cast(Task, task), source)
    if task is not None:
        _check_type(source.task_type, task)
    _require(source, data)
    _check_labels(source, data)
    if task is not None and task.name == "mnli" and "test" in source.need:
        data = _with_diagnostic(data, source, is_mini)
    return data


def _check_type(asked: str | None, task: Task) -> None:
    own = "regression" if task.is_regression else "classification"
    if asked not in (None, own):
        raise UserError(f"--task_type {asked}: {task.name} is a task of {own}; leave the flag out.")


def _with_diagnostic(data: TaskData, source: DataSource, is_mini: bool) -> TaskData:
    """GLUE's diagnostic set is answered by the MNLI model: it joins the test sets where it is."""
    if source.train_file or source.validation_file or source.test_file:
        return data
    name = f"{MINI_PREFIX}ax" if is_mini else "ax"
    try:
        diagnostic = load_data(replace(source, task_name=name, need=()))
    except UserError:
        return data
    return replace(
        data,
        splits=DatasetDict({**data.splits, "ax": diagnostic.splits["test"]}),
        test_splits=(*data.test_splits, "ax"),
        understood=replace(
            data.understood,
            files=(*data.understood.files, replace(diagnostic.understood.files[0], role="ax")),
        ),
    )


def _require(source: DataSource, data: TaskData) -> None:
    present = {
        "train": ("train",) if "train" in data.splits else (),
        "validation": data.validation_splits,
        "test": data.test_splits,
    }
    for kind in source.need:
        if not present[kind]:
            flag = {"train": "--do_train", "validation": "--do_eval", "test": "--do_predict"}[kind]
            raise UserError(
                f"{flag} needs {kind} data, and {data.origin} has none; "
                f"it has {', '.join(data.splits) or 'nothing'}."
            )


def _check_labels(source: DataSource, data: TaskData) -> None:
    """Refuse examples without a label where one is needed: -1 would reach the loss."""
    if data.is_regression:
        return
    needed = [name for name in ("train",) if "train" in source.need]
    needed += data.validation_splits if "validation" in source.need else ()
    for name in needed:
        labels = data.splits[name].with_format("numpy")["label"][:]
        wrong = np.flatnonzero(~((labels >= 0) & (labels < data.num_labels)))
        if len(wrong):
            raise UserError(
                f"{data.origin}: {len(wrong)} of {len(labels)} examples of the {name} split have "
                f"no label, the first in row {wrong[0] + 1} ({labels[wrong[0]]}; the classes are "
                f"0 to {data.num_labels - 1}); label them, or take them out."
            )


def _of_task(task: Task, rows: dict[str, list[dict[str, Any]]], origin: str) -> TaskData:
    texts = [key for key in (task.sentence1_key, task.sentence2_key) if key is not None]
    features = _features(texts, task.labels)
    splits = DatasetDict()
    for name, content in rows.items():
        columns = {key: [row[key] for row in content] for key in features}
        splits[name] = Dataset.from_dict(columns, features=features)
    return _task_data(task, splits, origin)


def _features(texts: Sequence[str], labels: tuple[str, ...] | None) -> Features:
    label = Value("float32") if labels is None else ClassLabel(names=list(labels))
    strings = {name: Value("string") for name in texts}
    return Features({**strings, "label": label, "idx": Value("int32")})


def _task_data(task: Task, splits: DatasetDict, origin: str) -> TaskData:
    return TaskData(
        splits=splits,
        task=task,
        sentence1_key=task.sentence1_key,
        sentence2_key=task.sentence2_key,
        labels=task.labels,
        validation_splits=tuple(name for name in task.validation_splits if name in splits),
        test_splits=tuple(name for name in task.test_splits if name in splits),
        origin=origin,
        label_column="label",
        understood=_understood(task, splits, origin),
    )


def _understood(task: Task, splits: DatasetDict, origin: str) -> Understood:
    train = Counter(splits["train"]["label"][:]) if "train" in splits else Counter[Any]()
    names = task.labels or ()
    return Understood(
        files=tuple(FileRead(name, origin, len(split)) for name, split in splits.items()),
        text_columns=tuple(key for key in (task.sentence1_key, task.sentence2_key) if key),
        task_type="regression" if task.is_regression else "classification",
        why=f"{task.name} of GLUE",
        classes={name: train[index] for index, name in enumerate(names)},
        label_range=(min(train), max(train)) if train and task.is_regression else None,
    )


def _from_folder(task: Task, folder: Path) -> TaskData:
    rows = {}
    for split, file_name in task.splits:
        path = find_file(folder, task, file_name)
        layout = task.test if split.startswith("test") else task.training
        if path is not None and layout is not None:
            rows[split] = read_split(path, task, layout)
    if not rows:
        expected = ", ".join(file_name for _, file_name in task.splits)
        raise UserError(
            f"--data_dir {str(folder)!r} holds none of {expected} of {task.name}, neither itself "
            f"nor in {task.folder}/."
        )
    return _of_task(task, rows, f"the folder {folder}")


def _from_hub(task: Task, source: DataSource) -> TaskData:
    ways = (
        "Without a network there are three ways: --data_dir with the official GLUE files, your own "
        f"--train_file and --validation_file, or the built-in --task_name {MINI_PREFIX}{task.name}."
    )
    limit_waiting()
    try:
        splits = load_dataset(HUB_NAME, task.name, cache_dir=source.cache_dir)
    except Exception as error:  # network, cache and file problems each raise their own
        if is_out_of_memory(error):
            raise
        # The library's own variable is among those that switch it off.
        off = config.HF_HUB_OFFLINE
        reason = "switched off and the data not cached" if off else "out of reach or out of order"
        raise UserError(
            f"The data of {task.name!r} is on the hub ({HUB_NAME}), which is {reason}. {ways}"
        ) from error
    return _task_data(task, splits, f"the hub ({HUB_NAME}, {task.name})")


def _from_files(source: DataSource, task: Task | None) -> TaskData:
    paths = {
        "train": source.train_file,
        "validation": source.validation_file,
        "test": source.test_file,
    }
    given = {name: Path(path).expanduser() for name, path in paths.items() if path}
    keys = () if task is None else (task.sentence1_key, task.sentence2_key)
    rule = None
    if task is not None:
        rule = LabelRule.known(task.labels, f"{task.name} of GLUE", indices=True)
    elif source.classes is not None:
        rule = LabelRule.known(source.classes or None, "as the head was trained")
    own = read_files(
        given,
        source.columns,
        reading=source.reading,
        task_type=source.task_type,
        usual=[key for key in keys if key is not None],
        rule=rule,
    )
    texts = own.columns.texts
    return TaskData(
        splits=DatasetDict(own.splits),
        task=task,
        sentence1_key=texts[0],
        sentence2_key=texts[1] if len(texts) > 1 else None,
        labels=own.rule.names,
        validation_splits=("validation",) if "validation" in given else (),
        test_splits=("test",) if "test" in given else (),
        origin=", ".join(str(path) for path in given.values()),
        label_column=own.columns.label,
        understood=own.understood,
    )
