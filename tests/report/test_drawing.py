"""Pictures as elements: what identifies their parts, what is read out, and their bytes."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from adalora.report.drawing import Picture, draw, log_scale, new_figure, pens, thinned

HARD = 'x < y & "style" url(#none) href="#no" id="x" />'


def paint() -> Figure:
    figure = new_figure(2.0)
    axes = figure.subplots()
    axes.plot([0, 1, 2], [0.123456, 1, 0.5], marker="o", label=HARD)
    axes.imshow([[0.0, 1.0], [1.0, 0.0]], extent=(0, 2, 0, 1))
    axes.set_ylabel("turned")
    axes.legend()
    return figure


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [draw(name, HARD, "words", paint, png=False) for name in ("one", "two")]


def references(element: str) -> set[str]:
    """Ids that attributes refer to; words may hold what looks like a reference."""
    values = [
        value
        for part in ElementTree.fromstring(element).iter()
        for key, value in part.attrib.items()
        if key != "aria-label"
    ]
    return {name for value in values for name in re.findall(r"(?:url\(|^)#([\w.-]+)\)?$", value)}


def identities(element: str) -> list[str]:
    parts = ElementTree.fromstring(element).iter()
    return [name for part in parts if (name := part.get("id")) is not None]


def test_pictures_on_one_page_share_no_id_and_every_reference_is_met(
    pictures: list[Picture],
) -> None:
    seen = [name for picture in pictures for name in identities(picture.svg)]
    assert len(seen) == len(set(seen))
    for picture in pictures:
        own = set(identities(picture.svg))
        assert all(name.startswith(f"{picture.name}.") for name in own)
        assert references(picture.svg)
        assert references(picture.svg) <= own


def test_a_word_in_a_picture_stays_that_word(pictures: list[Picture]) -> None:
    root = ElementTree.fromstring(pictures[0].svg)
    texts = [part.text for part in root.iter() if part.tag.endswith(("}text", "}title"))]
    assert texts.count(HARD) == 3  # the title, the metadata's title and the legend
    assert root.get("aria-label") == f"{HARD}. words"


def test_an_element_holds_neither_a_date_nor_a_version(pictures: list[Picture]) -> None:
    assert not re.search(r"20\d\d-\d\d-\d\d|matplotlib v", pictures[0].svg, re.IGNORECASE)


def test_every_pen_of_many_differs_from_the_others() -> None:
    assert len({str(pen) for pen in pens(60)}) == 60


@pytest.mark.parametrize("count", [1, 299, 300, 301, 1000])
def test_thinned_values_keep_their_ends_and_their_order(count: int) -> None:
    values = list(range(count))
    kept = thinned(values)
    assert len(kept) == min(count, 300)
    assert (kept[0], kept[-1]) == (values[0], values[-1])
    assert kept == sorted(set(kept))


@pytest.mark.parametrize(
    ("values", "scale"), [([1, 2.9], "linear"), ([0, -1], "linear"), ([1, 3], "log")]
)
def test_an_axis_is_logarithmic_where_positive_values_span_enough(
    values: list[float], scale: str
) -> None:
    axes = new_figure(2.0).subplots()
    log_scale(axes, "y", values)
    assert axes.get_yscale() == scale
