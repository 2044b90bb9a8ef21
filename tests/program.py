"""The example program called in this process, and runs of it that the whole suite shares."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from adalora.errors import exit_with_message

PROJECT_ROOT = Path(__file__).resolve().parents[1]
PROGRAM = PROJECT_ROOT / "examples" / "text-classification" / "run_glue.py"

_NAMES = "query,key,value,intermediate,layer.output,attention.output"
#: AdaLoRA on the built-in model for a dozen steps.
SMALL = (
    *("--model_name_or_path", "nano", "--apply_lora", "--apply_adalora", "--lora_type", "svd"),
    *("--lora_module", _NAMES, "--lora_r", "2", "--target_rank", "1", "--reg_orth_coef", "0.1"),
    *("--init_warmup", "2", "--final_warmup", "4", "--mask_interval", "2"),
    *("--per_device_train_batch_size", "8", "--learning_rate", "2e-3", "--max_seq_length", "48"),
    *("--max_steps", "12", "--max_val_samples", "64", "--seed", "6", "--disable_tqdm", "True"),
)


@dataclass(frozen=True)
class Finished:
    """How a call of a program ended, named as ``subprocess`` names it."""

    returncode: int
    stdout: str
    stderr: str


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Put back what a program sets for the whole of its process."""
    loggers = [logging.getLogger(name) for name in (None, "transformers")]
    before = [(list(one.handlers), one.level, one.propagate) for one in loggers]
    environment, threads = dict(os.environ), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    # A setting of malloc's in the environment: the program leaves malloc as it is.
    os.environ["MALLOC_PERTURB_"] = "0"
    with warnings.catch_warnings():
        try:
            yield
        finally:
            logging.captureWarnings(False)
            for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
                for handler in set(logger.handlers) - set(handlers):
                    handler.close()
                logger.handlers[:], logger.propagate = handlers, propagate
                logger.setLevel(level)
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(threads)
            os.environ.clear()
            os.environ.update(environment)


def run_program(*flags: object, expect: int = 0, cwd: Path | None = None) -> Finished:
    """What ``python run_glue.py FLAGS`` does, in this process; its exit status must be ``expect``.

    For what a process of its own is needed for (signals, launchers, memory) there is
    ``tests/examples/conftest.py``.
    """
    spec = importlib.util.spec_from_file_location("run_glue", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = [str(flag) for flag in flags]
    out, err = io.StringIO(), io.StringIO()
    with (
        unchanged_process(),
        redirect_stdout(out),
        redirect_stderr(err),
        chdir(cwd or PROJECT_ROOT),
    ):
        status = exit_with_message(lambda: module.main(words))
    done = Finished(status, out.getvalue(), err.getvalue())
    assert done.returncode == expect, (done.stdout + done.stderr)[-4000:]
    return done


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that ``make`` filled, by whichever worker of the suite came first.

    Args:
        name: of what is made; everything that it depends on is in it. The folder is not to be
            changed.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / "made-once" / hashlib.sha256(name.encode()).hexdigest()[:16]
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").is_file():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / "made").touch()
    return folder


def finished_run(factory: pytest.TempPathFactory, *flags: str) -> tuple[Path, str]:
    """The root folder of a run with these flags, made once, and all that it printed."""

    def make(folder: Path) -> None:
        done = run_program(*flags, "--root_output_dir", str(folder / "run"))
        (folder / "printed.txt").write_text(done.stdout + done.stderr, encoding="utf-8")

    folder = made_once(factory, "\n".join(flags), make)
    return folder / "run", (folder / "printed.txt").read_text(encoding="utf-8")


def mnli_run(factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of mini-mnli with training, evaluation and prediction, and what it printed."""
    return finished_run(
        factory,
        *SMALL,
        *("--task_name", "mini-mnli", "--do_train", "--do_eval", "--do_predict"),
        *("--max_test_samples", "40", "--logging_steps", "4", "--save_steps", "6"),
        *("--tb_writter_loginterval", "2"),
    )


def lines_of_program(module: str, *words: str) -> list[dict[str, Any]]:
    """The lines of JSON that ``python -m MODULE WORDS`` prints, in a process of its own."""
    paths = [str(PROJECT_ROOT / part) for part in ("src", "loralib", ".")]
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=PROJECT_ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
