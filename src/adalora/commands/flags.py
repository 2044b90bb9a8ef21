"""What the commands share: a parser whose errors are one sentence, and flags that several have."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from adalora.errors import UserError
from adalora.shell import program

if TYPE_CHECKING:
    from adalora.data.column_choice import Asked
    from adalora.data.table_reader import Reading
    from adalora.inference.classifier import Classifier


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are ``UserError`` and whose flags are not shortened.

    Args:
        command: its name after ``adalora``.
        description: one sentence.
        examples: for the end of ``--help``, one a line.
    """

    def __init__(self, command: str, description: str, examples: str) -> None:
        heading = "examples" if "\n" in examples.strip() else "example"
        super().__init__(
            prog=f"adalora {command}",
            description=description,
            epilog=f"{heading}:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            UserError: always.
        """
        raise UserError(f"The command line was not understood: {message}. '{self.prog} --help'.")


def positive(word: str) -> int:
    """A whole number of at least 1, for ``type=``."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is not at least 1")
    return number


def add_output_flags(
    parser: argparse.ArgumentParser,
    metavar: str,
    text: str,
    *,
    required: bool = False,
    overwrite: str = "replace what is there",
) -> None:
    """``--output`` (``-o``) and ``--overwrite``, whose name was ``--force`` in some commands.

    Args:
        parser: of the command.
        metavar: what is written, such as FILE.
        text: help for ``--output``.
        required: whether there is no default.
        overwrite: help for ``--overwrite``.
    """
    parser.add_argument("-o", "--output", type=_path, metavar=metavar, required=required, help=text)
    parser.add_argument("--overwrite", action="store_true", help=overwrite)
    parser.add_argument("--force", dest="overwrite", action="store_true", help=argparse.SUPPRESS)


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that exists, unless ``overwrite``, and a folder that cannot be written to.

    Raises:
        UserError: before any work.
    """
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; name a file.")
    if _is_stream(path):
        return
    if path.exists() and not overwrite:
        raise UserError(f"--output {path} exists already; name another; --overwrite replaces it.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--output {path}: the folder {path.parent} cannot be written to.")


def _is_stream(path: Path) -> bool:
    """Whether ``path`` is a device or a pipe, which is written to and never replaced.

    So is what ``/dev/stdout`` leads to, even where that is a file.
    """
    special = path.absolute().parts[1:2] in (("dev",), ("proc",))
    return special or (path.exists() and not path.is_file())


@contextlib.contextmanager
def open_output(path: Path | None, *, overwrite: bool = False) -> Iterator[TextIO]:
    """A stream to ``path``, which appears whole at the end or not at all; or the standard output.

    Raises:
        UserError: if it cannot be written.
    """
    if path is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="")
        yield sys.stdout
        sys.stdout.flush()
        return
    # Here, so that a missing library is met after the check of loralib, which says what to type.
    from adalora.storage.atomic import atomic_write

    check_output(path, overwrite=overwrite)
    try:
        if _is_stream(path):
            with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
                yield stream
            return
        check = functools.partial(check_output, path, overwrite=overwrite)
        with (
            atomic_write(path, before_replacing=check) as new,
            new.open("x", encoding="utf-8", errors="backslashreplace", newline="") as stream,
        ):
            yield stream
    except OSError as error:
        raise UserError(
            f"--output {path} could not be written ({error.strerror or error}); nothing was left."
        ) from error


def _path(word: str) -> Path:
    return Path(word).expanduser()


def add_format_flag(parser: argparse.ArgumentParser, other: str) -> None:
    """``--format``: a table on the terminal, or ``other``, which was a flag of its own before."""
    parser.add_argument(
        "--format",
        choices=("terminal", other),
        default="terminal",
        help=f"terminal (default), or {other} for programs",
    )
    parser.add_argument(
        f"--{other}", dest="format", action="store_const", const=other, help=argparse.SUPPRESS
    )


def add_loading_flags(parser: argparse.ArgumentParser) -> None:
    """``--merged``, ``--batch_size``, ``--device``, ``--base_model``, ``--trust_remote_code``."""
    parser.add_argument(
        "--merged", action="store_true", help="merge the adapter into the weights first"
    )
    parser.add_argument(
        "--batch_size", type=positive, default=32, help="texts in one pass (default: 32)"
    )
    parser.add_argument("--device", help="cpu, cuda, ...; default: the GPU if there is one")
    parser.add_argument(
        "--base_model", help="hub name or folder of the base, if it is elsewhere than it was"
    )
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the code that comes with the base, where the run needs some",
    )


def add_reading_flags(parser: argparse.ArgumentParser, *, label: bool = False) -> None:
    """The columns and the reading of the user's own file; ``label``: it has labels too."""
    parser.add_argument(
        *("--text_column", "--column"),
        dest="text_column",
        metavar="NAME",
        help="the column of the (first) text; default: training's",
    )
    parser.add_argument("--pair_column", metavar="NAME", help="that of the second text of pairs")
    if label:
        parser.add_argument("--label_column", metavar="NAME", help="that of the label")
    parser.add_argument(
        "--no_quotes",
        action="store_true",
        help="quotation marks in CSV and TSV are characters, as in GLUE's own files",
    )
    parser.add_argument("--encoding", help="of the text, such as latin-1; default: UTF-8")


def asked_columns(arguments: argparse.Namespace) -> Asked:
    """The columns that the flags of ``add_reading_flags`` name.

    Raises:
        UserError: if they name one twice, or a second text without the first.
    """
    from adalora.data.column_choice import Asked

    label = getattr(arguments, "label_column", None)
    return Asked(arguments.text_column, arguments.pair_column, label)


def reading_of(arguments: argparse.Namespace) -> Reading:
    """How the flags of ``add_reading_flags`` say that the file is read."""
    from adalora.data.table_reader import Reading

    form = getattr(arguments, "input_format", None)
    return Reading(form, quotes=not arguments.no_quotes, encoding=arguments.encoding)


def load_by_flags(arguments: argparse.Namespace) -> Classifier:
    """The classifier of ``RUN`` as the flags of ``add_loading_flags`` ask for it.

    Raises:
        UserError: as ``adalora.load``.
    """
    import transformers

    from adalora.inference.classifier import load

    transformers.utils.logging.disable_progress_bar()
    return load(
        arguments.run,
        device=arguments.device,
        merged=arguments.merged,
        batch_size=arguments.batch_size,
        base_model=arguments.base_model,
        trust_remote_code=arguments.trust_remote_code,
    )


_REQUIRED_NAMES = ("SVDLinear", "RankAllocator", "compute_orth_regu")


def require_our_loralib() -> None:
    """Check that the importable ``loralib`` is this repository's.

    Raises:
        UserError: if ``loralib`` is missing, or is a namespace or package without the names of
            AdaLoRA, or states a version below 1.0.
    """
    advice = (
        "adalora needs the loralib of its own repository (adalora-loralib), version 1.0 or later: "
        f"type '{program('pip')} install -e loralib -e .' in the project's root"
    )
    try:
        module = importlib.import_module("loralib")
    except ModuleNotFoundError as error:
        if error.name != "loralib":
            raise
        raise UserError(f"no loralib is installed; {advice}") from None
    version = str(getattr(module, "__version__", ""))
    missing = [name for name in _REQUIRED_NAMES if not hasattr(module, name)]
    major = version.partition(".")[0]
    if not missing and major.isdigit() and int(major) >= 1:
        return
    found = f"version {version}" if version else "no version stated"
    if missing:
        found += f", without {' and '.join(missing)}"
    origin = getattr(module, "__file__", None) or "a folder that is not a package"
    raise UserError(f"the wrong loralib is installed ({found}, {origin}); {advice}")
