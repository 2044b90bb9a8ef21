"""What matplotlib drew is still all there in the element, and the element in the page."""

from __future__ import annotations

import io
import re
from collections import Counter
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

from adalora.report.drawing import OnePage, as_element, draw, new_figure

DRAWN = ("path", "use", "text", "image", "rect")
HARD = 'x < y & "style" url(#none) href="#no" />'


@pytest.fixture
def document() -> str:
    figure = new_figure(2.0)
    axes = figure.subplots()
    axes.plot([0, 1, 2], [0.123456, 1, 0.5], marker="o", label=HARD)
    axes.imshow([[0.0, 1.0], [1.0, 0.0]], extent=(0, 2, 0, 1))
    axes.set_ylabel("turned")
    axes.legend()
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg")
    return buffer.getvalue()


def drawn(root: ElementTree.Element) -> Counter[str]:
    """How often each kind of mark occurs, and each text."""
    parts = [part for part in root.iter() if part.tag.rpartition("}")[2] in DRAWN]
    return Counter(f"{part.tag} {(part.text or '').strip()}" for part in parts)


def without_ids(text: str) -> str:
    return re.sub(r"\b(?:one|two|v0|v1)\.(\d+)", r"\1", text)


def test_every_mark_is_kept_and_every_reference_is_met(document: str) -> None:
    element = as_element(document, "one", "title", "words")
    root = ElementTree.fromstring(element)
    assert drawn(root) == drawn(ElementTree.fromstring(document))
    ids = [part.get("id") for part in root.iter() if part.get("id")]
    tags = re.findall(r"<[^>]*>", element)  # a label may hold what looks like a reference
    used = [name for tag in tags for name in re.findall(r"(?:url\(|href=\")#([^)\"]+)", tag)]
    assert used
    assert {*used, *(root.get("aria-labelledby") or "").split()} == set(ids)
    assert len(ids) == len(set(ids))


def test_on_a_page_it_is_less_than_half_of_what_matplotlib_wrote(document: str) -> None:
    shared = OnePage().add(as_element(document, "one", "title", "words"))
    assert len(shared) < len(document) / 2


def test_a_word_in_a_picture_stays_that_word(document: str) -> None:
    root = ElementTree.fromstring(as_element(document, "one", HARD, HARD))
    words = [part.text for part in root.iter() if part.tag.rpartition("}")[2] != "path"]
    assert words.count(HARD) == 3


def test_on_a_page_an_element_has_the_styles_that_it_has_alone() -> None:
    def paint() -> Figure:
        figure = new_figure(1.0)
        figure.subplots().plot([1, 2], [2, 1])
        return figure

    alone = [draw(name, HARD, HARD, paint, png=False).svg for name in ("one", "two")]
    page = OnePage()
    together = [page.add(element) for element in alone]
    styles = dict(re.findall(r"\.(p\d+) \{ (.*) \}", page.style_sheet))
    ids = [found for text in together for found in re.findall(r'\sid="([^"]+)"', text)]
    assert len(ids) == len(set(ids))
    for own, shared in zip(alone, together, strict=True):
        assert "style=" not in re.sub(r">[^<]*<", "><", shared)
        parts = zip(
            ElementTree.fromstring(own).iter(), ElementTree.fromstring(shared).iter(), strict=True
        )
        for part, other in parts:
            expected = {key: without_ids(value) for key, value in part.attrib.items()}
            got = {key: without_ids(value) for key, value in other.attrib.items()}
            if "class" in got:
                got["style"] = styles[got.pop("class")]
            assert (got, other.text) == (expected, part.text)
