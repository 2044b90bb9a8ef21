"""What the documents name is there: files, modules and names, links, flags, and their picture."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from adalora.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("loralib/*.md"),
        *ROOT.glob("tests/data/*.md"),
    )
    # What has been is told by the names of its day.
    if path.name != "CHANGELOG.md"
)
#: Where a path may begin that a document gives.
STARTS = ("", "src", "src/adalora", "loralib", "tests", "docs")
ROOMS = ROOT / "src" / "adalora"


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


# ---- files and names ----


def files_named(text: str) -> set[str]:
    """Paths of code and documents in backticks, links and commands; names of programs' own files
    (``run.json``, ``train.csv``) are not among them."""
    found = set(re.findall(r"(?<![\w./<>*-])((?:[\w-]+/)*[\w.-]+\.(?:py|sh))\b", text))
    found |= set(
        re.findall(r"(?<![\w./-])((?:src|tests|docs|scripts|examples|benchmarks)/[\w./-]*)", text)
    )
    # A path that goes on with a pattern, such as scripts/run_{a,b}.sh, ends at its folder.
    return {path.rpartition("/")[0] if path.endswith("_") else path.rstrip(".") for path in found}


@cache
def names_of_files() -> set[str]:
    return {
        path.name
        for folder in ("src", "loralib", "tests", "scripts", "examples", "benchmarks")
        for path in (ROOT / folder).rglob("*.*")
    }


def is_there(path: str, document: str) -> bool:
    bases = [ROOT / start for start in STARTS] + [(ROOT / document).parent]
    if any((base / path).exists() for base in bases):
        return True
    return "/" not in path and path in names_of_files()


def names_in(text: str) -> set[str]:
    """Dotted names of this project's modules, without the names of programs' own files."""
    found = re.findall(r"(?<![\w/.-])((?:adalora|loralib|benchmarks)(?:\.\w+)+)\b(?!/)", text)
    return {name for name in found if not re.search(r"\.(json|py|md)$", name)}


@cache
def module_file(name: str) -> Path | None:
    parts = name.split(".")
    home = {"adalora": ROOT / "src", "loralib": ROOT / "loralib", "benchmarks": ROOT}[parts[0]]
    base = home.joinpath(*parts)
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def bound(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Name -> statement of what a module's or a class's body defines or imports."""
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, statement
            case ast.ImportFrom(names=names) | ast.Import(names=names):
                yield from ((alias.asname or alias.name, statement) for alias in names)
            case ast.Assign(targets=targets):
                yield from ((t.id, statement) for t in targets if isinstance(t, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, statement
            case ast.If(body=inner):
                yield from bound(inner)
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            for node in ast.walk(statement):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    yield node.attr, statement


def is_defined(name: str) -> bool:
    """Whether a dotted name is a module, or something in one, read without importing it."""
    parts = name.split(".")
    length = max(n for n in range(1, len(parts) + 1) if module_file(".".join(parts[:n])))
    file = module_file(".".join(parts[:length]))
    assert file is not None
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for part in parts[length:]:
        known = dict(bound(body))
        if part not in known:
            return False
        statement = known[part]
        if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            rest = parts[parts.index(part, length) :]
            return is_defined(".".join([statement.module, *rest]))
        if not isinstance(statement, ast.ClassDef):
            return True
        body = statement.body
    return True


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_names_exist(document: str) -> None:
    text = read(document)
    absent = [path for path in sorted(files_named(text)) if not is_there(path, document)]
    absent += [name for name in sorted(names_in(text)) if not is_defined(name)]
    assert absent == []


def test_what_does_not_exist_is_found() -> None:
    text = "see `adalora/nowhere/consistency.py`, `adalora.training.AdaLora.no_such` and docs/no.md"
    assert not any(is_there(path, "README.md") for path in files_named(text))
    assert len(files_named(text)) == 2
    assert [is_defined(name) for name in names_in(text)] == [False]
    assert is_defined("adalora.training.adaptation.AdaLora.penalty")


# ---- links ----


def headings(text: str) -> set[str]:
    """Anchors of a document's headings, as hosting sites make them."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = re.sub(r"```.*?```", "", read(document), flags=re.DOTALL)
    home = (ROOT / document).parent
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = home / path if path else ROOT / document
        known = (
            headings(file.read_text(encoding="utf-8"))
            if file.suffix == ".md" and file.is_file()
            else set()
        )
        if not file.exists() or (anchor and anchor not in known):
            broken.append(target)
    assert broken == []


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\(([^)#\s]+)", read("docs/README.md")))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").glob("*.md")}
    pages |= {f"results/{path.name}" for path in (ROOT / "docs" / "results").glob("*.md")}
    assert pages - {"README.md"} - linked == set()


# ---- commands ----


def commands_in(text: str) -> Iterator[tuple[str, list[str]]]:
    """(command, flags) of every line ``adalora COMMAND ...`` of the shell."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.partition("#")[0].split()
            if len(words) > 1 and words[0].endswith("adalora"):
                yield words[1], [word for word in words[2:] if word.startswith("--")]


@cache
def flags_of_runs() -> set[str]:
    """Flags of run_glue.py: those of the installed arguments, and every word of our own."""
    spec = find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    files = [Path(spec.origin).parent / "training_args.py"]
    own = ROOT / "src" / "adalora" / "training" / "arguments"
    found: set[str] = set()
    for file in (*files, *own.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(name)
                case ast.Constant(value=str(name)):
                    found.add(name.removeprefix("--"))
    return found


def is_known(command: str, flag: str) -> bool:
    name = flag.partition("=")[0]
    if command in ("train", "plan") and name.removeprefix("--") in flags_of_runs():
        return True
    modules = (COMMANDS[command].module, "flags")
    return any(
        f'"{name}"' in (ROOMS / "commands" / f"{module}.py").read_text(encoding="utf-8")
        for module in modules
    )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_their_flags_are_known(document: str) -> None:
    unknown = []
    for command, flags in commands_in(read(document)):
        if command not in COMMANDS:
            unknown.append(f"adalora {command}")
            continue
        own = flags[: flags.index("--")] if "--" in flags else flags
        unknown += [f"adalora {command} {flag}" for flag in own if not is_known(command, flag)]
        if "--" in flags:
            behind = flags[flags.index("--") + 1 :]
            unknown += [flag for flag in behind if flag.removeprefix("--") not in flags_of_runs()]
    assert unknown == []


def test_an_unknown_flag_is_found() -> None:
    assert is_known("predict", "--output")
    assert not is_known("predict", "--outputs")
    assert "learning_rate" in flags_of_runs()
    assert "learning_rates" not in flags_of_runs()


# ---- the public surface ----


def handed_on() -> dict[str, list[str]]:
    """Package -> its ``__all__``, read without importing anything."""
    found = {}
    for home in (ROOT / "src", ROOT / "loralib"):
        for file in home.rglob("__init__.py"):
            for name, statement in bound(ast.parse(file.read_text(encoding="utf-8")).body):
                if name == "__all__" and isinstance(statement, ast.Assign):
                    package = ".".join(file.relative_to(home).parts[:-1])
                    found[package] = sorted(ast.literal_eval(statement.value))
    return found


def test_the_public_surface_is_listed() -> None:
    listed = {}
    for section in re.split(r"^## ", read("docs/api.md"), flags=re.MULTILINE)[1:]:
        package, _, rest = section.partition("\n")
        listed[package.strip()] = sorted(re.findall(r"^\| `(\w+)` \|", rest, re.MULTILINE))
    assert listed == handed_on()


def hooks_overridden() -> set[str]:
    """Private methods of the installed Trainer that a class of ours defines."""
    spec = find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "trainer.py").read_text(encoding="utf-8")
    (installed,) = (s for n, s in bound(ast.parse(text).body) if n == "Trainer")
    assert isinstance(installed, ast.ClassDef)
    private = {name for name, _ in bound(installed.body) if re.match(r"_[a-z]", name)}
    found: set[str] = set()
    for file in (ROOT / "src" / "adalora" / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Trainer"):
                found |= {m.name for m in node.body if isinstance(m, ast.FunctionDef)} & private
    return found


def test_every_private_hook_that_is_overridden_has_its_reason() -> None:
    rows = re.findall(r"^\| `(_\w+)` \|", read("CONTRIBUTING.md"), re.MULTILINE)
    assert len(hooks_overridden()) > 5
    assert set(rows) == hooks_overridden()


# ---- the README ----


def test_the_readme_is_short_and_has_the_two_commands() -> None:
    text = read("README.md")
    assert len(text.splitlines()) <= 120
    for line in ("bash scripts/quickstart.sh", "bash scripts/test.sh", "source .venv/bin/activate"):
        assert line in text


def test_the_picture_is_what_its_script_draws() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "draw_method.py"))
    assert script["draw"](script["read_run"]()) == read("docs/method.svg")
