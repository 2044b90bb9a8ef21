"""Recognises the wrong ``loralib`` and says in one sentence what to type.

The package index has another project under that name (0.1.x, by Microsoft), without AdaLoRA; ours
is the folder ``loralib/`` of this repository, version 1.0 or later.
"""

from __future__ import annotations

import importlib

from adalora.errors import UserError

__all__ = ["require_our_loralib"]

_REQUIRED_NAMES = ("SVDLinear", "RankAllocator", "compute_orth_regu")
_ADVICE = (
    "adalora needs the loralib of its own repository, version 1.0 or later: "
    "type 'pip install -e loralib -e .' in the project's root"
)


def require_our_loralib() -> None:
    """Check that the importable ``loralib`` is this repository's.

    Raises:
        UserError: if ``loralib`` is missing, or is a namespace or package without the names of
            AdaLoRA, or states a version below 1.0.
    """
    try:
        module = importlib.import_module("loralib")
    except ModuleNotFoundError as error:
        if error.name != "loralib":
            raise
        raise UserError(f"no loralib is installed; {_ADVICE}") from None
    version = str(getattr(module, "__version__", ""))
    missing = [name for name in _REQUIRED_NAMES if not hasattr(module, name)]
    major = version.partition(".")[0]
    if not missing and major.isdigit() and int(major) >= 1:
        return
    found = f"version {version}" if version else "no version stated"
    if missing:
        found += f", without {' and '.join(missing)}"
    origin = getattr(module, "__file__", None) or "a folder that is not a package"
    raise UserError(f"the wrong loralib is installed ({found}, {origin}); {_ADVICE}")
