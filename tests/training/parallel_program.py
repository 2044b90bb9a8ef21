"""Trains tiny models in each way that is named, in jobs of as many processes as are asked for.

``parallel_program.py FOLDER PROCESSES:WAY,WAY... ...`` leaves in ``FOLDER/PROCESSES``, per way,
``WAY.json`` (losses, budgets, ranks, scores) and ``WAY.safetensors`` (what trains), written by the
first process of the job. The way ``lone`` is ``lone_processes.refuse``, which trains nothing. The
processes of a job are forked, so that all of them together import the libraries once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tests.models import NO_DROPOUT, deberta_v3_config
from tests.training.lone_processes import refuse
from transformers import DebertaV2ForSequenceClassification

from adalora.adapters.freeze import freeze_base
from adalora.adapters.lora import add_lora
from adalora.adapters.trainable import trainable_state
from adalora.pretrained import deberta
from adalora.runtime.launch import leave_job
from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.arguments.training import AdaLoraTrainingArguments
from adalora.training.trainer import AdaLoraTrainer

#: Examples of a step over all processes; neither divides the data.
BATCH, TRAIN, VALIDATION = 12, 45, 31
#: An epoch ends with six examples, of which the second of two processes has none.
LAST_ONE_EMPTY = 42

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "double": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "empty": {},
    "sharded": {"shard_base": True},
    "sharded-and-checkpointing": {
        "shard_base": True,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
    "sharded-bf16": {"shard_base": True, "bf16": True},
    "bf16": {"bf16": True},
}


def build(dtype: torch.dtype) -> DebertaV2ForSequenceClassification:
    torch.manual_seed(0)
    config = deberta_v3_config(
        vocab_size=61,
        hidden_size=18,
        intermediate_size=32,
        max_position_embeddings=64,
        **NO_DROPOUT,
        num_labels=2,
        # The model's default computes the loss in float32 whatever the rest is in.
        problem_type="single_label_classification",
    )
    model = DebertaV2ForSequenceClassification(config).to(dtype)
    deberta.patch(model)
    add_lora(
        model,
        lora_type="svd",
        targets=["query", "key", "value", "intermediate", "layer.output", "attention.output"],
        init_rank=3,
        lora_alpha=8,
    )
    freeze_base(model, train=["lora"])
    return model


def examples(count: int, seed: int) -> list[dict[str, Any]]:
    """Sequences whose label is whether token 5 occurs; every loss is another."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, 60, (count, 12), generator=generator)
    ids[::2, 3] = 5
    return [{"input_ids": row, "labels": int((row == 5).any())} for row in ids]


def accuracy(prediction: Any) -> dict[str, float]:
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(np.mean(right)), "count": len(right)}


def train(way: str, folder: Path) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    arguments = AdaLoraTrainingArguments(
        root_output_dir=str(folder / way),
        per_device_train_batch_size=BATCH // processes,
        per_device_eval_batch_size=8,
        max_steps=12,
        learning_rate=5e-3,
        report_to="none",
        disable_tqdm=True,
        no_cuda=True,
        save_strategy="no",
        logging_steps=1,
        seed=3,
        **WAYS[way],
    )
    model = build(torch.float64 if way == "double" else torch.float32)
    settings = AdaLoraSettings(target_rank=1, init_warmup=2, final_warmup=4, mask_interval=1)
    trainer = AdaLoraTrainer(
        model=model,
        args=arguments,
        adaptation=AdaLora(model, settings),
        train_dataset=examples(LAST_ONE_EMPTY if way == "empty" else TRAIN, 1),
        eval_dataset=examples(VALIDATION, 2),
        compute_metrics=accuracy,
    )
    trainer.train()
    scores = trainer.evaluate()
    logs = trainer.state.log_history
    assert trainer.adaptation is not None
    result = {
        "losses": [entry["loss"] for entry in logs if "loss" in entry],
        "budgets": [entry["budget"] for entry in logs if "budget" in entry],
        "ranks": trainer.adaptation.rank_pattern(),
        "scores": {key: scores[f"eval_{key}"] for key in ("loss", "accuracy", "count")},
        "type": type(model).__name__,
    }
    if arguments.process_index == 0:
        save_file(trainable_state(model), folder / f"{way}.safetensors")
        (folder / f"{way}.json").write_text(json.dumps(result), encoding="utf-8")


def threads_of_gloo() -> list[str]:
    """Those of this process that carry out collectives; none where there is no /proc."""
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if name == "pt_gloo_runloop"]


def work(folder: Path, ways: list[str]) -> None:
    """What each process of a job does."""
    for way in ways:
        if way == "lone":
            refuse(folder)
        else:
            train(way, folder)
    leave_job()
    # The caches of DTensor hold the group of a divided model.
    if not any("sharded" in way for way in ways):
        assert not threads_of_gloo(), "they abort the process if they outlive the interpreter"


def run_job(folder: Path, processes: int, ways: list[str]) -> bool:
    """Fork the processes of one job; False in a forked one, which has then done its work.

    Raises:
        SystemExit: if one of them fails; the others are killed.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(processes):
        if (child := os.fork()) == 0:
            if processes > 1:
                os.environ.update(size | meeting, RANK=str(rank), LOCAL_RANK=str(rank))
            work(folder, ways)
            return False
        children.append(child)
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            raise SystemExit(f"A process of the job of {processes} ended with status {status}.")
    return True


def main() -> None:
    torch.set_num_threads(1)
    for job in sys.argv[2:]:
        processes, _, ways = job.partition(":")
        folder = Path(sys.argv[1], processes)
        folder.mkdir()
        if not run_job(folder, int(processes), ways.split(",")):
            break


if __name__ == "__main__":
    main()
