"""Which columns hold the texts and the label: by plain names, by flags, and never by guess."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adalora.errors import UserError

if TYPE_CHECKING:
    from adalora.data.table_reader import Table

#: Pairs that are plainly the texts, the first one first.
_PAIRS = (
    *(("premise", "hypothesis"), ("context", "hypothesis"), ("question", "answer")),
    *(("question1", "question2"), ("question", "sentence"), ("question", "context")),
    *(("question", "passage"), ("query", "passage"), ("query", "document"), ("query", "text")),
    *(("query", "title"), ("query", "answer"), ("text1", "text2"), ("text_1", "text_2")),
    *(("text", "text_pair"), ("text_a", "text_b"), ("texta", "textb"), ("s1", "s2")),
    *(("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"), ("sent1", "sent2")),
    *(("question_1", "question_2"), ("sentence", "sentence_pair"), ("claim", "evidence")),
    *(("first", "second"), ("text", "hypothesis"), ("string1", "string2")),
)
#: As the original documents them: they win over every other name.
_SENTENCES = ("sentence1", "sentence2")
_TEXTS = frozenset(
    "text texts sentence sentences review reviews content contents comment comments tweet message "
    "title headline body abstract description document utterance post question query passage "
    "paragraph snippet sms email subject summary article input inputs sentence_text review_text "
    "review_body review_title reviewtext comment_text tweet_text text_body clean_text full_text "
    "message_text verse statement claim phrase feedback transcript transcription "
    "narrative complaint".split()
)
_LABELS = frozenset(
    "label labels category categories target targets score scores class classes sentiment stars "
    "star_rating rating ratings intent topic emotion polarity y gold_label label_name class_index "
    "class_label class_name labelled_class gold is_duplicate similarity relatedness_score "
    "overall".split()
)
_NAMED = {
    "an index": re.compile(
        r"(unnamed[:_ ]*\d*|_*index_level_\d+_*|_*index\d*_*|idx|row|row_?(number|nr|no|num)|nr|no|"
        r"number|num|sno|s_no|rank|#|_c0|v0|x)"
    ),
    "an id": re.compile(r"((.*_)?ids?(_.*)?|[a-z]{1,2}id\d*|uuid|guid|hash|md5|sha1|sha256|key)"),
    "a date": re.compile(
        r"(.*_)?(date|time|datetime|timestamp|year|month|day)(_.*)?|.*_at|dates?|created|updated"
    ),
}
_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?([T ]\d{1,2}:\d{2}.*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}( .*)?|"
    r"\d{1,2}:\d{2}(:\d{2})?"
)
_HASH = re.compile(r"[0-9a-f]{8,}(-[0-9a-f]{4,}){0,4}", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """What was chosen: one or two columns of text, the label's (None for none), and the rest."""

    texts: tuple[str, ...]
    label: str | None
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Asked:
    """The columns that the user named; None for those that are left to be found."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.pair is not None and self.text is None:
            raise UserError(
                f"--pair_column {self.pair!r} names the second text; name the first with "
                "--text_column."
            )
        named = [name for name in (self.text, self.pair, self.label) if name is not None]
        if len(set(named)) < len(named):
            raise UserError(
                f"--text_column, --pair_column and --label_column name one column twice: "
                f"{', '.join(map(repr, named))}."
            )

    @property
    def texts(self) -> tuple[str, ...]:
        """The text columns that were named."""
        return tuple(name for name in (self.text, self.pair) if name is not None)


NOTHING_ASKED = Asked()


def plain(name: str) -> str:
    """``name`` as it is compared: ``Review Text``, ``review-text`` and ``reviewText`` are alike."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\s.\-]+", "_", parted).casefold()


def is_known(name: str) -> bool:
    """Whether ``name`` is plainly that of texts or of a label."""
    return plain(name) in _KNOWN


_KNOWN = _TEXTS | _LABELS | {*_SENTENCES, *(name for pair in _PAIRS for name in pair)}


def choose_columns(
    table: Table,
    asked: Asked = NOTHING_ASKED,
    *,
    usual: Sequence[str] = (),
    with_label: bool = True,
    count: int | None = None,
) -> Columns:
    """The columns of ``table`` to read.

    Args:
        table: of the training data, or what stands for it.
        asked: the columns that the user named.
        usual: those of the GLUE task that was named, which count where they are all there.
        with_label: whether a label is needed.
        count: how many texts there must be, 1 or 2; None for either.

    Raises:
        UserError: if one that was named is missing, or more than one choice, or none, is left.
    """
    label = _label(table, asked) if with_label else _one_of(table, asked.label)
    texts = tuple(_named(table, name, flag) for name, flag in _flagged(asked))
    if not texts:
        texts = _texts(table, usual, label, count)
    if label in texts:
        raise UserError(
            f"{table.place}: {label!r} is the text and the label; name another with --text_column "
            "or --label_column."
        )
    rest = tuple(name for name in table.columns if name not in (*texts, label))
    return Columns(texts, label, rest)


def same_columns(
    table: Table,
    wanted: Columns,
    *,
    like: str,
    with_label: bool,
    asked: Asked = NOTHING_ASKED,
) -> Columns:
    """The columns of another file that ``wanted`` names; letters may differ in their case.

    Args:
        table: of the other file.
        wanted: as they were chosen.
        like: who has them, for the sentence, such as "the training file".
        with_label: whether the label is needed; where ``wanted`` has none it is chosen.
        asked: the label's column, where the user named it.

    Raises:
        UserError: if one is missing; both sets are named.
    """
    names = list(wanted.texts)
    if with_label:
        names.append(wanted.label or _label(table, asked))
    found = [_one_of(table, name) for name in names]
    missing = [name for name, one in zip(names, found, strict=True) if one is None]
    if missing:
        flag = "--text_column" if set(missing) & set(wanted.texts) else "--label_column"
        raise UserError(
            f"{table.place} has no column {' and none '.join(map(repr, missing))}, which {like} "
            f"has; its columns are {_listed(table.columns)}, and those of {like} are "
            f"{_listed(names)}. Give it the same names, or name them with {flag}."
        )
    chosen = [name for name in found if name is not None]
    texts = tuple(chosen[: len(wanted.texts)])
    label = chosen[-1] if len(chosen) > len(texts) else None
    rest = tuple(name for name in table.columns if name not in chosen)
    return Columns(texts, label, rest)


def _flagged(asked: Asked) -> list[tuple[str, str]]:
    flags = (("--text_column", asked.text), ("--pair_column", asked.pair))
    return [(name, flag) for flag, name in flags if name is not None]


def _one_of(table: Table, name: str | None) -> str | None:
    """The column called ``name``, or the only one that differs in case and spaces alone."""
    if name is None or name in table.columns:
        return name
    alike = [column for column in table.columns if plain(column) == plain(name)]
    return alike[0] if len(alike) == 1 else None


def _named(table: Table, name: str, flag: str) -> str:
    found = _one_of(table, name)
    if found is None:
        raise UserError(
            f"{flag} {name!r}: {table.place} has no such column; its columns are "
            f"{_listed(table.columns)}."
        )
    return found


def _label(table: Table, asked: Asked) -> str:
    if asked.label is not None:
        return _named(table, asked.label, "--label_column")
    others = [name for name in table.columns if name not in asked.texts]
    exact = [name for name in others if plain(name) == "label"]
    known = exact or [name for name in others if plain(name) in _LABELS]
    if len(known) == 1:
        return known[0]
    if known:
        raise UserError(
            f"{table.place} has more than one column that may be the label: {_listed(known)}; name "
            "it with --label_column."
        )
    raise UserError(
        f"{table.place} has no column {'label'!r}, nor another that is plainly the label; its "
        f"columns are {_listed(table.columns)}. Name it with --label_column."
    )


def _texts(
    table: Table, usual: Sequence[str], label: str | None, count: int | None
) -> tuple[str, ...]:
    there = {plain(name): name for name in table.columns if name != label}
    for names in (tuple(usual), _SENTENCES):
        if names and set(names) <= there.keys() and count in (None, len(names)):
            return tuple(there[name] for name in names)
    known = [name for key, name in there.items() if key in _KNOWN - _LABELS]
    pairs = [
        (there[first], there[second])
        for first, second in _PAIRS
        if first in there and second in there
    ]
    if count != 1 and len(pairs) == 1 and set(known) <= set(pairs[0]):
        return pairs[0]
    if count != 2 and len(known) == 1:
        return (known[0],)
    left = known or _unknown(table, label)
    if len(left) == 1 and count != 2:
        return (left[0],)
    if not left or (count == 2 and len(left) < 2):
        needed = "two columns of text" if count == 2 else "a column of text"
        raise UserError(
            f"{table.place} has no {needed.removeprefix('a ')} that is plainly one; its columns "
            f"are {_listed(table.columns)}. Name {needed} with --text_column"
            f"{' and --pair_column' if count == 2 else ''}."
        )
    raise UserError(
        f"{table.place} has more than one column that may be the text: {_listed(left)}; name it "
        "with --text_column, and the second text of pairs with --pair_column."
    )


def _unknown(table: Table, label: str | None) -> list[str]:
    """The columns of no known name that may be texts: no index, id, date or number."""
    sample = table.sample()
    left = []
    for position, name in enumerate(table.columns):
        key = plain(name)
        if name == label or not key or key in _LABELS:
            continue
        if any(pattern.fullmatch(key) for pattern in _NAMED.values()):
            continue
        if _are_texts([row[position] for row in sample]):
            left.append(name)
    return left


def _are_texts(values: Sequence[Any]) -> bool:
    """Whether the values of a column may be texts: no numbers, dates, hashes, and not all empty."""
    there = [value for value in values if value is not None and value != ""]
    if not there:
        return False
    if not all(isinstance(value, str) for value in there):
        return False
    return not any(
        all(test(value.strip()) for value in there)
        for test in (_is_number, _DATE.fullmatch, _HASH.fullmatch)
    )


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ".", 1).rstrip("%"))
    except ValueError:
        return False
    return True


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
