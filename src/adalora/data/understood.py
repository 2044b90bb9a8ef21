"""What a run understood of its data and its start, said before it spends time on them."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_MOST_CLASSES = 12
#: So many texts tell how many are cut.
SAMPLE = 1000


@dataclass(frozen=True)
class FileRead:
    """One set of examples: what it is for, where it is from, its rows, and what is odd about it."""

    role: str
    place: str
    rows: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Understood:
    """The facts by which a run can be seen to be the one that was meant.

    Attributes:
        files: every set of examples that was read.
        text_columns: the one or two columns of text.
        label_column: None where no label was read.
        ignored: columns of the first file that are not read.
        task_type: ``classification`` or ``regression``.
        why: of the task's type, in a few words.
        classes: class -> its rows in the first file, in the order of the model's outputs.
        label_range: lowest and highest label, for regression.
        notes: what was decided that might have been decided otherwise.
        cut: set of examples -> share of its texts that fill ``longest`` tokens, and are cut there.
        longest: ``--max_seq_length``.
        weights: where the pretrained weights are from.
        head: where the classifier's head is from.
        resumes: the checkpoint that training goes on from.
        steps: optimizer steps that remain.
    """

    files: tuple[FileRead, ...] = ()
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    ignored: tuple[str, ...] = ()
    task_type: str = "classification"
    why: str = ""
    classes: Mapping[str, int] = field(default_factory=dict)
    label_range: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    cut: Mapping[str, float] = field(default_factory=dict)
    longest: int | None = None
    weights: str | None = None
    head: str | None = None
    resumes: str | None = None
    steps: int | None = None

    def __or__(self, other: Understood) -> Understood:
        """Both, where ``other`` knows what this one does not."""
        known = {one.name: getattr(other, one.name) for one in dataclasses.fields(other)}
        nothing = vars(Understood())
        return dataclasses.replace(
            self, **{name: value for name, value in known.items() if value != nothing[name]}
        )

    def facts(self) -> list[tuple[str, str]]:
        """Name and value of each fact, in the order to show."""
        found = []
        for one in self.files:
            notes = "".join(f"; {note}" for note in one.notes)
            found.append((one.role, f"{one.rows:,} rows of {one.place}{notes}"))
        if self.text_columns:
            words = " and ".join(map(repr, self.text_columns))
            found.append(("text", f"column {words}" if len(self.text_columns) == 1 else words))
        if self.label_column is not None:
            found.append(("label", f"column {self.label_column!r}"))
        if self.ignored:
            found.append(
                (
                    "ignored",
                    ", ".join(repr(name) if name else "(nameless)" for name in self.ignored),
                )
            )
        if self.why:
            found.append(("task", f"{self.task_type}: {self.why}{self._values()}"))
        found += [("note", note) for note in self.notes]
        if self.cut and self.longest is not None:
            shares = ", ".join(f"{share:.1%} of {name}" for name, share in self.cut.items())
            found.append(("cut", f"at {self.longest} tokens (--max_seq_length): {shares}"))
        found += [
            (name, value)
            for name, value in (("weights", self.weights), ("head", self.head))
            if value is not None
        ]
        if self.steps is None and self.resumes is not None:
            found.append(("training", f"goes on from {self.resumes}"))
        if self.steps is not None:
            start = f"{self.steps:,} steps"
            found.append(
                (
                    "training",
                    f"goes on from {self.resumes}, {start} remain"
                    if self.resumes
                    else f"{start}, from the start",
                )
            )
        return found

    def _values(self) -> str:
        if self.label_range is not None:
            low, high = self.label_range
            return f"; from {low:g} to {high:g}"
        if not self.classes:
            return ""
        shown = [f"{name} ({count:,})" for name, count in self.classes.items()]
        more = f" and {len(shown) - _MOST_CLASSES:,} more" if len(shown) > _MOST_CLASSES else ""
        return f"; {len(shown)} classes: {', '.join(shown[:_MOST_CLASSES])}{more}"

    def __str__(self) -> str:
        facts = self.facts()
        width = max((len(name) for name, _ in facts), default=0) + 2
        room = max(shutil.get_terminal_size((100, 24)).columns, 40)
        return "\n".join(
            textwrap.fill(
                f"{name:<{width}}{value}",
                room,
                subsequent_indent=" " * width,
                break_long_words=False,
                break_on_hyphens=False,
            )
            for name, value in facts
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is not known is left out."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value not in (None, (), {}, "")}


def share_cut(tokenizer: Any, columns: Sequence[Sequence[str]], longest: int) -> float:
    """Share of texts, or of pairs (two ``columns``), that have more than ``longest`` tokens."""
    if not len(columns[0]):
        return 0.0
    texts = [list(column[:SAMPLE]) for column in columns]
    encoded = tokenizer(*texts, truncation=True, max_length=longest + 1)
    return sum(len(ids) > longest for ids in encoded["input_ids"]) / len(texts[0])
