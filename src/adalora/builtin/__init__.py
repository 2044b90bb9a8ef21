"""What the project carries to be tried without a network: a miniature of GLUE and a nano model.

The tasks come from a grammar and a lexicon written for this project; ``nano/`` holds a DeBERTaV3 of
under 3 million parameters, pretrained on that grammar's sentences by ``scripts/pretrain_nano.py``.
Scores on them say nothing about GLUE. Importing this needs neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path

from adalora.builtin.miniature import MINI_TASKS, generate, splits_of, write_tsv

__all__ = ["MINI_TASKS", "generate", "nano_path", "splits_of", "write_tsv"]


def nano_path() -> Path:
    """Folder with the nano model's configuration, weights (half precision) and tokenizer."""
    return Path(__file__).parent / "nano"
