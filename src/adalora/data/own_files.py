"""The user's files of one run, read together: the first of them decides for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from adalora.data.column_choice import NOTHING_ASKED, Asked, Columns, choose_columns, same_columns
from adalora.data.label_rule import LabelRule, Labels, rule_of
from adalora.data.stored_rows import Stored, store
from adalora.data.table_reader import USUAL, Reading, Table, open_file
from adalora.data.understood import FileRead, Understood
from adalora.errors import UserError


@dataclass(frozen=True)
class OwnFiles:
    """Data sets by name, and how their columns and labels were read."""

    splits: dict[str, Dataset]
    columns: Columns
    rule: LabelRule
    understood: Understood


def read_files(
    paths: Mapping[str, Path],
    asked: Asked = NOTHING_ASKED,
    *,
    reading: Reading = USUAL,
    task_type: str | None = None,
    usual: Sequence[str] = (),
    rule: LabelRule | None = None,
    wanted: Columns | None = None,
) -> OwnFiles:
    """Read every file once.

    Args:
        paths: name -> file, at least one; the labels of one that is called "test" are not looked
            at, as in the original: predictions are for it.
        asked: the columns that the user named.
        reading: quotation marks and encoding.
        task_type: what the user says the labels are.
        usual: text columns that count where they are all there.
        rule: for the labels, where they are known; None to find it in the first file.
        wanted: the columns, where a model knows them; None to choose them in the first file.

    Raises:
        UserError: if a file, a row, a column or a label cannot be used, or may be read in two ways.
    """
    columns, like = wanted, "the model"
    stored: dict[str, Stored] = {}
    read: list[FileRead] = []
    names: tuple[str, ...] | None = None
    ignored: tuple[str, ...] | None = None
    for name, path in paths.items():
        labelled = name != "test"
        with open_file(path, reading) as table:
            _refuse_official(table, reading)
            if columns is None:
                columns = choose_columns(table, asked, usual=usual, with_label=labelled)
                own, like = columns, f"the {'training' if name == 'train' else name} file"
            else:
                own = same_columns(table, columns, like=like, with_label=labelled, asked=asked)
            if ignored is None:
                names, ignored = table.class_names.get(own.label or ""), own.ignored
            rows = store(
                table,
                own,
                columns.texts,
                with_label=labelled,
                no_label=rule is not None and rule.indices,
            )
        stored[name] = rows
        left_out = f"{rows.unlabelled:,} more have no label (-1) and are left out"
        notes = (*table.notes, *([left_out] if rows.unlabelled else []))
        read.append(FileRead(name, str(path), rows.texts.num_rows, notes))
    if columns is None:
        raise ValueError("no file was given")
    labels = next((rows.labels for rows in stored.values() if rows.labels is not None), None)
    if rule is None:
        if labels is None:
            raise UserError("Only a test file was given; labels are known from training data.")
        rule = rule_of(labels, task_type=task_type, names=names)
    return OwnFiles(
        {name: rows.as_dataset(rule) for name, rows in stored.items()},
        columns,
        rule,
        _understood(columns, rule, labels, tuple(read), ignored or ()),
    )


def _understood(
    columns: Columns,
    rule: LabelRule,
    labels: Labels | None,
    files: tuple[FileRead, ...],
    ignored: tuple[str, ...],
) -> Understood:
    counts = dict.fromkeys(rule.names or (), 0)
    label_range = None
    if labels is not None:
        targets = rule.targets(labels)
        if rule.names is None:
            label_range = (min(targets.values()), max(targets.values()))
        else:
            for label, index in targets.items():
                counts[rule.names[int(index)]] += labels.seen[label].count
    return Understood(
        files=files,
        text_columns=columns.texts,
        label_column=None if labels is None else columns.label,
        ignored=ignored,
        task_type="regression" if rule.is_regression else "classification",
        why=rule.why,
        classes=counts,
        label_range=label_range,
        notes=rule.notes,
    )


#: What no other file has in its header, by the folder of GLUE's official download.
_OFFICIAL = {
    "MNLI": {"promptID", "pairID", "sentence1_binary_parse"},
    "QQP": {"id", "qid1", "qid2", "question1", "question2"},
    "STS-B": {"old_index", "source1", "source2"},
    "MRPC": {"#1 ID", "#2 ID", "#1 String", "#2 String"},
}
#: Headers that are not theirs alone; read well where quotation marks are characters.
_ALIKE = {
    "QNLI": ("index", "question", "sentence"),
    "RTE or WNLI": ("index", "sentence1", "sentence2"),
}


def _refuse_official(table: Table, reading: Reading) -> None:
    """GLUE's official files have rules of their own, which ``--data_dir`` knows."""
    if table.form != "tsv":
        return
    names = table.columns
    found = next((task for task, own in _OFFICIAL.items() if own <= set(names)), None)
    if len(names) == 4 and names[1] in ("0", "1") and names[2] in ("", "*"):
        found = "CoLA"
    for task, own in _ALIKE.items():
        if reading.quotes and names in (own, (*own, "label")):
            found = task
    if found is not None:
        task = found.split()[0].lower().replace("-", "")
        raise UserError(
            f"{table.place} is laid out as the official {found} of GLUE, where quotation marks are "
            f"characters; give --task_name {task} --data_dir FOLDER, which reads it as it is meant."
        )
