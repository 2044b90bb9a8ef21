"""What somebody else put into a shared folder or an adapter's file: links, and endless patterns."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.models import tiny_classifier
from tests.program import run_program

from adalora.adapters.peft_method import check_peft_patterns, load_peft_adapter
from adalora.adapters.targets import find_targets
from adalora.errors import UserError
from adalora.pretrained.loading import load_tokenizer
from adalora.storage.atomic import locked_folder, remove, without_links
from adalora.storage.snapshots import publish, remove_leftovers, staging_folder
from adalora.validation import match_patterns

#: Each takes longer than anybody has on a path of twenty letters.
ENDLESS = [
    "(a+)+b",
    "(a|a)*b",
    "([a-z.0_]+)*!",
    "(.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*)!",
    "(a?){40}" + "a{40}b",
    "(?:(?:[a-z_]+\\.?)+)+!",
]
LONG = "a" * 60
LETTERS = "encoder.layer.0.attention.self.query_a" + LONG


# --- patterns -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("query|key", [True, True, False]),
        ("que.*", [True, False, False]),
        (r"\w+", [True, True, False]),
        ("QUERY", [False, False, False]),
        (r"a\.b", [False, False, True]),
        ("[qk].{2,4}", [True, True, False]),
        ("", [False, False, False]),
    ],
)
def test_a_pattern_matches_whole_texts(pattern, expected):
    assert match_patterns([pattern, pattern], ["query", "key", "a.b"]) == [expected] * 2


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adalora.validation._PATTERN_SECONDS", 0.5)


@pytest.mark.parametrize("pattern", ENDLESS)
def test_no_pattern_takes_longer_than_the_limit(hurried, pattern):
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"takes more than 0\.5 seconds"):
        match_patterns(["query", pattern], [LETTERS, LONG + "c"])
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("pattern", ["(", "a**", "[z-a]", "(?P<n>a)(?P<n>b)", "a{2,1}", "\\"])
def test_what_is_no_pattern_is_named(pattern):
    with pytest.raises(UserError, match="not a regular expression: "):
        match_patterns([pattern], ["a"])


def test_a_target_on_the_command_line_has_the_limit(hurried):
    model = tiny_classifier("bert", num_hidden_layers=1)
    with pytest.raises(UserError, match=r"'re:\(\[a-z.*takes more than 0\.5 seconds"):
        find_targets(model, [f"re:{ENDLESS[2]}"])


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ENDLESS[2]},
        {"exclude_modules": ENDLESS[2]},
        {"target_modules": ["query"], "layers_pattern": [ENDLESS[2]]},
        {"layers_pattern": ENDLESS[2]},
        {"peft_type": "IA3", "feedforward_modules": ENDLESS[2]},
        {"rank_pattern": {"query": 2, ENDLESS[2]: 3}},
        {"alpha_pattern": {ENDLESS[2]: 3}},
    ],
)
def test_no_pattern_of_an_adapter_reaches_peft_unchecked(hurried, config, tmp_path):
    pytest.importorskip("peft", reason="needs the extra adalora[peft]")
    model = tiny_classifier("bert", num_hidden_layers=1)
    values = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 1} | config
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    (name,) = set(config) - {"peft_type"} - ({"target_modules"} if len(config) > 1 else set())
    with pytest.raises(UserError, match=f"has a pattern in {name} that is refused: it takes more"):
        load_peft_adapter(model, tmp_path)


def test_usual_patterns_of_peft_pass():
    model = tiny_classifier("bert", num_hidden_layers=1)
    for config in (
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(query|value)", "rank_pattern": {r"layer\.0\..*value": 7}},
        {"peft_type": "ADALORA", "rank_pattern": {"bert.x.lora_E": [True]}},
        {"target_modules": ["query"], "layers_pattern": "layer", "exclude_modules": None},
    ):
        check_peft_patterns(model, config, "test")


# --- links ----------------------------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim.txt"
    path.write_text("precious")
    return path


def test_a_file_is_opened_and_a_link_or_a_pipe_is_not(tmp_path, victim):
    with open(tmp_path / "own", "a", opener=without_links) as file:
        file.write("1")
    with open(tmp_path / "own", "a", opener=without_links) as file:
        file.write("2")
    assert (tmp_path / "own").read_text() == "12"
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "pipe"):
        with pytest.raises(OSError, match="link or no ordinary file"):
            open(tmp_path / name, "w", opener=without_links)  # noqa: SIM115
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", ["victim.txt", "folder"])
def test_a_link_is_removed_without_what_it_points_to(tmp_path, victim, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / name)
    remove(tmp_path / "link")
    remove(tmp_path / "absent")
    assert not os.path.lexists(tmp_path / "link")
    assert victim.read_text() == (tmp_path / "folder" / "file").read_text() == "precious"


def test_a_lock_that_is_a_link_is_not_written_to(tmp_path, victim):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(victim)
    with pytest.raises(UserError, match="cannot be written to"), locked_folder(tmp_path / "run"):
        pass
    assert victim.read_text() == "precious"


def test_a_checkpoint_is_not_published_from_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "checkpoint-1"
    staging_folder(target).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="a link in its place"):
        publish(target, step=1, settings={})
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


Plant = Callable[[Path, Path, Path], None]
REPLACED: dict[str, Plant] = {
    "model/.checkpoint-1.partial": lambda link, _, folder: link.symlink_to(folder),
    "model/.checkpoint-1.removed": lambda link, _, folder: link.symlink_to(folder),
    "model/trainer_state.json": lambda link, victim, _: link.symlink_to(victim),
    "model/adapter.safetensors": lambda link, victim, _: link.symlink_to(victim),
    "run.json": lambda link, victim, _: link.symlink_to(victim),
    "train_results.json": lambda link, victim, _: link.symlink_to(victim),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("base")
    tiny_classifier("bert", vocab_size=681, num_hidden_layers=1).save_pretrained(folder)
    load_tokenizer("nano").save_pretrained(folder)
    return folder


def train(base: Path, root: Path, expect: int = 0) -> Any:
    file = root.with_suffix(".csv")
    file.write_text("text,label\na good film,yes\na bad film,no\n")
    return run_program(
        *("--model_name_or_path", base, "--train_file", file, "--do_train", "--max_steps", "1"),
        *("--apply_lora", "--lora_module", "query", "--lora_r", "1", "--max_seq_length", "16"),
        *("--report_to", "none", "--disable_tqdm", "True", "--save_steps", "1"),
        *("--overwrite_output_dir", "--root_output_dir", root),
        expect=expect,
    )


def test_a_run_writes_through_no_link_that_was_planted_in_its_folder(base, tmp_path, victim):
    root, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "model").mkdir(parents=True)
    for name, plant in REPLACED.items():
        plant(root / name, victim, elsewhere)
    train(base, root)
    assert victim.read_text() == "precious"
    assert list(elsewhere.iterdir()) == []
    assert [name for name in REPLACED if (root / name).is_symlink()] == []
    assert (root / "model" / "checkpoint-1" / "manifest.json").is_file()


@pytest.mark.parametrize("name", [".lock", "log.txt"])
def test_a_run_whose_log_or_lock_is_a_link_is_refused(base, tmp_path, victim, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(victim)
    done = train(base, tmp_path / "run", expect=2)
    assert "link" in done.stderr
    assert name in done.stderr
    assert "Traceback" not in done.stderr
    assert victim.read_text() == "precious"
