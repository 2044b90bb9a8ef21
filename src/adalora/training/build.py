"""From arguments to parts: the adapted model, its tokenizer, and the method over it."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adalora.adapters import add_bottleneck, add_lora, freeze_base
from adalora.adapters.bottleneck import AdapterType
from adalora.adapters.freeze import Method
from adalora.adapters.initialise import Initialisation
from adalora.adapters.lora import LoRAType
from adalora.adapters.peft_method import add_peft
from adalora.attention import use_fast_attention
from adalora.checkpoints import load_bottleneck, load_lora
from adalora.dropout import use_fast_dropout
from adalora.glue import TaskData
from adalora.pretrained import load_classifier, load_tokenizer
from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.arguments import MethodArguments, ModelArguments
from adalora.training.parser import RunArguments
from adalora.training.peft_adalora import PeftAdaLora
from adalora.training.steps import count_steps

__all__ = [
    "adapt",
    "build_adaptation",
    "build_model",
    "build_tokenizer",
    "settings_of",
    "training_steps",
]


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


def build_model(arguments: RunArguments, data: TaskData) -> nn.Module:
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
    adapted = adapt(model, arguments.method, total_steps=steps)
    use_fast_dropout(adapted)
    return adapted


def training_steps(arguments: RunArguments, *, examples: int) -> int:
    """Optimizer steps of the run over a training set of ``examples``, before it is cut short."""
    examples = min(examples, arguments.data.max_train_samples or examples)
    return count_steps(examples, arguments.training)


def adapt(
    model: PreTrainedModel, method: MethodArguments, *, total_steps: int | None = None
) -> nn.Module:
    """Put ``method`` on a loaded classifier, in place, and freeze what it does not train.

    Args:
        model: without adapters.
        method: the flags.
        total_steps: of the run, which PEFT's AdaLoRA asks for; None if nothing will be trained.

    Returns:
        The model to train: ``model``, or PEFT's wrapper around it.
    """
    if method.peft_values is not None:
        source = str(method.peft_config)
        return add_peft(model, method.peft_values, total_steps=total_steps, source=source)
    trained: list[Method] = []
    if method.apply_lora:
        add_lora(
            model,
            lora_type=cast(LoRAType, method.lora_type),
            targets=method.target_modules,
            init_rank=int(method.lora_r or 0),
            lora_alpha=method.scaled_alpha,
            lora_dropout=method.lora_dropout,
            lora_init=cast(Initialisation, method.lora_init),
        )
        trained.append("lora")
        if method.lora_path:
            load_lora(model, method.lora_path)
    if method.apply_adapter:
        add_bottleneck(
            model,
            adapter_type=cast(AdapterType, method.adapter_type),
            adapter_size=method.adapter_size,
        )
        trained.append("bottleneck")
        if method.adapter_path:
            load_bottleneck(model, method.adapter_path)
    if method.apply_bitfit:
        trained.append("bitfit")
    freeze_base(model, train=trained or ["full"])
    return model


def settings_of(method: MethodArguments) -> AdaLoraSettings:
    """The method's numbers that the flags give."""
    return AdaLoraSettings(
        target_rank=method.target_rank,
        target_total_rank=method.target_total_rank,
        init_warmup=method.init_warmup,
        final_warmup=method.final_warmup,
        mask_interval=method.mask_interval,
        beta1=method.beta1,
        beta2=method.beta2,
        orth_reg_weight=method.reg_orth_coef,
        allocate=method.allocates,
        importance_score=method.importance_score,
        allocation=method.allocation,
        prune_lora=method.prune_lora,
    )


def build_adaptation(
    model: nn.Module, method: MethodArguments, *, writer: Any = None
) -> AdaLora | PeftAdaLora | None:
    """The method over ``model``, or None where nothing but the task loss is trained."""
    if method.peft_values is not None:
        return PeftAdaLora(model) if method.peft_values["peft_type"] == "ADALORA" else None
    if not method.apply_lora or not (method.allocates or method.reg_orth_coef):
        return None
    return AdaLora(
        model,
        settings_of(method),
        writer=writer,
        log_interval=method.tb_writter_loginterval,
    )
