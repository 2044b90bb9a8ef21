"""The rows of one file as an Arrow table: read once, checked, and on disk where they are many."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Value
from datasets.table import InMemoryTable

from adalora.data.column_choice import Columns
from adalora.data.label_rule import LabelRule, Labels
from adalora.data.table_reader import Row, Table
from adalora.errors import UserError

_BATCH = 1000
# Above this the rows go to a file, which is mapped into memory.
_MOST_IN_MEMORY = 32 * 2**20


@dataclass(frozen=True)
class Stored:
    """The rows of a file.

    Attributes:
        texts: a column of strings for each text, named as the columns of training.
        written: the labels as they are written, a chunk for each batch; empty without labels.
        labels: their tally; None without labels.
        unlabelled: rows that were left out because their label is -1, which says that it is none.
        digest: of texts and labels.
    """

    texts: pa.Table
    written: list[pa.Array]
    labels: Labels | None
    unlabelled: int
    digest: str

    def as_dataset(self, rule: LabelRule | None) -> Dataset:
        """Texts, ``label`` (class index, float32, or -1 where there is no label) and ``idx``.

        Raises:
            UserError: if a label is no number, or none of the rule's classes.
        """
        rows, names = self.texts.num_rows, None if rule is None else rule.names
        number = Value("float32") if rule is not None and rule.is_regression else None
        label = number or (ClassLabel(names=list(names)) if names else Value("int64"))
        kind = pa.float32() if number else pa.int64()
        if self.labels is None or rule is None:
            values = pa.array([-1] * rows, kind)
        else:
            known = {one.written: value for one, value in rule.targets(self.labels).items()}
            # Of very many numbers the tally keeps the range alone.
            values = pa.chunked_array(
                [
                    pa.array(
                        [known[w] if w in known else float(w) for w in chunk.to_pylist()], kind
                    )
                    for chunk in self.written
                ],
                kind,
            )
        table = self.texts.append_column("label", values)
        table = table.append_column("idx", pa.array(range(rows), pa.int32()))
        texts = {name: Value("string") for name in self.texts.column_names}
        features = Features({**texts, "label": label, "idx": Value("int32")})
        fingerprint = hashlib.sha256(f"{self.digest} {names}".encode()).hexdigest()[:16]
        return Dataset(
            InMemoryTable(table), info=DatasetInfo(features=features), fingerprint=fingerprint
        )


def store(
    table: Table,
    columns: Columns,
    names: Sequence[str],
    *,
    with_label: bool,
    no_label: bool = False,
) -> Stored:
    """Read every row of ``table``.

    Args:
        table: open.
        columns: of this file.
        names: what its text columns are called from here on.
        with_label: whether its labels are read.
        no_label: whether -1 is the absence of a label; a schema that names classes says so too.

    Raises:
        UserError: on the first row that cannot be used, or if there is none.
    """
    label = columns.label if with_label else None
    classes = table.class_names.get(label or "")
    labels = None if label is None else Labels(table.place)
    sink = _Sink(pa.schema([(name, pa.string()) for name in names]))
    written: list[pa.Array] = []
    digest, unlabelled = hashlib.sha256(), 0
    rows = table.rows([*columns.texts, *([] if label is None else [label])])
    while batch := list(itertools.islice(rows, _BATCH)):
        if labels is not None:
            kept = []
            for row in batch:
                value = row.cells[-1]
                if (no_label or classes) and value in (-1, "-1"):
                    unlabelled += 1
                else:
                    kept.append(
                        (row, labels.add(_named(value, classes, table, row), table.where(row)))
                    )
            batch = [row for row, _ in kept]
            written.append(pa.array([one.written for _, one in kept], pa.string()))
            digest.update("\0".join(one.written for _, one in kept).encode())
        texts = [
            [table.text(row, position, name) for row in batch]
            for position, name in enumerate(columns.texts)
        ]
        for column in texts:
            digest.update(repr([len(text) for text in column]).encode())
            digest.update("".join(column).encode())
        sink.write([pa.array(column, pa.string()) for column in texts])
    stored = Stored(sink.table(), written, labels, unlabelled, digest.hexdigest())
    if not stored.texts.num_rows:
        found = f": the label of all {unlabelled:,} rows is -1, which is none" if unlabelled else ""
        raise UserError(f"{table.place} holds no examples{found}.")
    return stored


def _named(value: Any, classes: Sequence[str] | None, table: Table, row: Row) -> Any:
    """A label, which is the place of its class where the file's schema has names for them."""
    if classes is None or isinstance(value, bool) or not isinstance(value, int):
        return value
    if not 0 <= value < len(classes):
        raise UserError(
            f"{table.where(row)}: the label {value} is none of the {len(classes)} classes that the "
            "file's schema names."
        )
    return classes[value]


class _Sink:
    """Batches of rows, kept in memory as long as they are few."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._batches, self._bytes = schema, list[pa.RecordBatch](), 0
        self._writer: Any = None
        self._path: Path | None = None

    def write(self, columns: list[pa.Array]) -> None:
        batch = pa.record_batch(columns, schema=self._schema)
        self._batches.append(batch)
        self._bytes += batch.nbytes
        if self._writer is None and self._bytes > _MOST_IN_MEMORY:
            file = _temporary_file()
            self._path = Path(file.name)
            self._writer = pa.ipc.new_stream(file, self._schema)
            self._file = file
        if self._writer is not None:
            for one in self._batches:
                self._writer.write_batch(one)
            self._batches.clear()

    def table(self) -> pa.Table:
        if self._path is None:
            return pa.Table.from_batches(self._batches, self._schema)
        self._writer.close()
        self._file.close()
        with pa.ipc.open_stream(pa.memory_map(str(self._path))) as reader:
            table = reader.read_all()
        # The map holds the content, and nothing is left on disk when the process ends.
        with contextlib.suppress(OSError):
            self._path.unlink()
        return table


def _temporary_file() -> Any:
    """A file where the data sets library keeps its own, or in the system's folder."""
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.NamedTemporaryFile(dir=folder, suffix=".arrow", delete=False)
    return tempfile.NamedTemporaryFile(suffix=".arrow", delete=False)
