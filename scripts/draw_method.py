"""Draw the README's picture of AdaLoRA, ``docs/method.svg``: an update, the budget, the ranks kept.

Budget and ranks are those of a run that is recorded in ``docs/results``. The same record gives the
same bytes. From the project's root, after a change: ``python scripts/draw_method.py``.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "results" / "minilm" / "results.jsonl"
RUN = "cola_adalora-1e-3_seed1"
PICTURE = ROOT / "docs" / "method.svg"

#: The file alone: importing the package would load PyTorch, which a picture has no use for.
BudgetSchedule = runpy.run_path(str(ROOT / "loralib" / "loralib" / "schedule.py"))["BudgetSchedule"]

MASK_INTERVAL = 10  # the flag's default, which the run had
COLUMNS = ("query", "key", "value", "attention.output", "intermediate", "layer.output")
INK, FAINT, FROZEN, TRAINED = "#24292f", "#6e7781", "#d0d7de", "#0969da"


def read_run(records: Path = RECORDS, run: str = RUN) -> dict[str, Any]:
    """The record of one run of a sweep."""
    lines = map(json.loads, records.read_text(encoding="utf-8").splitlines())
    return next(dict(line["record"]) for line in lines if line["id"] == run)


def rect(x: float, y: float, width: float, height: float, fill: str, opacity: float = 1) -> str:
    """A rectangle with rounded corners."""
    see = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}"'
        f"{see}/>"
    )


def text(x: float, y: float, words: str, *, size: int = 13, fill: str = INK, **more: str) -> str:
    """A line of text, centred at ``x`` unless ``anchor`` says otherwise."""
    anchor, weight = more.get("anchor", "middle"), more.get("weight", "normal")
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )


def update_panel(left: float, rank: int) -> list[str]:
    """W as one frozen square, and P, Λ, Q with ``rank`` triplets of which some are crossed out."""
    top, side, bar = 86.0, 104.0, 9.0
    kept = {0, 2}
    parts = [
        rect(left, top, side, side, FROZEN),
        text(left + side / 2, top + side / 2 + 6, "W", size=20),
        text(left + side / 2, top + side + 20, "frozen", fill=FAINT),
        text(left + side + 16, top + side / 2 + 6, "+", size=20),
    ]
    p, middle = left + side + 32, top + side / 2
    lamb = p + rank * (bar + 2) + 14
    q = lamb + rank * (bar + 2) + 14
    for number in range(rank):
        shade, offset = (1.0 if number in kept else 0.2), number * (bar + 2)
        start = middle - rank * (bar + 2) / 2
        parts += [
            rect(p + offset, top, bar, side, TRAINED, shade),
            rect(lamb + offset, start + offset, bar, bar, TRAINED, shade),
            rect(q, start + offset, side, bar, TRAINED, shade),
        ]
    parts += [
        text(p + rank * (bar + 2) / 2, top + side + 20, "P", size=16),
        text(lamb + rank * (bar + 2) / 2, top + side + 20, "Λ", size=16),
        text(q + side / 2, top + side + 20, "Q", size=16),
        text(
            left + 178, top + side + 42, "one triplet per singular value; pale: pruned", fill=FAINT
        ),
    ]
    return parts


def budget_panel(left: float, width: float, schedule: Any) -> list[str]:
    """The budget over the steps of the run, and the triplets it begins and ends with."""
    top, height = 86.0, 104.0
    steps = schedule.total_step

    def place(step: int) -> tuple[float, float]:
        return (
            left + width * step / (steps - 1),
            top + height * (1 - schedule.budget(step) / schedule.total_rank),
        )

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, range(0, steps, 5)))
    first, last = place(0), place(steps - 1)
    base = top + height
    ends = (
        (schedule.init_warmup, "init_warmup"),
        (steps - schedule.final_warmup, "final_warmup"),
    )
    parts = [
        f'<polygon points="{line} {last[0]:.1f},{last[1]:.1f} {last[0]:.1f},{base:g} '
        f'{left:g},{base:g}" fill="{TRAINED}" fill-opacity="0.15"/>',
        f'<polyline points="{line} {last[0]:.1f},{last[1]:.1f}" fill="none" stroke="{TRAINED}" '
        'stroke-width="2.5"/>',
        f'<line x1="{left:g}" y1="{base:g}" x2="{left + width:g}" y2="{base:g}" stroke="{FAINT}"/>',
        text(first[0] + 34, top - 8, f"{schedule.total_rank} triplets"),
        text(last[0] - 34, last[1] - 8, f"{schedule.target_total_rank} triplets"),
        text(left + width / 2, base + 42, f"{steps} steps", fill=FAINT),
    ]
    for (step, name), anchor in zip(ends, ("start", "end"), strict=True):
        x = place(step)[0]
        parts += [
            f'<line x1="{x:.1f}" y1="{top:g}" x2="{x:.1f}" y2="{base:g}" stroke="{FAINT}" '
            'stroke-dasharray="3 3"/>',
            text(
                left if anchor == "start" else left + width,
                base + 18,
                name,
                size=11,
                fill=FAINT,
                anchor=anchor,
            ),
        ]
    return parts


def ranks_panel(left: float, ranks: list[list[int]], most: int) -> list[str]:
    """One cell for each matrix: the triplets that it kept, layers from the bottom up."""
    top, cell = 66.0, 26.0
    parts = []
    for layer, row in enumerate(ranks):
        y = top + (len(ranks) - 1 - layer) * cell
        parts.append(text(left - 8, y + 17, f"layer {layer}", size=11, fill=FAINT, anchor="end"))
        for column, kept in enumerate(row):
            x = left + column * cell
            shade = 0.08 + 0.92 * kept / most
            ink = "#ffffff" if kept / most > 0.5 else INK
            parts += [
                rect(x, y, cell - 2, cell - 2, TRAINED, shade),
                text(x + cell / 2 - 1, y + 17, str(kept), size=12, fill=ink),
            ]
    for column, name in enumerate(COLUMNS):
        x, y = left + column * cell + cell / 2 + 3, top + len(ranks) * cell + 10
        parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="11" fill="{FAINT}" text-anchor="end" '
            f'transform="rotate(-38 {x:g} {y:g})">{name}</text>'
        )
    return parts


def draw(record: dict[str, Any]) -> str:
    """The whole picture as SVG, on a ground of its own so that it reads on dark pages too."""
    pattern, steps = list(record["rank_pattern"].values()), int(record["steps"])
    most, flags = int(record["init_rank"]), record["flags"]
    schedule = BudgetSchedule(
        total_rank=most * len(pattern),
        target_total_rank=sum(pattern),
        init_warmup=round(flags["init_warmup"] * steps),
        final_warmup=round(flags["final_warmup"] * steps),
        mask_interval=MASK_INTERVAL,
        total_step=steps,
    )
    size = len(COLUMNS)
    ranks = [pattern[start : start + size] for start in range(0, len(pattern), size)]
    arrow = '<path d="M{0} 138h26m-8 -7l8 7l-8 7" fill="none" stroke="{1}" stroke-width="2"/>'
    parts = [
        text(194, 34, "W + PΛQ in every matrix", size=15, weight="bold"),
        text(537, 34, "one budget for all of them", size=15, weight="bold"),
        text(850, 34, "ranks where they matter", size=15, weight="bold"),
        *update_panel(16, most),
        arrow.format(384, FAINT),
        *budget_panel(432, 210, schedule),
        arrow.format(656, FAINT),
        *ranks_panel(772, ranks, most),
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 970 300" width="970" height="300" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img" '
        'aria-label="AdaLoRA: an update P Lambda Q on every frozen matrix W, a budget of triplets '
        'that falls during training, and the ranks that each matrix kept">\n'
        '<rect x="0.5" y="0.5" width="969" height="299" rx="8" fill="#ffffff" stroke="#d0d7de"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(read_run()), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
