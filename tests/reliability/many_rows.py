#!/usr/bin/env python
"""Train one step on, and predict, a file of very many rows: time and peak memory of each.

The training file is a pipe, from which nothing can be read twice. Each command runs in a process
of its own, once over a thousand rows for comparison.

    python tests/reliability/many_rows.py --rows 1000000
    python tests/reliability/many_rows.py --rows 100000 --form jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from adalora.builtin.miniature import generate

FORMS = ("csv", "tsv", "jsonl")


def lines(form: str, rows: int) -> Iterator[str]:
    """A table of ``rows`` sentences, no two of them alike."""
    words = [
        (row["sentence"], "pos" if row["label"] else "neg") for row in generate("sst2", "train")
    ]
    separator = "," if form == "csv" else "\t"
    if form != "jsonl":
        yield separator.join(("idx", "text", "label")) + "\n"
    for number in range(rows):
        text, label = words[number % len(words)]
        text = f"{text.replace(',', ';')} {number}"
        if form == "jsonl":
            yield json.dumps({"idx": number, "text": text, "label": label}) + "\n"
        else:
            yield separator.join((str(number), text, label)) + "\n"


def fill(path: Path, form: str, rows: int) -> None:
    """Write the table; to a pipe as it is read."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(lines(form, rows))


def measure(command: list[str]) -> tuple[float, float, str]:
    """Seconds, largest resident set in MiB, and output of a command that succeeds."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{text[-3000:]}")
    return time.monotonic() - start, usage.ru_maxrss / 1024, text


def try_rows(folder: Path, form: str, rows: int, later: int) -> list[tuple[str, ...]]:
    """Train one step on ``rows`` rows, and predict ``later`` many: lines of the table."""
    pipe, table, run = folder / f"pipe.{form}", folder / f"rows.{form}", folder / f"run-{rows}"
    os.mkfifo(pipe)
    writer = threading.Thread(target=fill, args=(pipe, form, rows), daemon=True)
    writer.start()
    adalora = [sys.executable, "-m", "adalora"]
    flags = "--model_name_or_path nano --apply_adalora --do_train --max_steps 1 --report_to none"
    flags += " --per_device_train_batch_size 8 --max_seq_length 32 --disable_tqdm True"
    given = ["--train_file", str(pipe), "--root_output_dir", str(run)]
    trained = measure([*adalora, "train", *flags.split(), *given])
    if f"{rows:,} rows of" not in trained[2]:
        raise SystemExit(f"not every row was read:\n{trained[2][-3000:]}")
    writer.join()
    pipe.unlink()
    fill(table, form, later)
    output = folder / f"answers-{rows}.tsv"
    predict = [*adalora, "predict", str(run), str(table), "--output", str(output)]
    predicted = measure([*predict, "--batch_size", "128"])
    with output.open(encoding="utf-8") as stream:
        if (found := sum(1 for _ in stream) - 1) != later:
            raise SystemExit(f"{found:,} answers for {later:,} rows")
    table.unlink()
    return [
        (name, f"{count:,}", f"{seconds:.0f}", f"{peak:.0f}")
        for name, count, (seconds, peak, _) in (
            ("train one step", rows, trained),
            ("predict", later, predicted),
        )
    ]


def main() -> int:
    """Print time and memory of both commands."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--predict_rows", type=int, help="default: as many")
    parser.add_argument("--form", choices=FORMS, default="csv")
    flags = parser.parse_args()
    table = Table("command", "rows", "seconds", "peak MiB")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "cache")
        for rows, later in ((1000, 1000), (flags.rows, flags.predict_rows or flags.rows)):
            for found in try_rows(Path(folder), flags.form, rows, later):
                table.add_row(*found)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
