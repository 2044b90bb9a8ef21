"""run_glue.py in two processes, by every launcher: one model, whatever divides the base or the job.

A chain of three runs of the same sixteen steps, each resumed from the checkpoint of the one before:
the base whole, then divided, then whole again on two nodes.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from adalora.artefact.reader import load_artefact

Start = Any

#: Thirteen steps an epoch, the last of four examples; 61 validation examples in batches of 16.
UNEVEN = (
    *("--task_name", "mini-rte", "--do_train", "--do_eval", "--per_device_train_batch_size", "4"),
    *("--max_train_samples", "100", "--max_val_samples", "61", "--max_steps", "16"),
    *("--logging_steps", "4", "--cls_dropout", "0.1"),
)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def where(root: Path) -> tuple[str, str]:
    return "--root_output_dir", str(root)


def handed_on(checkpoint: Path, root: Path) -> Path:
    """A new run's folder that holds nothing but the checkpoint."""
    shutil.copytree(checkpoint, root / "model" / checkpoint.name)
    return root


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory,
    run_command: Start,
    program: Path,
    port: Any,
    small: Any,
) -> Path:
    """Two processes of the launcher that the original's scripts use."""
    root: Path = tmp_path_factory.mktemp("whole") / "run"
    run_command(
        [
            *(sys.executable, "-m", "torch.distributed.launch", "--nproc_per_node=2"),
            *("--master_addr=127.0.0.1", f"--master_port={port()}"),
            *(str(program), *small, *UNEVEN, "--save_steps", "6", *where(root)),
        ]
    )
    return root


@pytest.fixture(scope="module")
def divided(
    whole: Path,
    tmp_path_factory: pytest.TempPathFactory,
    run_command: Start,
    program: Path,
    port: Any,
    small: Any,
) -> Path:
    """Two processes of accelerate with its configuration for FSDP, from the sixth step on."""
    folder = tmp_path_factory.mktemp("divided")
    root = handed_on(whole / "model" / "checkpoint-6", folder / "run")
    run_command(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp"),
            *("--fsdp_version", "2", "--num_processes", "2", "--num_machines", "1"),
            *("--mixed_precision", "no", "--dynamo_backend", "no"),
            *("--main_process_port", port(), str(program), *small, *UNEVEN),
            *("--save_steps", "3", *where(root)),
        ]
    )
    return root


def same_end(one: Path, two: Path) -> None:
    """Every bit of what was trained, the ranks, the scores, and what the artefact says of them."""
    for file in ("adapter.safetensors", "head.safetensors"):
        mine, theirs = (load_file(root / "model" / file) for root in (one, two))
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert value.equal(theirs[name]), name
    assert read(one / "rank_pattern.json") == read(two / "rank_pattern.json")
    described = [read(root / "model" / "adalora.json") for root in (one, two)]
    for key in ("base_fingerprint", "rank_pattern", "trained", "checksums"):
        assert described[0][key] == described[1][key], key
    scores = [read(root / "eval_results_mini-rte.json") for root in (one, two)]
    for key in ("eval_loss", "eval_accuracy", "eval_samples"):
        assert scores[0][key] == pytest.approx(scores[1][key], abs=1e-6), key
    assert scores[0]["eval_samples"] == 61


@pytest.mark.slow
def test_a_divided_base_goes_on_from_a_whole_ones_checkpoint_to_the_same_end(
    whole: Path, divided: Path
) -> None:
    same_end(whole, divided)
    assert "The frozen base is divided among 2 processes" in (divided / "log.txt").read_text()
    assert "is divided" not in (whole / "log.txt").read_text()
    assert load_artefact(divided / "model").description.base_fingerprint is not None


@pytest.mark.slow
def test_two_nodes_without_a_common_disk_go_on_from_a_divided_bases_checkpoint(
    whole: Path, divided: Path, run_on_nodes: Start, small: Any, tmp_path: Path
) -> None:
    checkpoint = divided / "model" / "checkpoint-9"
    roots = [handed_on(checkpoint, tmp_path / name) for name in ("first", "second")]
    run_on_nodes(
        [
            (
                *small,
                *UNEVEN,
                "--save_steps",
                "16",
                "--save_on_each_node",
                "--root_output_dir",
                root,
            )
            for root in roots
        ]
    )
    same_end(whole, roots[0])
    for root in roots:
        names = {path.name for path in (root / "model" / "checkpoint-16").iterdir()}
        assert {"process-0.safetensors", "process-1.safetensors"} <= names
    # All that is not a checkpoint is written by one process.
    assert not (roots[1] / "log.txt").exists()
    assert not (roots[1] / "model" / "adalora.json").exists()


@pytest.mark.slow
def test_the_first_process_alone_writes(whole: Path) -> None:
    lines = (whole / "log.txt").read_text().splitlines()
    assert sum("Tokenising" in line or "Running training" in line for line in lines) == 1
    # events.out.tfevents.TIME.HOST.PROCESS.NUMBER
    writers = {path.name.split(".")[-2] for path in (whole / "log").rglob("events*")}
    assert len(writers) == 1
    checkpoint = {path.name for path in (whole / "model" / "checkpoint-6").iterdir()}
    assert {"process-0.safetensors", "process-1.safetensors", "manifest.json"} <= checkpoint


@pytest.mark.slow
def test_accelerate_that_starts_one_process_of_two_is_refused(
    run_command: Start, program: Path, small: Any, tmp_path: Path
) -> None:
    done = run_command(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"),
            *(str(program), *small, *UNEVEN, *where(tmp_path / "run")),
        ],
        expect=1,
    )
    assert "accelerate launch was asked for several processes and started one" in done.stderr
    assert not (tmp_path / "run").exists()
