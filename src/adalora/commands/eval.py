"""``adalora eval RUN``: the metrics of a trained model, as its run computed them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adalora.commands.flags import (
    CommandParser,
    add_format_flag,
    add_loading_flags,
    add_reading_flags,
    asked_columns,
    load_by_flags,
    positive,
    reading_of,
)

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = """  adalora eval output/mini-rte
  adalora eval output/rte --data_dir glue_data
  adalora eval output/mine --validation_file dev.csv --format json"""


def main(flags: Sequence[str]) -> int:
    """Evaluate on every validation set of the task, or on the user's file."""
    parser = CommandParser(
        "eval", "Evaluate a trained model on the validation sets of its task.", EXAMPLES
    )
    parser.add_argument("run", help="a run's folder (its --root_output_dir), or an artefact")
    parser.add_argument("--task_name", help="default: the task that it was trained on")
    parser.add_argument("--data_dir", help="folder of the official GLUE files")
    parser.add_argument("--validation_file", help="your own CSV, TSV, JSON or Parquet file")
    add_reading_flags(parser, label=True)
    parser.add_argument(
        "--max_val_samples", type=positive, help="evaluate on the first so many examples"
    )
    add_format_flag(parser, "json")
    add_loading_flags(parser)
    arguments = parser.parse_args(flags)

    from adalora.artefact.description import read_description
    from adalora.artefact.stored import find_artefact
    from adalora.data.understood import Understood
    from adalora.inference.evaluate import evaluate, evaluation_sets

    described = read_description(find_artefact(arguments.run))
    sets = evaluation_sets(
        described,
        task_name=arguments.task_name,
        data_dir=arguments.data_dir,
        validation_file=arguments.validation_file,
        columns=asked_columns(arguments),
        reading=reading_of(arguments),
    )
    classifier = load_by_flags(arguments)
    for name, examples in sets.items():
        first = examples.first(arguments.max_val_samples)
        start = Understood(
            cut={name: classifier.share_cut(first.texts)},
            longest=classifier.longest,
            weights=arguments.run,
        )
        # Not among the results, which may go to another program.
        print(examples.understood | start, file=sys.stderr)
    results = {
        name: evaluate(classifier, examples.first(arguments.max_val_samples))
        for name, examples in sets.items()
    }
    if arguments.format == "json":
        print(json.dumps(results, indent=2))
    else:
        from rich.console import Console

        Console().print(_table(results, described.metrics))
    return 0


def _table(results: Mapping[str, Mapping[str, float]], recorded: Mapping[str, Any]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("set", "metric", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("now", justify="right")
    table.add_column("when trained", justify="right")
    for split, metrics in results.items():
        before = recorded.get(split)
        for name, value in metrics.items():
            old = before.get(f"eval_{name}") if isinstance(before, Mapping) else None
            table.add_row(Text(split), name, _shown(value), "" if old is None else _shown(old))
    return table


def _shown(value: float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
