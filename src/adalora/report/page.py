"""From what a run or a sweep left to one page of HTML, whole in itself, and its pictures.

Everything that comes from files goes through the template engine's escaping, and the page forbids
itself every request and every script but its own (Content-Security-Policy), so that a label such as
``<script>`` is a word wherever it stands.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from adalora.errors import UserError
from adalora.report import facts
from adalora.report.curve_pictures import curve_pictures
from adalora.report.drawing import Picture, draw
from adalora.report.rank_pictures import rank_pictures
from adalora.report.sweep_pictures import sweep_pictures
from adalora.results.columns import task_order, task_title
from adalora.results.history import History, Traces, read_traces
from adalora.results.scores import summarise
from adalora.results.sources import Run, Sweep, read_source
from adalora.results.words import duration, enumerate_words, plural, rank_grid, span
from adalora.storage.atomic import atomic_write

_MANY_RUNS = 20
#: The list of the files that a report wrote, by which the next one knows them.
MANIFEST = "report_files.json"


@dataclass(frozen=True)
class Page:
    """A finished page and the pictures to lie beside it."""

    html: str
    pictures: tuple[Picture, ...]


def write_report(
    source: Path,
    folder: Path,
    *,
    overwrite: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write the report on the run or the sweep in ``source`` to ``folder``, as ``write_page`` does.

    ``announce`` is told what takes long, before it does.
    """
    content = read_source(source)
    if isinstance(content, Sweep) and len(content.runs) > _MANY_RUNS:
        announce(f"Drawing the pictures of {len(content.runs)} runs, about a second for each two.")
    return write_page(render(content), folder, overwrite=overwrite)


def render(source: Run | Sweep) -> Page:
    """The page of a run, or of a sweep with a section for each of its runs."""
    return _run_page(source) if isinstance(source, Run) else _sweep_page(source)


def _run_page(run: Run) -> Page:
    traces = read_traces(run.folder)
    pictures = _run_pictures(run, traces.history, prefix="", png=True)
    view = _run_view(run, traces, pictures)
    html = _template("run.html", title=facts.title(run.record), run=view)
    return Page(html, tuple(pictures))


def _sweep_page(sweep: Sweep) -> Page:
    table, notes = summarise(sweep)
    pictures = list(sweep_pictures(table))
    runs = [
        (row, run)
        for task in sorted({run.task for run in sweep.runs}, key=task_order)
        for row in table.rows
        for run in row.runs.get(task, ())
    ]
    sections = []
    # Anchors by position: a run's id may hold anything.
    for position, (row, run) in enumerate(runs, 1):
        anchor, traces = f"run-{position}", read_traces(run.folder)
        drawn = _run_pictures(run, traces.history, prefix=f"{anchor}-", png=False)
        names = {"anchor": anchor, "label": row.label, "task": task_title(run.task)}
        sections.append({**names, **_run_view(run, traces, drawn)})
    html = _template(
        "sweep.html",
        title=f"Sweep {sweep.name}",
        plan=sweep.plan,
        notes=[*sweep.notes, *notes],
        story=_sweep_story(sweep, len(table.rows)),
        table=table,
        pictures=pictures,
        runs=sections,
        flagged=[run for run in sections if run["warnings"] or run["notes"]],
        failed=[(one, row.label) for row in table.rows for one in row.failures],
    )
    return Page(html, tuple(pictures))


def _sweep_story(sweep: Sweep, methods: int) -> str:
    named = {run.task for run in sweep.runs} | {one.task for one in sweep.failures}
    tasks = sorted(named, key=task_order)
    bases = sorted({run.record.base_model for run in sweep.runs})
    seeds = sorted({run.record.seed for run in sweep.runs})
    failed = f"; {plural(len(sweep.failures), 'run')} failed" if sweep.failures else ""
    trained = f" of {enumerate_words(bases)}" if bases else ""
    flagged = sum(bool(run.record.warnings) for run in sweep.runs)
    warned = f"; {flagged} of them with warnings" if flagged else ""
    return (
        f"{plural(len(sweep.runs), 'run')}{trained} finished{warned}{failed}: "
        f"{plural(methods, 'method')} on {enumerate_words([task_title(task) for task in tasks])}"
        + (f", seeds {enumerate_words([str(seed) for seed in seeds])}." if seeds else ".")
    )


def _run_pictures(run: Run, history: History, *, prefix: str, png: bool) -> list[Picture]:
    record = run.record
    # What the Trainer evaluates during training is the first set.
    first = next(iter(record.scores.values()), None)
    main, majority = (None, None) if first is None else (first["main"], first["majority"])
    plans = [
        *rank_pictures(record.rank_pattern, record.init_rank, history, grows=facts.grows(record)),
        *curve_pictures(history, main, majority),
    ]
    return [
        draw(prefix + name, title, description, paint, png=png)
        for name, title, description, paint in plans
    ]


def _run_view(run: Run, traces: Traces, pictures: Sequence[Picture]) -> dict[str, Any]:
    """What the template of a run's section takes."""
    record = run.record
    return {
        "name": run.name,
        "record": record,
        "story": facts.story(run),
        "tiles": facts.tiles(run),
        "scores": facts.scores(record),
        "reached": facts.reached(run),
        "flags": facts.flags(record),
        "environment": facts.environment(record),
        "command": facts.command(record),
        "warnings": record.warnings,
        "notes": traces.notes,
        "confusions": traces.confusions,
        # As a table, for those who cannot see the picture or want the numbers.
        "ranks": rank_grid(record.rank_pattern) if record.rank_pattern else None,
        "pictures": pictures,
    }


def _template(name: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("adalora.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "span": span}
    source = environment.loader.get_source(environment, "page.js")[0]  # type: ignore[union-attr]
    script = f"\n{source.strip()}\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(name).render(
        script=Markup(script), script_hash=digest, **values
    )


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
    with atomic_write(path) as new:
        new.write_bytes(content)
