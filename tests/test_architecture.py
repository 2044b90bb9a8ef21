"""Rooms depend one way, as docs/architecture.md orders them; few modules, no circle, no name twice.

Imports are read from the source, those inside functions included; those for the type checker alone
bind nothing at run time and are left out.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOMES = {"adalora": ROOT / "src", "loralib": ROOT / "loralib"}
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
#: Room -> the sentence that the page gives it, in the page's order: what a room may import comes
#: before it.
ROOMS = {
    Path(path).stem: sentence
    for path, sentence in re.findall(r"^\| \d+ \| `([^`]+)` \| (.*) \|$", PAGE, re.MULTILINE)
}
#: These hold the version and the ways in, and belong to no room.
DOORS = {"adalora", "adalora.__main__"}


def modules() -> dict[str, Path]:
    found = {}
    for package, home in HOMES.items():
        for file in (home / package).rglob("*.py"):
            parts = file.relative_to(home).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()
SOURCES = {module: file.read_text(encoding="utf-8") for module, file in MODULES.items()}


def statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from statements(child)


def imports_of(module: str, source: str, *, is_package: bool, known: set[str]) -> set[str]:
    """The modules of ``known`` that ``module`` imports, by name or by one of their names."""
    found = set()
    for statement in statements(ast.parse(source)):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
            continue
        base = statement.module or ""
        if statement.level:
            parts = module.split(".")
            parts = parts[: len(parts) - statement.level + (1 if is_package else 0)]
            base = ".".join([*parts, *([base] if base else [])])
        for alias in statement.names:
            inner = f"{base}.{alias.name}"
            found.add(inner if inner in known else base)
    return found & known


IMPORTS = {
    module: imports_of(
        module,
        SOURCES[module],
        is_package=file.name == "__init__.py",
        known=set(MODULES),
    )
    for module, file in MODULES.items()
}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One path of every circle that a search in depth meets, its start repeated at its end."""
    found, done = [], set()

    def visit(node: str, path: list[str]) -> None:
        if node in path:
            found.append([*path[path.index(node) :], node])
        elif node not in done:
            for following in sorted(graph[node]):
                visit(following, [*path, node])
            done.add(node)

    for node in sorted(graph):
        visit(node, [])
    return found


def room_of(module: str) -> str | None:
    """None for a module of no room."""
    if module in DOORS:
        return None
    package, _, rest = module.partition(".")
    return "loralib" if package == "loralib" else rest.partition(".")[0]


def arrows_up(graph: dict[str, set[str]], order: list[str]) -> list[str]:
    """Imports of a room that comes later in ``order``."""
    found = []
    for module, targets in graph.items():
        here = room_of(module)
        for target in targets:
            there = room_of(target)
            if here and there and order.index(there) > order.index(here):
                found.append(f"{module} imports {target}")
    return sorted(found)


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(IMPORTS) == []


def test_every_room_has_its_place() -> None:
    assert {room for room in map(room_of, MODULES) if room} == set(ROOMS)


def test_rooms_depend_one_way() -> None:
    assert arrows_up(IMPORTS, list(ROOMS)) == []


def test_circles_and_arrows_up_are_found() -> None:
    graph = {"adalora.glue.a": {"adalora.sweeps.b"}, "adalora.sweeps.b": {"adalora.glue.a"}}
    assert len(circles(graph)) == 1
    assert arrows_up(graph, list(ROOMS)) == ["adalora.glue.a imports adalora.sweeps.b"]
    source = "def late():\n    from ..b import c\nif TYPE_CHECKING:\n    import adalora.d\n"
    known = {"adalora.b", "adalora.b.c", "adalora.d"}
    assert imports_of("adalora.a.m", source, is_package=False, known=known) == {"adalora.b.c"}


def test_the_picture_shows_what_is_imported() -> None:
    (picture,) = re.findall(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)
    drawn = set(re.findall(r"(\w+) --> (\w+)", picture))
    there = {(room_of(module), room_of(target)) for module in IMPORTS for target in IMPORTS[module]}
    assert drawn - there == set()
    assert len(drawn) > 15


@pytest.mark.parametrize("room", list(ROOMS))
def test_the_page_and_the_room_say_the_same_sentence(room: str) -> None:
    module = "loralib" if room == "loralib" else f"adalora.{room}"
    text = ast.get_docstring(ast.parse(SOURCES[module]))
    assert text is not None
    words = " ".join(text.split()).replace("``", "`").replace("|", "\\|")
    assert re.split(r"(?<=\.)\s", words, maxsplit=1)[0] == ROOMS[room]


def test_no_name_occurs_twice() -> None:
    counts = Counter(file.name for file in MODULES.values() if file.name != "__init__.py")
    assert [name for name, count in counts.items() if count > 1] == []


def test_there_are_few_modules_and_fewer_splinters() -> None:
    short = [module for module, source in SOURCES.items() if len(source.splitlines()) < 60]
    assert len(MODULES) <= 175
    assert len(short) <= 25, short
