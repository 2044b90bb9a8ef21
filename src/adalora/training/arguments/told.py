"""The text of a flag's ``--help``, as the parser wants it in a dataclass's field."""

from __future__ import annotations

__all__ = ["told"]


def told(text: str) -> dict[str, str]:
    """The ``metadata`` of a field whose flag is explained by ``text``."""
    return {"help": text}
