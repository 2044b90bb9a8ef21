"""Reading a sweep's YAML file: every mistake in it is reported before any run."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from adalora.errors import UserError
from adalora.sweeps.cells import AXES, Cell, Flags, Spec, words
from adalora.training.arguments.parser import build_parser, parse_arguments

_PARTS = "name base tasks methods budgets seeds grid overrides exclude".split()
#: Flags that the sweep gives itself.
_OURS = {
    "root_output_dir": "the sweep gives every run a folder of its own; use --output",
    "output_dir": "the sweep gives every run a folder of its own; use --output",
    "overwrite_output_dir": "the sweep decides whether a run starts afresh or goes on",
    "resume_from_checkpoint": "the sweep decides whether a run starts afresh or goes on",
    "seed": "list seeds under `seeds`",
}


class _Loader(yaml.SafeLoader):
    """YAML of today: ``no`` is a word, ``1e-3`` a number, and a name given twice a mistake.

    PyYAML reads the old YAML 1.1, and of two equal names keeps the last.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """As the base class, but refusing a name that stands twice."""
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for (key, _), name in zip(node.value, names, strict=True):
            if names.count(name) > 1:
                line = key.start_mark.line + 1
                raise UserError(f"{name!r} stands twice in one part (line {line}); join the two.")
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag != f"{_TAG}bool"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile("(true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    f"{_TAG}float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_spec(text: str, *, source: str, known_flags: Sequence[str], given: Flags) -> Spec:
    """The sweep that ``text`` describes.

    Args:
        source: the file, for messages and as the name of a sweep that gives none.
        known_flags: every flag of run_glue.py, without dashes.
        given: flags of the command line, which win over ``base``.

    Raises:
        UserError: at the first mistake, naming the place.
    """
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return _Reader(source, known_flags).spec(content, given)


class _Reader:
    def __init__(self, source: str, known_flags: Sequence[str]) -> None:
        self.source = source
        self.known = list(known_flags)

    def spec(self, content: Any, given: Flags) -> Spec:
        parts = self._mapping(content, "the file")
        for name in parts:
            if name not in _PARTS:
                raise self._error(
                    f"there is no part {name!r}{_nearest(name, _PARTS)}; the parts are "
                    f"{', '.join(_PARTS)}"
                )
        for name in ("tasks", "methods"):
            if not parts.get(name):
                raise self._error(f"`{name}` is missing or empty; a sweep needs at least one")
        tasks = self._named(parts["tasks"], "tasks", in_task=True)
        methods = self._named(parts["methods"], "methods")
        budgets = {
            budget: self._named(of_method, f"budgets.{budget}", methods=methods)
            for budget, of_method in self._names(parts.get("budgets") or {}, "budgets").items()
        }
        grid = self._grid(parts.get("grid") or {})
        seeds = self._seeds(parts.get("seeds", [42]))
        axes: dict[str, Sequence[Any]] = {
            "task": list(tasks),
            "method": list(methods),
            "budget": [None, *budgets],
            "seed": seeds,
            **grid,
        }
        overrides = [
            self._override(one, f"overrides[{index}]", axes)
            for index, one in enumerate(self._list(parts.get("overrides") or [], "overrides"))
        ]
        exclude = [
            self._pattern(self._mapping(one, f"exclude[{index}]"), f"exclude[{index}]", axes)
            for index, one in enumerate(self._list(parts.get("exclude") or [], "exclude"))
        ]
        name = parts.get("name", Path(self.source).stem)
        if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
            raise self._error(f"`name` is {name!r}; give a word that can name a folder")
        base = self._flags(parts.get("base") or {}, "base")
        return Spec(
            name=name,
            base={**base, **self._flags(given, "the command line")},
            tasks=tasks,
            methods=methods,
            budgets=budgets,
            seeds=seeds,
            grid=grid,
            overrides=overrides,
            exclude=exclude,
        )

    # ---- parts ----

    def _named(
        self, value: Any, place: str, *, in_task: bool = False, methods: Flags | None = None
    ) -> dict[str, Flags]:
        """Name -> flags; a list of names has none. Those of ``methods`` alone are allowed."""
        if isinstance(value, list):
            value = dict.fromkeys(self._unique(value, place))
        named = self._names(value, place)
        for name in named:
            if methods is not None and name not in methods:
                hint = _nearest(name, list(methods))
                raise self._error(f"{place} names {name!r}, which is no method{hint}")
        return {
            name: self._flags(flags or {}, f"{place}.{name}", in_task=in_task)
            for name, flags in named.items()
        }

    def _flags(self, value: Any, place: str, *, in_task: bool = False) -> Flags:
        flags = self._names(value, place)
        for name in flags:
            self._check_flag(name, place, in_task=in_task)
        return flags

    def _check_flag(self, name: str, place: str, *, in_task: bool = False) -> None:
        if name in _OURS:
            raise self._error(f"{place} gives {name}, and {_OURS[name]}")
        if name == "task_name" and not in_task:
            raise self._error(f"{place} gives task_name; name tasks under `tasks`")
        if name not in self.known:
            hint = _nearest(name, self.known)
            raise self._error(f"{place} gives {name!r}, which is no flag of run_glue.py{hint}")

    def _grid(self, value: Any) -> dict[str, Sequence[Any]]:
        grid = self._names(value, "grid")
        for name, values in grid.items():
            self._check_flag(name, "grid")
            if not isinstance(values, list) or not values:
                raise self._error(f"grid.{name} is {values!r}; give a list of values")
            self._unique(values, f"grid.{name}")
        return grid

    def _seeds(self, value: Any) -> list[int]:
        seeds = self._list(value, "seeds")
        for seed in seeds:
            if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
                raise self._error(f"seeds holds {seed!r}; give whole numbers from 0 to 2**32 - 1")
        if not seeds:
            raise self._error("`seeds` is empty; a sweep needs at least one")
        return self._unique(seeds, "seeds")

    def _override(
        self, value: Any, place: str, axes: Mapping[str, Sequence[Any]]
    ) -> tuple[Flags, Flags]:
        parts = self._mapping(value, place)
        if "flags" not in parts:
            raise self._error(f"{place} has no `flags`; say which flags its cells have instead")
        pattern = {name: one for name, one in parts.items() if name != "flags"}
        return self._pattern(pattern, place, axes), self._flags(parts["flags"], f"{place}.flags")

    def _pattern(self, pattern: Flags, place: str, axes: Mapping[str, Sequence[Any]]) -> Flags:
        """What selects cells; a value that no cell has would select nothing, silently."""
        named = {"task", "method", "budget"} & set(pattern)
        pattern = {**pattern, **{name: _as_names(pattern[name]) for name in named}}
        for name, value in pattern.items():
            if name not in axes:
                raise self._error(
                    f"{place} selects by {name!r}; cells have {', '.join([*AXES, *list(axes)[4:]])}"
                )
            for one in value if isinstance(value, list) else [value]:
                if one not in axes[name]:
                    hint = _nearest(str(one), [str(value) for value in axes[name]])
                    raise self._error(f"{place} selects {name} {one!r}, and there is none{hint}")
        return pattern

    # ---- kinds ----

    def _names(self, value: Any, place: str) -> dict[str, Any]:
        """A mapping by text; a budget such as 0.3 is a number to YAML and a name here."""
        named: dict[str, Any] = {}
        for key, one in self._mapping(value, place).items():
            if isinstance(key, bool) or not isinstance(key, str | int | float) or key == "":
                raise self._error(f"{place} has the name {key!r}; write it in quotation marks")
            named[str(key)] = one
        return named

    def _mapping(self, value: Any, place: str) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise self._error(f"{place} is {_kind(value)}; expected names with values")
        return value

    def _list(self, value: Any, place: str) -> list[Any]:
        if not isinstance(value, list):
            raise self._error(f"{place} is {_kind(value)}; expected a list, such as [1, 2, 3]")
        return value

    def _unique(self, values: list[Any], place: str) -> list[Any]:
        for index, value in enumerate(values):
            if value in values[:index]:
                raise self._error(f"{place} holds {value!r} twice")
        return values

    def _error(self, sentence: str) -> UserError:
        return UserError(f"{self.source}: {sentence}.")


def _as_names(value: Any) -> Any:
    """Names as ``_names`` has them; None selects the cells without a budget."""
    if isinstance(value, list):
        return [_as_names(one) for one in value]
    return value if value is None else str(value)


def _nearest(name: object, choices: Sequence[str]) -> str:
    found = difflib.get_close_matches(str(name), choices, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def _kind(value: Any) -> str:
    kinds: dict[Callable[..., Any], str] = {dict: "a mapping", list: "a list", type(None): "empty"}
    return kinds.get(type(value), repr(value))


def read_sweep_file(path: Path, given: Sequence[str]) -> tuple[str, Spec]:
    """The text of a sweep's file, and the sweep that it describes with the flags ``given``."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The sweep's file {path} cannot be read: {error}") from error
    flags = [flag for action in build_parser()._actions for flag in action.option_strings]
    # Each flag is there once more with dashes inside; a file writes it in one way.
    known = [flag[2:] for flag in flags if flag.startswith("--") and "-" not in flag[2:]]
    spec = read_spec(text, source=str(path), known_flags=known, given=_flags(given))
    return text, spec


def _flags(given: Sequence[str]) -> dict[str, Any]:
    """``--name value ...`` as a file would have it; a flag without a value is true."""
    flags: dict[str, Any] = {}
    name = None
    for word in given:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            flags[name] = [value] if equals else []
        elif name is None:
            raise UserError(f"The word {word!r} behind -- belongs to no flag.")
        else:
            flags[name].append(word)
    return {
        name: values[0] if len(values) == 1 else values or True for name, values in flags.items()
    }


def check_cells(cells: Sequence[Cell], *, source: str) -> None:
    """Parse the flags of every cell as its run will; cells that differ by their seed alone once.

    No cell at all, two with one id, and flags that a run would refuse are refused.
    """
    if not cells:
        raise UserError(f"{source}: every run is excluded, so there is nothing to do.")
    ids: set[str] = set()
    groups: set[str] = set()
    for cell in cells:
        # Folders of some systems do not distinguish capitals from small letters.
        if cell.id.lower() in ids:
            raise UserError(f"{source}: two runs would have the folder {cell.id}; rename one.")
        ids.add(cell.id.lower())
        if cell.group in groups:
            continue
        groups.add(cell.group)
        try:
            parse_arguments(words(cell.flags), program="adalora sweep")
        except UserError as error:
            raise UserError(f"{source}: the run {cell.id} is refused. {error}") from error
