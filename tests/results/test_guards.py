"""Each guard finds its own kind of a run gone wrong, and none finds anything in a sound run."""

from __future__ import annotations

import math
from typing import Any

import pytest

from adalora.results.guards import Evidence, find_warnings

SOUND: dict[str, Any] = {
    "answers": {"validation": ["yes", "no"]},
    "losses": {"loss at step 1": 0.7, "eval_loss": 0.6},
    "scores": {
        "validation": {
            "main": "accuracy",
            "saved": {"accuracy": 0.8},
            "best": None,
            "best_epoch": None,
            "majority": 0.5,
            "samples": 10,
        }
    },
    "prunes": True,
    "init_rank": 4,
    "rank_pattern": {"a.lora_E": 4, "b.lora_E": 0},
    "mask_events": 3,
    "moved": True,
    "update_is_zero": False,
    "skipped_steps": 0,
    "steps": 10,
}


def kinds(**changes: Any) -> list[str]:
    return [warning["kind"] for warning in find_warnings(Evidence(**{**SOUND, **changes}))]


def test_nothing_is_found_in_a_sound_run() -> None:
    assert kinds() == []
    assert find_warnings(Evidence()) == []


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("one_class", {"answers": {"validation": ["yes"]}}),
        ("loss_not_finite", {"losses": {"loss at step 9": math.nan}}),
        ("loss_not_finite", {"losses": {"loss at step 9": math.inf}}),
        ("ranks_unchanged", {"rank_pattern": {"a.lora_E": 4, "b.lora_E": 4}}),
        ("delta_zero", {"update_is_zero": True}),
        ("delta_zero", {"moved": False}),
        ("steps_skipped", {"skipped_steps": 2}),
    ],
)
def test_each_guard_finds_its_kind_alone(kind: str, change: dict[str, Any]) -> None:
    assert kinds(**change) == [kind]


def test_a_score_at_the_majoritys_is_found_and_one_above_is_not() -> None:
    def scored(value: float) -> dict[str, Any]:
        return {"validation": {**SOUND["scores"]["validation"], "saved": {"accuracy": value}}}

    assert kinds(scores=scored(0.5)) == kinds(scores=scored(0.4)) == ["no_better_than_majority"]
    assert kinds(scores=scored(0.51)) == []


def test_equal_ranks_are_right_where_nothing_was_to_be_pruned() -> None:
    assert kinds(prunes=False, rank_pattern={"a.lora_E": 4}) == []
    # Equal, but below the start: pruned evenly.
    assert kinds(rank_pattern={"a.lora_E": 2, "b.lora_E": 2}) == []


def test_messages_name_what_was_seen() -> None:
    evidence = Evidence(
        **{
            **SOUND,
            "answers": {"validation_mismatched": ["neutral"]},
            "losses": {"loss logged at step 9": math.nan, "grad_norm logged at step 9": math.inf},
            "skipped_steps": 3,
        }
    )
    found = {warning["kind"]: warning["message"] for warning in find_warnings(evidence)}
    assert "validation_mismatched is neutral" in found["one_class"]
    assert "loss logged at step 9 and 1 more" in found["loss_not_finite"]
    assert "In 3 of 10 steps" in found["steps_skipped"]
