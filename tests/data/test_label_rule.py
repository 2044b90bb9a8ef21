"""The rule for labels: numbers only where nothing would be lost, and no two classes made one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adalora.data import label_rule
from adalora.data.label_rule import LabelRule, Labels, rule_of
from adalora.errors import UserError


def tally(values: Sequence[Any]) -> Labels:
    labels = Labels("a.csv")
    for row, value in enumerate(values, start=1):
        labels.add(value, f"a.csv, line {row + 1}")
    return labels


def targets(values: Sequence[Any], rule: LabelRule) -> list[float]:
    labels = tally(values)
    found = rule.targets(labels)
    return [found[label_rule.label_of(value, "x")] for value in values]


# --- what is decided ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["pos", "neg", "pos"], ("neg", "pos")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        ([3, 1, 3], ("1", "3")),
        (["1.0", "2.0", "3.0"], ("1", "2", "3")),
        ([1.0, 0.0, 1.0], ("0", "1")),
        (["0117", "117", "0118"], ("0117", "0118", "117")),
        (["1_1", "11", "1_2"], ("11", "1_1", "1_2")),
        (["01.17", "11.7", "01.18"], ("01.17", "01.18", "11.7")),
        (["3.10", "3.1", "3.9"], ("3.1", "3.10", "3.9")),
        (["1e3", "1000", "2e3"], ("1000", "1e3", "2e3")),
        (["+1", "-1"], ("+1", "-1")),
        (["١", "٢"], ("١", "٢")),  # digits, which Python reads as numbers
        (["1", "2", "three"], ("1", "2", "three")),
        ([" pos ", " neg "], (" neg ", " pos ")),
        (["1.5", "beta", "alpha"], ("1.5", "alpha", "beta")),
        (["9" * 40, "8" * 40], ("8" * 40, "9" * 40)),
        ([True, False], ("False", "True")),
        (["true", "false"], ("false", "true")),
        (["none", "some"], ("none", "some")),
        (["1.0", "2"], ("1", "2")),
    ],
)
def test_labels_are_classes_as_they_are_written(values: list[Any], names: tuple[str, ...]) -> None:
    rule = rule_of(tally(values))
    assert rule.names == names
    assert len(set(targets(values, rule))) == len(names)


@pytest.mark.parametrize(
    "values",
    [
        ["0.5", "1.0", "-2.0"],
        ["0.5", "3", "1e-05"],
        [0.25, 1, 3.0],
        [str(float(n)) for n in range(21)],
        ["0.5", "0.25"],
    ],
)
def test_decimal_numbers_are_numbers_and_that_is_said(values: list[Any]) -> None:
    rule = rule_of(tally(values))
    assert rule.names is None
    assert "--task_type classification" in "".join(rule.notes)
    assert targets(values, rule) == list(map(float, values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["1.0", "2.0"], "the labels 1.0, 2.0 are whole and few"),
        (["-1", "0", "1"], "-1 is a class like the others"),
        (["007", "7"], "'007' would lose something as a number"),
        (["no", "-", "yes"], "'-' is a class like the others; leave its rows out"),
        (["Pos", "pos"], "'Pos' and 'pos' differ in case alone"),
    ],
)
def test_what_might_have_been_decided_otherwise_is_said(values: list[str], said: str) -> None:
    assert said in "; ".join(rule_of(tally(values)).notes)


@pytest.mark.parametrize(
    ("values", "asked", "expected"),
    [
        (["0", "1", "2"], "regression", [0, 1, 2]),
        (["3.10", "007", "1e3"], "regression", [3.1, 7, 1000]),
        (["0.5", "0.25", "0.5"], "classification", [1, 0, 1]),
        (["1.0", "2.0", "1"], "classification", [1, 2, 0]),
        (["0,5", "0,7"], "classification", [0, 1]),
        (["1", "n/a"], "classification", [0, 1]),
        ([str(n) for n in range(30)], "classification", list(range(30))),
    ],
)
def test_the_task_type_decides(values: list[str], asked: str, expected: list[float]) -> None:
    assert targets(values, rule_of(tally(values), task_type=asked)) == expected


@pytest.mark.parametrize(
    ("values", "asked", "says"),
    [
        (["a", "", "b"], None, "line 3: the label is missing"),
        (["a", "  "], None, "line 3: the label is missing"),
        ([1, None], None, "line 3: the label is missing (None)"),
        ([0.5, math.nan], None, "line 3: the label is missing"),
        ([["a", "b"]], None, "line 2: the label is a list (['a', 'b'])"),
        ([{"a": 1}], None, "line 2: the label is {'a': 1}"),
        ([b"a"], None, "where a word or a number is expected"),
        (["a", "b"], "multilabel", "--task_type multilabel is not built yet"),
        (["x", "x"], None, "every label is 'x'; at least two classes"),
        (["pos", "neg", " pos "], None, "line 4: the label ' pos ' looks like 'pos'"),
        (["a b", "c", "a\u00a0b"], None, "looks like 'a b'"),
        (["\u00e9", "c", "e\u0301"], None, "looks like"),
        (["true", "0"], None, "line 3: the label 0 stands beside true"),
        (["1", "False"], None, "stands beside False"),
        ([True, 0], None, "the label 0 stands beside True"),
        ([1, "one"], None, "partly numbers ('1') and partly words ('one'"),
        (["0.5", "nan", "0.7"], None, "line 3: the label is 'nan' among numbers"),
        (["0.5", "1e999"], None, "line 3: the label is '1e999' among numbers"),
        (["0.5", "0.7", "high"], None, "line 4: the label is 'high' among numbers"),
        (["0", "1", "NA"], None, "line 4: the label is 'NA' among numbers"),
        (["0,5", "1,25"], None, "may be a number with a decimal comma"),
        (["1", "2", "1.0"], None, "line 4: the label '1.0' is the same number as '1'"),
        ([f"text {n}" for n in range(30)], None, "30 different labels in 30 rows"),
        ([str(n) for n in range(30)], None, "30 different labels in 30 rows"),
        (["x" * 300, "y"], None, "has 300 characters"),
        (["a", "\ud800"], None, "line 3: the label '\\ud800' is half of a surrogate pair"),
        (["0.5", "high"], "regression", "line 3: the label 'high' is no number"),
        (["1", "1_1"], "regression", "the label '1_1' is no number"),
        (["1", "inf"], "regression", "the label 'inf' is no number"),
    ],
)
def test_labels_that_may_be_read_in_two_ways_or_in_none_are_refused(
    values: list[Any], asked: str | None, says: str
) -> None:
    with pytest.raises(UserError) as caught:
        rule_of(tally(values), task_type=asked)
    assert says in str(caught.value)


# --- other files by the same rule -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "others", "expected"),
    [
        (["1.0", "2.0"], ["2", "1.0"], [1, 0]),
        (["1", "2"], ["2.0", 1, 2.0], [1, 0, 1]),
        (["a", "b"], ["B", "a"], [1, 0]),
        (["007", "7"], ["7", "007"], [1, 0]),
        (["0.5", "1.5"], ["2", "3.10"], [2, 3.1]),
    ],
)
def test_labels_of_other_files_are_matched_by_name(
    training: list[str], others: list[Any], expected: list[float]
) -> None:
    assert targets(others, rule_of(tally(training))) == expected


@pytest.mark.parametrize(
    ("training", "label"),
    [(["a", "b"], "eggs"), (["a", "b"], "0"), (["007", "7"], "07"), (["1", "2"], "1.5")],
)
def test_a_label_that_training_lacks_is_refused_by_its_line(
    training: list[str], label: str
) -> None:
    with pytest.raises(UserError, match=f"line 3: the label '{label}' does not occur in training"):
        targets([training[0], label], rule_of(tally(training)))


def test_places_stand_for_the_names_of_a_glue_task_alone() -> None:
    task = LabelRule.known(("no", "yes"), "a task", indices=True)
    assert targets([1, 0], task) == targets(["1.0", "0"], task) == targets(["yes", "no"], task)
    for values in ([2], ["yes", "1"]):
        with pytest.raises(UserError, match="does not occur"):
            targets(values, task)
    with pytest.raises(UserError, match="does not occur"):
        targets([1], LabelRule.known(("no", "yes"), "a model"))


# --- laws -----------------------------------------------------------------------------------------

WRITTEN = (
    st.sampled_from("0 1 2 -1 007 7 1_1 11 3.10 3.1 0.5 1.0 2.0 1e3 pos neg true nan ½".split())
    | st.integers(-3, 30).map(str)
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=4)
)


@given(values=st.lists(WRITTEN, min_size=2, max_size=12))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_no_label_loses_anything_and_no_two_become_one(values: list[str]) -> None:
    try:
        rule = rule_of(tally(values))
    except UserError:
        return
    found = targets(values, rule)
    if rule.names is None:
        for value, number in zip(values, found, strict=True):
            assert value in (repr(number), str(int(number)) if number.is_integer() else None)
        return
    classes: dict[float, set[str]] = {}
    for value, place in zip(values, found, strict=True):
        classes.setdefault(place, set()).add(value)
        name = rule.names[int(place)]
        assert name == value or (rule.numbers and float(name) == float(value))
    assert all(len(same) == 1 for same in classes.values())


def test_of_very_many_numbers_the_range_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_rule, "_MOST_DISTINCT", 10)
    values = [str(n + 0.5) for n in (*range(50, 100), *range(50))]
    labels = tally(values)
    assert len(labels.seen) == 10
    assert sum(seen.count for seen in labels.seen.values()) == 100
    numbers = rule_of(labels).targets(labels).values()
    assert (min(numbers), max(numbers)) == (0.5, 99.5)
