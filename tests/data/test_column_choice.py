"""Columns by plain names or by flags; where more than one choice is left it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from adalora.data.column_choice import Asked, Columns, choose_columns, plain, same_columns
from adalora.data.table_reader import Row, Table
from adalora.errors import UserError


def table(columns: str, *rows: tuple[Any, ...]) -> Table:
    """A table by the names of its columns; without rows each cell is a text of its own."""
    names = tuple(columns.split(","))
    cells = rows or tuple(tuple(f"{name} in words {n}" for name in names) for n in range(3))
    read = (Row(n, n + 1, list(row)) for n, row in enumerate(cells, start=1))
    return Table("a.csv", "csv", names, _rows=read)


@pytest.mark.parametrize(
    ("columns", "texts", "label"),
    [
        ("text,label", "text", "label"),
        ("id,keyword,location,text,target", "text", "target"),
        (",text,label", "text", "label"),
        ("Unnamed: 0,Review Text,Stars", "Review Text", "Stars"),
        ("__index_level_0__,SENTENCE,Label", "SENTENCE", "Label"),
        ("id,qid1,qid2,question1,question2,is_duplicate", "question1,question2", "is_duplicate"),
        ("uid,context,hypothesis,label,model_label,reason", "context,hypothesis", "label"),
        ("pairID,Premise,Hypothesis,gold_label", "Premise,Hypothesis", "gold_label"),
        ("label,sentence2,sentence1,text", "sentence1,sentence2", "label"),
        ("question,sentence,label", "question,sentence", "label"),
        ("text,label,label_text", "text", "label"),
        ("tweet_id,airline,tweet,sentiment", "tweet", "sentiment"),
        ("utterance,intent", "utterance", "intent"),
        ("reviewText,overall", "reviewText", "overall"),
        ("complaint text,Category", "complaint text", "Category"),
        ("words,label", "words", "label"),
        ("user_id,created_at,words,class", "words", "class"),
        ("score,text,label", "text", "label"),
        ("Class Index,Description", "Description", "Class Index"),
        ("text_a,text_b,label", "text_a,text_b", "label"),
    ],
)
def test_plain_names_are_recognised_in_any_case(columns: str, texts: str, label: str) -> None:
    found = choose_columns(table(columns))
    assert (found.texts, found.label) == (tuple(texts.split(",")), label)
    assert {*found.texts, found.label, *found.ignored} == set(columns.split(","))


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3],
        ["1", "2.5", "-3"],
        ["12,5", "3,0", "80%"],
        ["2024-01-31", "2024-02-01 12:30", "2023/5/6"],
        ["31.01.2024", "1.2.24", "03/04/2021 10:00"],
        ["d41d8cd98f00b204e9800998ecf8427e", "0cc175b9c0f1b6a831c399e269772661"],
        ["3f2504e0-4f89-11d3-9a0c-0305e82c3301", "3f2504e0-4f89-11d3-9a0c-0305e82c3302"],
        [None, "", None],
        [[1], [2]],
        [b"a", b"b"],
        [True, False],
    ],
)
def test_numbers_dates_and_hashes_are_never_taken_for_texts(values: list[Any]) -> None:
    rows = [(value, f"some words {n}", "x") for n, value in enumerate(values)]
    found = choose_columns(table("col,words,label", *rows))
    assert found == Columns(("words",), "label", ("col",))
    with pytest.raises(UserError, match="has no column of text that is plainly one"):
        choose_columns(table("col,label", *((value, "x") for value in values)))


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            "keyword,location,label",
            "more than one column that may be the text: 'keyword', 'location'",
        ),
        ("title,content,label", "'title', 'content'; name it with --text_column"),
        (
            "premise,hypothesis,question,answer,label",
            "'premise', 'hypothesis', 'question', 'answer'",
        ),
        ("question,passage,answer,label", "'question', 'passage', 'answer'"),
        ("premise,text,label", "'premise', 'text'"),
        ("text,score,sentiment", "may be the label: 'score', 'sentiment'"),
        ("text,keyword", "has no column 'label', nor another that is plainly the label"),
        ("text", "Name it with --label_column"),
        ("id,date,label", "has no column of text that is plainly one; its columns are 'id'"),
        ("label,idx", "no column of text"),
        ("Unnamed: 0,index,uid,user_id,qid1,timestamp,year,label", "no column of text"),
    ],
)
def test_more_than_one_choice_or_none_is_refused(columns: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        choose_columns(table(columns))
    assert says in str(caught.value)
    assert "_column" in str(caught.value)


def test_flags_decide() -> None:
    columns = "title,content,when,kind"
    one = choose_columns(table(columns), Asked("content", None, "kind"))
    assert one == Columns(("content",), "kind", ("title", "when"))
    two = choose_columns(table(columns), Asked("Title", "content", "KIND"))
    assert two == Columns(("title", "content"), "kind", ("when",))
    assert choose_columns(table("text,score,label"), Asked(label="score")).label == "score"
    # A task's own columns count where they are all there.
    task = choose_columns(table("extra,text,sentence,label"), usual=("sentence",))
    assert task.texts == ("sentence",)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"text": "words"},
            "--text_column 'words': a.csv has no such column; its columns are 'text'",
        ),
        ({"text": "text", "pair": "b"}, "--pair_column 'b'"),
        ({"label": "b"}, "--label_column 'b'"),
        ({"pair": "text"}, "name the first with --text_column"),
        ({"text": "text", "pair": "text"}, "name one column twice"),
        ({"text": "label"}, "no column 'label', nor another"),
        ({"text": "text", "label": "TEXT"}, "'text' is the text and the label"),
    ],
)
def test_flags_that_name_nothing_are_refused(asked: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        choose_columns(table("text,label"), Asked(**asked))
    assert says in str(caught.value)


def test_another_file_needs_the_same_columns() -> None:
    wanted = Columns(("text",), "label", ())
    for columns in ("text,label", "LABEL,x,Text"):
        found = same_columns(table(columns), wanted, like="the model", with_label=True)
        assert [plain(name) for name in (*found.texts, str(found.label))] == ["text", "label"]
    same_columns(table("text"), wanted, like="the model", with_label=False)
    for columns, says in {
        "words,label": "its columns are 'words', 'label', and those of the model are 'text', 'lab",
        "text,stars": "name them with --label_column",
        "Text,TEXT,label": "no column 'text'",
    }.items():
        with pytest.raises(UserError, match=says):
            same_columns(table(columns), wanted, like="the model", with_label=True)
