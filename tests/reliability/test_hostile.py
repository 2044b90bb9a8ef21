"""What somebody may put into files and flags to do harm: code, paths, markup, absurd numbers."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import save_file
from tests.program import run_program
from transformers import BertConfig, BertForSequenceClassification

import adalora
from adalora.builtin import nano_path
from adalora.cli import main
from adalora.data.table_reader import open_table
from adalora.errors import UserError
from adalora.glue.load import DataSource, load_data
from adalora.glue.predictions import write_predictions
from adalora.glue.tasks import resolve_task
from adalora.pretrained.loading import load_classifier, load_config, load_tokenizer
from adalora.storage.files import read_json
from adalora.storage.snapshots import newest_sound, snapshots
from adalora.terminal.summaries import RunSummary, Score, run_summary
from adalora.training.arguments.parser import parse_arguments
from adalora.validation import check_inside

# --- code that comes with a model -----------------------------------------------------------------

CODE = """
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
Path({marker!r}).write_text("executed")
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
class OwnTokenizer(BertTokenizer):
    pass
"""


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that the foreign code makes when it is run."""
    return tmp_path / "executed"


@pytest.fixture
def foreign(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder whose configuration, model and tokenizer are to be had from its own code."""
    # The library copies the code of a model there, and would find it again.
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "mods")
    )
    # Were somebody asked, this would be the answer.
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n" * 10))
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    config = {"model_type": "own", "auto_map": names, "hidden_size": 8, "num_attention_heads": 2}
    config |= {"num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\n")
    tokenizer = {"tokenizer_class": "OwnTokenizer"}
    tokenizer |= {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.parametrize(
    "ask",
    [
        lambda folder: load_config(str(folder), num_labels=2),
        lambda folder: load_classifier(str(folder), num_labels=2),
        lambda folder: load_tokenizer(str(folder)),
        lambda folder: load_tokenizer("nano", tokenizer_name=str(folder)),
    ],
)
def test_code_that_comes_with_a_model_is_not_run_and_nobody_is_asked(
    foreign: Path, marker: Path, capsys: pytest.CaptureFixture[str], ask: Callable[[Path], Any]
) -> None:
    with pytest.raises(UserError, match="brings code of its own, which is refused"):
        ask(foreign)
    assert not marker.exists()
    assert "Do you wish" not in capsys.readouterr().out


def test_it_is_run_when_that_is_asked_for(foreign: Path, marker: Path) -> None:
    """So that the test above can fail."""
    load_config(str(foreign), num_labels=2, trust_remote_code=True)
    assert marker.read_text() == "executed"


@pytest.mark.parametrize("tokenizer", ["nano", "its own"])
def test_a_run_on_a_base_with_code_says_what_it_needs_before_any_is_run(
    foreign: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: str
) -> None:
    config = json.loads((foreign / "config.json").read_text()) | {"vocab_size": 681}
    (foreign / "config.json").write_text(json.dumps(config))
    sizes = {k: v for k, v in config.items() if k not in ("auto_map", "model_type")}
    weights = BertForSequenceClassification(BertConfig(**sizes)).state_dict()
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        foreign / "model.safetensors",
        metadata={"format": "pt"},
    )
    file, root = tmp_path / "train.csv", tmp_path / "run"
    file.write_text("text,label\na b,no\nb c,yes\n")
    run_program(
        *("--model_name_or_path", foreign, "--trust_remote_code", "--train_file", file),
        *(("--tokenizer_name", "nano") if tokenizer == "nano" else ()),
        *("--do_train", "--max_steps", "1", "--apply_lora", "--lora_r", "1", "--report_to", "none"),
        *("--lora_module", r"re:.*\.query", "--max_seq_length", "16", "--disable_tqdm", "True"),
        *("--save_strategy", "no", "--root_output_dir", root),
    )
    assert json.loads((root / "model" / "adalora.json").read_text())["remote_code"] is True
    marker.unlink()
    for command in (["predict", str(root), str(file)], ["export", str(root), "--to", "merged"]):
        more = ["--output", str(tmp_path / "out")] if command[0] == "export" else []
        assert main([*command, *more]) == 2
        said = capsys.readouterr().err
        assert f"was trained on {foreign}, which comes with code of its own" in said
        assert "trust_remote_code=True in adalora.load, or --trust_remote_code" in said
    with pytest.raises(UserError, match="code of its own"):
        adalora.load(root)
    assert not marker.exists()
    assert main(["predict", str(root), str(file), "--trust_remote_code"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    classifier = adalora.load(root, trust_remote_code=True)
    classifier.add(root, "again")
    with classifier.using("again"):
        assert classifier("a b").label in ("no", "yes")


def test_an_artefact_cannot_bring_code_in_its_tokenizer(
    fuzz_readers: Any, foreign: Path, marker: Path, tmp_path: Path
) -> None:
    from adalora.artefact.reader import load_artefact

    folder = tmp_path / "artefact"
    fuzz_readers._artefact(folder)
    description = json.loads((folder / "adalora.json").read_text())
    shutil.copy(foreign / "own.py", folder / "own.py")
    shutil.copy(foreign / "tokenizer_config.json", folder / "tokenizer_config.json")
    content = (folder / "tokenizer_config.json").read_bytes()
    description["files"]["tokenizer_config.json"] = len(content)
    description["checksums"]["tokenizer_config.json"] = hashlib.sha256(content).hexdigest()
    (folder / "adalora.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="brings code of its own, which is refused"):
        load_artefact(folder)
    assert not marker.exists()


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../rte", "rte/../../x", "mini-../rte", "/etc/passwd", "rte\0", ""]
)
def test_no_task_has_a_path_for_a_name(name: str) -> None:
    with pytest.raises(UserError, match="There is no task"):
        resolve_task(name)


def test_what_only_looks_like_a_checkpoint_is_none(tmp_path: Path) -> None:
    for name in ("checkpoint-1/../../x", "checkpoint-", "checkpoint-1x", "checkpoint--1", "x-3"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-9").write_text("a file")
    assert [path.name for path in snapshots(tmp_path)] == ["checkpoint-1", "checkpoint-7"]


ODD = ["../../x", "/etc/passwd", "[red]x[/nope]", "<b>x</b>", "a\tb", "a\nb", "", "\u202e\x1b[2J"]


@pytest.mark.parametrize("label", ODD)
def test_predictions_have_a_line_each_whatever_a_label_holds(tmp_path: Path, label: str) -> None:
    path = tmp_path / "test_results.txt"
    write_predictions(path, [1, 0, 1], ("plain", label))
    lines = path.read_text(encoding="utf-8").split("\n")
    assert len(lines) == 5
    assert all(line.count("\t") == 1 for line in lines[:4])
    assert sorted(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ODD)
def test_the_summary_shows_names_and_takes_none_for_markup(name: str) -> None:
    summary = RunSummary(
        title=f"AdaLoRA on {name}, {name}",
        scores=[Score(name, "accuracy", 0.5, None)],
        rank_pattern={f"encoder.layer.0.{name or 'q'}.lora_E": 1},
        init_rank=2,
        warnings=[name],
        results=Path("output"),
        next_commands=[(name, f"echo {name}")],
    )
    out = io.StringIO()
    Console(file=out, width=100).print(run_summary(summary))
    if name.isprintable() and name:
        assert out.getvalue().count(name) >= 3


@given(st.text(max_size=60))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_an_error_is_one_line_that_moves_no_cursor(text: str) -> None:
    told = str(UserError(f"The value {text} is none."))
    assert told.isprintable()
    if text.isprintable():
        assert told == f"The value {text} is none."


def test_an_error_about_something_long_keeps_its_end() -> None:
    told = str(UserError(f"The value {'x' * 10_000} is none; give another."))
    assert len(told) < 1300
    assert told.endswith("give another.")


# --- absurd numbers -------------------------------------------------------------------------------

SOUND = (
    "--model_name_or_path nano --task_name mini-rte --report_to none --apply_lora --lora_r 2 "
    "--lora_type svd --apply_adalora --root_output_dir output"
).split()


@pytest.mark.parametrize(
    "flags",
    [
        *(f"--learning_rate {value}" for value in ("nan", "inf", "-1")),
        *("--weight_decay nan", "--max_grad_norm nan", "--max_grad_norm -1"),
        *("--num_train_epochs inf", "--num_train_epochs nan", f"--max_steps {10**21}"),
        *("--seed -1", "--seed 5000000000", "--data_seed -3"),
        *(f"--per_device_train_batch_size {10**12}", f"--gradient_accumulation_steps {10**12}"),
        *(f"--max_seq_length {10**12}", f"--lora_r {10**9}", f"--lora_alpha {10**23}"),
        *(f"--apply_adapter --adapter_size {10**9}", f"--mask_interval {10**24}"),
        *("--init_warmup inf", "--final_warmup 1e300", "--init_warmup nan"),
        *("--beta1 nan", "--beta1 0", "--beta2 1", "--beta1 2"),
        *("--reg_orth_coef inf", "--target_total_rank -5", "--reg_loss_wgt nan"),
        *("--adam_beta1 2", "--adam_beta2 nan", "--adam_epsilon nan", "--ddp_timeout -1"),
        *("--label_smoothing_factor 7", "--label_smoothing_factor nan", "--save_steps nan"),
        *("--dataloader_num_workers 100000", "--neftune_noise_alpha nan"),
    ],
)
def test_an_absurd_number_in_a_flag_is_refused_by_name(flags: str) -> None:
    parse_arguments(SOUND)
    name = next(word for word in reversed(flags.split()) if word.startswith("--"))
    with pytest.raises(UserError, match=f"{name} "):
        parse_arguments([*SOUND, *flags.split()])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("num_hidden_layers", value) for value in (10**5, 0, -1)),
        *(("hidden_size", 10**9), ("intermediate_size", 10**12), ("vocab_size", 10**12)),
        *(("num_attention_heads", 10**6), ("max_position_embeddings", 10**12)),
        *(("position_buckets", 10**9), ("max_relative_positions", 10**11)),
        ("type_vocab_size", 10**9),
    ],
)
def test_an_absurd_size_in_a_configuration_is_refused_before_anything_is_made(
    tmp_path: Path, field: str, value: int
) -> None:
    config = json.loads((nano_path() / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(UserError, match=f"says {field} {value}, which must be"):
        load_config(str(tmp_path), num_labels=2)


# --- tables that would be misread -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", "text,label\na,b,1\nc,0\n", "line 2: 3 columns, where the header has 2"),
        ("t.tsv", "text\tlabel\na\t1\nb\t0\tx\n", "line 3: 3 columns, where the header has 2"),
        ("t.csv", "text,label,label\na,1,0\nb,0,1\n", "has two columns 'label'"),
        ("t.csv", "text,label\na,0.5\nb,nan\n", "line 3: the label is 'nan' among numbers"),
        ("t.csv", "text,label\na,0.5\nb,1e999\n", "line 3: the label is '1e999' among numbers"),
        ("t.csv", "text,label\na,0\nb\0,1\n", "line 3: a NUL character"),
        ("t.jsonl", '{"te\\u0000xt": "a", "label": 0}\n', "which is no name"),
        ("t.csv", f"text,label\na,{'9' * 400}\nb,1\n", "line 2: the label '999"),
        ("t.jsonl", '{"text": "a", "label": Infinity}\n', "line 1: the label is inf"),
        ("t.jsonl", '{"text": "a", "label": %s}\n' % ("9" * 400), "line 1: the label 999"),
        (
            "t.jsonl",
            '{"text": "a", "label": 0}\n{"text": "\\ud800", "label": 1}\n',
            "line 2: 'text' holds half",
        ),
        ("t.jsonl", '{"text": "a", "label": 0}\n' + "[" * 5000 + "\n", "line 2: not JSON"),
        ("t.jsonl", '{"text": "a", "label": %s}\n' % ("9" * 5000), "line 1: not JSON"),
    ],
)
def test_a_row_that_would_be_misread_is_refused_by_its_number(
    tmp_path: Path, name: str, content: str, says: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        load_data(DataSource(train_file=str(tmp_path / name), need=()))
    assert str(tmp_path / name) in str(caught.value)
    assert says in str(caught.value)


# --- files that are to exhaust whoever reads them -------------------------------------------------

DEEP, LONG = "[" * 5000, "9" * 5000


def read_manifest_of(folder: Path, content: str) -> None:
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "manifest.json").write_text(content)
    newest_sound(folder)


def read_object(folder: Path, content: str) -> None:
    (folder / "x.json").write_text(content)
    read_json(folder / "x.json")


def read_predicted(folder: Path, content: str) -> None:
    stream = io.BytesIO(content.encode())
    list(open_table(stream, "x", "jsonl").texts(("text",)))


def read_cola(folder: Path, content: str) -> None:
    (folder / "train.tsv").write_text(f"gj04\t{content}\t\tfine\n")
    load_data(DataSource(task_name="cola", data_dir=str(folder), need=()))


def read_name(folder: Path, content: str) -> None:
    check_inside(content)


@pytest.mark.parametrize(
    ("read", "content"),
    [
        (read_manifest_of, DEEP),
        (read_manifest_of, LONG),
        (read_manifest_of, '{"format_version": 1, "step": 1e999, "settings": {}, "files": {}}'),
        (read_manifest_of, '{"format_version": 1e999}'),
        (read_object, DEEP),
        (read_object, LONG),
        (read_predicted, DEEP),
        (read_predicted, LONG),
        (read_cola, LONG),
        (read_name, "x" * 5000),
    ],
)
def test_nesting_and_numbers_without_end_are_refused(
    tmp_path: Path, read: Callable[[Path, str], None], content: str
) -> None:
    with pytest.raises(UserError):
        read(tmp_path, content)
