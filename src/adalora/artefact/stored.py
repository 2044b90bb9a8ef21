"""Everything that an artefact's folder holds, read and verified before anything is built from it.

Sizes in a description are believed only where the stored tensors have them, so that no number in a
file can make the program allocate more than the file itself holds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from adalora.adapters.peft_method import PEFT_FILES
from adalora.artefact.description import (
    MANIFEST,
    Description,
    LoRASettings,
    Origin,
    read_description,
)
from adalora.errors import UserError
from adalora.storage.files import file_checksum, listed, not_finite, read_tensors

ADAPTER_FILE = "adapter.safetensors"
HEAD_FILE = "head.safetensors"
MODEL_FILE = "model.safetensors"


@contextlib.contextmanager
def naming(source: Path) -> Iterator[None]:
    """Put ``source`` before what is wrong with it: checks need not know where it is from."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def find_artefact(path: str | Path) -> Path:
    """The folder that holds a complete artefact: ``path``, or ``model/`` in the root of a run."""
    root = Path(path).expanduser()
    for folder in (root, root / "model"):
        if (folder / MANIFEST).is_file():
            return folder
    if not root.exists():
        raise UserError(f"{root} does not exist; name a run's folder or an artefact.")
    unfinished = any(root.glob("checkpoint-*")) or any(root.glob("model/checkpoint-*"))
    hint = " It holds training checkpoints: finish the run first." if unfinished else ""
    raise UserError(
        f"{root} holds no complete artefact: {MANIFEST}, which is written last, is missing.{hint}"
    )


@dataclass(frozen=True)
class StoredArtefact:
    """A verified artefact, of which no model was built yet."""

    folder: Path
    description: Description
    #: of adapter and head by the model's names; none where the model was stored whole (full
    #: fine-tuning) or by PEFT, whose own loaders read it
    tensors: dict[str, Tensor]
    sizes: dict[str, tuple[int, ...]]  #: shapes in the file with the head

    def origins(self) -> tuple[Origin, ...]:
        """The lineage of what starts from it: itself, and what it came from."""
        itself = Origin(
            path=str(self.folder.resolve()),
            sha256=file_checksum(self.folder / ADAPTER_FILE),
            method=self.description.method,
            task=self.description.task,
            created=self.description.created,
        )
        return (itself, *self.description.lineage)


def read_artefact(path: str | Path) -> StoredArtefact:
    """Read the artefact in ``path``, a folder or a run's root, and verify it.

    Raises:
        UserError: if it is absent, incomplete or damaged, its files are not those that were saved,
            a tensor holds NaN or infinity, or the description states sizes that they do not have.
    """
    folder = find_artefact(path)
    description = read_description(folder)
    check_files(folder, description)
    # Only adapters are built here; what is stored whole, or by PEFT, has loaders of its own.
    built = not {"full", "peft"} & set(description.trained)
    with naming(folder):
        head = _head_file(description)
    tensors = {f: read_tensors(folder / f) for f in (ADAPTER_FILE, HEAD_FILE) if built}
    sizes = shapes(folder / head)
    with naming(folder):
        if description.num_labels not in {size[0] for size in sizes.values() if size}:
            raise UserError(
                f"{MANIFEST} says num_labels {description.num_labels}, and no tensor of {head} has "
                "as many rows."
            )
        _check_tensors(description, tensors)
    merged = {name: tensor for found in tensors.values() for name, tensor in found.items()}
    return StoredArtefact(folder, description, merged, sizes)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a safetensors file, from its header alone."""
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        # Reading it says what is wrong with it.
        return {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}


def rank_of(settings: LoRASettings, rank_pattern: Mapping[str, int], path: str) -> int:
    """Triplets stored of the matrix at ``path``."""
    return rank_pattern.get(f"{path}.lora_E", settings.init_rank)


def check_files(folder: Path, description: Description) -> None:
    """Refuse a folder in which a file is missing, of another size or of other content."""
    for name, size in description.files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        state = None
        if found is None:
            state = "missing"
        elif found != size:
            state = f"{found} bytes long instead of {size}"
        elif name in description.checksums and file_checksum(path) != description.checksums[name]:
            state = "not the file that was saved (its SHA-256 is another)"
        if state is not None:
            raise UserError(
                f"The artefact in {folder} is damaged: {name} is {state}. Copy it again, or train "
                "again."
            )


def _head_file(description: Description) -> str:
    """The file that holds the head; all that are needed must be described."""
    needed: tuple[str, ...] = (HEAD_FILE, ADAPTER_FILE)
    if "full" in description.trained:
        needed = (MODEL_FILE, "config.json")
    elif "peft" in description.trained:
        needed = PEFT_FILES
    for name in needed:
        if name not in description.files:
            raise UserError(f"{MANIFEST} does not list {name}; the artefact is damaged.")
    return needed[0]


def _check_tensors(description: Description, tensors: Mapping[str, dict[str, Tensor]]) -> None:
    """Refuse numbers that are not finite, and ranks and sizes that the tensors do not have."""
    for file, found in tensors.items():
        if bad := not_finite(found.items()):
            raise UserError(
                f"{file} holds NaN or infinity in {listed(bad)}, so it answers nothing; train "
                "again."
            )
    if not tensors:  # read by loaders of their own
        return
    adapter = tensors[ADAPTER_FILE]
    ranks: dict[str, int] = {}
    if (lora := description.lora) is not None:
        ranks = {path: rank_of(lora, description.rank_pattern, path) for path in lora.targets}
    for path, rank in ranks.items():
        factor = adapter.get(f"{path}.lora_A")
        if rank and (factor is None or factor.shape[:1] != (rank,)):
            have = "none" if factor is None else f"one of shape {list(factor.shape)}"
            raise UserError(
                f"{MANIFEST} says rank {rank} of {path}, and {ADAPTER_FILE} holds {have}."
            )
    sizes = {t.shape[0] for n, t in adapter.items() if n.endswith("adapter.adapter_A.weight")}
    if description.adapter_size is not None and sizes != {description.adapter_size}:
        raise UserError(
            f"{MANIFEST} says adapter_size {description.adapter_size}, and {ADAPTER_FILE} holds "
            f"{', '.join(map(str, sorted(sizes))) or 'none'}."
        )
