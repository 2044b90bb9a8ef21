"""matplotlib's SVG documents as small, accessible elements that share a page.

A sweep's page holds hundreds of pictures. matplotlib indents them, wraps every mark in groups that
say nothing and repeats the same few styles thousands of times. Without that they look the same and
take less than half of the bytes on a page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

__all__ = ["OnePage", "as_element"]

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
