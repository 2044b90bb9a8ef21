"""The page of one run: what it tells, what it leaves out, and that it takes any text as text."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from adalora.errors import UserError
from adalora.report import write_report
from adalora.results.history import History

RANK_PICTURES = ["ranks", "ranks-by-kind", "ranks-by-layer", "budget", "importance"]
CURVES = ["loss", "metrics"]
MARKUP = "<script>window.struck=1</script>"


def pictures(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "pictures").glob("*.svg")}


def page_of(make: Any, tmp_path: Path, run: dict[str, Any], course: Any = None, **more: Any) -> str:
    source = make.write_run(tmp_path / "run", run, course, **more)
    return write_report(source, tmp_path / "report")[0].read_text(encoding="utf-8")


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_page_tells_what_the_run_was_and_how_to_do_it_again(
    run_folder: Path, tmp_path: Path
) -> None:
    page, *files = write_report(run_folder, tmp_path)
    text = re.sub(r"<svg.*?</svg>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    words = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    for part in (
        "AdaLoRA on nano, mini-sst2",
        "0.9100",
        "91.00 percent; most frequent answer 51.00",
        "80,450",
        "1 min 23 s",
        "2,690",
        "640 MiB",
        "--lora_r 4",
        "transformers 5.23.0",
        "e4f9fa9+changes",
        "python examples/text-classification/run_glue.py \\ --model_name_or_path nano",
    ):
        assert part in words, part
    assert "Look at this first" not in words
    assert pictures(tmp_path) == {*RANK_PICTURES, *CURVES}
    assert len(files) == 2 * len(pictures(tmp_path))


def test_every_picture_is_a_png_and_an_svg_with_a_name_and_a_description(
    run_folder: Path, tmp_path: Path
) -> None:
    write_report(run_folder, tmp_path)
    for path in (tmp_path / "pictures").glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.get("role") == "img"
        title = root.findtext("{http://www.w3.org/2000/svg}title")
        assert title
        label = root.get("aria-label") or ""
        assert label.startswith(f"{title}. ")
        assert len(label) > len(title) + 20
        assert path.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes_in_another_process(
    run_folder: Path, tmp_path: Path
) -> None:
    write_report(run_folder, tmp_path / "here")
    # Settings of the user's own must not show.
    settings = tmp_path / "matplotlibrc"
    settings.write_text("axes.facecolor: red\nsvg.hashsalt: other\n")
    environment = {**os.environ, "PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(settings)}
    words = [sys.executable, "-m", "adalora", "report", str(run_folder)]
    done = subprocess.run(
        [*words, "-o", str(tmp_path / "there")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "there" / "index.html") in done.stdout
    assert checksums(tmp_path / "here") == checksums(tmp_path / "there")


def test_full_fine_tuning_has_curves_and_no_ranks(make: Any, tmp_path: Path) -> None:
    course = {"log_history": make.history()["log_history"], "allocations": [], "importance": {}}
    page = page_of(make, tmp_path, make.without_ranks(), course)
    assert pictures(tmp_path / "report") == set(CURVES)
    for word in ("triplets kept", "Final ranks", "allocator pruned"):
        assert word not in page


@pytest.mark.parametrize(
    ("allocation", "says"),
    [
        ("grow", "The allocator placed"),
        ("exchange", "The allocator placed"),
        ("random", "The allocator pruned"),
        (None, "The allocator pruned"),
    ],
)
def test_what_grew_or_moved_is_not_called_pruned(
    make: Any, tmp_path: Path, allocation: str | None, says: str
) -> None:
    flags = {"apply_adalora": True, "lora_r": 4} | (
        {} if allocation is None else {"allocation": allocation}
    )
    page = page_of(make, tmp_path, make.record(flags=flags))
    assert says in page
    other = {"The allocator placed", "The allocator pruned"} - {says}
    assert other.pop() not in page
    assert ("it began with" in page) == (says == "The allocator pruned")


def test_a_run_without_its_history_keeps_its_facts_and_its_ranks(make: Any, tmp_path: Path) -> None:
    page = page_of(make, tmp_path, make.record(peak_memory_bytes=None, tokens_per_second=None))
    assert pictures(tmp_path / "report") == {"ranks"}
    assert "0.9100" in page
    assert "peak memory" not in page
    assert "throughput" not in page


def test_a_run_that_was_only_evaluated_has_a_page(make: Any, tmp_path: Path) -> None:
    nothing = make.without_ranks(scores={}, train_loss=None, eval_loss=None, seconds=None, flags={})
    page = page_of(make, tmp_path, nothing)
    assert pictures(tmp_path / "report") == set()
    assert "<h2>Pictures" not in page


def test_guards_stand_above_everything_else(make: Any, tmp_path: Path) -> None:
    guard = {"kind": "delta_zero", "message": "The adapters change nothing."}
    page = page_of(make, tmp_path, make.record(warnings=[guard]))
    assert page.index("delta zero") < page.index("The adapters change nothing.")
    assert page.index("The adapters change nothing.") < page.index("trained parameters")


@pytest.mark.parametrize("damage", ["{", '{"allocations": [{"step": 1}]}', "[]"])
def test_a_damaged_history_is_left_out_and_said(make: Any, tmp_path: Path, damage: str) -> None:
    source = make.write_run(tmp_path / "run", make.record(), make.history())
    (source / "history.json").write_text(damage)
    page = write_report(source, tmp_path / "report")[0].read_text(encoding="utf-8")
    assert "Left out of this report" in page
    assert "history.json" in page
    assert pictures(tmp_path / "report") == {"ranks"}


def test_values_that_are_not_finite_leave_gaps_not_failures(make: Any, tmp_path: Path) -> None:
    course = make.history()
    for entry in course["log_history"][::3]:
        entry["loss"] = float("nan")
    for entry in course["allocations"]:
        entry["threshold"] = float("inf")
    first = next(iter(course["importance"]))
    course["importance"][first] = [float("nan"), 0.0, 1e-9, 1e-9]
    scores = {"validation": make.score(float("nan"))}
    page = page_of(make, tmp_path, make.record(scores=scores), course)
    assert "not finite" in page
    assert pictures(tmp_path / "report") == {*RANK_PICTURES, *CURVES}


def test_of_several_evaluations_at_one_step_the_first_is_the_task_s_first_set() -> None:
    logs = [{"step": 2, "eval_accuracy": 0.5}, {"step": 1, "eval_accuracy": 0.4}]
    course = History(log_history=[*logs, {"step": 2, "eval_accuracy": 0.9}])
    assert course.series("eval_accuracy") == [(1, 0.4), (2, 0.5)]


def test_a_curve_leaves_out_what_is_not_a_finite_number() -> None:
    values = (0.5, float("nan"), None, float("inf"), "0.5", 0.25)
    course = History(log_history=[{"step": n, "loss": value} for n, value in enumerate(values)])
    assert course.series("loss") == [(0, 0.5), (5, 0.25)]


def test_the_budget_is_shown_from_the_first_step_on(make: Any, tmp_path: Path) -> None:
    course = make.history()
    last = course["allocations"][-1]["budget"]
    assert f"from 96 to {last}." in page_of(make, tmp_path, make.record(), course)


class Tags(HTMLParser):
    """The tags of a page, and the text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile(value: Any) -> Any:
    """The same record with markup in every text in it."""
    if isinstance(value, dict):
        return {name: hostile(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    return value + MARKUP + '" onload="window.struck=2' if isinstance(value, str) else value


def test_markup_in_names_of_any_kind_is_text(make: Any, tmp_path: Path) -> None:
    free = ("base_model", "command", "hardware", "method", "revision", "task", "versions")
    run = make.record(warnings=[{"kind": "other", "message": MARKUP}])
    run = {name: hostile(value) if name in free else value for name, value in run.items()}
    run["flags"] = {"label_names": [MARKUP]}
    course = {"log_history": make.history()["log_history"]}
    for entry in course["log_history"]:
        entry["eval_<b>f1"] = 0.5
    source = make.write_run(tmp_path / "run", run)
    (source / "history.json").write_text(json.dumps(course))
    rows = [f"{n}\t{MARKUP}\t<img src=x onerror=window.struck=3>" for n in range(5)]
    text = "\n".join(["index\tlabel\tprediction", *rows])
    (source / "eval_predictions_x.tsv").write_text(text)
    page = write_report(source, tmp_path / "report")[0].read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.tags.count("script") == 1
    assert not {"img", "b"} & set(tags.tags)
    assert not {"onload", "onerror"} & set(tags.attributes)
    assert "<img src=x onerror=window.struck=3>" in tags.text
    assert tags.text.count(MARKUP) > 10


def test_dollars_in_names_are_no_formulas(make: Any, tmp_path: Path) -> None:
    course = make.history()
    for entry in course["log_history"]:
        if "eval_accuracy" in entry:
            entry[r"eval_$\frac{$"] = 0.5
    page_of(make, tmp_path, make.without_ranks(), {"log_history": course["log_history"]})
    assert r"$\frac{$" in (tmp_path / "report" / "pictures" / "metrics.svg").read_text()


def test_words_of_the_command_are_quoted_for_the_shell(make: Any, tmp_path: Path) -> None:
    hardware = {**make.record()["hardware"], "processes": 2}
    command = ["--train_file", "my data.csv", "--x", "-1", "--name", "$(rm)"]
    page = page_of(make, tmp_path, make.record(command=command, hardware=hardware))
    tags = Tags()
    tags.feed(page)
    assert "torchrun --nproc_per_node=2 examples/" in tags.text
    assert "--train_file 'my data.csv' \\\n  --x -1 \\\n  --name '$(rm)'\n" in tags.text + "\n"


def test_predictions_are_counted_by_class(make: Any, tmp_path: Path) -> None:
    source = make.write_run(tmp_path / "run", make.record(), classes=("no", "yes"))
    page = write_report(source, tmp_path / "report")[0].read_text(encoding="utf-8")
    rows = re.findall(r'<tr><th scope="row">(no|yes)</th>(.*?)</tr>', page)
    found = {name: [int(n) for n in re.findall(r">(\d+)<", cells)] for name, cells in rows}
    pairs = [(n % 2, n % 3 % 2) for n in range(40)]
    expected = {
        word: [*(pairs.count((true, guess)) for guess in (0, 1)), 20]
        for true, word in enumerate(("no", "yes"))
    }
    assert found == expected


def test_numbers_are_not_counted_as_classes(make: Any, tmp_path: Path) -> None:
    source = make.write_run(tmp_path / "run", make.record())
    text = "index\tlabel\tprediction\n0\t1.000\t2.500\n1\t3.000\t2.500\n"
    (source / "eval_predictions_stsb.tsv").write_text(text)
    page = write_report(source, tmp_path / "report")[0].read_text(encoding="utf-8")
    assert "What was predicted" not in page


def test_no_two_elements_of_a_run_s_page_share_an_id(make: Any, tmp_path: Path) -> None:
    tags = Tags()
    tags.feed(page_of(make, tmp_path, make.record(), make.history()))
    assert len(tags.ids) == len(set(tags.ids))


def test_a_model_with_many_layers_and_other_names_is_drawn(make: Any, tmp_path: Path) -> None:
    run = copy.deepcopy(make.record())
    run["rank_pattern"] = {f"h.{layer}.attn.c_proj.lora_E": 2 for layer in range(24)}
    run["rank_pattern"]["embeddings.projection.lora_E"] = 1
    page_of(make, tmp_path, run)
    svg = (tmp_path / "report" / "pictures" / "ranks.svg").read_text()
    assert ">attn.<" in svg.replace("c_proj", "")
    assert ">embeddings.projection<" in svg
    assert ">23<" in svg


@pytest.mark.parametrize(
    ("make_folder", "message"), [(False, "does not exist"), (True, "neither run.json")]
)
def test_a_folder_without_a_run_is_refused(tmp_path: Path, make_folder: bool, message: str) -> None:
    folder = tmp_path / "nothing"
    if make_folder:
        folder.mkdir()
    with pytest.raises(UserError, match=message):
        write_report(folder, tmp_path / "report")
    assert not (tmp_path / "report").exists()
