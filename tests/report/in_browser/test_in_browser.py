"""Reports in Chromium: quiet, whole without a network, legible on a phone and on paper."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from matplotlib.figure import Figure
from PIL import Image

from adalora.report import drawing, write_report

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module", params=["run", "sweep"])
def page(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, browser: Any
) -> Path:
    source = request.getfixturevalue(f"{request.param}_folder")
    return write_report(source, tmp_path_factory.mktemp("report"))[0]


@pytest.mark.parametrize("width", [390, 1280])
def test_it_loads_without_a_message_or_a_request_and_fits_its_window(
    browser: Any, page: Path, width: int
) -> None:
    visit = browser.visit(page, width=width)
    assert visit.messages == []
    asked = [address for address in visit.requests if not address.startswith("data:")]
    assert asked == [page.resolve().as_uri()]
    assert visit.evaluate(OVERFLOW) == 0
    visit.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert visit.evaluate(OVERFLOW) == 0


def test_pictures_are_seen_and_their_words_can_be_read_on_a_phone(browser: Any, page: Path) -> None:
    visit = browser.visit(page, width=390)
    visit.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    pictures = visit.evaluate(
        """[...document.querySelectorAll("figure svg")].map(svg => {
             const box = svg.getBoundingClientRect();
             const scale = box.width / svg.viewBox.baseVal.width;
             const sizes = [...svg.querySelectorAll("text")].map(
               text => parseFloat(getComputedStyle(text).fontSize) * scale);
             const paths = svg.querySelectorAll("path").length;
             return [box.width, box.height, Math.min(...sizes), paths];
           })"""
    )
    assert pictures
    for width, height, smallest, paths in pictures:
        assert 300 < width <= 390
        assert height > 100
        assert smallest >= 7
        assert paths > 3


def test_words_in_pictures_stay_inside_them(browser: Any, page: Path) -> None:
    visit = browser.visit(page, width=1280)
    visit.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    outside = visit.evaluate(
        """[...document.querySelectorAll("figure svg")].flatMap(svg => {
             const box = svg.getBoundingClientRect();
             return [...svg.querySelectorAll("text")].filter(text => {
               const own = text.getBoundingClientRect();
               return own.left < box.left - 2 || own.right > box.right + 2
                   || own.top < box.top - 2 || own.bottom > box.bottom + 2;
             }).map(text => text.textContent);
           })"""
    )
    assert outside == []


def test_a_link_opens_the_section_of_its_run(
    browser: Any, sweep_folder: Path, tmp_path: Path
) -> None:
    page = write_report(sweep_folder, tmp_path)[0]
    visit = browser.visit(page, width=1280)
    opened = '[...document.querySelectorAll("details.run")].map(one => one.open)'
    assert visit.evaluate(opened) == [False] * 8
    visit.evaluate('document.querySelector(".runs tr:nth-child(3) a").click()')
    visit.evaluate("new Promise(done => setTimeout(done, 200))", wait=True)
    assert visit.evaluate(opened) == [False, False, True, *[False] * 5]
    # And from outside, with the anchor in the address.
    visit = browser.visit(page, width=1280, anchor="#run-2")
    assert visit.evaluate(opened) == [False, True, *[False] * 6]
    # By the page's own script, as in browsers that do not open sections by themselves.
    visit.evaluate('history.replaceState(null, "", "#run-5"); reveal()')
    assert visit.evaluate(opened) == [False, True, False, False, True, *[False] * 3]


def test_it_prints(browser: Any, page: Path) -> None:
    visit = browser.visit(page, width=1280)
    document = visit.pdf()
    assert document.startswith(b"%PDF")
    assert 1 <= document.count(b"/Type /Page\n") + document.count(b"/Type /Page ") <= 12


def test_markup_in_a_label_does_not_run_even_where_it_is_not_escaped(
    browser: Any, make: Any, tmp_path: Path
) -> None:
    label = "<img src=x onerror=struck=1>"
    source = make.write_run(tmp_path / "run", make.without_ranks(), classes=(label, "b"))
    page = write_report(source, tmp_path / "report")[0]
    visit = browser.visit(page, width=1280)
    assert visit.messages == []
    assert visit.evaluate("document.querySelectorAll('img').length") == 0
    page.write_text(page.read_text().replace(str(escape(label)), "<script>struck=1</script>"))
    visit = browser.visit(page, width=1280)
    assert visit.evaluate("typeof struck") == "undefined"
    assert any("Content Security Policy" in message for message in visit.messages)


def test_a_picture_looks_as_matplotlib_drew_it(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = []
    element_of = drawing._element

    def kept(document: str, *words: str) -> str:
        documents.append(document)
        return element_of(document, *words)

    monkeypatch.setattr(drawing, "_element", kept)
    element = drawing.draw("one", "title", "words", _painted, png=False).svg
    drawn = documents[0][documents[0].index("<svg") :]
    seen = []
    for number, body in enumerate((drawn, element)):
        file = tmp_path / f"{number}.html"
        file.write_text(f"<!doctype html><meta charset=utf-8>{body}", encoding="utf-8")
        browser.visit(file, width=600).screenshot(tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as image:
            seen.append(np.asarray(image.convert("RGB"), dtype=int))
    assert (seen[0] == seen[1]).all()
    assert seen[0].std() > 10


def _painted() -> Figure:
    figure = drawing.new_figure(3.0)
    axes = figure.subplots()
    for pen, height in zip(drawing.pens(5), range(5), strict=True):
        axes.plot(
            [0, 1, 3], [height, 0.37, height / 3], label=f"line {height}", **dataclasses.asdict(pen)
        )
    axes.imshow([[0.0, 1.0], [1.0, 0.0]], extent=(1, 2, 1, 2))
    axes.set_xlim(0.5, 2.5)
    axes.set_ylabel("turned")
    axes.legend()
    return figure
