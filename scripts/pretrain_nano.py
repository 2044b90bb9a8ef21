#!/usr/bin/env python
"""Make the built-in nano model: train its tokenizer, pretrain it for some minutes, store it.

    python scripts/pretrain_nano.py --output src/adalora/builtin/nano

The text is the built-in grammar's (``adalora.builtin``), single sentences and pairs. The objective
is masked-language modelling, and on pairs also whether both sentences say the same, which is what
teaches so small a model to compare. No label of a miniature task is used. Results differ in the
last digits between machines; the stored files are the ones that the tests know.
"""

from __future__ import annotations

import argparse
import io
import string
import sys
import tempfile
import time
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2Tokenizer,
)

from adalora.builtin.sentences import Draw, change, draw_fact, sentence, tell
from adalora.builtin.tasks import example_texts
from adalora.deberta import patch

MASKED = 0.2


def main() -> int:
    """Train, store, and say how it went."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=64, help="texts per step")
    parser.add_argument("--vocabulary", type=int, default=2400, help="pieces, at the most")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw = Draw(f"adalora nano {arguments.seed}")
    tokenizer = train_tokenizer(draw, arguments.vocabulary)
    model = patch(build_model(len(tokenizer)))
    pretrain(model, tokenizer, draw, arguments)
    tokenizer.save_pretrained(arguments.output)
    model.half().save_pretrained(arguments.output)
    size = sum(file.stat().st_size for file in arguments.output.iterdir())
    print(f"{model.num_parameters():,} parameters, {size / 1e6:.1f} MB in {arguments.output}")
    return 0


def train_tokenizer(draw: Draw, size: int) -> DebertaV2Tokenizer:
    """A SentencePiece model with DeBERTaV3's special ids: PAD 0, CLS 1, SEP 2, UNK 3."""
    texts = [text for _ in range(20_000) for text in example_texts(draw)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=size,
        hard_vocab_limit=False,
        model_type="unigram",
        # Letters and signs that the grammar never uses occur in other people's text.
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        user_defined_symbols=["[MASK]"],
        minloglevel=2,
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "spm.model").write_bytes(model.getvalue())
        tokenizer = DebertaV2Tokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 512
    return tokenizer


def build_model(vocabulary: int) -> DebertaV2ForSequenceClassification:
    """DeBERTaV3's architecture, shrunken to under three million parameters."""
    return DebertaV2ForSequenceClassification(
        DebertaV2Config(
            vocab_size=vocabulary,
            hidden_size=144,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=512,
            relative_attention=True,
            position_buckets=32,
            max_relative_positions=-1,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type="p2c|c2p",
            position_biased_input=False,
            type_vocab_size=0,
            max_position_embeddings=512,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
            num_labels=2,
        )
    )


def make_texts(draw: Draw, count: int) -> tuple[list[str], list[str | None], Tensor]:
    """Texts, their partners or None, and whether partners say the same (-1 without one)."""
    first: list[str] = []
    second: list[str | None] = []
    same: list[int] = []
    while len(first) < count:
        if draw.chance(0.3):
            first.append(draw.pick(example_texts(draw)))
            second.append(None)
            same.append(-1)
            continue
        fact = draw_fact(draw, detail=0.5, strange=draw.chance(0.2))
        other = fact
        if draw.chance(0.5):
            for slot in draw.shuffled(fact.said())[: 1 + draw.below(2)]:
                other = change(draw, other, slot)
        first.append(sentence(tell(draw, fact)))
        second.append(sentence(tell(draw, other)))
        same.append(int(other == fact))
    return first, second, torch.tensor(same)


def pretrain(
    model: DebertaV2ForSequenceClassification,
    tokenizer: DebertaV2Tokenizer,
    draw: Draw,
    arguments: argparse.Namespace,
) -> None:
    """Run the optimizer; progress goes to the terminal."""
    encoder, relation = model.deberta, nn.Linear(model.config.hidden_size, 2)
    table = encoder.embeddings.word_embeddings.weight
    parameters = [*encoder.parameters(), *relation.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate, weight_decay=0.01)
    warmup = max(arguments.steps // 20, 1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warmup, (arguments.steps - step) / (arguments.steps - warmup)
        ),
    )
    model.train()
    started, sums = time.perf_counter(), torch.zeros(3)
    for step in range(1, arguments.steps + 1):
        first, second, same = make_texts(draw, arguments.batch)
        pairs = [(a,) if b is None else (a, b) for a, b in zip(first, second, strict=True)]
        encoded = tokenizer.pad(
            [tokenizer(*texts, truncation=True, max_length=96) for texts in pairs],
            return_tensors="pt",
        )
        inputs, targets = mask(encoded["input_ids"], tokenizer)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = encoder(inputs, attention_mask=encoded["attention_mask"]).last_hidden_state
        states = states.float()
        at = targets >= 0
        words = F.cross_entropy(states[at] @ table.T, targets[at])
        answers = relation(states[:, 0])
        paired = same >= 0
        relations = F.cross_entropy(answers[paired], same[paired])
        (words + relations).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        right = (answers[paired].argmax(-1) == same[paired]).float().mean()
        sums += torch.stack([words.detach(), relations.detach(), right])
        if step % 200 == 0 or step == arguments.steps:
            mean = sums / (step % 200 or 200)
            print(
                f"step {step:5d}  words {mean[0]:.3f}  relation {mean[1]:.3f} "
                f"({mean[2]:.1%} right)  {time.perf_counter() - started:.0f} s",
                flush=True,
            )
            sums.zero_()


def mask(ids: Tensor, tokenizer: DebertaV2Tokenizer) -> tuple[Tensor, Tensor]:
    """Hide a share of the tokens (BERT's 80/10/10); targets are -1 elsewhere."""
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    chosen = (torch.rand(ids.shape) < MASKED) & ~special
    how = torch.rand(ids.shape)
    noise = torch.randint(5, len(tokenizer), ids.shape)
    hidden = torch.where(chosen & (how < 0.8), tokenizer.mask_token_id, ids)
    hidden = torch.where(chosen & (how >= 0.9), noise, hidden)
    return hidden, torch.where(chosen, ids, -1)


if __name__ == "__main__":
    sys.exit(main())
