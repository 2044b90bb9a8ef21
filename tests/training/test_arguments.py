"""The command line: every original flag keeps its meaning, and mistakes get one sentence."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adalora.errors import UserError
from adalora.training.arguments.parser import build_parser, parse_arguments
from adalora.training.checks import check_combination

MINIMAL = ["--model_name_or_path", "nano", "--task_name", "mini-sst2"]
SVD = ["--apply_lora", "--lora_type", "svd", "--lora_r", "4"]
ADALORA = [*SVD, "--apply_adalora"]
PRUNED_LORA = ["--apply_lora", "--lora_r", "4", "--target_rank", "2", "--prune_lora"]
REENTRANT = '{"use_reentrant": true}'

# The fields of the original's three argument classes that its nine commands or its documentation
# use (QingruZhang/AdaLoRA, NLU/examples/text-classification/run_glue.py), with a value for each.
ORIGINAL_FLAGS = {
    "config_name": "c",
    "tokenizer_name": "t",
    "cache_dir": "d",
    "use_fast_tokenizer": "True",
    "model_revision": "main",
    "use_auth_token": None,
    "apply_lora": None,
    "lora_type": "svd",
    "lora_module": "query,key",
    "lora_alpha": "16",
    "lora_r": "3",
    "lora_path": "p",
    "apply_adapter": None,
    "adapter_path": "p",
    "adapter_type": "pfeiffer",
    "adapter_size": "8",
    "apply_bitfit": None,
    "reg_loss_wgt": "0.5",
    "reg_orth_coef": "0.1",
    "masking_prob": "0.1",
    "apply_adalora": None,
    "target_rank": "1",
    "target_total_rank": "72",
    "init_warmup": "8000",
    "final_warmup": "50000",
    "mask_interval": "100",
    "beta1": "0.85",
    "beta2": "0.85",
    "tb_writter_loginterval": "500",
    "max_seq_length": "256",
    "overwrite_cache": None,
    "pad_to_max_length": "True",
    "max_train_samples": "10",
    "max_val_samples": "10",
    "max_test_samples": "10",
    "cls_dropout": "0.15",
    "root_output_dir": "r",
    "overwrite_output_dir": None,
    "evaluation_strategy": "steps",
    "eval_steps": "3000",
    "save_strategy": "steps",
    "save_steps": "30000",
    "logging_steps": "500",
    "warmup_ratio": "0.1",
    "weight_decay": "0.01",
    "use_deterministic_algorithms": None,
    "no_cuda": None,
    "seed": "6",
    "report_to": "tensorboard",
}


def test_every_flag_of_the_original_is_accepted() -> None:
    words = list(MINIMAL)
    for name, value in ORIGINAL_FLAGS.items():
        words += [f"--{name}"] + ([] if value is None else [value])
    arguments = parse_arguments(words)
    assert arguments.method.init_warmup == 8000
    assert arguments.training.eval_strategy.value == "steps"
    assert arguments.training.warmup_steps == 0.1
    assert Path(str(arguments.training.output_dir)) == Path("r/model")


@pytest.mark.parametrize("script", ["mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb"])
def test_the_flags_of_the_scripts_parse_with_the_launcher_in_front(
    script: str, project_root: Path
) -> None:
    text = (project_root / "scripts" / f"run_debertav3_{script}.sh").read_text()
    words = re.findall(r"--?[\w.,/-]+(?:\s+(?!-)[\w.,/-]+)?", text.rsplit("run_glue.py", 1)[1])
    flags = [word for pair in words for word in pair.split()]
    arguments = parse_arguments(["--local-rank=0", *flags])
    assert arguments.data.task_name == script
    assert arguments.method.apply_adalora
    assert arguments.method.target_rank == 1
    assert len(arguments.method.target_modules) == 6


def test_the_old_launchers_flag_is_accepted_in_both_spellings() -> None:
    for flag in ("--local-rank=0", "--local_rank=0"):
        assert parse_arguments([flag, *MINIMAL]).training.local_rank == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora_rr", "3"], "no flag --lora_rr; did you mean --lora_r"),
        (["--tpu_num_cores", "8"], "--tpu_num_cores is refused: TPUs"),
        (["--sharded_ddp", "simple"], "--sharded_ddp is refused.*FSDP"),
        (["--learning_rate", "fast"], "learning_rate"),
        (["--apply_adalora", "--lora_type", "frd"], "needs --apply_lora --lora_type svd"),
        (["--apply_lora"], "needs --lora_r"),
        (["--apply_lora", "--lora_r", "0"], "--lora_r is 0; it must be at least 1"),
        ([*SVD, "--lora_type", "svdd"], "'svdd'; choose frd, svd or dora"),
        (["--adapter_type", "x"], "'x'; choose houlsby or pfeiffer"),
        (["--masking_prob", "0.1"], "--masking_prob 0.1 needs --reg_loss_wgt"),
        (["--learning_rate", "nan"], "--learning_rate is nan; it must be at least 0"),
        (
            ["--lora_alpha", "2000000000"],
            "--lora_alpha is 2000000000; it must be .* at most 1000000000",
        ),
        (["--beta1", "0"], "--beta1 is 0.0; it must be above 0 and below 1"),
        ([*SVD, "--lora_dropout", "1"], "--lora_dropout is 1.0"),
        ([*SVD, "--mask_interval", "0"], "--mask_interval is 0; it must be at least 1"),
        (["--base_dtype", "int8"], "--base_dtype is 'int8'"),
        (["--cls_dropout", "1.5"], "--cls_dropout is 1.5"),
        (["--warmup_ratio", "2"], "--warmup_ratio is 2.0"),
        (["--evaluation_strategy", "often"], "'often'; choose no, steps or epoch"),
        (["--max_seq_length", "1"], "--max_seq_length is 1"),
        (["--max_train_samples", "0"], "--max_train_samples is 0"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size is 0"),
        (["--num_train_epochs", "0"], "num_train_epochs is 0"),
        (["--early_stopping_patience", "0"], "--early_stopping_patience is 0"),
        (["--early_stopping_patience", "2"], "needs --eval_strategy epoch"),
        (
            ["--early_stopping_patience", "2", "--eval_strategy", "epoch"],
            "--load_best_model_at_end",
        ),
        (
            ["--gradient_checkpointing", "--gradient_checkpointing_kwargs", REENTRANT],
            "asks for use_reentrant, which cannot go back",
        ),
        (["stray"], "'stray' on the command line"),
    ],
)
def test_a_mistake_gets_one_sentence_that_names_it(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_arguments([*MINIMAL, *words])


def test_no_data_is_an_error_that_says_what_to_give() -> None:
    with pytest.raises(UserError, match="give --task_name"):
        parse_arguments(["--model_name_or_path", "nano"])


def test_a_missing_model_is_named() -> None:
    with pytest.raises(UserError, match="model_name_or_path"):
        parse_arguments(["--task_name", "mini-sst2"])


@pytest.mark.parametrize(
    ("optimizer", "package"),
    [
        ("adamw_bnb_8bit", "bitsandbytes"),
        ("paged_adamw_8bit", "bitsandbytes"),
        ("adamw_torch_8bit", "torchao"),
        ("galore_adamw", "galore_torch"),
        ("lomo", "lomo_optim"),
        ("schedule_free_adamw", "schedulefree"),
    ],
)
def test_an_optimizer_whose_package_is_absent_is_refused_before_any_work(
    optimizer: str, package: str
) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"needs {package} to be absent, and it is installed")
    words = [*MINIMAL, "--optim", optimizer]
    if optimizer.startswith("galore"):
        words += ["--optim_target_modules", "query"]
    with pytest.raises(UserError, match=f"--optim {optimizer} needs a package that is not here"):
        parse_arguments(words)


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"])
def test_an_optimizer_that_is_here_is_taken(optimizer: str) -> None:
    assert parse_arguments([*MINIMAL, "--optim", optimizer]).training.optimizer_name == optimizer


STOP_EARLY = (
    *("--early_stopping_patience", "2", "--load_best_model_at_end"),
    *("--eval_strategy", "epoch", "--save_strategy", "epoch"),
)


@pytest.mark.parametrize(
    ("words", "regression", "message"),
    [
        (["--base_dtype", "float16"], False, "float16 is for weights that stay.*full fine-tuning"),
        (["--base_dtype", "bfloat16", "--apply_bitfit"], False, "BitFit trains its biases"),
        ([*SVD, "--base_dtype", "float16"], False, None),
        (["--apply_adapter", "--base_dtype", "bfloat16"], False, None),
        ([*ADALORA, *STOP_EARLY, "--final_warmup", "0"], False, "--final_warmup 0 leaves none"),
        ([*ADALORA, *STOP_EARLY, "--final_warmup", "0.3"], False, None),
        ([*STOP_EARLY, "--final_warmup", "0"], False, None),
        (["--label_smoothing_factor", "0.1"], True, "this task asks for a number"),
        (["--label_smoothing_factor", "0.1"], False, None),
        (["--reg_loss_wgt", "1"], True, "distributions over classes"),
        (["--label_smoothing_factor", "0.1", "--reg_loss_wgt", "1"], False, "choose one"),
    ],
)
def test_flags_that_do_not_go_together_are_refused_by_name(
    words: list[str], regression: bool, message: str | None
) -> None:
    arguments = parse_arguments([*MINIMAL, *words])
    data: Any = SimpleNamespace(is_regression=regression)
    if message is None:
        check_combination(arguments, data)
    else:
        with pytest.raises(UserError, match=message):
            check_combination(arguments, data)


@pytest.mark.parametrize("method", [ADALORA, PRUNED_LORA], ids=["adalora", "pruned lora"])
@pytest.mark.parametrize("optimizer", ["lomo", "adalomo", "galore_adamw_layerwise"])
def test_an_optimizer_that_uses_up_the_gradients_cannot_serve_an_allocator(
    optimizer: str, method: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = parse_arguments([*MINIMAL, *method])
    check_combination(arguments, SimpleNamespace(is_regression=False))  # type: ignore[arg-type]
    # Its package is not here, or it would have been parsed.
    monkeypatch.setattr(arguments.training, "optim", optimizer)
    with pytest.raises(UserError, match=f"--optim {optimizer} uses up the gradients"):
        check_combination(arguments, SimpleNamespace(is_regression=False))  # type: ignore[arg-type]


def test_fp16_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="--fp16 needs a GPU"):
        parse_arguments([*MINIMAL, "--fp16", "--no_cuda"])


def test_a_json_file_stands_for_the_flags(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"model_name_or_path": "nano", "task_name": "mini-rte", "seed": 9}))
    arguments = parse_arguments([str(file)])
    assert (arguments.data.task_name, arguments.training.seed) == ("mini-rte", 9)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.json", "{", "could not be read"),
        (
            "run.json",
            '{"model_name_or_path": "nano", "task_name": "rte", "nonsense": 1}',
            "could not be read.*nonsense",
        ),
        ("run.txt", "", "ends in .json or .yaml"),
        (None, "", "does not exist"),
    ],
)
def test_a_bad_file_of_flags_gets_one_sentence(
    tmp_path: Path, name: str | None, text: str, message: str
) -> None:
    path = tmp_path / (name or "absent.json")
    if name is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        parse_arguments([str(path)])


def test_help_groups_and_explains_every_flag() -> None:
    parser = build_parser()
    text = parser.format_help()
    for group in ("model:", "adaptation method:", "data:", "training:"):
        assert group in text
    assert not [a.option_strings for a in parser._actions if not a.help]


def test_a_pattern_with_commas_is_one_target() -> None:
    words = [*MINIMAL, *SVD, "--lora_module", r"re:layer\.\d{1,2}\.attention"]
    assert parse_arguments(words).method.target_modules == (r"re:layer\.\d{1,2}\.attention",)
