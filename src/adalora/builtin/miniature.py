"""The miniature tasks: how an example of each is made, the splits, and their files.

Every task has the Hub's columns and labels, a signal that a small model can learn, and a few per
cent of wrong labels. Generation is deterministic; no text of a validation or test set occurs in
training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adalora.builtin import lexicon as words
from adalora.builtin.sentences import (
    Draw,
    Fact,
    add,
    change,
    contradict,
    draw_fact,
    sentence,
    wording,
)

Row = dict[str, Any]
#: Share of labels that are wrong, as real annotations are.
NOISE = 0.03
#: Largest deviation of a score from the rule, on the scale from 0 to 5.
SCORE_NOISE = 0.4


def _cola(draw: Draw, strange: bool) -> Row:
    fact = draw_fact(draw, detail=0.4)
    if draw.chance(0.7):
        return {"sentence": sentence(wording(draw, fact)), "label": 1}
    return {"sentence": sentence(_corrupt(draw, fact)), "label": 0}


def _corrupt(draw: Draw, fact: Fact) -> str:
    """Break the grammar: form, order, or something missing or doubled."""
    verbs = words.VERBS[fact.verb[0]][fact.verb[1]]
    verb = draw.pick(verbs)
    good = wording(draw, fact, plain=True).split()
    kind = draw.below(5)
    at = next(i for i, word in enumerate(good) if any(word in v for v in verbs))
    if kind == 0:  # has repair
        return " ".join([*good[:at], draw.pick(("has", "was", "were")), verb[0], *good[at + 1 :]])
    if kind == 1:  # the verb is missing
        return " ".join(good[:at] + good[at + 1 :])
    if kind == 2:  # the object is missing
        return " ".join([*good[: at + 1], "the"])
    if kind == 3:  # doctor the repaired
        first = good.index("the")
        return " ".join([*good[:first], good[first + 1], "the", *good[first + 2 :]])
    return " ".join([*good[: at + 1], *good[at:]])  # repaired repaired


def _sst2(draw: Draw, strange: bool) -> Row:
    label = draw.below(2)
    good, bad = words.POSITIVE, words.NEGATIVE
    mine, other = (good, bad) if label else (bad, good)
    noun = draw.pick(words.NEUTRAL_NOUNS)
    second = draw.pick_other(words.NEUTRAL_NOUNS, noun)
    form = draw.below(6)
    if form == 0:
        text = f"the {noun} is {draw.pick(mine)} and the {second} is {draw.pick(mine)}"
    elif form == 1:
        text = f"a {draw.pick(mine)} {noun} with {draw.pick(mine)} {second}"
    elif form == 2:
        text = f"the {noun} is not {draw.pick(other)} at all"
    elif form == 3:
        text = f"despite {draw.pick(other)} {second} , the {noun} is {draw.pick(mine)}"
    elif form == 4:
        text = f"never {draw.pick(other)} , this {noun} has a {draw.pick(mine)} {second}"
    else:
        text = f"i found the {noun} {draw.pick(mine)} , {draw.pick(mine)} and {draw.pick(mine)}"
    return {"sentence": text, "label": label}


def _paraphrase(draw: Draw, positive: float) -> tuple[str, str, int]:
    fact = draw_fact(draw)
    label = int(draw.chance(positive))
    other = fact
    if not label:
        for slot in draw.shuffled(["person", "thing", "verb"])[: 1 + draw.below(3)]:
            other = change(draw, other, slot)
    return wording(draw, fact), wording(draw, other), label


def _mrpc(draw: Draw, strange: bool) -> Row:
    one, two, label = _paraphrase(draw, 0.68)
    return {"sentence1": sentence(one), "sentence2": sentence(two), "label": label}


def _qqp(draw: Draw, strange: bool) -> Row:
    one, two, label = _paraphrase(draw, 0.37)
    return {
        "question1": sentence(f"is it true that {one}", "?"),
        "question2": sentence(draw.pick(("is it true that ", "did you know that ")) + two, "?"),
        "label": label,
    }


def _stsb(draw: Draw, strange: bool) -> Row:
    fact = draw_fact(draw, detail=0.8)
    slots = draw.shuffled(fact.said())
    changed = draw.below(len(slots) + 1)
    other = fact
    for slot in slots[:changed]:
        other = change(draw, other, slot)
    score = 5 * (1 - changed / len(slots)) + SCORE_NOISE * (2 * draw.below(1001) / 1000 - 1)
    return {
        "sentence1": sentence(wording(draw, fact)),
        "sentence2": sentence(wording(draw, other)),
        "label": round(min(max(score, 0.0), 5.0), 2),
    }


def _inference(draw: Draw, strange: bool) -> tuple[str, str, int]:
    """Premise, hypothesis and 0 entailment, 1 neutral, 2 contradiction."""
    label = draw.below(3)
    fact = draw_fact(draw, detail=0.5, strange=strange)
    premise = wording(draw, fact)
    fewer = fact
    for slot in ("quality", "trait", "place", "time"):
        if draw.chance(0.4):
            fewer = fewer.having(slot, None)
    if label == 0:
        return premise, wording(draw, fewer), 0
    if label == 1:
        if draw.chance(0.5):
            other = change(draw, change(draw, fewer, "thing"), "verb")
        else:
            free = [s for s in ("place", "time", "quality") if getattr(fact, s) is None]
            slot = draw.pick(free) if free else "thing"
            other = change(draw, fewer, slot) if slot == "thing" else add(draw, fewer, slot)
        return premise, wording(draw, other), 1
    other, negated = contradict(draw, fewer)
    return premise, wording(draw, other, negated=negated), 2


def _mnli(draw: Draw, strange: bool) -> Row:
    premise, hypothesis, label = _inference(draw, strange)
    return {"premise": sentence(premise), "hypothesis": sentence(hypothesis), "label": label}


def _rte(draw: Draw, strange: bool) -> Row:
    premise, hypothesis, label = _inference(draw, strange)
    while label == 2 and draw.chance(0.5):
        premise, hypothesis, label = _inference(draw, strange)
    return {
        "sentence1": sentence(premise),
        "sentence2": sentence(hypothesis),
        "label": int(label != 0),
    }


def _qnli(draw: Draw, strange: bool) -> Row:
    label = draw.below(2)
    fact = draw_fact(draw, detail=0.5)
    slot = draw.pick(("place", "time"))
    fact = add(draw, fact, slot)
    verb = draw.pick(words.VERBS[fact.verb[0]][fact.verb[1]])
    person, thing = (draw.pick(x) for x in (fact.persons[fact.person], fact.things[fact.thing]))
    question = f"{'where' if slot == 'place' else 'when'} did the {person} {verb[0]} the {thing}"
    if label:
        if draw.chance(0.5):
            fact = fact.having(slot, None)
        else:
            fact = change(draw, change(draw, fact, "person"), "thing")
    return {
        "question": sentence(question, "?"),
        "sentence": sentence(wording(draw, fact)),
        "label": label,
    }


def _wnli(draw: Draw, strange: bool) -> Row:
    first = draw.pick(draw.pick(words.OBJECTS))
    second = draw.pick_other(draw.pick(words.OTHER_OBJECTS), first)
    event, of_first, of_second = draw.pick(words.REASONS)
    means_first = draw.chance(0.5)
    reason = of_first if means_first else of_second
    asks_first = draw.chance(0.5)
    return {
        "sentence1": f"The {first} {event} the {second} because it was {reason}.",
        "sentence2": f"The {first if asks_first else second} was {reason}.",
        "label": int(means_first == asks_first),
    }


_MAKERS: dict[str, Callable[[Draw, bool], Row]] = {
    "cola": _cola,
    "sst2": _sst2,
    "mrpc": _mrpc,
    "stsb": _stsb,
    "qqp": _qqp,
    "mnli": _mnli,
    "qnli": _qnli,
    "rte": _rte,
    "wnli": _wnli,
    "ax": _mnli,
}
_CLASSES = {"mnli": 3, "ax": 3}
_SIZES: dict[str, int] = {
    "cola": 2000,
    "sst2": 2000,
    "mrpc": 1600,
    "stsb": 1600,
    "qqp": 2400,
    "mnli": 3000,
    "qnli": 2400,
    "rte": 1600,
    "wnli": 400,
}
#: Tasks whose questions or short conclusions recur, with other partners.
_RECURRING = ("qnli", "wnli")
_VALIDATION = 400
_TEST = 200

MINI_TASKS = tuple(_MAKERS)


def splits_of(task: str) -> dict[str, int]:
    """Split name -> number of examples, in the order they are generated."""
    if task == "ax":
        return {"test": _TEST}
    sets = ("_matched", "_mismatched") if task == "mnli" else ("",)
    validation = 120 if task == "wnli" else _VALIDATION
    return {
        "train": _SIZES[task],
        **{f"validation{name}": validation for name in sets},
        **{f"test{name}": _TEST for name in sets},
    }


def example_texts(draw: Draw) -> list[str]:
    """The texts of one random example of one random task, without its label."""
    row = _MAKERS[draw.pick(MINI_TASKS)](draw, draw.chance(0.2))
    return [value for key, value in row.items() if key != "label"]


def generate(task: str, split: str) -> list[Row]:
    """The examples of one split, with the Hub's columns, ``label`` and ``idx``.

    Test labels are -1, as on the Hub. KeyError if there is no such task or split.
    """
    sizes = splits_of(task)
    if split not in sizes:
        raise KeyError(f"mini-{task} has the splits {', '.join(sizes)}, not {split!r}")
    seen: set[tuple[str, ...]] = set()
    earlier: set[str] = set()
    for name, size in sizes.items():
        rows = _rows(task, name, size, seen, earlier)
        if task not in _RECURRING:
            earlier |= {text for row in rows for text in row.values() if isinstance(text, str)}
        if name == split:
            break
    return rows


def _rows(
    task: str, split: str, size: int, seen: set[tuple[str, ...]], earlier: set[str]
) -> list[Row]:
    """Make ``size`` examples that are not in ``seen``, which they join, of no ``earlier`` text."""
    draw = Draw(f"adalora mini-{task} {split}")
    strange = split.endswith("mismatched")
    rows: list[Row] = []
    while len(rows) < size:
        row = _MAKERS[task](draw, strange)
        texts = tuple(value for key, value in row.items() if key != "label")
        if texts in seen or not earlier.isdisjoint(texts):
            continue
        seen.add(texts)
        if split.startswith("test"):
            row["label"] = -1.0 if task == "stsb" else -1
        elif task != "stsb" and draw.chance(NOISE):
            classes = _CLASSES.get(task, 2)
            row["label"] = (row["label"] + 1 + draw.below(classes - 1)) % classes
        rows.append({**row, "idx": len(rows)})
    return rows


# ---- the layout of the official GLUE download, quirks included ----

#: Folders that are not the task's name in capitals.
_FOLDERS = {"cola": "CoLA", "sst2": "SST-2", "stsb": "STS-B", "ax": "diagnostic"}
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
#: Classes that the files have as words.
_WORDS = {"mnli": _NLI, "qnli": _ENTAILMENT, "rte": _ENTAILMENT}
_STSB = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2"
_STSB_LINE = "{idx}|main-mini|mini|2023|{idx}|none|none|{sentence1}|{sentence2}"
_MNLI = (
    "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|"
    "sentence2_parse|sentence1|sentence2"
)
_MNLI_LINE = "{idx}|{idx}|{idx}|mini|-|-|-|-|{premise}|{hypothesis}"
_MRPC = "|#1 ID|#2 ID|#1 String|#2 String"
_MRPC_LINE = "|{first}|{second}|{sentence1}|{sentence2}"
_QQP_LINE = "{idx}|{first}|{second}|{question1}|{question2}|{label}"
_TEXT = ("index|sentence", "{idx}|{sentence}")
_PAIR = ("index|sentence1|sentence2", "{idx}|{sentence1}|{sentence2}")
_QNLI = ("index|question|sentence", "{idx}|{question}|{sentence}")
#: Header and line of train.tsv and dev.tsv, then of test.tsv, with | for a tab.
_LAYOUTS = {
    "cola": ("", "gj04|{label}|{star}|{sentence}", *_TEXT),
    "sst2": ("sentence|label", "{sentence}|{label}", *_TEXT),
    "mrpc": (f"Quality{_MRPC}", f"{{label}}{_MRPC_LINE}", f"index{_MRPC}", f"{{idx}}{_MRPC_LINE}"),
    "stsb": (f"{_STSB}|score", f"{_STSB_LINE}|{{label:.3f}}", _STSB, _STSB_LINE),
    "qqp": (
        *("id|qid1|qid2|question1|question2|is_duplicate", _QQP_LINE),
        *("id|question1|question2", "{idx}|{question1}|{question2}"),
    ),
    "mnli": (f"{_MNLI}|label1|gold_label", f"{_MNLI_LINE}|{{word}}|{{word}}", _MNLI, _MNLI_LINE),
    "qnli": (f"{_QNLI[0]}|label", f"{_QNLI[1]}|{{word}}", *_QNLI),
    "rte": (f"{_PAIR[0]}|label", f"{_PAIR[1]}|{{word}}", *_PAIR),
    "wnli": (f"{_PAIR[0]}|label", f"{_PAIR[1]}|{{label}}", *_PAIR),
    "ax": ("", "", "index|sentence1|sentence2", "{idx}|{premise}|{hypothesis}"),
}


def write_tsv(folder: Path, tasks: Sequence[str] = MINI_TASKS) -> None:
    """Write ``folder``/<official folder>/{train,dev,test}.tsv of every task."""
    for task in tasks:
        target = folder / _FOLDERS.get(task, task.upper())
        target.mkdir(parents=True, exist_ok=True)
        for split in splits_of(task):
            header, line = _LAYOUTS[task][2:] if split.startswith("test") else _LAYOUTS[task][:2]
            line = line.replace("|", "\t")
            lines = [line.format(**_fields(task, row)) for row in generate(task, split)]
            lines = [header.replace("|", "\t"), *lines] if header else lines
            name = "diagnostic" if task == "ax" else split.replace("validation", "dev")
            encoding = "utf-8-sig" if task == "mrpc" else "utf-8"
            text = "".join(f"{one}\n" for one in lines)
            (target / f"{name}.tsv").write_text(text, encoding=encoding, newline="")


def _fields(task: str, row: Row) -> Row:
    """What a line names: the example, and what only the files have of it."""
    label, index = row["label"], row["idx"]
    word = _WORDS[task][label] if task in _WORDS else None
    star = "" if label else "*"
    return {**row, "first": 2 * index, "second": 2 * index + 1, "star": star, "word": word}
