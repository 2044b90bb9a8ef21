"""``adalora export``, ``import`` and ``truncate``: a run in another form, and back."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import rich

from adalora.commands.flags import CommandParser, add_output_flags, positive, require_our_loralib
from adalora.export.formats import FORMATS, find_format
from adalora.shell import program


def export_run(flags: Sequence[str]) -> int:
    """Export a run, and say how well the result agrees with it."""
    width = max(map(len, FORMATS))
    formats = "\n".join(f"  {name:<{width}}  {form.summary}" for name, form in FORMATS.items())
    parser = CommandParser(
        "export",
        "Write a trained run in the format of another program. The result is read back and\n"
        "compared with the run on random input before it gets its name.\n\n"
        f"formats:\n{formats}",
        "  adalora export output/rte --to merged --output output/rte-merged",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or the model/ in it")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(FORMATS))
    add_output_flags(parser, "PATH", "folder to make (loralib: file)", required=True)
    parser.add_argument(
        "--base_model", metavar="MODEL", help="the base, if it is elsewhere than it was"
    )
    arguments = parser.parse_args(flags)
    find_format(arguments.to)
    require_our_loralib()
    from adalora.export import convert

    done = convert.export_run(
        arguments.run,
        to=arguments.to,
        output=arguments.output,
        overwrite=arguments.overwrite,
        base_model=arguments.base_model,
    )
    agreement = done.agreement
    print(f"Wrote {done.target} ({done.files} files, {done.bytes:,} bytes).")
    print(
        f"Checked on {agreement.batches} random batches: its logits differ from the run's by at "
        f"most {agreement.difference:.1e} ({agreement.allowed:.1e} is allowed)."
    )
    print(f"Use it:\n  {done.usage.replace(chr(10), chr(10) + '  ')}")
    return 0


def import_run(flags: Sequence[str]) -> int:
    """Import an adapter, and say how well the result agrees with PEFT."""
    parser = CommandParser(
        "import",
        "Read a LoRA or AdaLoRA adapter folder of PEFT (for deberta-v2, deberta, bert, roberta or\n"
        "electra) and write it as a run. The result is compared with PEFT on random input before\n"
        "it gets its name.",
        "  adalora import their-adapter --base_model microsoft/deberta-v3-base --labels no,yes "
        "--output output/theirs",
    )
    parser.add_argument("source", metavar="SOURCE", help="folder that PEFT's save_pretrained wrote")
    parser.add_argument(
        "--base_model", metavar="MODEL", help="its base, if not the one that the adapter names"
    )
    parser.add_argument("--base", dest="base_model", help=argparse.SUPPRESS)  # its earlier name
    add_output_flags(parser, "RUN", "folder of the run to make", required=True)
    parser.add_argument(
        "--labels", metavar="A,B,...", help="names of the classes, which PEFT does not keep"
    )
    arguments = parser.parse_args(flags)
    require_our_loralib()
    from adalora.export.peft_import import import_adapter

    labels = None if arguments.labels is None else arguments.labels.split(",")
    done = import_adapter(
        arguments.source,
        output=arguments.output,
        base_model=arguments.base_model,
        labels=labels,
        overwrite=arguments.overwrite,
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


def truncate(flags: Sequence[str]) -> int:
    """Truncate a run to fewer ranks, and say what it lost."""
    parser = CommandParser(
        "truncate",
        "Write what is left of a LoRA or AdaLoRA run with fewer ranks: the largest singular\n"
        "values of all matrices together, which are not trained any further.",
        "  adalora truncate output/rte --target_rank 2 --output output/rte-2",
    )
    parser.add_argument(
        "run", metavar="RUN", help="folder of a run, the model/ in it, or an adapter folder of PEFT"
    )
    parser.add_argument(
        "--target_rank", type=positive, required=True, help="mean rank over the adapted matrices"
    )
    add_output_flags(parser, "RUN", "folder of the run to make", required=True)
    parser.add_argument(
        "--base_model", metavar="MODEL", help="the base, if it is elsewhere than it was"
    )
    arguments = parser.parse_args(flags)
    require_our_loralib()
    from adalora.export.truncate import truncate_run
    from adalora.terminal.summaries import rank_table

    done = truncate_run(
        arguments.run,
        target_rank=arguments.target_rank,
        output=arguments.output,
        base_model=arguments.base_model,
        overwrite=arguments.overwrite,
    )
    after = sum(done.rank_pattern.values())
    rich.print(rank_table(done.rank_pattern, max(done.rank_pattern.values())))
    print(f"Wrote {done.target} ({done.before:,} triplets truncated to {after:,}).")
    print(
        f"It keeps {done.kept:.2%} of the update's squared Frobenius norm; what that is worth in "
        f"accuracy, '{program('adalora')} eval {done.target}' measures."
    )
    return 0
