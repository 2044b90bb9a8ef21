"""From arguments to parts: the adapted model, its tokenizer, and the method over it."""

from __future__ import annotations

import math
from itertools import compress
from typing import Any, NamedTuple, cast

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adalora.adapters.bottleneck import AdapterType, add_bottleneck
from adalora.adapters.freeze import freeze_base
from adalora.adapters.initialise import Initialisation
from adalora.adapters.kinds import Method
from adalora.adapters.lora import add_lora
from adalora.adapters.peft_method import add_peft
from adalora.artefact.description import Origin
from adalora.artefact.warm_start import load_bottleneck, load_lora
from adalora.glue.load import DataSource, TaskData
from adalora.pretrained.dropout import use_fast_dropout
from adalora.pretrained.loading import load_classifier, load_tokenizer
from adalora.pretrained.sdpa import use_fast_attention
from adalora.training.adaptation import AdaLora
from adalora.training.arguments.inputs import ModelArguments
from adalora.training.arguments.method import MethodArguments
from adalora.training.arguments.parser import RunArguments
from adalora.training.arguments.training import AdaLoraTrainingArguments
from adalora.training.peft_adaptation import PeftAdaLora
from adalora.training.protocol import Adaptation


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
    """A model to train, and what its adapters were read from, the nearest first."""

    model: nn.Module
    lineage: tuple[Origin, ...] = ()


def build_model(arguments: RunArguments, data: TaskData) -> Built:
    """Load the base, put the method on it, and freeze the rest."""
    model = load_classifier(
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
    use_fast_attention(model)
    built = adapt(model, arguments.method, total_steps=steps)
    use_fast_dropout(built.model)
    return built


def training_steps(arguments: RunArguments, *, examples: int) -> int:
    """Optimizer steps of the run over a training set of ``examples``, before it is cut short."""
    examples = min(examples, arguments.data.max_train_samples or examples)
    return count_steps(examples, arguments.training)


def adapt(
    model: PreTrainedModel, method: MethodArguments, *, total_steps: int | None = None
) -> Built:
    """Put ``method`` on a loaded classifier, in place, and freeze what it does not train.

    ``total_steps`` of the run are what PEFT's AdaLoRA asks for; None if nothing will be trained.

    Returns:
        The model to train, which is ``model`` or PEFT's wrapper around it, and its lineage.
    """
    if method.peft_values is not None:
        source = str(method.peft_config)
        peft = add_peft(model, method.peft_values, total_steps=total_steps, source=source)
        return Built(peft)
    trained: list[Method] = []
    lineage: tuple[Origin, ...] = ()
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
        if method.lora_path:
            lineage += load_lora(model, method.lora_path).origins
    if method.apply_adapter:
        kind = cast(AdapterType, method.adapter_type)
        add_bottleneck(model, adapter_type=kind, adapter_size=method.adapter_size)
        trained.append("bottleneck")
        if method.adapter_path:
            lineage += load_bottleneck(model, method.adapter_path).origins
    if method.apply_bitfit:
        trained.append("bitfit")
    freeze_base(model, train=trained or ["full"])
    return Built(model, lineage)


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
    return DataSource(
        task_name=data.task_name,
        data_dir=data.data_dir,
        train_file=data.train_file,
        validation_file=data.validation_file,
        test_file=data.test_file,
        cache_dir=arguments.model.cache_dir,
        need=tuple(compress(("train", "validation", "test"), need)),
    )


def seed_everything(training: AdaLoraTrainingArguments) -> None:
    """Seed before the model is built: the head and the adapters are drawn at random."""
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
    import os

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
