"""Guards: what can be wrong with a finished run although it ended without an error.

Each is one sentence on the evidence and what to try, under a kind that tables and reports know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from adalora.results.record import RunWarning, SplitScores


@dataclass(frozen=True)
class Evidence:
    """What the guards judge a trained run by.

    Attributes:
        answers: evaluation set -> the distinct answers that the model gave on it.
        losses: every loss and gradient norm known of the run, by what to call it.
        scores: evaluation set -> what was reached on it.
        prunes: whether AdaLoRA was asked for.
        init_rank: triplets that each matrix began with.
        rank_pattern: triplets kept by matrix.
        mask_events: how often the allocator pruned.
        triplets_held: triplets whose singular value is not zero at the end.
        triplets_wanted: the budget that the run should have ended at.
        moved: whether any trained parameter outside the head differs from its start.
        update_is_zero: whether every adapted matrix computes what its base does.
        skipped_steps: steps whose gradients were missing or not finite.
        steps_left_out: optimizer steps not made, because a gradient was not finite.
        steps: steps that ``skipped_steps`` are counted among.
    """

    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, SplitScores] = field(default_factory=dict)
    prunes: bool = False
    init_rank: int = 0
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    mask_events: int = 0
    triplets_held: int = 0
    triplets_wanted: int = 0
    moved: bool = True
    update_is_zero: bool = False
    skipped_steps: int = 0
    steps_left_out: int = 0
    steps: int = 0


def find_warnings(evidence: Evidence) -> list[RunWarning]:
    """All that the guards find, the most telling first."""
    return [warning for guard in _GUARDS for warning in guard(evidence)]


def _loss_not_finite(evidence: Evidence) -> Iterator[RunWarning]:
    bad = [name for name, value in evidence.losses.items() if not math.isfinite(value)]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        yield {
            "kind": "loss_not_finite",
            "message": f"The {bad[0]}{more} is NaN or infinite: training has diverged. Lower the "
            "learning rate, or train in float32.",
        }


def _one_class(evidence: Evidence) -> Iterator[RunWarning]:
    for split, answers in evidence.answers.items():
        if len(answers) == 1:
            yield {
                "kind": "one_class",
                "message": f"Every answer on {split} is {answers[0]}: the model has collapsed. "
                "Train longer, or change the learning rate.",
            }


def _delta_zero(evidence: Evidence) -> Iterator[RunWarning]:
    if not evidence.moved:
        yield {
            "kind": "delta_zero",
            "message": "Outside the head no parameter has changed: only the head was trained. Is "
            "the learning rate 0, or the loss cut off from the adapters?",
        }
    elif evidence.update_is_zero:
        yield {
            "kind": "delta_zero",
            "message": "The update of every adapted matrix is zero, so the encoder is the "
            "pretrained one and only the head was trained.",
        }


def _ranks_unchanged(evidence: Evidence) -> Iterator[RunWarning]:
    pattern = evidence.rank_pattern
    if evidence.prunes and pattern and set(pattern.values()) == {evidence.init_rank}:
        yield {
            "kind": "ranks_unchanged",
            "message": f"AdaLoRA was asked for and every matrix still has rank "
            f"{evidence.init_rank} after {evidence.mask_events} mask events: the target is the "
            "start, or the run is shorter than --mask_interval.",
        }


def _above_target(evidence: Evidence) -> Iterator[RunWarning]:
    held, wanted = evidence.triplets_held, evidence.triplets_wanted
    if evidence.prunes and held > wanted:
        yield {
            "kind": "other",
            "message": f"The run ended with {held} triplets, above its target of {wanted}: train "
            "to the end of the schedule, with a --final_warmup above 0.",
        }


def _no_better_than_majority(evidence: Evidence) -> Iterator[RunWarning]:
    for split, scores in evidence.scores.items():
        if scores["saved"][scores["main"]] <= scores["majority"] + 1e-9:
            yield {
                "kind": "no_better_than_majority",
                "message": f"The score on {split} is no better than always answering the most "
                "frequent class: train longer, or change the learning rate.",
            }


def _steps_skipped(evidence: Evidence) -> Iterator[RunWarning]:
    if evidence.steps_left_out:
        yield {
            "kind": "steps_skipped",
            "message": f"{evidence.steps_left_out} steps were left out, because their gradient was "
            "NaN or infinite.",
        }
    elif evidence.skipped_steps:
        yield {
            "kind": "steps_skipped",
            "message": f"In {evidence.skipped_steps} of {evidence.steps} steps a gradient was "
            "missing or not finite, and importance was left as it was.",
        }


_GUARDS: tuple[Callable[[Evidence], Iterator[RunWarning]], ...] = (
    _loss_not_finite,
    _one_class,
    _delta_zero,
    _ranks_unchanged,
    _above_target,
    _no_better_than_majority,
    _steps_skipped,
)
