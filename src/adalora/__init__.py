"""AdaLoRA on today's libraries: adapt pretrained encoders with very few trained parameters.

Importing this package loads nothing heavy; each room (``adalora.adapters``, ``adalora.glue``,
``adalora.training``, ...) is imported when it is used. The algorithm itself lives in ``loralib``.
``adalora.load`` opens what a run has left. Rooms that were documented under another name are still
imported by it, with a ``DeprecationWarning``.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adalora.inference.classifier import load

__all__ = ["__version__", "load"]

__version__ = "0.1.0"

#: Name until 0.1 -> name now; modules inside a room are found inside the new one.
_MOVED = {
    "adalora.checkpoints": "adalora.artefact",
    "adalora.deberta": "adalora.pretrained.deberta",
    "adalora.pages": "adalora.report",
    "adalora.runs": "adalora.results",
}


def __getattr__(name: str) -> Any:
    """Import on first use, as ``load`` needs torch and transformers."""
    if name == "load":
        from adalora.inference.classifier import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _MovedRooms:
    """Finds the rooms that have moved: the new module itself, under the old name too."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        room = ".".join(name.split(".")[:2])
        return ModuleSpec(name, _MovedRooms()) if room in _MOVED else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        room = ".".join(spec.name.split(".")[:2])
        new = spec.name.replace(room, _MOVED[room], 1)
        warnings.warn(f"{spec.name} is now {new}; import that.", DeprecationWarning, stacklevel=2)
        try:
            module = importlib.import_module(new)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{spec.name} is now in {_MOVED[room]}: {error}") from None
        # Importing puts ``spec`` into the module, which keeps its own.
        spec.loader_state = module.__spec__
        return module

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        module.__spec__ = module.__spec__.loader_state if module.__spec__ is not None else None


def _warn_of_another_loralib() -> None:
    """Say that the index's ``loralib`` is installed, which writes over ours or hides it."""
    for place in sys.path:
        for about in Path(place).glob("loralib-*.dist-info/METADATA"):
            # What the summary of ours was as long as its distribution was called loralib.
            if "AdaLoRA" not in about.read_text(encoding="utf-8", errors="replace"):
                name = about.parent.name.removesuffix(".dist-info").replace("-", " ")
                warnings.warn(
                    f"Another project's {name} is installed in {place}, and is imported by the "
                    "name of the loralib that adalora needs: type 'pip uninstall loralib', and "
                    "install adalora-loralib again ('pip install -e loralib' in a checkout).",
                    stacklevel=3,
                )


_warn_of_another_loralib()
if not any(type(finder).__name__ == "_MovedRooms" for finder in sys.meta_path):
    # First: a module inside an old room would be found by its file, and made a second time.
    sys.meta_path.insert(0, _MovedRooms())  # type: ignore[arg-type]
