"""The one exception that means "the user can mend this", and how programs show it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

__all__ = ["UserError", "exit_with_message"]


class UserError(ValueError):
    """A mistake in a flag, a file or a value, told in one sentence.

    The message names the value, what was expected and what to do. Programs print it without a
    traceback and exit with status 2.
    """


def exit_with_message(main: Callable[[], int | None]) -> int:
    """Run ``main`` and return the process's exit status.

    Returns:
        What ``main`` returned (None is 0); 2 after a ``UserError``, whose sentence goes to the
        standard error stream, with the process's rank where there are several.
    """
    try:
        return main() or 0
    except UserError as error:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        where = f" (process {os.environ.get('RANK', '0')})" if several else ""
        print(f"error{where}: {error}", file=sys.stderr)
        return 2
