"""From arguments to parts: the adapted model, its tokenizer, and the method over it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adalora.adapters.bottleneck import AdapterType, add_bottleneck
from adalora.adapters.freeze import freeze_base
from adalora.adapters.head import class_names
from adalora.adapters.kinds import Method
from adalora.adapters.lora import Initialisation, add_lora
from adalora.adapters.peft_method import add_peft
from adalora.artefact.description import Origin
from adalora.artefact.warm_start import (
    StoredAdapters,
    WarmStart,
    load_bottleneck,
    load_lora,
    read_adapters,
    stored_classes,
)
from adalora.data.column_choice import Asked
from adalora.data.table_reader import Reading
from adalora.data.understood import Understood
from adalora.errors import UserError
from adalora.glue.load import DataSource, TaskData
from adalora.pretrained.dropout import use_fast_dropout
from adalora.pretrained.loading import load_checkpoint, load_config, load_tokenizer
from adalora.pretrained.unpadded import is_unpadded
from adalora.shell import program
from adalora.training.adaptation import AdaLora
from adalora.training.arguments.inputs import ModelArguments
from adalora.training.arguments.method import MethodArguments
from adalora.training.arguments.parser import RunArguments
from adalora.training.arguments.training import AdaLoraTrainingArguments
from adalora.training.peft_adaptation import PeftAdaLora
from adalora.training.protocol import Adaptation

logger = logging.getLogger(__name__)


def build_tokenizer(arguments: ModelArguments) -> PreTrainedTokenizerBase:
    """The tokenizer that the flags name."""
    return load_tokenizer(
        arguments.model_name_or_path,
        tokenizer_name=arguments.tokenizer_name,
        cache_dir=arguments.cache_dir,
        use_fast=arguments.use_fast_tokenizer,
        revision=arguments.model_revision,
        token=True if arguments.use_auth_token else None,
        trust_remote_code=arguments.trust_remote_code,
    )


class Built(NamedTuple):
    """A model to train, and what its adapters were read from, the nearest first.

    ``untrained`` is what its head was trained for, where that is not the data; None where it is.
    """

    model: nn.Module
    lineage: tuple[Origin, ...] = ()
    untrained: str | None = None


def build_model(arguments: RunArguments, data: TaskData) -> Built:
    """Read what the run starts from, load the base, put the method on it, and freeze the rest."""
    stored = read_stored(arguments.method)
    model, untrained = load_checkpoint(
        arguments.model.model_name_or_path,
        num_labels=data.num_labels,
        labels=data.labels,
        is_regression=data.is_regression,
        task_name=arguments.data.task_name,
        config_name=arguments.model.config_name,
        cache_dir=arguments.model.cache_dir,
        revision=arguments.model.model_revision,
        token=True if arguments.model.use_auth_token else None,
        cls_dropout=arguments.training.cls_dropout,
        dtype=arguments.model.dtype,
        position_query_bypass=arguments.model.position_query_bypass,
        unpad=arguments.model.unpad,
        trust_remote_code=arguments.model.trust_remote_code,
    )
    steps = None
    if arguments.training.do_train:
        steps = training_steps(arguments, examples=len(data.splits["train"]))
    if arguments.model.unpad and not any(map(is_unpadded, model.modules())):
        logger.warning(
            "%s (%s) computes padding as well: on real tokens only run DeBERTaV3 and encoders of "
            "BERT's kind.",
            *(arguments.model.model_name_or_path, model.config.model_type),
        )
    built = adapt(
        model,
        arguments.method,
        total_steps=steps,
        stored=stored,
        labels=data.labels or (),
        by_index=data.task is not None,
        untrained=untrained,
    )
    use_fast_dropout(built.model)
    training = arguments.training
    answers = (training.do_eval or training.do_predict) and not training.do_train
    if answers and built.untrained is not None:
        source = arguments.method.lora_path or arguments.method.adapter_path
        raise UserError(
            f"Without --do_train there is nothing to evaluate or predict with: the head of "
            f"{source or arguments.model.model_name_or_path} was trained for {built.untrained}, "
            f"and the data has {', '.join(data.labels or ('numbers',))}. Add --do_train, or name a "
            "model or a run (--lora_path) that was trained for these."
        )
    return built


def classes_of_head(arguments: RunArguments) -> tuple[str, ...] | None:
    """The classes that the head to start from was trained for, in its order.

    A run that does not train answers in these, whichever of them its files hold.

    Returns:
        () for a number; None where nobody noted them, or nothing has a head.
    """
    for path in (arguments.method.adapter_path, arguments.method.lora_path):
        if path:
            return stored_classes(path)
    model = arguments.model
    config = load_config(
        model.model_name_or_path,
        num_labels=None,
        cache_dir=model.cache_dir,
        revision=model.model_revision,
        token=True if model.use_auth_token else None,
        trust_remote_code=model.trust_remote_code,
    )
    return class_names(config)


def training_steps(arguments: RunArguments, *, examples: int) -> int:
    """Optimizer steps of the run over a training set of ``examples``, before it is cut short."""
    examples = min(examples, arguments.data.max_train_samples or examples)
    return count_steps(examples, arguments.training)


def read_stored(method: MethodArguments) -> dict[str, StoredAdapters]:
    """What ``--lora_path`` and ``--adapter_path`` name, read and verified, by the part it fills."""
    paths = {
        "lora": method.lora_path if method.apply_lora else None,
        "bottleneck": method.adapter_path if method.apply_adapter else None,
    }
    return {part: read_adapters(path, part) for part, path in paths.items() if path}


def how_it_starts(
    arguments: RunArguments,
    data: TaskData,
    built: Built,
    checkpoint: str | None,
    cut: Mapping[str, float],
) -> Understood:
    """What is known of a run's start once its parts are there; ``cut`` as in ``Understood``."""
    model, method = arguments.model, arguments.method
    source = method.adapter_path or method.lora_path or model.model_name_or_path
    head = f"that of {source}, trained for these labels"
    if built.untrained is not None:
        head = f"new; that of {source} was trained for {built.untrained}"
    steps = None
    if arguments.training.do_train:
        steps = training_steps(arguments, examples=len(data.splits["train"]))
        done = Path(checkpoint or "").name.rpartition("-")[2]
        steps -= min(int(done), steps) if done.isdigit() else 0
    revision = "" if model.model_revision == "main" else f" ({model.model_revision})"
    return Understood(
        cut=cut,
        longest=arguments.data.max_seq_length,
        weights=f"{model.model_name_or_path}{revision}",
        head=head,
        resumes=checkpoint,
        steps=steps,
    )


def adapt(
    model: PreTrainedModel,
    method: MethodArguments,
    *,
    total_steps: int | None = None,
    stored: Mapping[str, StoredAdapters] | None = None,
    labels: Sequence[str] | None = None,
    by_index: bool = False,
    untrained: str | None = None,
) -> Built:
    """Put ``method`` on a loaded classifier, in place, and freeze what it does not train.

    Args:
        model: the classifier.
        method: what to put on it.
        total_steps: of the run, which PEFT's AdaLoRA asks for; None if nothing will be trained.
        stored: from ``read_stored``; None reads it now.
        labels: the classes, for a head that comes with the adapters (``load_lora``).
        by_index: likewise.
        untrained: of the model before.

    Returns:
        The model to train, which is ``model`` or PEFT's wrapper around it, and its lineage.
    """
    if method.peft_values is not None:
        source = str(method.peft_config)
        peft = add_peft(model, method.peft_values, total_steps=total_steps, source=source)
        return Built(peft, (), untrained)
    stored = read_stored(method) if stored is None else stored
    trained: list[Method] = []
    starts: list[WarmStart] = []
    if method.apply_lora:
        add_lora(
            model,
            lora_type=method.lora_type,
            targets=method.target_modules,
            init_rank=int(method.lora_r or 0),
            lora_alpha=method.scaled_alpha,
            lora_dropout=method.lora_dropout,
            lora_init=cast(Initialisation, method.lora_init),
        )
        trained.append("lora")
        if "lora" in stored:
            starts.append(load_lora(model, stored["lora"], labels=labels, by_index=by_index))
    if method.apply_adapter:
        kind = cast(AdapterType, method.adapter_type)
        add_bottleneck(model, adapter_type=kind, adapter_size=method.adapter_size)
        trained.append("bottleneck")
        if "bottleneck" in stored:
            read = stored["bottleneck"]
            starts.append(load_bottleneck(model, read, labels=labels, by_index=by_index))
    if method.apply_bitfit:
        trained.append("bitfit")
    freeze_base(model, train=trained or ["full"])
    for start in starts:
        untrained = start.untrained if start.has_head else untrained
    return Built(model, tuple(o for start in starts for o in start.origins), untrained)


def build_adaptation(
    model: nn.Module, method: MethodArguments, *, writer: Any = None
) -> Adaptation | None:
    """The method over ``model``, or None where nothing but the task loss is trained."""
    if method.peft_values is not None:
        return PeftAdaLora(model) if method.peft_values["peft_type"] == "ADALORA" else None
    if not method.apply_lora or not (method.allocates or method.reg_orth_coef):
        return None
    interval = method.tb_writter_loginterval
    return AdaLora(model, method.settings, writer=writer, log_interval=interval)


def data_source(arguments: RunArguments) -> DataSource:
    """Where the flags say the data is, and which splits the run needs."""
    training, data = arguments.training, arguments.data
    need = (training.do_train, training.do_eval, training.do_predict)
    by_head = data.task_name is None and not training.do_train
    classes = classes_of_head(arguments) if by_head else None
    if by_head and classes is None and not (data.train_file or data.validation_file):
        method, model = arguments.method, arguments.model.model_name_or_path
        source = method.adapter_path or method.lora_path or model
        raise UserError(
            f"--do_predict on --test_file {data.test_file} alone: the labels that {source} was "
            "trained for are not known. Add the --train_file, or --lora_path with the model/ of a "
            f"finished run; '{program('adalora')} predict RUN FILE' takes a run as it is."
        )
    return DataSource(
        task_name=data.task_name,
        data_dir=data.data_dir,
        train_file=data.train_file,
        validation_file=data.validation_file,
        test_file=data.test_file,
        cache_dir=arguments.model.cache_dir,
        classes=classes,
        need=tuple(compress(("train", "validation", "test"), need)),
        columns=Asked(data.text_column, data.pair_column, data.label_column),
        task_type=data.task_type,
        reading=Reading(quotes=not data.no_quotes, encoding=data.encoding),
    )


def seed_everything(training: AdaLoraTrainingArguments) -> None:
    """Seed before the model is built: the head and the adapters are drawn at random."""
    if training.use_deterministic_algorithms:
        # cuBLAS reads it at its first product, and without it torch refuses every one.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if training.full_determinism:
        transformers.enable_full_determinism(training.seed)
    else:
        transformers.set_seed(training.seed)
    torch.use_deterministic_algorithms(
        training.use_deterministic_algorithms or training.full_determinism
    )


def summary_writer(training: AdaLoraTrainingArguments) -> Any:
    """A TensorBoard writer in the run's ``log/``; None in other processes, or when not asked for.

    The Trainer's own TensorBoard records go to the same folder, by the variable it reads.
    """
    if not training.uses_tensorboard or training.process_index != 0:
        return None
    from torch.utils.tensorboard import SummaryWriter

    os.environ["TENSORBOARD_LOGGING_DIR"] = training.log_dir
    return SummaryWriter(log_dir=training.log_dir)


def count_steps(examples: int, training: AdaLoraTrainingArguments) -> int:
    """Optimizer steps over ``examples`` training examples, as the installed Trainer counts them.

    Each process takes its share of the batches; ``gradient_accumulation_steps`` batches make a
    step and a shorter group at the end of an epoch makes one too; ``--max_steps`` overrides.
    """
    if training.max_steps > 0:
        return training.max_steps
    whole = math.floor if training.dataloader_drop_last else math.ceil
    batches = whole(whole(examples / training.train_batch_size) / max(training.world_size, 1))
    per_epoch = max(math.ceil(batches / training.gradient_accumulation_steps), 1)
    return math.ceil(training.num_train_epochs * per_epoch)
