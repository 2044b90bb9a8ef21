"""What a format cannot express, each told by name before anything is written."""

from __future__ import annotations

from adalora.checkpoints import Description
from adalora.errors import UserError

__all__ = [
    "refuse_bottleneck",
    "refuse_bypass",
    "refuse_peft",
    "require_lora_alone",
    "require_singular_values",
]


def refuse_bottleneck(description: Description, name: str) -> None:
    """Bottleneck adapters hold an activation, so no weight of the base can absorb them."""
    if "bottleneck" in description.trained:
        raise UserError(
            f"This run trained bottleneck adapters ({description.adapter_type}), which are layers "
            f"of their own: {name} has no place for them. Export with --to onnx, or use the run "
            "itself."
        )


def refuse_bypass(description: Description, name: str) -> None:
    """With the bypass one matrix serves two ways, adapted and not: no single weight is both."""
    if description.position_query_bypass:
        raise UserError(
            "This run was trained with --position_query_bypass, where the positional query leaves "
            f"the adapter out: {name} would compute something else. Export with --to onnx or "
            "--to loralib, or train without the bypass."
        )


def refuse_peft(description: Description, name: str) -> None:
    """What a run of PEFT's methods leaves is PEFT's own folder, and not in our layers."""
    if "peft" in description.trained:
        raise UserError(
            f"This run was trained by {description.method}, and its model/ is an adapter folder "
            f"of PEFT already. For {name}, read it in by 'adalora import' (LoRA and AdaLoRA) and "
            "export that, or merge it with PEFT (merge_and_unload)."
        )


def require_lora_alone(description: Description, name: str) -> None:
    """Adapter formats hold low-rank updates and the head, nothing else."""
    refuse_peft(description, name)
    if description.lora is None:
        raise UserError(
            f"This run was trained by {description.method} and has no LoRA to write as {name}; "
            f"{_way_out(description)}."
        )
    others = [part for part in description.trained if part != "lora"]
    if others:
        raise UserError(
            f"This run trained {' and '.join(others)} beside LoRA, which {name} does not hold; "
            f"{_way_out(description)}."
        )


def _way_out(description: Description) -> str:
    works = "onnx" if "bottleneck" in description.trained else "merged"
    return f"export with --to {works}"


def require_singular_values(description: Description, name: str) -> None:
    """Plain LoRA has no singular values for AdaLoRA's format."""
    if description.lora is None or description.lora.lora_type != "svd":
        raise UserError(
            f"This run was trained by {description.method}, without singular values, and {name} "
            "is AdaLoRA's format; export with --to lora."
        )
