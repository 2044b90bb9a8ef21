"""How every picture of a report is drawn: size, colours, and its bytes as SVG and PNG.

Drawn for a phone first: 4.8 inches wide with 9-point text stays legible at 350 pixels, and two
stand side by side on a desk. Colours are Okabe and Ito's, and two of Paul Tol's after them, told
apart by the colour-blind; each comes with its own line and marker, for print without colours. The
same input gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, TypeVar
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from adalora.results.words import compact

__all__ = [
    "INK",
    "MUTED",
    "OnePage",
    "Pen",
    "Picture",
    "as_element",
    "draw",
    "log_scale",
    "new_figure",
    "pens",
    "steps_axis",
    "thinned",
]

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
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that the PNG is the same everywhere
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


@dataclass(frozen=True)
class Picture:
    """A finished picture.

    Attributes:
        name: stem of its files.
        title: heading, a few words.
        description: what it shows, for the caption and for those who cannot see it.
        svg: an ``<svg>`` element whose ids no other picture has.
        png: the same in pixels; empty where only the element was asked for.
    """

    name: str
    title: str
    description: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Pen:
    """One series' colour, line and marker."""

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


def draw(
    name: str, title: str, description: str, paint: Callable[[], Figure], *, png: bool = True
) -> Picture:
    """Paint a figure in the common style and keep its bytes.

    Args:
        name: unique among the pictures of a page; letters, digits, ``-`` and ``_``.
        title: heading.
        description: what the picture shows, in a sentence or two.
        paint: makes the figure.
        png: also as pixels, 200 to the inch.
    """
    with _style(name):
        figure = paint()
        vector = io.StringIO()
        figure.savefig(vector, format="svg")
        pixels = io.BytesIO()
        if png:
            figure.savefig(pixels, format="png", dpi=200, metadata={"Software": None})
    svg = as_element(vector.getvalue(), name, title, description)
    return Picture(name, title, description, svg, pixels.getvalue())


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

    Args:
        axes: a drawing.
        which: "x" or "y".
        values: what is drawn along it.
        powers: label 10⁻³ instead of 0.001 where there is room for whole powers only.
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


_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_GROUP, _DEFS, _TEXT = f"{{{_SVG}}}g", f"{{{_SVG}}}defs", f"{{{_SVG}}}text"
_UNWANTED = (f"{{{_SVG}}}style", f"{{{_SVG}}}metadata")
_LINK, _LABELS = f"{{{_XLINK}}}href", "aria-labelledby"

ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)


def as_element(document: str, name: str, title: str, description: str) -> str:
    """One accessible ``<svg>`` element out of matplotlib's document.

    Only ids that are referred to stay, as ``name.0``, ``name.1``, …, because several pictures share
    a page; the style element, which would hold for the whole page, becomes attributes; the metadata
    go, as their date would make other bytes of the same input; coordinates keep two decimals, a
    hundredth of a point.

    Args:
        document: as ``Figure.savefig`` writes it.
        name: unique among the pictures of a page; letters, digits, ``-`` and ``_``.
        title: heading.
        description: what the picture shows.
    """
    root = ElementTree.fromstring(document)
    _remove_unwanted(root)
    for element in root.iter():
        _shorten(element)
    root.set("role", "img")
    root.set(_LABELS, "title desc")
    root.set("style", "stroke-linejoin:round;stroke-linecap:butt")
    root.set("font-family", "DejaVu Sans, Verdana, sans-serif")
    for position, (tag, words) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": tag})
        element.text = words
        root.insert(position, element)
    _renumber_ids(root, name)
    _unwrap_groups(root)
    return _written(root)


class OnePage:
    """Makes elements smaller that stand together: short ids, and styles as classes."""

    def __init__(self) -> None:
        self._count = 0
        self._classes: dict[str, str] = {}

    def add(self, element: str) -> str:
        """An ``<svg>`` element of :func:`as_element` for a page that has the style sheet."""
        root = ElementTree.fromstring(element)
        _renumber_ids(root, f"v{self._count}")
        self._count += 1
        for part in root.iter():
            style = part.attrib.pop("style", None)
            if style is not None:
                part.set("class", self._classes.setdefault(style, f"p{len(self._classes)}"))
        return _written(root)

    @property
    def style_sheet(self) -> str:
        """The rules, in CSS, for all that was added."""
        return "\n".join(f".{name} {{ {style} }}" for style, name in self._classes.items())


def _written(root: ElementTree.Element) -> str:
    # In ElementTree's text every ">" of a word is escaped, so this is always the end of a tag.
    return ElementTree.tostring(root, encoding="unicode").replace(" />", "/>")


def _remove_unwanted(root: ElementTree.Element) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in _UNWANTED or (child.tag == _DEFS and _only(child, _UNWANTED)):
                parent.remove(child)


def _only(element: ElementTree.Element, tags: Sequence[str]) -> bool:
    return all(child.tag in tags for child in element)


def _renumber_ids(root: ElementTree.Element, name: str) -> None:
    """Ids that something refers to are counted through under ``name``; others go."""
    new: dict[str, str] = {}

    def number(identity: str) -> str:
        return new.setdefault(identity, f"{name}.{len(new)}")

    for element in root.iter():
        for key, value in element.attrib.items():
            if key != "id":
                element.set(key, _redirected(key, value, number))
    for element in root.iter():
        identity = element.attrib.pop("id", None)
        if identity in new:
            element.set("id", new[identity])


def _redirected(key: str, value: str, new: Callable[[str], str]) -> str:
    """The attribute's value with the ids that it refers to replaced."""
    if key == _LABELS:
        return " ".join(map(new, value.split()))
    if key == _LINK and value.startswith("#"):
        return f"#{new(value[1:])}"
    return re.sub(r"url\(#([^)]+)\)", lambda found: f"url(#{new(found[1])})", value)


def _shorten(element: ElementTree.Element) -> None:
    """The same coordinates in fewer characters; no turn by nothing; no indentation."""
    for key in ("d", "transform", "x", "y", "points"):
        if key in element.attrib:
            element.set(key, _rounded(element.attrib[key]))
    if "d" in element.attrib:
        element.set("d", re.sub(r"\s*([A-Za-z])\s*", r"\1", element.attrib["d"]).strip())
    if re.fullmatch(r"rotate\(-?0 [^)]*\)", element.get("transform", "")):
        del element.attrib["transform"]
    if element.tag != _TEXT and not (element.text or "").strip():
        element.text = None
    element.tail = None if not (element.tail or "").strip() else element.tail


def _rounded(value: str) -> str:
    return re.sub(
        r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value
    )


def _unwrap_groups(parent: ElementTree.Element) -> None:
    """Put the children of a group without attributes in its place."""
    children = []
    for child in parent:
        _unwrap_groups(child)
        children += list(child) if child.tag == _GROUP and not child.attrib else [child]
    parent[:] = children
