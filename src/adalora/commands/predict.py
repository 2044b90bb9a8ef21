"""``adalora predict RUN [FILE]``: labels and probabilities for texts, as a stream."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from adalora.commands.flags import (
    CommandParser,
    add_loading_flags,
    add_output_flags,
    add_reading_flags,
    asked_columns,
    check_output,
    load_by_flags,
    open_output,
    positive,
    reading_of,
)
from adalora.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

    from adalora.data.table_reader import Texts

EXAMPLES = """  adalora predict output/rte pairs.csv --output labels.tsv
  echo "A text to classify." | adalora predict output/sst2
  adalora predict output/mine reviews.jsonl --column review --format jsonl | head"""


def _parser() -> CommandParser:
    parser = CommandParser(
        "predict",
        "Predict labels and probabilities for the texts of a file or of the standard input.",
        EXAMPLES,
    )
    parser.add_argument("run", help="a run's folder (its --root_output_dir), or an artefact")
    parser.add_argument("file", nargs="?", default="-", help="default: the standard input")
    parser.add_argument(
        "--input_format",
        choices=("lines", "csv", "tsv", "jsonl", "json", "parquet"),
        help="default: by FILE's ending, and plain lines otherwise (of pairs: a tab between them)",
    )
    add_reading_flags(parser)
    add_output_flags(parser, "FILE", "default: the standard output")
    parser.add_argument(
        "--format", choices=("tsv", "csv", "jsonl"), help="default: by --output's ending, or tsv"
    )
    parser.add_argument("--with_texts", action="store_true", help="repeat the texts in the output")
    parser.add_argument(
        "--window",
        type=positive,
        default=512,
        help="rows that are read, sorted by length and answered at a time (default: 512)",
    )
    add_loading_flags(parser)
    return parser


def main(flags: Sequence[str]) -> int:
    """Predict, and write each window of rows as soon as it is answered."""
    arguments = _parser().parse_args(flags)
    if arguments.output is not None:
        check_output(arguments.output, overwrite=arguments.overwrite)
    if arguments.file == "-":
        if sys.stdin.isatty():
            print("Reading the terminal; Ctrl-D ends it.", file=sys.stderr)
        _predict(arguments, sys.stdin.buffer, "the standard input")
        return 0
    try:
        with open(arguments.file, "rb") as stream:
            _predict(arguments, stream, arguments.file)
    except OSError as error:
        if error.filename != arguments.file:
            raise
        raise UserError(f"{arguments.file} cannot be read: {error.strerror}.") from error
    return 0


def _predict(arguments: argparse.Namespace, stream: BinaryIO, place: str) -> None:
    from adalora.artefact.description import read_description
    from adalora.artefact.stored import find_artefact
    from adalora.data.column_choice import Columns, choose_columns, same_columns
    from adalora.data.table_reader import form_of, open_table
    from adalora.data.understood import FileRead, Understood
    from adalora.inference.classifier import text_columns
    from adalora.inference.output import writer

    described = read_description(find_artefact(arguments.run))
    known = text_columns(described) or ()
    asked, reading = asked_columns(arguments), reading_of(arguments)
    if asked.texts and known and len(asked.texts) != len(known):
        raise UserError(
            f"This model takes {len(known)} texts ({', '.join(known)}), and --text_column and "
            f"--pair_column name {len(asked.texts)}."
        )
    form = arguments.input_format or form_of(arguments.file) or "lines"
    if form == "parquet" and arguments.file == "-":
        raise UserError(f"--input_format {form} needs a file, as it cannot be read as a stream.")
    table = open_table(stream, place, form, reading)
    count = len(asked.texts) or len(known) or 1
    columns = Columns((), None, ())
    if form != "lines" and (table.columns or table.sample()):
        if known and not asked.texts:
            trained = Columns(known, None, ())
            columns = same_columns(table, trained, like="the model", with_label=False)
        else:
            columns = choose_columns(table, asked, with_label=False, count=count)
    if columns.texts:
        chosen = Understood(
            text_columns=columns.texts, ignored=columns.ignored, weights=arguments.run
        )
        print(chosen, file=sys.stderr)
    rows = table.texts(columns.texts, count)
    # A mistake in the first row shows before the model is loaded.
    first = list(itertools.islice(rows, 1))
    classifier = load_by_flags(arguments)
    suffix = "" if arguments.output is None else arguments.output.suffix.lower()[1:]
    shown = arguments.format or (suffix if suffix in ("csv", "jsonl") else "tsv")
    names = (columns.texts or known or ("text",)) if arguments.with_texts else ()
    size = os.fstat(stream.fileno()).st_size if arguments.file != "-" else None
    with (
        open_output(arguments.output, overwrite=arguments.overwrite) as out,
        _progress() as progress,
    ):
        write = writer(out, shown, classifier.labels, names)
        bar = progress.add_task("Predicting", total=size, rows=0)
        done, cut = 0, {}
        for window in _windows(itertools.chain(first, rows), arguments.window):
            texts = [row.texts if len(row.texts) == 2 else row.texts[0] for row in window]
            if not done:
                cut = {f"the first {len(texts):,}": classifier.share_cut(texts)}
            write(window, classifier(texts))
            done += len(window)
            at = stream.tell() if size is not None else None
            progress.update(bar, completed=at, rows=done)
    read = FileRead("predicted", place, done, tuple(table.notes))
    print(Understood((read,), cut=cut, longest=classifier.longest), file=sys.stderr)


def _windows(rows: Iterator[Texts], size: int) -> Iterator[list[Texts]]:
    while window := list(itertools.islice(rows, size)):
        yield window


def _progress() -> Progress:
    """A bar on the terminal, on the standard error stream; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]} rows"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
