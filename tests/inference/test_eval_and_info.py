"""``adalora eval`` finds what the run found; ``adalora info`` says what lies there."""

from __future__ import annotations

import json
import shutil

import pytest
from tests.program import SMALL, run_program

from adalora.builtin.miniature import generate, write_tsv
from adalora.cli import main


@pytest.fixture
def command(capsys):
    def run(*words, expect=0):
        capsys.readouterr()
        status = main([str(word) for word in words])
        done = capsys.readouterr()
        assert status == expect, done.err
        if expect == 2:
            (line,) = [line for line in done.err.splitlines() if line.startswith("error")]
            return line
        return done.out

    return run


# --- eval -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--merged", "--batch_size", "5")])
def test_the_metrics_are_those_that_the_run_recorded(mnli, command, flags):
    out = command(
        "eval", mnli, "--max_val_samples", 64, "--format", "json", "--device", "cpu", *flags
    )
    found = json.loads(out)
    recorded = json.loads((mnli / "model" / "adalora.json").read_text())["metrics"]
    assert set(found) == set(recorded) == {"validation_matched", "validation_mismatched"}
    for split, metrics in found.items():
        assert set(metrics) == {"loss", "accuracy", "samples"}
        for name, value in metrics.items():
            assert value == pytest.approx(recorded[split][f"eval_{name}"], rel=1e-4), name


def test_the_table_shows_both_sets_beside_what_was_recorded(mnli, command):
    out = command("eval", mnli, "--max_val_samples", 64)
    recorded = json.loads((mnli / "model" / "adalora.json").read_text())["metrics"]
    (line,) = [x for x in out.splitlines() if "validation_matched" in x and "accuracy" in x]
    shown = f"{recorded['validation_matched']['eval_accuracy']:.4f}"
    assert line.split()[-2:] == [shown, shown]


def test_the_official_files_give_the_same_as_the_built_in_ones(mnli, command, tmp_path):
    write_tsv(tmp_path, ["mnli"])
    flags = ("--max_val_samples", 32, "--format", "json")
    built_in = command("eval", mnli, *flags)
    assert command("eval", mnli, "--data_dir", tmp_path, "--task_name", "mnli", *flags) == built_in


def own_file(tmp_path, rows):
    file = tmp_path / "dev.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


@pytest.mark.parametrize("word", [True, False])
def test_a_file_of_ones_own_is_scored_by_the_classifiers_labels(mnli, command, tmp_path, word):
    names = ("entailment", "neutral", "contradiction")
    rows = generate("mnli", "validation_matched")[:64]
    own = [{**row, "label": names[row["label"]] if word else row["label"]} for row in rows]
    file = own_file(tmp_path, own)
    found = json.loads(command("eval", mnli, "--validation_file", file, "--format", "json"))
    recorded = json.loads((mnli / "model" / "adalora.json").read_text())["metrics"]
    accuracy = recorded["validation_matched"]["eval_accuracy"]
    assert found["validation"]["accuracy"] == pytest.approx(accuracy)
    # One class alone is enough to score, as the classifier knows the others.
    file = own_file(tmp_path, [row for row in own if row["label"] in ("neutral", 1)])
    assert (
        0
        <= json.loads(command("eval", mnli, "--validation_file", file, "--format", "json"))[
            "validation"
        ]["accuracy"]
        <= 1
    )


def test_whole_numbers_are_scores_for_a_regression_model(make, command, tmp_path):
    run = make(labels=None)
    file = own_file(tmp_path, [{"text": f"a bird {n}", "label": n} for n in range(4)])
    found = json.loads(command("eval", run, "--validation_file", file, "--format", "json"))
    assert set(found["validation"]) == {"loss", "mse", "pearson", "samples"}
    assert found["validation"]["mse"] == pytest.approx(found["validation"]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task_name", "mini-rte"), "labels of mini-rte (entailment, not_entailment) are not"),
        (("--task_name", "mini-stsb"), "answers with classes, and mini-stsb has the other kind"),
        (("--validation_file", "absent.csv"), "'absent.csv' does not exist"),
        (("--data_dir", "/absent"), "--data_dir '/absent' is no folder"),
        (("--max_val_samples", "0"), "0 is not at least 1"),
    ],
)
def test_data_of_another_kind_is_refused(mnli, command, flags, message):
    assert message in command("eval", mnli, *flags, expect=2)


def test_own_data_needs_a_file_and_its_labels(make, command, tmp_path):
    run = make()
    assert "--validation_file" in command("eval", run, expect=2)
    file = own_file(tmp_path, [{"text": "a", "label": "maybe"}])
    line = command("eval", run, "--validation_file", file, expect=2)
    assert "the label 'maybe'" in line
    assert "no, yes" in line


# --- info -----------------------------------------------------------------------------------------


def test_a_run_is_described(mnli, command):
    facts = json.loads(command("info", mnli, "--format", "json"))
    assert (facts["kind"], facts["state"]) == ("run", "complete")
    assert facts["checkpoints"] == ["checkpoint-6", "checkpoint-12"]
    assert facts["triplets"] == {"kept": 36, "initial": 72}
    assert (facts["task"], facts["method"], facts["base_model"]) == ("mini-mnli", "AdaLoRA", "nano")
    sizes = {f.name: f.stat().st_size for f in (mnli / "model").iterdir() if f.is_file()}
    assert facts["files"] == {name: sizes[name] for name in facts["files"]}
    assert facts["bytes"] == sum(facts["files"].values())
    assert facts["base_fingerprint"].startswith("sha256:")
    assert facts["training"]["steps"] == 12
    shown = command("info", mnli)
    for part in ("36 of 72", "nano", "entailment, neutral, contradiction", "Ranks kept of 2"):
        assert part in shown


@pytest.mark.parametrize("name", ["info", "eval"])
def test_the_earlier_flag_for_json_still_counts(mnli, command, name):
    more = ("--max_val_samples", 8) if name == "eval" else ()
    assert command(name, mnli, *more, "--json") == command(name, mnli, *more, "--format", "json")


def test_an_artefact_is_described_wherever_it_went(mnli, command, tmp_path):
    folder = shutil.copytree(
        mnli / "model", tmp_path / "copied", ignore=shutil.ignore_patterns("checkpoint-*")
    )
    facts = json.loads(command("info", folder, "--format", "json"))
    assert (facts["kind"], facts["checkpoints"]) == ("artefact", [])
    assert facts["rank_pattern"] == json.loads((mnli / "rank_pattern.json").read_text())


def test_a_training_checkpoint_is_described(mnli, command):
    facts = json.loads(command("info", mnli / "model" / "checkpoint-6", "--format", "json"))
    assert (facts["kind"], facts["step"], facts["max_steps"]) == ("checkpoint", 6, 12)
    assert facts["triplets"]["initial"] == 72
    assert 36 <= facts["triplets"]["kept"] <= 72
    assert facts["method"] == "AdaLoRA"
    assert facts["task"] == "mini-mnli"  # from the finished run around it
    last = json.loads(command("info", mnli / "model" / "checkpoint-12", "--format", "json"))
    assert last["triplets"]["kept"] == 36
    assert "36 of 72" in command("info", mnli / "model" / "checkpoint-12")


def test_an_unfinished_run_is_described(mnli, command, tmp_path):
    shutil.copytree(mnli / "model" / "checkpoint-6", tmp_path / "model" / "checkpoint-6")
    facts = json.loads(command("info", tmp_path, "--format", "json"))
    assert (facts["kind"], facts["state"]) == ("run", "unfinished")
    assert facts["checkpoints"] == ["checkpoint-6"]
    alone = json.loads(command("info", tmp_path / "model" / "checkpoint-6", "--format", "json"))
    assert "task" not in alone


def test_damage_is_told_beside_the_facts(mnli, command, tmp_path):
    shutil.copytree(mnli / "model", tmp_path / "run")
    (tmp_path / "run" / "head.safetensors").write_bytes(b"")
    facts = json.loads(command("info", tmp_path / "run", "--format", "json", expect=1))
    assert "head.safetensors is 0 bytes long" in facts["state"]
    assert facts["task"] == "mini-mnli"


@pytest.mark.parametrize("method", ["frd", "bitfit", "bottleneck", "full"])
def test_every_method_is_described(make, command, method):
    labels = ("[red]a[/red]", "tab\there", "ö")
    shown = command("info", make(method, labels=labels))
    assert r"[red]a[/red], tab\there, ö" in shown
    assert method in shown


def test_what_is_nothing_of_ours_is_refused(command, tmp_path):
    assert "does not exist" in command("info", tmp_path / "absent", expect=2)
    assert "is neither an artefact" in command("info", tmp_path, expect=2)
    broken = tmp_path / "checkpoint-1"
    broken.mkdir()
    (broken / "trainer_state.json").write_text("{}")
    (broken / "trainable.safetensors").write_bytes(b"PK\x03\x04")
    assert "pickle file" in command("info", broken, expect=2)


def test_a_run_that_starts_from_an_artefact_says_so(mnli, command, tmp_path):
    root = tmp_path / "more"
    run_program(
        *(*SMALL, "--task_name", "mini-mnli", "--do_train", "--report_to", "none"),
        *("--lora_path", mnli, "--max_steps", "7", "--root_output_dir", root),
    )
    facts = json.loads(command("info", root, "--format", "json"))
    first = json.loads(command("info", mnli, "--format", "json"))
    (origin,) = facts["lineage"]
    assert origin["path"] == str((mnli / "model").resolve())
    assert (origin["task"], origin["created"]) == (first["task"], first["created"])
    assert facts["base_fingerprint"] == first["base_fingerprint"]
    assert "started from" in command("info", root)
