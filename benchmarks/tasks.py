"""Real tokens per second on GLUE's length distributions, against the padding of the seed."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from adalora.glue.load import DataSource, load_data
from benchmarks.contenders import CONTENDERS, batch_of, cast_base, in_turn
from benchmarks.timing import alternate

#: Task -> (split, --max_seq_length of its script).
TASKS = {
    "cola": ("train", 64),
    "sst2": ("train", 128),
    "mrpc": ("train", 320),
    "rte": ("train", 320),
    "stsb": ("train", 128),
    "qnli": ("validation", 512),
}
BATCH = 32
#: Batches that ours has met before it is measured, as anywhere but at the start of a run: in half
#: precision the first of every size waits for its kernels. The padded batch has one size.
MET = 16
#: Batches that ours takes while the peer takes one: their lengths differ, the padded ones' do not.
EACH = 3


def lengths_of(task: str, data_dir: Path, tokenizer: Any, *, count: int) -> list[int]:
    """Tokens of ``count`` random examples."""
    split, longest = TASKS[task]
    data = load_data(DataSource(task_name=task, data_dir=str(data_dir), need=()))
    rows = data.splits[split]
    chosen = random.Random(0).sample(range(len(rows)), count)
    texts = [rows[index] for index in chosen]
    keys = [key for key in (data.sentence1_key, data.sentence2_key) if key is not None]
    return [
        len(
            tokenizer(*(row[key] for key in keys), truncation=True, max_length=longest)["input_ids"]
        )
        for row in texts
    ]


def measure(
    *, layers: int, rounds: int, data_dir: Path, tokenizer: str, precisions: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """Per task: seconds a step, ours on the real tokens and PEFT's AdaLoRA on the padded batch."""
    encoder = AutoTokenizer.from_pretrained(tokenizer)
    result: dict[str, Any] = {"layers": layers, "batches met before": MET}
    for precision in precisions:
        ours, peer = (CONTENDERS[name](layers) for name in ("ours", "PEFT AdaLoRA"))
        for step in (ours, peer):
            step.bf16 = precision == "bfloat16"
        if ours.bf16:
            cast_base(ours)
        rows: dict[Any, dict[str, Any]] = {}
        found = result[precision] = {"tasks": rows}
        for task, (_, longest) in TASKS.items():
            lengths = lengths_of(task, data_dir, encoder, count=BATCH * (MET + EACH * rounds))
            batches = [lengths[i : i + BATCH] for i in range(0, len(lengths), BATCH)]
            met, batches = batches[:MET], batches[MET:]
            for batch in met:
                ours(batch_of(batch))
            seconds = alternate(
                {
                    "ours": in_turn(ours, batches, each=EACH),
                    "PEFT AdaLoRA": in_turn(peer, batches, padded_to=longest),
                },
                rounds=rounds,
            )
            seconds["ours"] /= EACH
            rows[task] = {
                "tokens": sum(map(sum, batches)) / len(batches),
                "padded": BATCH * longest,
                "seconds": seconds,
                "speedup": seconds["PEFT AdaLoRA"] / seconds["ours"],
            }
            found["geometric mean"] = statistics.geometric_mean(
                row["speedup"] for row in rows.values()
            )
            yield result
