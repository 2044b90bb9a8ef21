"""The table of tasks against GLUE as it is published, and how names are understood."""

from __future__ import annotations

import pytest

from adalora.errors import UserError
from adalora.glue.tasks import TASKS, resolve_task

#: Task -> (text columns, classes in the Hub's order, metrics), from the Hub's nyu-mll/glue.
PUBLISHED = {
    "cola": (("sentence", None), ("unacceptable", "acceptable"), ("matthews_correlation",)),
    "sst2": (("sentence", None), ("negative", "positive"), ("accuracy",)),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "stsb": (("sentence1", "sentence2"), None, ("pearson", "spearmanr")),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": (
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
    ),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",)),
    "rte": (("sentence1", "sentence2"), ("entailment", "not_entailment"), ("accuracy",)),
    "wnli": (("sentence1", "sentence2"), ("not_entailment", "entailment"), ("accuracy",)),
    "ax": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",)),
}


def test_the_table_is_the_published_one() -> None:
    assert {
        name: ((t.sentence1_key, t.sentence2_key), t.labels, t.metrics) for name, t in TASKS.items()
    } == PUBLISHED


def test_mnli_has_two_validation_and_two_test_sets_and_the_diagnostic_only_a_test() -> None:
    assert TASKS["mnli"].validation_splits == ("validation_matched", "validation_mismatched")
    assert TASKS["mnli"].test_splits == ("test_matched", "test_mismatched")
    assert (TASKS["ax"].validation_splits, TASKS["ax"].test_splits) == ((), ("test",))
    assert TASKS["stsb"].is_regression
    assert not TASKS["rte"].is_regression


@pytest.mark.parametrize(
    ("written", "name", "mini"),
    [
        ("cola", "cola", False),
        ("CoLA", "cola", False),
        ("STS-B", "stsb", False),
        ("SST-2", "sst2", False),
        ("diagnostic", "ax", False),
        ("mini-sst2", "sst2", True),
        ("MINI-STS-B", "stsb", True),
    ],
)
def test_names_are_understood_as_people_write_them(written: str, name: str, mini: bool) -> None:
    task, is_mini = resolve_task(written)
    assert (task.name, is_mini) == (name, mini)


@pytest.mark.parametrize(
    ("written", "nearest"), [("colla", "'cola'"), ("mini-sst", "'mini-sst2'"), ("mnil", "'mnli'")]
)
def test_a_mistyped_name_is_answered_with_the_nearest(written: str, nearest: str) -> None:
    with pytest.raises(UserError, match="did you mean") as caught:
        resolve_task(written)
    assert repr(written) in str(caught.value)
    assert nearest in str(caught.value)


def test_a_name_like_no_other_is_answered_with_all_of_them() -> None:
    with pytest.raises(UserError) as caught:
        resolve_task("zzzzzz")
    assert "did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in PUBLISHED)
