"""One export from beginning to end: load, refuse or write aside, read back, compare, rename."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adalora.checkpoints import find_artefact
from adalora.checkpoints.description import MANIFEST, read_description
from adalora.export.formats import find_format
from adalora.export.quiet import quietly
from adalora.export.source import load_source
from adalora.export.target import complete_or_absent
from adalora.export.verify import Agreement, measure, random_batches

__all__ = ["Export", "export_run"]

#: A folder with one of these may be an earlier export.
_MARKS = ("config.json", "adapter_config.json")


@dataclass(frozen=True)
class Export:
    """What was written, how well it agrees with the run, and how to use it."""

    target: Path
    files: int
    bytes: int
    agreement: Agreement
    usage: str


def export_run(
    run: str | Path,
    *,
    to: str,
    output: str | Path,
    force: bool = False,
    base_model: str | None = None,
) -> Export:
    """Write a trained run in another format, checked before it gets its name.

    Args:
        run: root folder of a run, or an artefact's folder.
        to: a name of ``FORMATS``.
        output: the folder (or file) to make.
        force: replace an earlier export that is there, once the new one is complete.
        base_model: hub id or folder of the base, if it is elsewhere than it was.

    Raises:
        UserError: if the run cannot be read, the format is unknown, cannot express it or lacks a
            package, the target is there or cannot be written, or the result does not compute what
            the run computes. Nothing is left behind then.
    """
    chosen = find_format(to)
    exporter = chosen.exporter(to)
    folder = find_artefact(run)
    target = Path(output)
    reads = [folder, Path(base_model or read_description(folder).base_model)]

    def replaceable(path: Path) -> bool:
        if not chosen.is_folder:
            return path.is_file()
        return path.is_dir() and not (path / MANIFEST).exists() and _is_export(path)

    with (
        quietly(),
        complete_or_absent(target, force=force, replaceable=replaceable, protected=reads) as new,
    ):
        artefact = load_source(folder, base_model=base_model)
        exporter.refuse(artefact)
        batches = random_batches(artefact.model, max_length=artefact.description.max_seq_length)
        exporter.write(artefact, new)
        agreement = measure(
            artefact.model,
            exporter.read(artefact, new),
            batches,
            tolerance=chosen.tolerance,
            what=f"The {to} export",
        )
    files = [path for path in target.rglob("*") if path.is_file()] if target.is_dir() else [target]
    return Export(
        target=target,
        files=len(files),
        bytes=sum(path.stat().st_size for path in files),
        agreement=agreement,
        usage=exporter.usage(artefact, target),
    )


def _is_export(folder: Path) -> bool:
    return not any(folder.iterdir()) or any((folder / mark).is_file() for mark in _MARKS)
