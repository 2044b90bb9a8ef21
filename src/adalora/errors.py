"""The one exception that means "the user can mend this"."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(ValueError):
    """A mistake in a flag, a file or a value, told in one sentence.

    The message names the value, what was expected and what to do. Programs print it without a
    traceback and exit with status 2.
    """
