#!/usr/bin/env python
"""Make the built-in nano model: train its tokenizer, pretrain it for some minutes, store it.

    python scripts/pretrain_nano.py --output src/adalora/builtin/nano

The text is the built-in grammar's (``adalora.builtin``), single sentences and pairs. Four
objectives are summed, because masked words alone leave so small a model with nothing in the CLS
state that a classifier reads:

- words: the masked tokens (masked-language modelling);
- bag: the CLS state predicts which tokens the text holds;
- changed: on pairs, which words of the second sentence say something else than the first (a cousin
  of DeBERTaV3's replaced-token detection);
- relation: on pairs, whether both sentences say the same, from the CLS state.

No label of a miniature task is used. Results differ in the last digits between machines; the
stored files are the ones that the tests know.
"""

from __future__ import annotations

import argparse
import copy
import io
import string
import sys
import tempfile
import time
from dataclasses import dataclass
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

from adalora.builtin.miniature import example_texts
from adalora.builtin.sentences import Draw, change, draw_fact, sentence, wording
from adalora.pretrained.deberta.patch import patch

#: Share of the tokens that are hidden.
HIDDEN = 0.2


def main() -> int:
    """Train, store, and say how it went."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=64, help="texts per step")
    parser.add_argument("--vocabulary", type=int, default=2400, help="pieces, at the most")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
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
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


@dataclass(frozen=True)
class Text:
    """One text of the pretraining: a sentence or a pair.

    Attributes:
        first: the sentence, or the pair's first.
        second: the pair's second, or None.
        unchanged: the second as it would read if it said the same as the first.
        same: whether it does.
    """

    first: str
    second: str | None = None
    unchanged: str = ""
    same: bool = True


def make_text(draw: Draw) -> Text:
    """A random text: 3 in 10 are of a miniature task, half of the pairs say the same."""
    if draw.chance(0.3):
        return Text(draw.pick(example_texts(draw)))
    # Short facts among the long ones: comparing is learned on them first.
    fact = draw_fact(draw, detail=draw.pick((0.0, 0.3, 0.6)), strange=draw.chance(0.2))
    other = fact
    if draw.chance(0.5):
        for slot in draw.shuffled(fact.said())[: 1 + draw.below(2)]:
            other = change(draw, other, slot)
    first = sentence(wording(draw, fact))
    # The same choices of words and voice: only what the change put in differs.
    unchanged = sentence(wording(copy.deepcopy(draw), fact))
    return Text(first, sentence(wording(draw, other)), unchanged, other == fact)


@dataclass(frozen=True)
class Batch:
    """Tensors of a batch of texts, ``(batch, tokens)`` unless said otherwise.

    Attributes:
        inputs: token ids, some hidden.
        attention_mask: 1 at tokens, 0 at padding.
        targets: the hidden tokens, -1 elsewhere.
        bag: ``(batch, vocabulary)``, the distribution of the text's own tokens.
        changed: 1 and 0 at the words of a second sentence, -1 elsewhere.
        same: ``(batch,)``, 1 and 0 for pairs, -1 for single sentences.
    """

    inputs: Tensor
    attention_mask: Tensor
    targets: Tensor
    bag: Tensor
    changed: Tensor
    same: Tensor


def make_batch(draw: Draw, tokenizer: DebertaV2Tokenizer, size: int) -> Batch:
    """Draw and encode ``size`` texts."""
    texts = [make_text(draw) for _ in range(size)]
    encoded = tokenizer.pad(
        [
            tokenizer(*filter(None, (text.first, text.second)), truncation=True, max_length=96)
            for text in texts
        ],
        return_tensors="pt",
    )
    ids = encoded["input_ids"]
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    inputs, targets = hide(ids, special, tokenizer)
    bag = torch.zeros(size, len(tokenizer)).scatter_(1, ids.masked_fill(special, 0), 1.0)
    bag[:, 0] = 0.0
    changed = torch.full_like(ids, -1)
    for row, text in enumerate(texts):
        if text.second is not None:
            kept = torch.tensor(tokenizer(text.unchanged)["input_ids"])
            word = (encoded["token_type_ids"][row] == 1) & ~special[row] & (targets[row] < 0)
            changed[row, word] = (~torch.isin(ids[row, word], kept)).long()
    same = torch.tensor([-1 if text.second is None else int(text.same) for text in texts])
    bag /= bag.sum(1, keepdim=True)
    return Batch(inputs, encoded["attention_mask"], targets, bag, changed, same)


def hide(ids: Tensor, special: Tensor, tokenizer: DebertaV2Tokenizer) -> tuple[Tensor, Tensor]:
    """Hide a share of the tokens (BERT's 80/10/10); targets are -1 elsewhere."""
    chosen = (torch.rand(ids.shape) < HIDDEN) & ~special
    how = torch.rand(ids.shape)
    noise = torch.randint(5, len(tokenizer), ids.shape)
    hidden = torch.where(chosen & (how < 0.8), tokenizer.mask_token_id, ids)
    hidden = torch.where(chosen & (how >= 0.9), noise, hidden)
    return hidden, torch.where(chosen, ids, -1)


class Objectives(nn.Module):
    """The four losses over an encoder's states; thrown away after pretraining."""

    names = ("words", "bag", "changed", "relation")

    def __init__(self, width: int, table: Tensor) -> None:
        super().__init__()
        self.table = table
        self.bag = nn.Linear(width, width)
        self.changed = nn.Linear(width, 2)
        self.relation = nn.Linear(width, 2)

    def forward(self, states: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The losses ``(4,)`` and the share of relations that are right, a scalar."""
        hidden, word, pair = batch.targets >= 0, batch.changed >= 0, batch.same >= 0
        whole = states[:, 0]
        answers = self.relation(whole)[pair]
        losses = (
            F.cross_entropy(states[hidden] @ self.table.T, batch.targets[hidden]),
            F.cross_entropy(self.bag(whole) @ self.table.T, batch.bag),
            F.cross_entropy(self.changed(states[word]), batch.changed[word]),
            F.cross_entropy(answers, batch.same[pair]),
        )
        return torch.stack(losses), (answers.argmax(-1) == batch.same[pair]).float().mean()


def pretrain(
    model: DebertaV2ForSequenceClassification,
    tokenizer: DebertaV2Tokenizer,
    draw: Draw,
    arguments: argparse.Namespace,
) -> None:
    """Run the optimizer; progress goes to the terminal."""
    encoder = model.deberta
    objectives = Objectives(model.config.hidden_size, encoder.embeddings.word_embeddings.weight)
    parameters = list({*encoder.parameters(), *objectives.parameters()})
    optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate, weight_decay=0.01)
    warmup = max(arguments.steps // 20, 1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warmup, (arguments.steps - step) / (arguments.steps - warmup)
        ),
    )
    model.train()
    started, sums = time.perf_counter(), torch.zeros(5)
    for step in range(1, arguments.steps + 1):
        batch = make_batch(draw, tokenizer, arguments.batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = encoder(batch.inputs, attention_mask=batch.attention_mask)
        losses, right = objectives(output.last_hidden_state.float(), batch)
        losses.sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        sums += torch.cat([losses.detach(), right[None]])
        if step % 100 == 0 or step == arguments.steps:
            *mean, share = (sums / (step % 100 or 100)).tolist()
            told = "  ".join(f"{n} {m:.3f}" for n, m in zip(objectives.names, mean, strict=True))
            seconds = time.perf_counter() - started
            print(f"step {step:5d}  {told} ({share:.1%} right)  {seconds:.0f} s", flush=True)
            sums.zero_()


if __name__ == "__main__":
    sys.exit(main())
