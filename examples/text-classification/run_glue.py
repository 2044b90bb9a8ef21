#!/usr/bin/env python
"""Fine-tune a pretrained encoder with AdaLoRA (or LoRA, adapters, BitFit, all of it) on GLUE.

The commands of the original AdaLoRA repository run unchanged:

    python -m torch.distributed.launch --nproc_per_node=1 \
        examples/text-classification/run_glue.py \
        --model_name_or_path microsoft/deberta-v3-base --task_name rte \
        --apply_adalora --apply_lora --lora_type svd --lora_r 2 --target_rank 1 ...

Try it without a network: --model_name_or_path nano --task_name mini-sst2. Flags: --help.
What it does stands in order on one page: ``train_and_evaluate`` in ``adalora/training/program.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from adalora.commands.flags import require_our_loralib
from adalora.commands.train import show_help
from adalora.errors import exit_with_message


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the flags say."""
    if show_help(sys.argv[1:] if argv is None else argv):
        return
    require_our_loralib()
    from adalora.training.program import run

    run(argv, program="run_glue.py", script=Path(__file__))


if __name__ == "__main__":
    sys.exit(exit_with_message(main))
