"""``adalora import``: an adapter of PEFT as a run."""

from __future__ import annotations

from collections.abc import Sequence

from adalora.commands.flags import CommandParser

__all__ = ["main"]


def _parser() -> CommandParser:
    parser = CommandParser(
        "import",
        "Read a LoRA or AdaLoRA adapter folder of PEFT (for deberta-v2, deberta, bert, roberta or\n"
        "electra) and write it as a run. The result is compared with PEFT on random input before\n"
        "it gets its name.",
        "  adalora import their-adapter --base microsoft/deberta-v3-base --labels no,yes "
        "--output output/theirs",
    )
    parser.add_argument("source", metavar="SOURCE", help="folder that PEFT's save_pretrained wrote")
    parser.add_argument(
        "--base", metavar="MODEL", help="its base model, if not the one that the adapter names"
    )
    parser.add_argument("--output", required=True, metavar="RUN", help="folder of the run to make")
    parser.add_argument(
        "--labels", metavar="A,B,...", help="names of the classes, which PEFT does not keep"
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier import there")
    return parser


def main(flags: Sequence[str]) -> int:
    """Import, and say how well the result agrees with PEFT."""
    arguments = _parser().parse_args(flags)
    from adalora.commands.flags import require_our_loralib

    require_our_loralib()
    from adalora.export.peft_import import import_adapter

    labels = None if arguments.labels is None else arguments.labels.split(",")
    done = import_adapter(
        arguments.source,
        output=arguments.output,
        base_model=arguments.base,
        labels=labels,
        force=arguments.force,
    )
    description, agreement = done.description, done.agreement
    print(f"Wrote {done.target} ({description.method} on {description.base_model}).")
    print(
        f"Checked on {agreement.batches} random batches against {done.checked_by}: logits differ "
        f"by at most {agreement.difference:.1e} ({agreement.allowed:.1e} is allowed)."
    )
    if not done.has_tokenizer:
        print("Neither the adapter nor its base has a tokenizer, so the run has none.")
    return 0
