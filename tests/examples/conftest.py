"""The example program in processes of its own, as users start it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parents[2]
PROGRAM = PROJECT_ROOT / "examples" / "text-classification" / "run_glue.py"

Start = Callable[..., "subprocess.CompletedProcess[str]"]
#: AdaLoRA on the built-in model for a dozen steps.
SMALL = (
    *("--model_name_or_path", "nano", "--apply_lora", "--apply_adalora", "--lora_type", "svd"),
    *("--lora_module", "query,key,value,intermediate,layer.output,attention.output"),
    *("--lora_r", "2", "--target_rank", "1", "--reg_orth_coef", "0.1"),
    *("--init_warmup", "2", "--final_warmup", "4", "--mask_interval", "2"),
    *("--per_device_train_batch_size", "8", "--learning_rate", "2e-3", "--max_seq_length", "48"),
    *("--max_steps", "12", "--max_val_samples", "64", "--seed", "6", "--disable_tqdm", "True"),
)


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def start(
    words: Sequence[str], *, expect: int = 0, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command; its exit status must be the expected one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # Which process of which job this is belongs to the launcher alone.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        environment.pop(name, None)
    folder = os.path.dirname(sys.executable)
    environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd or PROJECT_ROOT,
        timeout=timeout,
    )
    assert done.returncode == expect, (done.stdout + done.stderr)[-4000:]
    return done


def launch(*flags: str, processes: int = 1, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run the program: alone, or through torchrun with several processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        launcher += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    return start([*launcher, str(PROGRAM), *flags], **kwargs)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def run_program() -> Start:
    return launch


@pytest.fixture
def run_command() -> Start:
    return start


@pytest.fixture
def small() -> tuple[str, ...]:
    return SMALL


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of mini-mnli with training, evaluation and prediction, and what it printed."""
    root: Path = tmp_path_factory.mktemp("run") / "mnli"
    done = launch(
        *SMALL,
        *("--task_name", "mini-mnli", "--do_train", "--do_eval", "--do_predict"),
        *("--max_test_samples", "40", "--root_output_dir", str(root), "--logging_steps", "4"),
        *("--save_steps", "6", "--tb_writter_loginterval", "2"),
    )
    return root, done.stdout + done.stderr
