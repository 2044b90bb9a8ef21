"""Guards: what can be wrong with a finished run although it ended without an error.

Each is one sentence on the evidence and what to try, under a kind that tables and reports know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from adalora.results.record import RunWarning, SplitScores, WarningKind


@dataclass(frozen=True)
class Evidence:
    """What the guards judge a trained run by."""

    #: evaluation set -> the distinct answers that the model gave on it
    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    #: every loss and gradient norm known of the run, by what to call it
    losses: Mapping[str, float] = field(default_factory=dict)
    #: evaluation set -> what was reached on it
    scores: Mapping[str, SplitScores] = field(default_factory=dict)
    prunes: bool = False  #: whether AdaLoRA was asked for
    init_rank: int = 0  #: triplets that each matrix began with
    rank_pattern: Mapping[str, int] = field(default_factory=dict)  #: triplets kept by matrix
    mask_events: int = 0  #: how often the allocator pruned
    triplets_held: int = 0  #: triplets whose singular value is not zero at the end
    triplets_wanted: int = 0  #: the budget that the run should have ended at
    moved: bool = True  #: whether any trained parameter outside the head differs from its start
    update_is_zero: bool = False  #: whether every adapted matrix computes what its base does
    skipped_steps: int = 0  #: steps whose gradients were missing or not finite
    steps_left_out: int = 0  #: optimizer steps not made, because a gradient was not finite
    steps: int = 0  #: steps that ``skipped_steps`` are counted among


def find_warnings(evidence: Evidence) -> list[RunWarning]:
    """All that the guards find, the most telling first."""
    return [{"kind": kind, "message": message} for kind, message in _found(evidence)]


def _found(evidence: Evidence) -> Iterator[tuple[WarningKind, str]]:
    bad = [name for name, value in evidence.losses.items() if not math.isfinite(value)]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        yield (
            "loss_not_finite",
            f"The {bad[0]}{more} is NaN or infinite: training has diverged. Lower the learning "
            "rate, or train in float32.",
        )
    for split, answers in evidence.answers.items():
        if len(answers) == 1:
            yield (
                "one_class",
                f"Every answer on {split} is {answers[0]}: the model has collapsed. Train longer, "
                "or change the learning rate.",
            )
    if not evidence.moved:
        yield (
            "delta_zero",
            "Outside the head no parameter has changed: only the head was trained. Is the learning "
            "rate 0, or the loss cut off from the adapters?",
        )
    elif evidence.update_is_zero:
        yield (
            "delta_zero",
            "The update of every adapted matrix is zero, so the encoder is the pretrained one and "
            "only the head was trained.",
        )
    if evidence.prunes and set(evidence.rank_pattern.values()) == {evidence.init_rank}:
        yield (
            "ranks_unchanged",
            f"AdaLoRA was asked for and every matrix still has rank {evidence.init_rank} after "
            f"{evidence.mask_events} mask events: the target is the start, or the run is shorter "
            "than --mask_interval.",
        )
    held, wanted = evidence.triplets_held, evidence.triplets_wanted
    if evidence.prunes and held > wanted:
        yield (
            "other",
            f"The run ended with {held} triplets, above its target of {wanted}: train to the end "
            "of the schedule, with a --final_warmup above 0.",
        )
    for split, scores in evidence.scores.items():
        if scores["saved"][scores["main"]] <= scores["majority"] + 1e-9:
            yield (
                "no_better_than_majority",
                f"The score on {split} is no better than always answering the most frequent class: "
                "train longer, or change the learning rate.",
            )
    if evidence.steps_left_out:
        yield (
            "steps_skipped",
            f"{evidence.steps_left_out} steps were left out, because their gradient was NaN or "
            "infinite.",
        )
    elif evidence.skipped_steps:
        yield (
            "steps_skipped",
            f"In {evidence.skipped_steps} of {evidence.steps} steps a gradient was missing or not "
            "finite, and importance was left as it was.",
        )
