"""Measure and tell: ``python -m benchmarks [QUESTION ...] --output results.json``.

Ratios are taken in one run, alternating, medians of several. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import (
    allocator,
    encoders,
    freed_memory,
    gpu,
    growth,
    intervals,
    loading,
    memory,
    sharding,
    sizes,
    step,
    tasks,
)
from benchmarks.timing import machine

QUESTIONS = (
    *("step", "tasks", "encoders", "allocator", "gpu"),
    *("sizes", "memory", "freed_memory", "growth", "loading", "sharding", "intervals"),
)


def main() -> int:
    """Run the questions that were asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("questions", nargs="*", default=[], help="; ".join(QUESTIONS))
    parser.add_argument("--layers", type=int, default=12, help="depth of the compared models")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens per step")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each contender")
    parser.add_argument("--data_dir", type=Path, help="official GLUE files, for tasks, encoders")
    parser.add_argument("--tokenizer", help="hub id or folder, for tasks, encoders")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    # Of an accelerator only whoever asks for it wants to know.
    asked = arguments.questions or [name for name in QUESTIONS if name != "gpu"]
    unknown = sorted(set(asked) - set(QUESTIONS))
    if unknown:
        parser.error(f"there is no question {unknown[0]!r}; they are {', '.join(QUESTIONS)}")
    if "tasks" in asked and not (arguments.data_dir and arguments.tokenizer):
        parser.error("`tasks` needs --data_dir (official GLUE files) and --tokenizer")
    layers, rounds, precisions = arguments.layers, arguments.rounds, tuple(arguments.precision)
    # Each gives what it knows so far, again and again.
    measurements: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "step": lambda: step.measure(
            layers=layers, tokens=arguments.tokens, rounds=rounds, precisions=precisions
        ),
        "tasks": lambda: tasks.measure(
            layers=layers,
            rounds=rounds,
            data_dir=arguments.data_dir,
            tokenizer=arguments.tokenizer,
            precisions=precisions,
        ),
        "encoders": lambda: encoders.measure(
            rounds=rounds,
            precisions=precisions,
            data_dir=arguments.data_dir,
            tokenizer=arguments.tokenizer,
        ),
        "allocator": lambda: allocator.measure(rounds=rounds),
        "gpu": lambda: gpu.measure(layers=layers, rounds=rounds),
        "sizes": lambda: sizes.measure(layers=layers, batches=8 * rounds),
        "memory": lambda: memory.measure(layers=layers),
        "freed_memory": lambda: freed_memory.measure(layers=layers, rounds=rounds),
        "growth": lambda: growth.measure(rounds=rounds),
        "loading": lambda: loading.measure(layers=layers),
        "sharding": lambda: sharding.measure(layers=layers),
        "intervals": intervals.measure,
    }
    results: dict[str, Any] = {"machine": machine()}
    console = Console()
    console.print(_table("machine", results["machine"]))
    for question in asked:
        print(f"{question} ...", file=sys.stderr, flush=True)
        # Written whenever there is more, so that who stops it keeps what was measured.
        for found in measurements[question]():
            results[question] = found
            if arguments.output is not None:
                text = json.dumps(results, indent=2) + "\n"
                arguments.output.write_text(text, encoding="utf-8")
        console.print(_table(question, results[question]))
    return 0


def _table(title: str, result: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in _leaves(result):
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


def _leaves(result: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(result, dict):
        return [(path, result)]
    return [
        leaf
        for key, value in result.items()
        for leaf in _leaves(value, f"{path} · {key}" if path else str(key))
    ]


if __name__ == "__main__":
    sys.exit(main())
