"""Every flag of the parser works or is refused in one sentence; at its default it changes nothing.

A flag that stands in none of the tables here fails a test.
"""

from __future__ import annotations

import json
import shlex
from argparse import Action
from dataclasses import fields
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.conftest import Glue
from tests.models import tiny_classifier
from tests.program import run_program

from adalora.errors import UserError
from adalora.glue.tasks import TASKS
from adalora.pretrained.loading import load_tokenizer
from adalora.training.arguments.parser import RunArguments, build_parser, parse_arguments
from adalora.training.checks import check_asked, check_batches, check_evaluation, check_tokenizer

BASE = ("--model_name_or_path", "nano", "--task_name", "mini-sst2")

#: Flag -> (a value of it, or None, with what it needs beside it; what the sentence says).
REFUSED: dict[str, tuple[str, str]] = {
    "prediction_loss_only": ("", "--prediction_loss_only is refused: the scores of a run"),
    "batch_eval_metrics": ("", "--batch_eval_metrics is refused"),
    "eval_do_concat_batches": ("False", "--no_eval_do_concat_batches is refused"),
    "no_eval_do_concat_batches": ("", "--no_eval_do_concat_batches is refused"),
    "eval_use_gather_object": ("", "is refused: predictions are tensors"),
    "include_for_metrics": ("inputs", "--include_for_metrics inputs is refused"),
    "label_names": ("text", "--label_names text is refused: the labels are 'labels'"),
    "remove_unused_columns": ("False", "--no_remove_unused_columns is refused"),
    "no_remove_unused_columns": ("", "--no_remove_unused_columns is refused"),
    "use_liger_kernel": ("", "--use_liger_kernel is refused: Liger has no kernels"),
    "liger_kernel_config": ("{}", "liger_kernel_config"),
    "enable_jit_checkpoint": ("", "--enable_jit_checkpoint is refused: .*SIGTERM"),
    "parallelism_config": ("{}", "parallelism_config"),
    "length_column_name": ("size", "--length_column_name size is refused"),
    "push_to_hub": ("", "--push_to_hub is refused: .*hf upload"),
    "hub_token": ("secret", "is refused: a run uploads nothing"),
    "hub_private_repo": ("True", "is refused: a run uploads nothing"),
    "hub_model_id": ("name/model", "is refused: a run uploads nothing"),
    "hub_strategy": ("end", "--hub_strategy end is refused: a run uploads nothing"),
    "hub_always_push": ("", "is refused: a run uploads nothing"),
    "hub_revision": ("main", "is refused: a run uploads nothing"),
    "fp16": ("", "--fp16 needs a GPU"),
    "deepspeed": ("zero.json", "--deepspeed is refused"),
    "fsdp": ("offload", "--fsdp offload is refused"),
    "fsdp_config": ("{}", "--fsdp_config is refused"),
    "ddp_backend": ("gloo", "--ddp_backend gloo connects several processes and this run has one"),
    "shard_base": ("", "--shard_base shards the frozen base over processes"),
}

#: Values that are refused, of flags that have others.
ODD_VALUES = [
    ("--report_to wandb", "--report_to wandb needs a package that is not here; choose .*none"),
    ("--report_to ''", "--report_to '' is unknown"),
    ("--report_to tensorboard,wandb", "--report_to 'tensorboard,wandb' is unknown"),
    ("--lr_scheduler_type cosine_with_min_lr", "cosine_with_min_lr cannot be made: .*min_lr"),
    ("--lr_scheduler_type cosine_warmup_with_min_lr", "cannot be made: .*min_lr"),
    ("--lr_scheduler_type warmup_stable_decay", "warmup_stable_decay cannot be made: .*decay"),
    ("--lr_scheduler_type polynomial --learning_rate 1e-8", "polynomial cannot be made: lr_end"),
    ("--lr_scheduler_type greedy", "greedy requires an eval strategy"),
    ("--lr_scheduler_type reduce_lr_on_plateau", "requires an eval strategy"),
    ("--lr_scheduler_kwargs nonsense", "--lr_scheduler_kwargs is a JSON object"),
    ("""--lr_scheduler_kwargs '{"speed": 2}'""", "linear .* cannot be made: .*speed"),
    ("--lr_scheduler_kwargs '{'", "do not fit together"),
    ("--optim_args nonsense", "--optim_args nonsense is not NAME=VALUE"),
    ("--accelerator_config absent.json", "do not fit together: .*absent.json"),
    ("--accelerator_config '{\"speed\": 2}'", "do not fit together: .*speed"),
    ("--accelerator_config /", "do not fit together: .*directory"),
    ("--activation_checkpointing_kwargs nonsense", "has to be a JSON object"),
    ("""--gradient_checkpointing_kwargs '{"speed": 2}'""", "there are .*use_reentrant"),
    ("--torch_compile_backend nonsense", "--torch_compile_backend 'nonsense' is none; .*eager"),
    ("--torch_compile_mode fast", "--torch_compile_mode 'fast' is none; .*reduce-overhead"),
    ("--warmup_steps inf", "--warmup_steps is inf"),
    ("--logging_steps inf", "--logging_steps is inf"),
    ("--logging_steps nan", "--logging_steps is nan"),
    ("--logging_steps=-1", "--logging_steps is -1.0"),
    ("--save_steps 0", "--save_steps is 0.0"),
    ("--save_total_limit 0", "--save_total_limit is 0"),
    ("--eval_steps nan", "--eval_steps is nan"),
    ("--eval_delay nan", "--eval_delay is nan"),
    ("--eval_accumulation_steps 0", "--eval_accumulation_steps is 0"),
    ("--torch_empty_cache_steps 0", "--torch_empty_cache_steps is 0"),
    ("--dataloader_prefetch_factor 0 --dataloader_num_workers 1", "prefetch_factor is 0"),
    ("--dataloader_multiprocessing_context fork", "needs --dataloader_num_workers above 0"),
    ("--dataloader_persistent_workers", "needs --dataloader_num_workers above 0"),
    ("--load_best_model_at_end --save_strategy no", "--load_best_model_at_end compares"),
    ("--save_strategy best", "--save_strategy best compares evaluations"),
    ("--apply_adalora --lora_plus_ratio 8", "add --lora_init gaussian"),
]


#: What works: runs over few examples for two steps, by name; each may use folders of those before
#: it. Between them they give every flag that is not in ``REFUSED``.
RUNS: dict[str, str] = {
    "adalora": """
        --task_name mini-sst2 --apply_adalora --apply_lora --lora_type svd --lora_r 2
        --target_rank 1 --lora_module query,value --lora_alpha 8 --lora_dropout 0.1
        --lora_init gaussian
        --lora_scaling rank_stabilised --lora_plus_ratio 2 --reg_orth_coef 0.1 --reg_loss_wgt 0.1
        --masking_prob 0.1 --importance_score sensitivity --allocation prune --target_total_rank 8
        --init_warmup 0 --final_warmup 1 --mask_interval 1 --beta1 0.8 --beta2 0.8
        --tb_writter_loginterval 1 --report_to tensorboard --model_revision main --cache_dir cache
        --no_use_fast_tokenizer --use_fast_tokenizer True --use_auth_token False
        --trust_remote_code False --position_query_bypass --unpad True --no_unpad --cls_dropout 0.1
        --do_eval --do_predict --eval_strategy steps --eval_steps 1 --eval_delay 0 --save_steps 1
        --save_strategy steps --save_total_limit 2 --load_best_model_at_end
        --metric_for_best_model accuracy --greater_is_better True
        --eval_on_start --eval_accumulation_steps 1 --logging_strategy steps --logging_steps 1
        --logging_first_step --no_logging_nan_inf_filter --logging_nan_inf_filter True
        --include_num_input_tokens_seen True --run_name name --per_device_eval_batch_size 3
        --seed 3 --data_seed 4 --save_on_each_node False --local_rank -1 --debug underflow_overflow
    """,
    "resumed": """
        --task_name mini-sst2 --apply_adalora --apply_lora --lora_type svd --lora_r 2
        --target_rank 1 --lora_module query,value --target_total_rank 8 --init_warmup 0
        --final_warmup 1 --mask_interval 1 --importance_score sensitivity
        --resume_from_checkpoint adalora/model/checkpoint-1
        --force_resume --ignore_data_skip --restore_callback_states_from_checkpoint False
    """,
    "own files": """
        --train_file own.csv --validation_file own.csv --test_file own.csv --text_column first
        --pair_column second --label_column answer --task_type classification --no_quotes
        --encoding utf-8 --do_predict --overwrite_cache --pad_to_max_length --apply_lora
        --lora_r 2 --prune_lora --target_rank 1 --init_warmup 0 --final_warmup 1 --mask_interval 1
        --optim adamw_torch --optim_target_modules query --weight_decay 0.01 --adam_beta1 0.8
        --adam_beta2 0.9 --adam_epsilon 1e-7 --learning_rate 1e-3 --warmup_steps 1
        --lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs '{"min_lr_rate": 0.1}'
        --gradient_accumulation_steps 2 --max_grad_norm 0.5 --label_smoothing_factor 0.1 --bf16
        --evaluation_strategy epoch --num_train_epochs 1 --dataloader_drop_last
        --dataloader_num_workers 1 --dataloader_prefetch_factor 2 --dataloader_persistent_workers
        --dataloader_multiprocessing_context fork --no_dataloader_in_order
        --dataloader_in_order True --no_dataloader_pin_memory --dataloader_pin_memory True
        --train_sampling_strategy sequential --label_names labels --no_skip_memory_metrics
        --skip_memory_metrics True --log_level info --log_level_replica warning
        --log_on_each_node True --no_log_on_each_node --torch_empty_cache_steps 1
        --average_tokens_across_devices True --no_average_tokens_across_devices
        --eval_do_concat_batches True --remove_unused_columns True
    """,
    "adapters": """
        --task_name mini-rte --config_name nano --tokenizer_name nano --base_dtype float32
        --apply_adapter --adapter_type pfeiffer --adapter_size 4 --apply_bitfit --apply_lora
        --lora_r 2 --warmup_ratio 0.1 --no_cuda --use_cpu --adafactor --group_by_length
        --per_gpu_train_batch_size 4 --per_gpu_eval_batch_size 4 --activation_checkpointing
        --activation_checkpointing_kwargs '{"use_reentrant": false}' --save_only_model
        --use_deterministic_algorithms --full_determinism --accelerator_config '{}'
        --ddp_find_unused_parameters False --ddp_bucket_cap_mb 25 --ddp_broadcast_buffers False
        --ddp_static_graph False --ddp_timeout 60 --use_cache False --tf32 False
        --project name --trackio_space_id name --trackio_bucket_id name
        --trackio_static_space_id name --output_dir adapters
    """,
    "from adapters": """
        --task_name mini-rte --apply_adapter --adapter_type pfeiffer --adapter_size 4 --apply_lora
        --lora_r 2 --lora_path adapters/model --adapter_path adapters/model --apply_bitfit
        --gradient_checkpointing --gradient_checkpointing_kwargs '{"use_reentrant": false}'
        --optim sgd --optim_args momentum=0.5 --overwrite_output_dir
    """,
    "peft": """
        --task_name mini-sst2 --peft_config peft.json --torch_compile False --neftune_noise_alpha 0
        --torch_compile_backend eager --torch_compile_mode default --auto_find_batch_size False
        --bf16_full_eval False --fp16_full_eval False
    """,
    "preset": "--data_dir glue --preset rte/bitfit",
}


def actions() -> dict[str, Action]:
    """Flag, as it is written -> what parses it."""
    found = {}
    for action in build_parser()._actions:
        if action.dest != "help":
            name = next(o for o in action.option_strings if "-" not in o.removeprefix("--"))
            found[name.removeprefix("--")] = action
    return found


@pytest.mark.parametrize("flag", REFUSED)
def test_a_flag_that_no_run_can_use_is_refused_when_it_is_read(flag: str) -> None:
    if flag == "fp16" and torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU, and there is one")
    words, sentence = REFUSED[flag]
    with pytest.raises(UserError, match=sentence):
        parse_arguments([*BASE, f"--{flag}", *words.split()])


@pytest.mark.parametrize(("words", "sentence"), ODD_VALUES)
def test_a_value_that_no_run_can_use_is_refused_when_it_is_read(words: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_arguments([*BASE, *shlex.split(words)])


@pytest.mark.parametrize(
    "words",
    [
        """--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs '{"min_lr_rate": 0.1}'""",
        """--lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs '{"num_decay_steps":9}'""",
        "--lr_scheduler_type reduce_lr_on_plateau --eval_strategy epoch",
        "--lr_scheduler_type polynomial",
        "--label_names labels",
        "--report_to none",
        "--save_strategy best --eval_strategy epoch --metric_for_best_model accuracy",
    ],
)
def test_the_same_flag_with_what_it_needs_is_taken(words: str) -> None:
    parse_arguments([*BASE, *shlex.split(words)])


def written(words: str) -> set[str]:
    return {word.removeprefix("--") for word in shlex.split(words) if word.startswith("--")}


def test_every_flag_is_in_a_table() -> None:
    everywhere = {"model_name_or_path", "do_train", "max_steps", "root_output_dir", "disable_tqdm"}
    everywhere |= {f"max_{split}_samples" for split in ("train", "val", "test")}
    # test_combinations.py: it needs a longer run.
    everywhere |= {"max_seq_length", "per_device_train_batch_size", "early_stopping_patience"}
    tried = everywhere.union(*map(written, RUNS.values()))
    assert set(actions()) - tried - set(REFUSED) == set()
    assert (tried | set(REFUSED)) - set(actions()) == set()


@pytest.mark.slow
def test_every_other_flag_works(tmp_path: Path, glue: Glue) -> None:
    rows = [("one text", "another", "yes"), ("two", "more", "no"), ("a film", "bad", "no")] * 4
    lines = ["first,second,answer", *map(",".join, rows)]
    (tmp_path / "own.csv").write_text("\n".join(lines) + "\n")
    peft = {"peft_type": "LORA", "r": 2, "target_modules": ["query"]}
    (tmp_path / "peft.json").write_text(json.dumps(peft))
    (tmp_path / "glue").symlink_to(glue.folder)
    for name, words in RUNS.items():
        usual = [] if "--output_dir" in words else ["--root_output_dir", name]
        if "--report_to" not in words:
            usual += ["--report_to", "none"]
        run_program(
            *("--model_name_or_path", "nano", "--do_train", "--max_steps", "2", *usual),
            *("--max_train_samples", "12", "--max_val_samples", "6", "--max_test_samples", "6"),
            *("--per_device_train_batch_size", "4", "--max_seq_length", "32"),
            *("--disable_tqdm", "True", *shlex.split(words)),
            cwd=tmp_path,
        )
        assert (tmp_path / name / "run.json").is_file(), name


# ---- a flag at its default ----

#: The other name of --root_output_dir, of which its own value is made.
DERIVED = ("output_dir",)
METHODS = [
    (),
    ("--apply_adalora",),
    ("--apply_adalora", "--learning_rate", "3e-3"),
    ("--apply_adalora", "--apply_lora", "--lora_type", "svd", "--lora_r", "2"),
    ("--preset", "rte/adalora-0.3M"),
]


def resolved(arguments: RunArguments) -> dict[str, Any]:
    """All that the flags decide, by flag."""
    return {field.name: getattr(part, field.name) for part in arguments for field in fields(part)}


def spelled(value: Any) -> list[str] | None:
    """The words for a value on a command line; None where there are none."""
    if isinstance(value, Enum):
        return [str(value.value)]
    if isinstance(value, list):
        return [str(getattr(one, "value", one)) for one in value] or None
    return [str(value)] if isinstance(value, str | int | float) else None


@pytest.mark.parametrize("method", METHODS, ids=" ".join)
def test_a_flag_given_at_its_default_changes_nothing(method: tuple[str, ...]) -> None:
    words = [*BASE, *method]
    usual = resolved(parse_arguments(words))
    for flag, action in actions().items():
        value = spelled(usual[action.dest])
        if value is None or action.nargs == 0 or f"--{flag}" in words or flag in DERIVED:
            continue
        found = resolved(parse_arguments([*words, f"--{flag}", *value]))
        differing = {n: (usual[n], found[n]) for n in usual if usual[n] != found[n]}
        assert not differing, f"--{flag} {value}: {differing}"


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ("--apply_adalora", "lora"),
        ("--apply_adalora --learning_rate 1e-3", "lora"),
        ("--apply_adalora --learning_rate 5e-2 --warmup_ratio 0.1 --lora_r 8", "lora"),
        ("--apply_adalora --lora_type svd", "lora"),
        (
            "--apply_rankselector --apply-lora --lora-type svd --lora_r 2 --target_rank 1",
            "gaussian",
        ),
        ("--apply_adalora --apply_lora --lora_type svd --lora_r 4 --lora_init lora", "lora"),
        ("--preset rte/adalora-0.3M", "gaussian"),
        ("--preset rte/adalora-0.3M --learning_rate 1e-3", "gaussian"),
    ],
)
def test_where_the_factors_start_follows_from_how_the_method_is_asked_for(
    words: str, start: str
) -> None:
    method = parse_arguments([*BASE, *words.split()]).method
    assert method.lora_init == start
    assert ("LoRA's start" in method.name) == (start == "lora")


# ---- against the data and the model, before training ----


def data(task: str | None = None, regression: bool = False, examples: int = 20) -> Any:
    found = None if task is None else TASKS[task]
    splits = {"train": range(examples)}
    return SimpleNamespace(task=found, is_regression=regression, splits=splits)


@pytest.mark.parametrize(
    ("task", "regression", "known"),
    [
        ("sst2", False, "accuracy, loss"),
        ("mrpc", False, "accuracy, f1, combined_score, loss"),
        (None, False, "accuracy, f1, loss"),
        (None, True, "mse, pearson, loss"),
    ],
)
def test_the_metric_of_the_best_model_is_one_that_there_will_be(
    task: str | None, regression: bool, known: str
) -> None:
    for name in known.split(", "):
        for spelling in (name, f"eval_{name}"):
            words = [*BASE, "--metric_for_best_model", spelling]
            check_evaluation(parse_arguments(words).training, data(task, regression))
    for name in ("roc_auc", "", "train_loss", "runtime"):
        training = parse_arguments([*BASE, "--metric_for_best_model", name]).training
        with pytest.raises(UserError, match=f"is {name!r}, and .* gives {known}; choose"):
            check_evaluation(training, data(task, regression))


@pytest.mark.parametrize("name", ["mse", "eval_mse", "loss", "eval_loss", "pearson", "accuracy"])
def test_less_of_an_error_is_better(name: str) -> None:
    training = parse_arguments([*BASE, "--metric_for_best_model", name]).training
    assert training.greater_is_better == (name in ("pearson", "accuracy"))


def test_a_batch_that_is_the_only_one_is_not_left_out() -> None:
    words = [*BASE, "--dataloader_drop_last", "--per_device_train_batch_size"]
    check_batches(parse_arguments([*words, "20"]), data(examples=20))
    with pytest.raises(UserError, match="20 training examples fill none of 21"):
        check_batches(parse_arguments([*words, "21"]), data(examples=20))
    with pytest.raises(UserError, match="7 training examples fill none of 8"):
        check_batches(parse_arguments([*words, "8", "--max_train_samples", "7"]), data())


def test_a_run_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="add --do_train, --do_eval or --do_predict"):
        check_asked(parse_arguments([*BASE, "--apply_adalora"]).training)
    for flag in ("--do_train", "--do_eval", "--do_predict", "--eval_strategy=epoch"):
        check_asked(parse_arguments([*BASE, flag]).training)


@pytest.mark.parametrize("rows", [680, 681, 20])
def test_a_tokenizer_with_more_ids_than_embeddings_is_refused_by_both_numbers(rows: int) -> None:
    tokenizer, model = load_tokenizer("nano"), tiny_classifier("bert", vocab_size=rows)
    highest = max(tokenizer.get_vocab().values())
    if rows > highest:
        check_tokenizer(tokenizer, model)
        tokenizer.add_special_tokens({"additional_special_tokens": ["[ONE]", "[TWO]"]})
        highest = max(tokenizer.get_vocab().values())
    with pytest.raises(UserError, match=f"ids up to {highest} and the model has {rows} embed"):
        check_tokenizer(tokenizer, model)


def test_a_tokenizer_that_marks_pairs_for_a_model_that_does_not_is_refused() -> None:
    tokenizer = load_tokenizer("nano")
    check_tokenizer(tokenizer, tiny_classifier("bert", vocab_size=900, type_vocab_size=2))
    with pytest.raises(UserError, match="by type 1 and the model has 1 embeddings of types"):
        check_tokenizer(tokenizer, tiny_classifier("bert", vocab_size=900, type_vocab_size=1))


def test_a_tokenizer_without_padding_is_refused() -> None:
    tokenizer = load_tokenizer("nano")
    tokenizer.pad_token = None
    with pytest.raises(UserError, match="has no token for padding"):
        check_tokenizer(tokenizer, tiny_classifier("bert", vocab_size=900))


def test_an_evaluation_on_own_data_gives_f1_and_leaves_out_nothing(tmp_path: Path) -> None:
    rows = [("a good film", "yes"), ("a bad film", "no"), ("dull", "no"), ("bad", "no")] * 3
    file = tmp_path / "data.csv"
    file.write_text("\n".join(["text,label", *(",".join(row) for row in rows)]) + "\n")
    run_program(
        *("--model_name_or_path", "nano", "--train_file", file, "--validation_file", file),
        *("--apply_adalora", "--do_train", "--max_steps", "4", "--eval_strategy", "steps"),
        *("--eval_steps", "4", "--save_steps", "4", "--load_best_model_at_end"),
        *("--metric_for_best_model", "f1", "--report_to", "none", "--dataloader_drop_last"),
        *("--learning_rate", "0", "--per_device_eval_batch_size", "5"),
        *("--root_output_dir", tmp_path / "run", "--disable_tqdm", "True"),
    )
    scores = json.loads((tmp_path / "run" / "eval_results_custom.json").read_text())
    assert {"eval_accuracy", "eval_f1"} <= set(scores)
    # No example was left out of the evaluation.
    lines = (tmp_path / "run" / "eval_predictions_custom.tsv").read_text().splitlines()
    assert len(lines) == 1 + len(rows)


def test_a_test_file_alone_is_predicted_with_the_labels_of_the_model(tmp_path: Path) -> None:
    file = tmp_path / "texts.csv"
    file.write_text("text\na good film\na bad film\n")
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    for folder, known in (("named", names), ("nameless", {})):
        tiny_classifier("bert", vocab_size=900, **known).save_pretrained(tmp_path / folder)
        load_tokenizer("nano").save_pretrained(tmp_path / folder)
    words = ["--do_predict", "--test_file", file, "--report_to", "none", "--disable_tqdm", "True"]
    words += ["--root_output_dir", tmp_path / "run"]
    run_program("--model_name_or_path", tmp_path / "named", *words)
    lines = (tmp_path / "run" / "test_results_custom.txt").read_text().splitlines()
    assert len(lines) == 3
    assert {line.split("\t")[1] for line in lines[1:]} <= {"no", "yes"}
    ended = run_program("--model_name_or_path", tmp_path / "nameless", *words, expect=2)
    assert "the labels that" in ended.stderr
    assert "predict RUN FILE" in ended.stderr
