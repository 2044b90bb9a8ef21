"""What each release left behind is read, resumed and tabulated by the present code.

Every folder of tests/vault/ that holds ``origin.json`` is a release's; its files were written once,
by that release (write_vault.py), and are never changed. A test that fails here means that users'
runs, checkpoints or sweeps of that release are no longer what they were.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import adalora
from adalora.cli import main
from adalora.results.sources import read_sources

VAULT = Path(__file__).resolve().parent
ROOT = VAULT.parents[1]
PROGRAM = ROOT / "examples" / "text-classification" / "run_glue.py"
RELEASES = sorted(path.parent for path in VAULT.glob("*/origin.json"))

# Of the largest logit. A float32 rounds at 6e-8 of itself, and the nano model's dozens of sums in
# a row, in an order that depends on the processor, lose about ten of these.
LOGITS = 1e-5
# Where the present uninterrupted run does not equal the recorded one bit for bit, for another
# processor or torch rounds otherwise. Measured over these 24 steps with torch, MKL and oneDNN held
# to older processors' kernels (ATEN_CPU_CAPABILITY, MKL_ENABLE_INSTRUCTIONS, ONEDNN_MAX_CPU_ISA:
# SSE4, AVX2) against an AVX-512 processor's own: parameters and averages differed by at most 3.2e-6
# of the largest value in a tensor, losses by 6e-8. Some thirty and some hundred times that are
# allowed. A learning rate greater by a thousandth from the checkpoint on gives 1.2e-3 and 2.4e-5.
TENSORS = 1e-4
LOSSES = 1e-5
# Percent. The metrics of a record are worked out from float32 predictions, those beside it from
# float64: 1e-7 of 100, and a few roundings.
SCORES = 1e-4

# Both runs in one process, which imports torch once; each is the program as a user starts it.
DRIVER = """
import json, runpy, sys
program, *runs = sys.argv[1:]
for flags in runs:
    sys.argv = [program, *json.loads(flags)]
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=RELEASES, ids=lambda path: path.name)
def release(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A release's folder, in which whatever is read stays as it was."""
    folder: Path = request.param
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    yield folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_there_is_a_release_in_the_vault() -> None:
    assert RELEASES


# ---- the artefact ----


def test_an_artefact_of_the_release_gives_the_logits_that_it_gave(release: Path) -> None:
    expected = read_json(release / "artefact" / "expected.json")
    assert 0 in expected["rank_pattern"].values()
    classifier = adalora.load(release / "artefact" / "run")
    words = classifier.tokenizer(
        expected["texts"],
        padding=True,
        truncation=True,
        max_length=classifier.description.max_seq_length,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = classifier.model(**words).logits.double().numpy()
    wanted = np.array(expected["logits"])
    assert logits.shape == wanted.shape
    assert np.abs(logits - wanted).max() <= LOGITS * np.abs(wanted).max()

    assert list(classifier.labels) == expected["labels"]
    odds = np.exp(wanted)
    odds /= odds.sum(axis=1, keepdims=True)
    for answer, row in zip(classifier(expected["texts"]), odds, strict=True):
        assert answer.label == expected["labels"][row.argmax()]
        found = [answer.probabilities[name] for name in expected["labels"]]
        assert np.allclose(found, row, rtol=0, atol=LOGITS * np.abs(wanted).max())


def test_an_artefact_of_the_release_keeps_its_ranks_and_scores(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = release / "artefact" / "run"
    expected = read_json(release / "artefact" / "expected.json")
    assert dict(adalora.load(folder).description.rank_pattern) == expected["rank_pattern"]
    (run,) = read_sources([str(folder)]).runs
    assert dict(run.record.rank_pattern) == expected["rank_pattern"]
    assert run.record.scores["validation"]["last"] == expected["scores"]["validation"]["last"]
    assert main(["info", str(folder)]) == 0
    assert "AdaLoRA" in capsys.readouterr().out


# ---- the checkpoint ----


@dataclass(frozen=True)
class End:
    """How a run ended: tensors and numbers by name, its log, its ranks."""

    tensors: Mapping[str, torch.Tensor]
    numbers: Mapping[str, Any]
    log: list[dict[str, Any]]
    train_loss: float
    ranks: Mapping[str, int]

    @classmethod
    def of_run(cls, folder: Path, last_step: int) -> End:
        history = read_json(folder / "history.json")["log_history"]
        return cls(
            *read_end(folder / "model" / f"checkpoint-{last_step}"),
            [one for one in history if "loss" in one],
            next(one["train_loss"] for one in history if "train_loss" in one),
            read_json(folder / "rank_pattern.json"),
        )


def read_end(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The trained parameters, and the allocator's tensors and numbers (docs/checkpoints.md)."""
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(folder / "trainable.safetensors", "pt") as file:
        tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with safe_open(folder / "allocator.safetensors", "pt") as file:
        tensors |= {f"allocator/{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        numbers = json.loads(file.metadata()["numbers"])
    return tensors, numbers


@dataclass(frozen=True)
class Ends:
    """The end that was recorded, that of the present code, and that after the old checkpoint."""

    recorded: End
    whole: End
    resumed: End
    checkpoint: Path
    before: Mapping[str, int]


def modified(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture(scope="module")
def ends(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Ends:
    folder: Path = tmp_path_factory.mktemp("vault")
    vault = release / "checkpoint"
    expected = read_json(vault / "expected.json")
    name = f"checkpoint-{expected['step']}"
    checkpoint = folder / "resumed" / "model" / name
    shutil.copytree(vault / name, checkpoint)
    before = modified(checkpoint)
    # The folder that holds a checkpoint is resumed from, the other one starts afresh.
    # Until 0.2 a run that named its learning rate started as published (CHANGELOG).
    start = {"whole": ["--lora_init", "gaussian"], "resumed": []}
    runs = [
        json.dumps([*expected["flags"], *words, "--root_output_dir", str(folder / name)])
        for name, words in start.items()
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(variable, None)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(PROGRAM), *runs],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    recorded = End(
        *read_end(vault / "end"),
        expected["log"],
        expected["train_loss"],
        expected["rank_pattern"],
    )
    whole, resumed = (
        End.of_run(folder / name, expected["last_step"]) for name in ("whole", "resumed")
    )
    return Ends(recorded, whole, resumed, checkpoint, before)


def is_exact(end: End, recorded: End) -> bool:
    return all(
        torch.equal(end.tensors[name], value) for name, value in recorded.tensors.items()
    ) and [one["loss"] for one in end.log] == [one["loss"] for one in recorded.log]


def distances(end: End, recorded: End) -> dict[str, float]:
    """Tensor -> the largest difference, as a part of the largest value recorded."""
    found = {}
    for name, value in recorded.tensors.items():
        gap = (end.tensors[name].double() - value.double()).abs().max()
        # A tensor of nothing but zeros is to be zero.
        found[name] = float(gap / (value.double().abs().max() or 1))
    return found


def test_the_checkpoint_lies_in_the_middle_of_pruning(release: Path) -> None:
    expected = read_json(release / "checkpoint" / "expected.json")
    budget = {one["step"]: one["budget"] for one in expected["log"]}
    assert budget[1] > budget[expected["step"]] > budget[expected["last_step"]]
    tensors, _ = read_end(release / "checkpoint" / f"checkpoint-{expected['step']}")
    kept = [v for name, v in tensors.items() if name.startswith("allocator/survivors/")]
    assert sum(int(value.sum()) for value in kept) == budget[expected["step"]]


@pytest.mark.slow
def test_a_checkpoint_of_the_release_is_resumed_from(ends: Ends) -> None:
    # A run that started afresh would have replaced it when it came to that step.
    assert modified(ends.checkpoint) == ends.before
    assert len(ends.resumed.log) == len(ends.recorded.log)


def test_a_resumed_checkpoint_of_the_release_ends_with_the_recorded_ranks(ends: Ends) -> None:
    recorded = ends.recorded
    for end in (ends.resumed, ends.whole):
        assert end.ranks == recorded.ranks
        assert [(one["step"], one["budget"]) for one in end.log] == [
            (one["step"], one["budget"]) for one in recorded.log
        ]
        assert {name: end.numbers[name] for name in recorded.numbers} == recorded.numbers
        # Survivors and counts are no floats.
        for name, value in recorded.tensors.items():
            if not value.is_floating_point() or "/survivors/" in name:
                assert torch.equal(end.tensors[name], value), name


def test_a_resumed_checkpoint_of_the_release_ends_where_the_uninterrupted_run_ended(
    ends: Ends,
) -> None:
    if is_exact(ends.whole, ends.recorded):
        unequal = [
            name
            for name, value in ends.recorded.tensors.items()
            if not torch.equal(ends.resumed.tensors[name], value)
        ]
        assert not unequal
        assert ends.resumed.log == ends.recorded.log
        assert ends.resumed.train_loss == ends.recorded.train_loss
        return
    for end in (ends.resumed, ends.whole):
        far = {k: v for k, v in distances(end, ends.recorded).items() if not v <= TENSORS}
        assert not far
        for one, wanted in zip(end.log, ends.recorded.log, strict=True):
            assert one["loss"] == pytest.approx(wanted["loss"], rel=0, abs=LOSSES)
            assert one["learning_rate"] == pytest.approx(wanted["learning_rate"], rel=1e-12)
        assert end.train_loss == pytest.approx(ends.recorded.train_loss, rel=0, abs=LOSSES)


# ---- the sweep ----


def test_the_runs_of_a_sweep_of_the_release_have_the_recorded_scores(release: Path) -> None:
    expected = read_json(release / "sweep" / "expected.json")
    sources = read_sources([str(release / "sweep" / "ledger")])
    assert len(sources.runs) == expected["runs"]
    assert not sources.failures
    assert not sources.notes
    found: dict[tuple[str, str], dict[str, float]] = {}
    for run in sources.runs:
        scores = run.record.scores["validation"]["last"]
        names = [name for name in ("accuracy", "pearson", "spearmanr") if name in scores]
        value = 100 * float(np.mean([scores[name] for name in names]))
        cell = run.cell
        found.setdefault((cell["method"], cell["task"]), {})[str(cell["seed"])] = value
    assert found == {
        (one["method"], one["task"]): pytest.approx(one["scores"], rel=0, abs=SCORES)
        for one in expected["means"]
    }


def test_the_table_of_a_sweep_of_the_release_has_the_recorded_means(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = read_json(release / "sweep" / "expected.json")
    capsys.readouterr()
    ledger = str(release / "sweep" / "ledger")
    assert main(["table", ledger, "--epoch", "last", "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    for one in expected["means"]:
        # ``AdaLoRA 2→1`` and ``mini-SST-2`` are what the sweep's file calls adalora, mini-sst2.
        (row,) = (
            row
            for row in table
            if row["method"].split()[0].casefold() == one["method"]
            and row["column"].replace("-", "").casefold() == one["task"].replace("-", "")
        )
        assert float(row["mean"]) == pytest.approx(one["mean"], rel=0, abs=SCORES)
        assert float(row["deviation"]) == pytest.approx(one["deviation"], rel=0, abs=SCORES)
        assert int(row["n"]) == len(one["scores"])


@pytest.mark.slow
def test_a_sweep_of_the_release_and_its_run_make_a_report(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, source in (("sweep", "sweep/ledger"), ("run", "artefact/run")):
        assert main(["report", str(release / source), "-o", str(tmp_path / name)]) == 0
        assert "could not be read" not in capsys.readouterr().out
        (page,) = (tmp_path / name).glob("*.html")
        assert "could not be read" not in page.read_text(encoding="utf-8")


def test_a_finished_sweep_of_the_release_is_not_made_again(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = tmp_path / "ledger"
    shutil.copytree(release / "sweep" / "ledger", ledger)
    before = (ledger / "results.jsonl").read_bytes()
    spec = shutil.copy(ledger / "sweep.yaml", tmp_path / "vault.yaml")
    assert main(["sweep", str(spec), "--output", str(ledger), "--keep", "none"]) == 0
    assert (ledger / "results.jsonl").read_bytes() == before
    assert not list(ledger.glob("runs/*/output.txt"))
