"""What the commands share: errors as one sentence, and loading a model by flags."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from adalora.errors import UserError

if TYPE_CHECKING:
    from adalora.inference.classifier import Classifier

__all__ = ["CommandParser", "add_loading_flags", "load_by_flags", "positive"]


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


def add_loading_flags(parser: argparse.ArgumentParser) -> None:
    """``--merged``, ``--batch_size``, ``--device`` and ``--base_model``."""
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
    )
