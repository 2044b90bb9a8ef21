"""The model card, ``README.md``: what the artefact is, how it was made, how good it is.

It says only what the description knows. The card carries a marker; a ``README.md`` without it is
somebody's own and stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from adalora.artefact.description import Description

CARD_FILE = "README.md"
_MARKER = "<!-- adalora model card: replaced with the artefact; delete this line to keep it. -->"
# What the Trainer reports besides the metrics.
_NO_METRIC = ("runtime", "per_second", "samples", "epoch", "steps")


def is_ours(path: Path) -> bool:
    """Whether the card at ``path`` was written by ``model_card`` and left to it."""
    return path.is_file() and _MARKER.encode() in path.read_bytes()


def model_card(description: Description) -> str:
    """The card as Markdown with the hub's front matter."""
    scores = list(_scores(description.metrics))
    base, task = description.base_model, description.task
    data = ModelCardData(
        base_model=None if base == "nano" or Path(base).is_absolute() else base,
        library_name="adalora",
        pipeline_tag="text-classification",
        tags=[
            "adalora",
            *(["lora"] if description.lora is not None else []),
            *([f"glue-{task}"] if task is not None else []),
        ],
        metrics=sorted({name for _, name, _ in scores if name != "loss"}) or None,
    )
    sections = [_what(description), _how(description), _how_good(scores, description), _USE]
    text = f"---\n{data.to_yaml()}\n---\n\n{_MARKER}\n\n" + "\n".join(sections)
    # A label may hold half of a surrogate pair, which is no text.
    return text.encode("utf-8", "backslashreplace").decode()


def _scores(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(evaluation set, metric, value) of what was measured."""
    for split, values in metrics.items():
        for name, value in (values if isinstance(values, Mapping) else {}).items():
            short = name.removeprefix("eval_")
            if isinstance(value, int | float) and not short.endswith(_NO_METRIC):
                yield split, short, float(value)


def _quoted(value: object) -> str:
    """One line of code, whatever characters the value has."""
    return "`` " + json.dumps(value, ensure_ascii=False).replace("`", "\\u0060") + " ``"


def _what(d: Description) -> str:
    kind = "regression model" if d.is_regression else "text classifier"
    base = f"{_quoted(d.base_model)} (revision {_quoted(d.revision)}, {d.dtype})"
    lines = [f"# {d.method} on {_quoted(d.base_model)}", ""]
    if "full" in d.trained:
        lines += [f"A {kind}: {base}, fine-tuned whole."]
    else:
        lines += [
            f"A {kind}: the trained parts for {base}, which is not in this folder.",
            f"The base's fingerprint is `{d.base_fingerprint}`; another base is refused.",
        ]
    if d.labels is not None:
        lines += ["", f"Labels, in the order of the outputs: {_quoted(list(d.labels))}."]
    if d.text_columns is not None:
        lines += ["", f"Input: {' and '.join(_quoted(column) for column in d.text_columns)}."]
    return "\n".join(lines) + "\n"


def _how(d: Description) -> str:
    rows: dict[str, object] = {"task": d.task or "the user's own data", "method": d.method}
    if d.lora is not None:
        rows |= {"initial rank": d.lora.init_rank, "lora_alpha": d.lora.lora_alpha}
        rows["adapted matrices"] = len(d.lora.targets)
    if d.rank_pattern and d.lora is not None:
        total = d.lora.init_rank * len(d.lora.targets)
        rows["triplets kept"] = f"{sum(d.rank_pattern.values())} of {total}"
    rows["longest input"] = f"{d.max_seq_length} tokens"
    rows |= {name: value for name, value in d.training.items() if value is not None}
    if d.lineage:
        rows["started from"] = d.lineage[0].path
    rows |= {f"{name} version": number for name, number in d.versions.items()}
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    return f"## How it was trained\n\n| setting | value |\n|---|---|\n{table}\n"


def _cell(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return " ".join(text.split()).replace("|", "\\|")


def _how_good(scores: list[tuple[str, str, float]], d: Description) -> str:
    if not scores:
        return "## Scores\n\nNot evaluated when this was written.\n"
    table = "\n".join(f"| {split} | {name} | {value:.4f} |" for split, name, value in scores)
    note = "Measured on validation data by the run that trained it."
    if (d.task or "").startswith("mini-"):
        note += " The miniature tasks are made by a generator; they say nothing about GLUE."
    return f"## Scores\n\n| set | metric | value |\n|---|---|---|\n{table}\n\n{note}\n"


_USE = """## How to use it

```python
import adalora

classifier = adalora.load("path/to/this/folder")
print(classifier("A text to classify."))  # a pair is a tuple: classifier(("first", "second"))
```

```bash
adalora predict path/to/this/folder texts.txt
adalora info path/to/this/folder
```
"""
