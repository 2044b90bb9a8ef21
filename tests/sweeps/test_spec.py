"""A sweep's file means what it says, and every mistake in it is one sentence."""

from __future__ import annotations

import pytest

from adalora.errors import UserError
from adalora.sweeps.cells import Spec, cells_of, words
from adalora.sweeps.spec import read_spec

KNOWN = (
    *("model_name_or_path", "task_name", "learning_rate", "lora_r", "target_rank", "apply_lora"),
    *("save_strategy", "train_file", "validation_file", "report_to", "lr_scheduler_kwargs"),
    *("num_train_epochs", "do_train", "do_eval", "disable_tqdm", "seed", "root_output_dir"),
)
SMALL = """
tasks: [cola, rte]
methods:
  lora: {apply_lora: true}
  full: {}
"""


def spec(text: str, **given: object) -> Spec:
    return read_spec(text, source="folder/mine.yaml", known_flags=KNOWN, given=given)


def flags_of(text: str, **axes: object) -> dict[str, object]:
    (cell,) = [cell for cell in cells_of(spec(text)) if axes.items() <= dict(cell.axes).items()]
    return dict(cell.flags)


def test_cells_are_all_combinations_with_seeds_outermost() -> None:
    cells = cells_of(spec(SMALL + "seeds: [3, 1]"))
    assert [cell.id for cell in cells] == [
        f"{task}_{method}_seed{seed}"
        for seed in (3, 1)
        for task in ("cola", "rte")
        for method in ("lora", "full")
    ]
    assert cells[0].axes == {"task": "cola", "method": "lora", "budget": None, "seed": 3}
    assert cells[0].flags["task_name"] == "cola"
    assert cells[0].flags["seed"] == 3
    assert spec(SMALL).name == "mine"


def test_a_budget_is_what_methods_are_given_and_others_are_run_without() -> None:
    text = SMALL + "budgets: {0.3: {lora: {lora_r: 2}}, big: {lora: {lora_r: 8}}}"
    found = [
        (c.axes["method"], c.axes["budget"], c.flags.get("lora_r")) for c in cells_of(spec(text))
    ]
    assert found[:3] == [("lora", "0.3", 2), ("lora", "big", 8), ("full", None, None)]


def test_later_parts_win_and_null_takes_a_flag_away() -> None:
    text = """
base: {learning_rate: 1, num_train_epochs: 1, save_strategy: epoch, report_to: null}
tasks: {cola: {num_train_epochs: 2, learning_rate: 2}}
methods: {lora: {learning_rate: 3, lora_r: 1}}
budgets: {small: {lora: {lora_r: 2}}}
overrides: [{task: cola, method: [lora], flags: {lora_r: 3, target_rank: 1}}]
grid: {target_rank: [5]}
"""
    flags = flags_of(text)
    assert flags["num_train_epochs"] == 2
    assert flags["learning_rate"] == 3
    assert flags["lora_r"] == 3
    assert flags["target_rank"] == 5
    assert flags["save_strategy"] == "epoch"
    assert "report_to" not in flags
    assert flags["do_train"] is True


def test_flags_of_the_command_line_win_over_the_base() -> None:
    assert spec("base: {lora_r: 1}\n" + SMALL, lora_r="7").base == {"lora_r": "7"}


def test_overrides_and_exclude_select_by_every_axis() -> None:
    text = (
        SMALL
        + """
seeds: [1, 2]
grid: {learning_rate: [1e-3, 5e-4]}
exclude: [{task: cola, seed: [2]}, {method: full, learning_rate: 5e-4}]
"""
    )
    cells = cells_of(spec(text))
    assert len(cells) == 16 - 4 - 3
    assert not [c for c in cells if c.axes["task"] == "cola" and c.axes["seed"] == 2]
    assert not [c for c in cells if c.axes["method"] == "full" and c.axes["learning_rate"] < 1e-3]
    assert cells[0].id == "cola_lora_learning_rate=0.001_seed1"


def test_own_data_is_a_task_without_a_task_name() -> None:
    text = "tasks: {mine: {train_file: a.csv, validation_file: b.csv}}\nmethods: [full]"
    assert "task_name" not in flags_of(text)
    assert flags_of(text)["train_file"] == "a.csv"


def test_words_of_todays_yaml_are_words_and_exponents_are_numbers() -> None:
    text = "base: {save_strategy: no, learning_rate: 2e-3, apply_lora: false}\n" + SMALL
    assert spec(text).base == {"save_strategy": "no", "learning_rate": 0.002, "apply_lora": False}


def test_words_are_a_command_line() -> None:
    flags = {"apply_lora": True, "report_to": ["a", "b"], "lr_scheduler_kwargs": {"x": 1}}
    assert words(flags) == [
        *("--apply_lora", "True", "--report_to", "a", "b"),
        *("--lr_scheduler_kwargs", '{"x": 1}'),
    ]


def test_ids_name_folders_whatever_the_names_are() -> None:
    long = "x" * 300
    text = (
        f"tasks: {{'../etc': {{task_name: rte}}, {long}a: {{}}, {long}b: {{}}}}\nmethods: ['a/b']"
    )
    ids = [cell.id for cell in cells_of(spec(text))]
    assert len(set(ids)) == 3
    assert all("/" not in one and not one.startswith(".") and len(one) < 140 for one in ids)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "the file is a list"),
        ("tasks: [cola]", "`methods` is missing"),
        (SMALL + "sedes: [1]", "no part 'sedes' (did you mean seeds?)"),
        (SMALL + "tasks: [mrpc]", "'tasks' stands twice"),
        ("tasks: [cola, cola]\nmethods: [full]", "tasks holds 'cola' twice"),
        (SMALL + "base: {learning_rat: 1}", "base gives 'learning_rat'"),
        (SMALL + "base: {learning_rat: 1}", "did you mean learning_rate?"),
        ("tasks: [cola]\nmethods: {lora: {lora_rank: 2}}", "methods.lora gives 'lora_rank'"),
        (SMALL + "base: {seed: 1}", "list seeds under `seeds`"),
        (SMALL + "base: {root_output_dir: x}", "use --output"),
        (SMALL + "base: {task_name: rte}", "name tasks under `tasks`"),
        (SMALL + "seeds: 3", "seeds is 3; expected a list"),
        (SMALL + "seeds: []", "`seeds` is empty"),
        (SMALL + "seeds: [1.5]", "seeds holds 1.5"),
        (SMALL + "seeds: [-1]", "seeds holds -1"),
        (
            SMALL + "budgets: {small: {lorra: {}}}",
            "'lorra', which is no method (did you mean lora?)",
        ),
        (SMALL + "grid: {learning_rate: 1}", "grid.learning_rate is 1; give a list"),
        (SMALL + "grid: {learning_rate: []}", "give a list"),
        (SMALL + "exclude: [{taks: cola}]", "selects by 'taks'"),
        (
            SMALL + "exclude: [{task: cola2}]",
            "task 'cola2', and there is none (did you mean cola?)",
        ),
        (SMALL + "overrides: [{task: cola}]", "overrides[0] has no `flags`"),
        (SMALL + "overrides: [{flags: {x: 1}}]", "overrides[0].flags gives 'x'"),
        (SMALL + "name: a/b", "`name` is 'a/b'"),
        ("tasks: {true: {}}\nmethods: [full]", "write it in quotation marks"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_its_place(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        spec(text)
    assert says in str(caught.value)
    assert str(caught.value).startswith("folder/mine.yaml")
    assert "\n" not in str(caught.value)
