"""Where trained parameters came from: kept on the model from loading to saving."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

__all__ = ["Origin", "lineage_of", "record_origins"]

_ATTRIBUTE = "adalora_lineage"


@dataclass(frozen=True)
class Origin:
    """An artefact or a file that a model's adapters were read from.

    Attributes:
        path: as it was on the machine that read it.
        sha256: checksum of the file with the adapters.
        method: what the artefact was trained by; None where only a file was given.
        task: likewise.
        created: likewise; ISO 8601, UTC.
    """

    path: str
    sha256: str
    method: str | None = None
    task: str | None = None
    created: str | None = None


def lineage_of(model: nn.Module) -> tuple[Origin, ...]:
    """What the adapters of ``model`` were read from, the nearest first; () if they are new."""
    origins: tuple[Origin, ...] = getattr(model, _ATTRIBUTE, ())
    return origins


def record_origins(model: nn.Module, *origins: Origin) -> None:
    """Note that adapters of ``model`` were read from the first origin, and that from the others."""
    setattr(model, _ATTRIBUTE, (*lineage_of(model), *origins))
