"""Every preset against the paper's tables and the released scripts, and how --preset merges."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from adalora.cli import main
from adalora.errors import UserError
from adalora.presets import find_preset, methods, preset_names, tasks
from adalora.training.arguments.parser import RunArguments, parse_arguments

# Table 8 of the paper: learning rate, epochs, gamma, t_i, delta T, t_f. Batch 32, beta 0.85.
TABLE_8 = {
    "mnli": (5e-4, 7, 0.1, 8000, 100, 50000),
    "rte": (1.2e-3, 50, 0.3, 600, 1, 1800),
    "qnli": (1.2e-3, 5, 0.1, 2000, 100, 8000),
    "mrpc": (1e-3, 30, 0.1, 600, 1, 1800),
    "qqp": (5e-4, 5, 0.1, 8000, 100, 25000),
    "sst2": (8e-4, 24, 0.1, 6000, 100, 22000),
    "cola": (5e-4, 25, 0.5, 800, 10, 3500),
    "stsb": (2.2e-3, 25, 0.1, 800, 10, 2000),
}
ALL_MATRICES = "query,key,value,intermediate,layer.output,attention.output"
# Table 7, and what each method is.
METHODS: dict[str, dict[str, Any]] = {
    **{
        f"adalora-{budget}": {
            "apply_lora": True,
            "apply_adalora": True,
            "lora_type": "svd",
            "lora_r": first,
            "target_rank": last,
            "lora_module": ALL_MATRICES,
            "beta1": 0.85,
            "beta2": 0.85,
        }
        for budget, first, last in (("0.3M", 4, 2), ("0.6M", 6, 4), ("1.2M", 12, 8))
    },
    **{
        f"lora-{budget}": {
            "apply_lora": True,
            "lora_type": "frd",
            "lora_r": rank,
            "lora_module": ALL_MATRICES,
        }
        for budget, rank in (("0.3M", 2), ("1.3M", 8))
    },
    **{
        f"{kind}-{budget}": {
            "apply_adapter": True,
            "adapter_type": kind,
            "adapter_size": size,
            "learning_rate": 3e-4,
        }
        for kind, sizes in (("houlsby", (8, 16, 32)), ("pfeiffer", (16, 32, 64)))
        for budget, size in zip(("0.3M", "0.6M", "1.2M"), sizes, strict=True)
    },
    "bitfit": {"apply_bitfit": True, "learning_rate": 1e-3},
    "full": {"learning_rate": 3e-5},
}
# Of the scripts, what says where to write and when to look, and not how to train.
APART = {
    *("eval_steps", "evaluation_strategy", "logging_steps", "overwrite_output_dir", "report_to"),
    *("root_output_dir", "save_steps", "save_strategy", "seed", "tb_writter_loginterval"),
}


def script_flags(project_root: Path, task: str) -> dict[str, Any]:
    """The flags of ``scripts/run_debertav3_<task>.sh``."""
    text = (project_root / "scripts" / f"run_debertav3_{task}.sh").read_text()
    start, end = text.index('run_glue.py"') + 12, text.index('"$@"')
    words = shlex.split(text[start:end].replace("\\\n", " "))
    flags: dict[str, Any] = {}
    for word in words:
        if word.startswith("--"):
            name = word.removeprefix("--")
            flags[name] = True
        else:
            flags[name] = yaml.safe_load(word) if not re.match(r"\d.*e-", word) else float(word)
    return flags


def values(name: str) -> dict[str, Any]:
    return {flag: setting.value for flag, setting in find_preset(name).settings.items()}


def test_there_is_one_for_each_task_method_and_budget() -> None:
    assert set(tasks()) == set(TABLE_8)
    assert set(methods()) == {*METHODS, "adalora-script"}
    assert len(preset_names()) == 8 * 14


@pytest.mark.parametrize("task", TABLE_8)
def test_a_preset_has_the_papers_values_and_the_scripts_where_the_paper_is_silent(
    task: str, project_root: Path
) -> None:
    rate, epochs, gamma, start, interval, final = TABLE_8[task]
    script = script_flags(project_root, task)
    unpublished = ("max_seq_length", "warmup_steps", "warmup_ratio", "cls_dropout", "weight_decay")
    for method, of_method in METHODS.items():
        expected = {
            "model_name_or_path": "microsoft/deberta-v3-base",
            "task_name": task,
            "do_train": True,
            "do_eval": True,
            "eval_strategy": "epoch",
            "per_device_train_batch_size": 32,
            "num_train_epochs": epochs,
            **{flag: script[flag] for flag in unpublished if flag in script},
            **of_method,
        }
        if "lora_r" in of_method:
            expected |= {"learning_rate": rate, "lora_alpha": script["lora_alpha"]}
        if "target_rank" in of_method:
            expected |= {
                "reg_orth_coef": gamma,
                "init_warmup": start,
                "mask_interval": interval,
                "final_warmup": final,
            }
        assert values(f"{task}/{method}") == expected


@pytest.mark.parametrize("task", TABLE_8)
def test_the_scripts_preset_is_the_script(task: str, project_root: Path) -> None:
    script = {
        flag: value for flag, value in script_flags(project_root, task).items() if flag not in APART
    }
    assert values(f"{task}/adalora-script") == {**script, "eval_strategy": "epoch"}


@pytest.mark.parametrize("name", preset_names())
def test_every_value_has_a_source_and_the_flags_are_understood(name: str) -> None:
    preset = find_preset(name)
    for setting in preset.settings.values():
        assert setting.source.startswith(("paper", "script", "ours", "the task", "the method"))
    parsed = parse_arguments(["--preset", name])
    for flag, value in values(name).items():
        if flag != "eval_strategy":
            assert value_of(parsed, flag) == value


def value_of(parsed: RunArguments, flag: str) -> Any:
    return next(getattr(one, flag) for one in parsed if hasattr(one, flag))


# ---- merging ----


def test_flags_beside_a_preset_win_wherever_they_stand() -> None:
    for words in (
        ["--preset", "rte/adalora-0.3M", "--lora_r", "7", "--learning_rate=1e-5"],
        ["--lora_r", "7", "--learning_rate=1e-5", "--preset=rte/adalora-0.3M"],
    ):
        parsed = parse_arguments(words)
        assert (parsed.method.lora_r, parsed.training.learning_rate) == (7, 1e-5)
        assert parsed.method.target_rank == 2
        assert parsed.model.preset == "rte/adalora-0.3M"


@pytest.mark.parametrize(
    ("preset", "flags", "warmup"),
    [
        ("rte/lora-0.3M", ["--warmup_ratio", "0.25"], 0.25),
        ("mrpc/lora-0.3M", ["--warmup_steps", "0"], 0),
        ("mrpc/lora-0.3M", [], 0.1),
        ("rte/lora-0.3M", [], 200),
    ],
)
def test_the_users_warmup_counts_in_whichever_form_it_is_given(
    preset: str, flags: list[str], warmup: float
) -> None:
    assert parse_arguments(["--preset", preset, *flags]).training.warmup_steps == warmup


def test_the_users_own_data_are_not_taken_for_the_task_of_the_preset() -> None:
    words = ["--preset", "rte/lora-0.3M", "--train_file", "a.csv", "--validation_file", "b.csv"]
    assert parse_arguments(words).data.task_name is None
    assert parse_arguments([*words, "--task_name", "rte"]).data.task_name == "rte"


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_a_preset_in_a_file_of_flags_merges_like_one_on_the_command_line(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"run.{ending}"
    path.write_text(json.dumps({"preset": "cola/adalora-0.3M", "lora_r": 5}))
    parsed = parse_arguments([str(path)])
    assert (parsed.method.lora_r, parsed.method.target_rank) == (5, 2)
    assert parsed.data.task_name == "cola"


def test_an_unknown_preset_lists_near_names() -> None:
    with pytest.raises(UserError, match=r"no preset 'mnli/adalora-03M'; did you mean mnli/adalor"):
        parse_arguments(["--preset", "mnli/adalora-03M"])
    with pytest.raises(UserError, match="adalora presets"):
        find_preset("x")


def test_a_preset_without_a_name_is_refused() -> None:
    with pytest.raises(UserError, match="--preset: expected one argument"):
        parse_arguments(["--preset"])


# ---- the commands ----


def test_presets_lists_all_and_shows_one_with_its_sources(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["presets"]) == 0
    listed = capsys.readouterr().out
    assert all(method in listed for method in methods())
    assert main(["presets", "mnli/adalora-0.3M"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--final_warmup 50000 paper, table 8" in shown
    assert "MNLI-m 90.66, MNLI-mm 90.70" in shown
    assert main(["presets", "mnli/adalora-9M"]) == 2
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mrpc/adalora-1.2M", "stsb/full", "cola/adalora-script"])
def test_a_preset_as_a_file_is_the_preset(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["presets", name, "--format", "yaml"]) == 0
    path = tmp_path / "run.yaml"
    path.write_text(capsys.readouterr().out)
    assert main(["presets", name, "--yaml"]) == 0  # its earlier name
    assert capsys.readouterr().out == path.read_text()
    assert yaml.safe_load(path.read_text()) == values(name)
    assert parse_arguments([str(path)]).method == parse_arguments(["--preset", name]).method


def test_a_plan_takes_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model_name_or_path", "nano", "--task_name", "mini-rte", "--init_warmup", "10"]
    more = ["--final_warmup", "20", "--mask_interval", "2"]
    assert main(["plan", "--preset", "rte/adalora-0.3M", *flags, *more]) == 0
    assert "all 144 triplets until step 10" in " ".join(capsys.readouterr().out.split())


def test_every_file_of_presets_is_packaged(project_root: Path) -> None:
    """The patterns of setup.py, relative to src/adalora, reach each of them."""
    assert '"**/*.yaml"' in (project_root / "setup.py").read_text()
    home = project_root / "src" / "adalora"
    assert len(list(home.glob("presets/**/*.yaml"))) == 1 + 8 + 14 + 1
