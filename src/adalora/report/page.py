"""From what a run or a sweep left to one page of HTML, whole in itself, and its pictures.

Everything that comes from files goes through the template engine's escaping, and the page forbids
itself every request and every script but its own (Content-Security-Policy), so that a label such as
``<script>`` is a word wherever it stands.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from adalora.errors import UserError
from adalora.report import facts
from adalora.report.curve_pictures import curve_pictures
from adalora.report.drawing import Picture
from adalora.report.rank_pictures import rank_pictures
from adalora.report.sources import RunSource, SweepSource
from adalora.report.summary import row_label, span, summarise, task_of
from adalora.report.sweep_pictures import sweep_pictures
from adalora.results.places import arrange
from adalora.results.words import duration, enumerate_words, plural

__all__ = [
    "MANIFEST",
    "Page",
    "render",
    "write_page",
]


@dataclass(frozen=True)
class Page:
    """A finished page and the pictures to lie beside it."""

    html: str
    pictures: tuple[Picture, ...]


def render(source: RunSource | SweepSource) -> Page:
    """The page of a run, or of a sweep with a section for each of its runs."""
    return _run_page(source) if isinstance(source, RunSource) else _sweep_page(source)


def _run_page(run: RunSource) -> Page:
    pictures = _run_pictures(run, prefix="", png=True)
    html = _template("run.html", title=facts.title(run.record), run=_run_view(run, pictures))
    return Page(html, tuple(pictures))


def _sweep_page(sweep: SweepSource) -> Page:
    summary = summarise(sweep)
    pictures = list(sweep_pictures(summary))
    order = {run.name: place for place, row in enumerate(summary.rows) for run in row.runs}
    runs = sorted(sweep.runs, key=lambda run: (task_of(run), order[run.name], run.record.seed))
    # Anchors by position: a run's id may hold anything.
    anchors = {run.name: f"run-{position}" for position, run in enumerate(runs, 1)}
    labels = {run.name: row.label for row in summary.rows for run in row.runs}
    sections = [
        {
            "anchor": anchors[run.name],
            "label": labels[run.name],
            "task": task_of(run),
            **_run_view(run, _run_pictures(run, prefix=f"{anchors[run.name]}-", png=False)),
        }
        for run in runs
    ]
    html = _template(
        "sweep.html",
        title=f"Sweep {sweep.name}",
        sweep=sweep,
        story=_sweep_story(sweep, len(summary.rows)),
        summary=summary,
        pictures=[_picture_view(picture) for picture in pictures],
        runs=sections,
        flagged=[run for run in sections if run["warnings"] or run["notes"]],
        failed=[(one, row_label(one, ("budget",)), task_of(one)) for one in sweep.failed],
    )
    return Page(html, tuple(pictures))


def _sweep_story(sweep: SweepSource, methods: int) -> str:
    tasks = sorted({*map(task_of, sweep.runs), *map(task_of, sweep.failed)})
    bases = sorted({run.record.base_model for run in sweep.runs})
    seeds = sorted({run.record.seed for run in sweep.runs})
    failed = f"; {plural(len(sweep.failed), 'run')} failed" if sweep.failed else ""
    trained = f" of {enumerate_words(bases)}" if bases else ""
    flagged = sum(bool(run.record.warnings) for run in sweep.runs)
    warned = f"; {flagged} of them with warnings" if flagged else ""
    return (
        f"{plural(len(sweep.runs), 'run')}{trained} finished{warned}{failed}: "
        f"{plural(methods, 'method')} on {enumerate_words(tasks)}"
        + (f", seeds {enumerate_words([str(seed) for seed in seeds])}." if seeds else ".")
    )


def _run_pictures(run: RunSource, *, prefix: str, png: bool) -> list[Picture]:
    record = run.record
    # What the Trainer evaluates during training is the first set.
    first = next(iter(record.scores.values()), None)
    main, majority = (None, None) if first is None else (first["main"], first["majority"])
    return [
        *rank_pictures(record.rank_pattern, record.init_rank, run.history, prefix=prefix, png=png),
        *curve_pictures(run.history, main, majority, prefix=prefix, png=png),
    ]


def _run_view(run: RunSource, pictures: Iterable[Picture]) -> dict[str, Any]:
    """What the template of a run's section takes."""
    record = run.record
    return {
        "name": run.name,
        "record": record,
        "story": facts.story(record),
        "tiles": facts.tiles(record),
        "scores": facts.scores(record),
        "flags": facts.flags(record),
        "environment": facts.environment(record),
        "command": facts.command(record),
        "warnings": record.warnings,
        "notes": run.notes,
        "confusions": run.confusions,
        "ranks": _rank_rows(run),
        "pictures": [_picture_view(picture) for picture in pictures],
    }


def _rank_rows(run: RunSource) -> dict[str, Any] | None:
    """The final ranks as a table, for those who cannot see the picture or want the numbers."""
    pattern = run.record.rank_pattern
    if not pattern:
        return None
    places = arrange(pattern)
    kinds = list(dict.fromkeys(place.kind for place in places.values()))
    layers: dict[str, dict[str, int]] = {}
    for path, rank in pattern.items():
        layers.setdefault(places[path].layer, {})[places[path].kind] = rank
    return {"kinds": kinds, "layers": layers}


def _picture_view(picture: Picture) -> dict[str, Any]:
    return {
        "title": picture.title,
        "description": picture.description,
        # matplotlib wrote it, and escaped what came from files.
        "svg": Markup(picture.svg),
    }


def _template(name: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("adalora.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "span": span, "percent": _percent}
    source = environment.loader.get_source(environment, "page.js")[0]  # type: ignore[union-attr]
    script = f"\n{source.strip()}\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(name).render(
        script=Markup(script),
        script_hash=digest,
        **values,
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


MANIFEST = "report_files.json"


def write_page(page: Page, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the page as ``index.html``, its pictures to ``pictures/`` and the list of both.

    Args:
        page: rendered.
        folder: made if need be.
        overwrite: replace files that no earlier report of ours wrote, or that were changed since.

    Returns:
        The files, the page first.

    Raises:
        UserError: if a file is in the way, or the folder cannot be written.
    """
    files = {"index.html": page.html.encode()}
    for picture in page.pictures:
        files[f"pictures/{picture.name}.svg"] = picture.svg.encode()
        files[f"pictures/{picture.name}.png"] = picture.png
    try:
        earlier = _earlier(folder)
        ours = {name for name, checksum in earlier.items() if _has(folder / name, checksum)}
        in_the_way = [name for name in files if (folder / name).exists() and name not in ours]
        if in_the_way and not overwrite:
            several = f" and {len(in_the_way) - 1} more files" if len(in_the_way) > 1 else ""
            raise UserError(
                f"{folder} holds {in_the_way[0]}{several}, not written by an earlier report, or "
                "changed since; choose another folder by -o, or replace by --overwrite."
            )
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        # The list first: a report that is cut off leaves files that the next one knows as ours.
        checksums = {name: _checksum(content) for name, content in files.items()}
        kept = {name: earlier[name] for name in ours if name not in files}
        _write(folder / MANIFEST, _listing({**kept, **checksums}))
        for name, content in files.items():
            _write(folder / name, content)
        for name in kept:
            (folder / name).unlink()
        _write(folder / MANIFEST, _listing(checksums))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"The report could not be written to {folder} ({reason}); choose another folder by -o."
        ) from error
    return [folder / name for name in files]


def _earlier(folder: Path) -> Mapping[str, str]:
    """File -> checksum of the report that is there; only names that a report would write."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        files = dict(json.loads(path.read_text(encoding="utf-8"))["files"])
    except (KeyError, TypeError, ValueError):
        return {}
    return {
        name: str(checksum)
        for name, checksum in files.items()
        if name == "index.html" or (name.startswith("pictures/") and ".." not in name)
    }


def _has(path: Path, checksum: str) -> bool:
    return path.is_file() and not path.is_symlink() and _checksum(path.read_bytes()) == checksum


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _listing(checksums: Mapping[str, str]) -> bytes:
    content = {"made_by": "adalora report", "files": dict(sorted(checksums.items()))}
    return (json.dumps(content, indent=2) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".partial")
    temporary.write_bytes(content)
    os.replace(temporary, path)
