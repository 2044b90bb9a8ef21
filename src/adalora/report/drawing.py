"""How every picture of a report is drawn: size, colours, and its bytes as SVG and PNG.

Drawn for a phone first: 4.8 inches wide with 9-point text stays legible at 350 pixels, and two
fit next to each other on a desk. Colours are Okabe and Ito's, and two of Paul Tol's after them,
which the colour-blind can distinguish; each comes with its own line and marker, for print without
colours. The same input gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import cycle, islice
from typing import Any, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from adalora.results.words import compact

T = TypeVar("T")

WIDTH = 4.8
INK, MUTED = "#1a1a1a", "#767676"
_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"),
    *("#882255", "#999933"),
)
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (7, 2)), (0, (1, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">", "p")
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same PNG everywhere
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,  # a label with a dollar sign is a label, not a formula
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 2.6,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud and scaled
}

# Without the date and matplotlib's version the same input gives the same bytes.
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


#: A picture to be drawn: the first four arguments of ``draw``.
Plan = tuple[str, str, str, Callable[[], Figure]]


@dataclass(frozen=True)
class Picture:
    """A finished picture."""

    name: str  #: stem of its files
    title: str  #: heading
    description: str  #: for the caption, and for those who cannot see it
    svg: str  #: an ``<svg>`` element whose ids begin with ``name``, for a page or a file of its own
    png: bytes  #: the same in pixels; empty where only the element was asked for


@dataclass(frozen=True)
class Pen:
    """One series' colour, line and marker, named as matplotlib's ``plot`` takes them."""

    color: str
    linestyle: Any
    marker: str


def pens(count: int) -> list[Pen]:
    """``count`` pens; the nine colours come again with other lines (seven) and markers (eleven)."""
    parts = zip(cycle(_COLOURS), cycle(_LINES), cycle(_MARKERS))
    return [Pen(*own) for own in islice(parts, count)]


@contextmanager
def _style(salt: str) -> Iterator[None]:
    """matplotlib as this module wants it, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": salt})
        yield


def new_figure(height: float) -> Figure:
    """An empty figure of the common width, ``height`` inches high."""
    return Figure(figsize=(WIDTH, height))


def new_drawing(height: float) -> tuple[Figure, Axes]:
    """A figure with one drawing in it."""
    figure = new_figure(height)
    return figure, figure.add_subplot()


def draw(
    name: str, title: str, description: str, paint: Callable[[], Figure], *, png: bool = True
) -> Picture:
    """Paint a figure in the common style and keep its bytes.

    Args:
        name: unique among the pictures of a page; letters, digits, ``-`` and ``_``.
        png: also as pixels, 200 to the inch.
    """
    with _style(name):
        figure = paint()
        vector = io.StringIO()
        figure.savefig(vector, format="svg", metadata={**_NO_METADATA, "Title": title})
        pixels = io.BytesIO()
        if png:
            figure.savefig(pixels, format="png", dpi=200, metadata={"Software": None})
    svg = _element(vector.getvalue(), name, f"{title}. {description}")
    return Picture(name, title, description, svg, pixels.getvalue())


def _element(document: str, name: str, label: str) -> str:
    """The ``<svg>`` element of matplotlib's document, with its own ids and ``label`` to read out.

    matplotlib numbers the parts of every figure alike, and several figures share a page.
    """
    # A ">" in text is always escaped, so that what looks like a reference in a label is no tag.
    element = re.sub(
        r"<[^>]*>",
        lambda tag: re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}.", tag[0]),
        document[document.index("<svg") :],
    )
    return element.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def thinned(values: Sequence[T], most: int = 300) -> list[T]:
    """At most ``most`` of the values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    step = (len(values) - 1) / (most - 1)
    return [values[round(index * step)] for index in range(most)]


def steps_axis(axes: Axes) -> None:
    """The x axis as optimizer steps."""
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def log_scale(axes: Axes, which: str, values: Sequence[float], *, powers: bool = False) -> None:
    """A logarithmic axis where the positive ``values`` span enough, with marks that fit on it.

    ``which`` is "x" or "y"; with ``powers`` a mark is 10⁻³ instead of 0.001 where there is room for
    whole powers only.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    positive = [value for value in values if value > 0]
    if not positive or max(positive) < 3 * min(positive):
        axis.set_major_locator(MaxNLocator(4))
        axis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        return
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    wide = max(positive) > 100 * min(positive)
    subs = (1.0,) if wide else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=7))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _mark(value, powers and wide)))


def _mark(value: float, power: bool) -> str:
    if not power:
        return compact(value)
    exponent = f"{value:.0e}".split("e")[1]
    return "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
