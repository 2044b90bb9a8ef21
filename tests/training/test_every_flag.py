"""Laws over every flag of the parser."""

from __future__ import annotations

from argparse import Action
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from adalora.presets import untuned
from adalora.training.arguments.parser import (
    RunArguments,
    _given,
    build_parser,
    parse_arguments,
)

METHODS = {
    "adalora": ["--apply_adalora"],
    "original": ["--apply_adalora", "--apply_lora", "--lora_type", "svd"],
    "lora": ["--apply_lora", "--lora_r", "4"],
    "full": [],
}
ACTIONS = {action.dest: action for action in build_parser()._actions if action.dest != "help"}


def words_of(method: str, root: Path) -> list[str]:
    base = ["--model_name_or_path", "nano", "--task_name", "mini-rte", "--do_train"]
    return [*base, "--root_output_dir", str(root), *METHODS[method]]


def resolved(arguments: RunArguments) -> dict[str, Any]:
    return {
        f"{type(group).__name__}.{field.name}": getattr(group, field.name)
        for group in arguments
        for field in fields(group)
    }


def default_of(action: Action, method: str) -> str | None:
    """What the flag is where it is not given; None where that is no value to give."""
    value = untuned(_given(METHODS[method])).get(action.dest, action.default)
    value = getattr(value, "value", value)
    # A flag that only switches off (--no_unpad) takes no value, and a list no empty one.
    return None if value is None or action.nargs == 0 or value in ([], {}) else str(value)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_flag_at_its_default_changes_nothing(method: str, tmp_path: Path) -> None:
    words = words_of(method, tmp_path)
    expected = resolved(parse_arguments(words))
    tried = 0
    for action in ACTIONS.values():
        value = default_of(action, method)
        flag = action.option_strings[0]
        if value is None or flag in words:
            continue
        got = resolved(parse_arguments([*words, flag, value]))
        changed = {name for name in expected if got[name] != expected[name]}
        assert changed == set(), f"{flag} {value}"
        tried += 1
    assert tried > 60


@pytest.mark.parametrize("flag", ["--learning_rate", "--lora_plus_ratio", "--reg_orth_coef"])
def test_no_flag_but_its_own_changes_where_adalora_starts(flag: str, tmp_path: Path) -> None:
    words = words_of("adalora", tmp_path)
    value = default_of(ACTIONS[flag.removeprefix("--")], "adalora")
    assert value is not None
    assert parse_arguments([*words, flag, value]).method.lora_init == "lora"
    assert parse_arguments([*words, "--learning_rate", "3e-3"]).method.lora_init == "lora"
