"""One export from beginning to end: load, refuse or write aside, read back, compare, rename."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from adalora.adapters.kinds import LORA_KINDS, PARTS
from adalora.artefact.description import MANIFEST, Description, read_description
from adalora.artefact.reader import Artefact, load_artefact
from adalora.artefact.stored import find_artefact
from adalora.errors import UserError
from adalora.export.formats import FORMATS, find_format
from adalora.export.verify import Agreement, measure, random_batches
from adalora.shell import program
from adalora.storage.atomic import complete_or_absent
from adalora.storage.files import listed, not_finite

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
    overwrite: bool = False,
    base_model: str | None = None,
) -> Export:
    """Write a trained run in another format, checked before it gets its name.

    Args:
        run: root folder of a run, or an artefact's folder.
        to: a name of ``FORMATS``.
        output: the folder (or file) to make.
        overwrite: replace an earlier export that is there, once the new one is complete.
        base_model: hub id or folder of the base, if it is elsewhere than it was.

    Raises:
        UserError: if the run cannot be read, the format is unknown, cannot express it or lacks a
            package, the target is there or cannot be written, or the result does not compute what
            the run computes. Nothing is left behind then.
    """
    chosen = find_format(to)
    exporter = chosen.exporter(to)
    folder = find_artefact(run)
    description = read_description(folder)
    refuse(description, to)
    target = Path(output)
    reads = [folder, Path(base_model or description.base_model)]

    def replaceable(path: Path) -> bool:
        if not chosen.is_folder:
            return path.is_file()
        if not path.is_dir() or (path / MANIFEST).exists():
            return False
        return not any(path.iterdir()) or any((path / mark).is_file() for mark in _MARKS)

    with (
        quietly(),
        complete_or_absent(
            target, overwrite=overwrite, replaceable=replaceable, protected=reads
        ) as new,
    ):
        artefact = load_source(folder, base_model=base_model)
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


def formats_for(description: Description) -> list[str]:
    """The formats that hold everything that was trained, as each of its parts says."""
    held = set(FORMATS)
    for name in description.trained:
        part = set(PARTS[name].exports)
        if name == "lora" and description.lora is not None:
            part |= set(LORA_KINDS[description.lora.lora_type].exports)
        held &= part
    if description.position_query_bypass:
        # One matrix serves two ways, adapted and not: no single weight, and nothing of PEFT, does.
        held -= {"merged", "lora", "peft-adalora"}
    return [name for name in FORMATS if name in held]


def refuse(description: Description, name: str) -> None:
    """Refuse a run that the format ``name`` cannot express, naming those that can."""
    possible = formats_for(description)
    if name in possible:
        return
    if "peft" in description.trained:
        raise UserError(
            f"This run was trained by {description.method}, and its model/ is an adapter folder "
            f"of PEFT already. For {name}, read it in by '{program('adalora')} import' (LoRA and "
            "AdaLoRA) and export that, or merge it with PEFT (merge_and_unload)."
        )
    ways = " or ".join(f"--to {way}" for way in possible)
    if description.position_query_bypass:
        raise UserError(
            "This run was trained with --position_query_bypass, where the positional query leaves "
            f"the adapter out: {name} would compute something else. Export with {ways}, or train "
            "without the bypass."
        )
    details = {"bottleneck": description.adapter_type}
    if description.lora is not None:
        details["lora"] = description.lora.lora_type
    trained = [
        PARTS[part].title + (f" ({details[part]})" if part in details else "")
        for part in description.trained
    ]
    raise UserError(
        f"This run trained {' and '.join(trained)}, which {name} does not hold; export with {ways}."
    )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings, log lines, progress bars and prints of exporters and loaders."""
    bars = transformers_logging.is_progress_bar_enabled()
    disabled = logging.root.manager.disable
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if bars:
            transformers_logging.enable_progress_bar()


def load_source(folder: Path, *, base_model: str | None = None) -> Artefact:
    """The artefact in ``folder``, a base of half precision widened to float32.

    Rounding a merged weight to half precision would drop most of a small update, and the widened
    base is the same numbers. One that holds NaN or infinity is refused.
    """
    artefact = load_artefact(folder, base_model=base_model)
    model = artefact.model
    if artefact.description.torch_dtype in (torch.float16, torch.bfloat16):
        model = model.float()
    broken = not_finite(model.named_parameters())
    if broken:
        raise UserError(
            f"The model in {folder} cannot be exported: {listed(broken)} holds NaN or infinity. "
            "Its training diverged or its files were changed; export an earlier run."
        )
    return replace(artefact, model=model)
