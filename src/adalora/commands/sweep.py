"""``adalora sweep FILE.yaml``: every run of a table, planned, made, resumed and recorded."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from adalora.commands.flags import CommandParser, positive
from adalora.errors import UserError
from adalora.shell import program, typed

if TYPE_CHECKING:
    from rich.console import Console

    from adalora.sweeps.cells import Cell, Spec
    from adalora.sweeps.ledger import Ledger
    from adalora.sweeps.processes import Executor

EXAMPLES = """  adalora sweep examples/text-classification/sweeps/small.yaml --dry_run
  adalora sweep examples/text-classification/sweeps/small.yaml
  adalora sweep sweep.yaml --output output/mine --jobs 4 -- --data_dir GLUE --bf16 True

Flags behind -- are given to every run and win over `base`. The same command goes on after an
interruption. The file: docs/sweeps.md.
"""


def main(flags: Sequence[str]) -> int:
    """Plan, and unless it is a dry run make the runs; 1 if one of them failed."""
    arguments, given = _parse(flags)
    from rich.console import Console

    from adalora.commands.flags import require_our_loralib

    require_our_loralib()
    from adalora.sweeps.cells import cells_of
    from adalora.sweeps.spec import check_cells, read_sweep_file

    text, spec = read_sweep_file(arguments.file, given)
    cells = cells_of(spec)
    check_cells(cells, source=str(arguments.file))
    console = Console()
    if arguments.dry_run:
        return _dry_run(console, spec, cells, arguments)
    from adalora.sweeps.ledger import Ledger

    if given:
        text += f"\n# given on the command line: {' '.join(given)}\n"
    output: Path = arguments.output or Path("output") / "sweeps" / spec.name
    with Ledger.opened(output.expanduser()) as ledger:
        for name in ledger.plan(text, cells):
            again = f"{name} failed with other flags than it has now and is made again."
            console.print(again, highlight=False, soft_wrap=True)
        return _work(console, spec, ledger, cells, arguments)


def _parse(flags: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = CommandParser("sweep", "Make many runs that a YAML file describes.", EXAMPLES)
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help="the sweep")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help="of the sweep (default: output/sweeps/NAME)",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="show the plan and what it would take; run nothing"
    )
    parser.add_argument(
        "--no_estimate", action="store_true", help="with --dry_run: measure no steps"
    )
    parser.add_argument(
        "--jobs", type=positive, help="runs at a time (default: as many as fit the machine)"
    )
    parser.add_argument(
        "--threads",
        type=positive,
        help="threads of each run (default: OMP_NUM_THREADS, or the cores, shared out)",
    )
    parser.add_argument(
        "--keep",
        choices=("best", "all", "none"),
        default="best",
        help="models to keep: of each setting that of the best seed (default), all with their "
        "checkpoints, or none",
    )
    parser.add_argument(
        "--retry_failed", action="store_true", help="make runs again that failed earlier"
    )
    parser.add_argument(
        "--executor",
        choices=("local", "ray"),
        default="local",
        help="processes of this machine (default), or a Ray cluster",
    )
    parser.add_argument(
        "--ray_address", help="of a running cluster, or `auto`; default: one is started here"
    )
    words = list(flags)
    place = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:place])
    if arguments.ray_address and arguments.executor != "ray":
        raise UserError(f"--ray_address {arguments.ray_address} needs --executor ray.")
    return arguments, words[place + 1 :]


def _executor(arguments: argparse.Namespace) -> tuple[Executor, int]:
    """Where runs are made, and how many at a time."""
    if arguments.executor == "ray":
        from adalora.sweeps.cluster import RayCluster

        cluster = RayCluster(threads=arguments.threads or 1, address=arguments.ray_address)
        return cluster, cluster.slots
    from adalora.sweeps.processes import LocalProcesses, room_here

    room = room_here(arguments.jobs, arguments.threads)
    return LocalProcesses(room), room.slots


def _title(spec: Spec, cells: Sequence[Cell]) -> str:
    axes = [
        f"{len(spec.tasks)} tasks",
        f"{len(spec.methods)} methods",
        *([f"{len(spec.budgets)} budgets"] if spec.budgets else []),
        *(f"{len(values)} values of {name}" for name, values in spec.grid.items()),
        f"{len(spec.seeds)} seeds",
    ]
    return f"{spec.name}: {len(cells)} runs ({' x '.join(axes)})"


def _dry_run(
    console: Console, spec: Spec, cells: Sequence[Cell], arguments: argparse.Namespace
) -> int:
    from adalora.results.words import duration
    from adalora.sweeps.display import plan_table
    from adalora.sweeps.runner import estimate

    console.print(_title(spec, cells), style="bold", markup=False, highlight=False)
    if arguments.no_estimate:
        console.print(plan_table(cells, {}))
        return 0
    executor, slots = _executor(arguments)
    try:
        with _ended_in_order(), console.status("Measuring a few steps of each setting ...") as bar:
            estimates = estimate(
                cells,
                executor,
                noted=lambda done, of: bar.update(f"Measured {done} of {of} settings ..."),
            )
    finally:
        executor.stop()
    console.print(plan_table(cells, estimates))
    first = {cell.group: cell.id for cell in reversed(cells)}
    problems = {first[g]: one.problem for g, one in estimates.items() if one.problem is not None}
    seconds = sum(estimates[cell.group].seconds for cell in cells)
    unknown = " for those that could be measured" if problems else ""
    console.print(
        f"About {duration(seconds / min(slots, len(cells)))} with {slots} at a time{unknown}.",
        highlight=False,
    )
    for name, problem in problems.items():
        console.print(f"{name}: {problem}", style="red", markup=False, soft_wrap=True)
    return 1 if problems else 0


def _work(
    console: Console,
    spec: Spec,
    ledger: Ledger,
    cells: Sequence[Cell],
    arguments: argparse.Namespace,
) -> int:
    from adalora.sweeps.display import Display
    from adalora.sweeps.runner import open_cells, run_cells, tidy

    ledger.adopt(cells)
    todo = open_cells(ledger, cells, retry_failed=arguments.retry_failed)
    done = len(cells) - len(todo)
    earlier = f", {done} of them made earlier" if done else ""
    console.print(f"{_title(spec, cells)}{earlier}", style="bold", markup=False, highlight=False)
    stopped = 0
    if todo:
        executor, slots = _executor(arguments)
        with Display(console, total=len(cells), todo=todo, slots=slots) as display:
            try:
                with _ended_in_order():
                    run_cells(
                        ledger,
                        cells,
                        todo,
                        executor,
                        keep=arguments.keep,
                        started=display.started,
                        ended=display.ended,
                    )
            except _Stopped as stop:
                stopped = stop.signal_number
            finally:
                executor.stop()
    else:
        tidy(ledger, cells, arguments.keep)
    return _close(console, ledger, cells, stopped)


def _close(console: Console, ledger: Ledger, cells: Sequence[Cell], stopped: int) -> int:
    """Say how it stands, and what to type next."""
    results = [ledger.results[cell.id] for cell in cells if cell.id in ledger.results]
    failed = [result for result in results if result.record is None]
    state = f"{len(results) - len(failed)} of {len(cells)} runs have finished"
    if failed:
        state += f", {len(failed)} failed (--retry_failed makes them again)"
    if stopped:
        state = f"Stopped. {state}; the same command goes on"
    console.print(f"{state}. Results: {ledger.folder}", highlight=False, soft_wrap=True)
    if not stopped and len(results) > len(failed):
        table = f"{program('adalora')} table {typed(ledger.folder)}"
        console.print(f"Next: {table}", highlight=False, soft_wrap=True)
    if stopped:
        return 128 + stopped
    return 1 if failed else 0


class _Stopped(KeyboardInterrupt):
    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Raise ``_Stopped`` at a Ctrl-C or a SIGTERM, so that the runs are ended and not left."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped(number)

    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
