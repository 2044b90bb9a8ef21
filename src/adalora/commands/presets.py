"""``adalora presets [NAME]``: the settings of the paper's table 1, and where each value is from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adalora.commands.flags import CommandParser, add_format_flag
from adalora.shell import program

if TYPE_CHECKING:
    from adalora.presets import Preset

EXAMPLES = """  adalora presets
  adalora presets mnli/adalora-0.3M
  adalora presets mnli/adalora-0.3M --format yaml > run.yaml
  run_glue.py --preset mnli/adalora-0.3M --data_dir GLUE --root_output_dir output/mnli"""


def main(flags: Sequence[str]) -> int:
    """List the presets, or show one."""
    parser = CommandParser(
        "presets",
        "List the presets of --preset, one for each task, method and budget of the paper's table 1,"
        "\nor show one: its flags, each with its source.",
        EXAMPLES,
    )
    parser.add_argument("name", nargs="?", metavar="TASK/METHOD", help="the one to show")
    add_format_flag(parser, "yaml")
    arguments = parser.parse_args(flags)

    from adalora.presets import find_preset

    if arguments.name is None:
        _list()
        return 0
    preset = find_preset(arguments.name)
    if arguments.format == "yaml":
        _print_yaml(preset)
    else:
        _show(preset)
    return 0


def _list() -> None:
    from adalora.presets import find_preset, methods, tasks

    print(f"TASK/METHOD, for TASK in {', '.join(tasks())} and METHOD in\n")
    first = [find_preset(f"{tasks()[0]}/{method}") for method in methods()]
    width = max(map(len, methods()))
    for method, preset in zip(methods(), first, strict=True):
        row = "" if preset.paper_row is None else f" ({preset.paper_row[1]} in table 1)"
        print(f"  {method:<{width}}  {preset.title}{row}")
    show = f"{program('adalora')} presets mnli/adalora-0.3M"
    print(f"\n'{show}' shows one; run_glue.py --preset takes one.")


def _show(preset: Preset) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(f"{preset.name}: {preset.title}", style="bold"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("flag", no_wrap=True)
    for heading in ("value", "source"):
        table.add_column(heading, overflow="fold")
    for flag, setting in preset.settings.items():
        table.add_row(Text(f"--{flag}"), Text(_word(setting.value)), Text(setting.source))
    console.print(table)
    console.print(Text(_reported(preset)))


def _reported(preset: Preset) -> str:
    """What the paper has for it."""
    from adalora.results.columns import columns_of
    from adalora.tables.grids import paper_table

    if preset.paper_row is None:
        return "Table 1 of the paper has no such row."
    figures = paper_table("table1").rows[preset.paper_row]
    titles = [column.title for column in columns_of(preset.task, {})]
    scores = ", ".join(f"{title} {figures[title]:.2f}" for title in titles)
    return f"The paper's table 1 has {scores} (mean of 5 seeds)."


def _print_yaml(preset: Preset) -> None:
    print(f"# {preset.name}: {preset.title}\n# {_reported(preset)}")
    source = None
    for flag, setting in preset.settings.items():
        if setting.source != source:
            source = setting.source
            print(f"\n# {source}")
        print(f"{flag}: {_word(setting.value)}")


def _word(value: Any) -> str:
    """A value as YAML and the command line have it."""
    if isinstance(value, bool):
        return str(value).lower()
    # 5e-05 would be a text to YAML, which wants a point in a number.
    return f"{value:.10f}".rstrip("0") if isinstance(value, float) else str(value)
