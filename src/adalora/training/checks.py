"""Flags that do not fit together, or not the data; refused before any work.

What concerns one group of flags alone is checked by its dataclass (``arguments/``).
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from adalora.errors import UserError
from adalora.glue.load import TaskData
from adalora.glue.metrics import metric_names
from adalora.storage.files import listed
from adalora.training.arguments.parser import RunArguments
from adalora.training.arguments.training import AdaLoraTrainingArguments
from adalora.training.build import training_steps


def check_asked(training: AdaLoraTrainingArguments) -> None:
    """Refuse by a UserError a run that would end without having done anything."""
    if not (training.do_train or training.do_eval or training.do_predict):
        raise UserError("Nothing was asked for: add --do_train, --do_eval or --do_predict.")


def check_evaluation(training: AdaLoraTrainingArguments, data: TaskData) -> None:
    """Refuse by a UserError a metric that no evaluation on ``data`` will give."""
    wanted = training.metric_for_best_model
    names = [*metric_names(data.task, data.is_regression), "loss"]
    if wanted is not None and wanted.removeprefix("eval_") not in names:
        raise UserError(
            f"--metric_for_best_model is {wanted!r}, and an evaluation on this data gives "
            f"{listed(names)}; choose one of them."
        )


def check_batches(arguments: RunArguments, data: TaskData) -> None:
    """Refuse by a UserError to leave out the only batch that there is."""
    training, examples = arguments.training, len(data.splits["train"])
    examples = min(examples, arguments.data.max_train_samples or examples)
    size = training.train_batch_size * training.world_size
    if training.dataloader_drop_last and examples < size:
        raise UserError(
            f"--dataloader_drop_last leaves out a batch that is not full, and {examples} training "
            f"examples fill none of {size}: leave it out, or lower --per_device_train_batch_size."
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Refuse by a UserError a tokenizer whose tokens the model has no embeddings for.

    ``model`` is the classifier, loaded.
    """
    name = tokenizer.name_or_path
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"The tokenizer {name} has no token for padding, and batches need one; choose the "
            "model's own (--tokenizer_name)."
        )
    rows = model.get_input_embeddings().num_embeddings
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        raise UserError(
            f"The tokenizer {name} has ids up to {highest} and the model has {rows} embeddings, 0 "
            f"to {rows - 1}: they do not belong together; leave --tokenizer_name out, or name the "
            "model's own."
        )
    kinds = getattr(model.config, "type_vocab_size", None) or 0
    pair = tokenizer("a", "b").get("token_type_ids") or [0]
    if 0 < kinds <= max(pair):
        raise UserError(
            f"The tokenizer {name} marks the second text of a pair by type {max(pair)} and the "
            f"model has {kinds} embeddings of types, 0 to {kinds - 1}: they do not belong "
            "together; leave --tokenizer_name out, or name the model's own."
        )


def check_combination(arguments: RunArguments, data: TaskData) -> None:
    """Refuse by a UserError what would train nothing, or something else than it says."""
    model, method, training = arguments.model, arguments.method, arguments.training
    whole = not (method.apply_lora or method.apply_adapter or method.apply_bitfit)
    if model.base_dtype != "float32" and (whole or method.apply_bitfit):
        bitfit, full = "BitFit trains its biases", "full fine-tuning trains it"
        trained = bitfit if method.apply_bitfit else full
        raise UserError(
            f"--base_dtype {model.base_dtype} is for weights that stay as they are, and {trained}: "
            "small steps would be lost. Leave it out; --bf16 computes in half precision."
        )
    if method.allocates and not training.keeps_gradients:
        raise UserError(
            f"--optim {training.optimizer_name} uses up the gradients during the backward pass, "
            "and the allocator reads them after the step; choose another, such as adamw_torch."
        )
    final = method.final_warmup
    if method.allocates and training.early_stopping_patience and final in (0, 1):
        raise UserError(
            "--early_stopping_patience counts evaluations at the final budget, and --final_warmup "
            f"{final:g} leaves none; give it steps, or a fraction of the run such as 0.3."
        )
    smoothing = training.label_smoothing_factor
    if smoothing and data.is_regression:
        raise UserError(
            f"--label_smoothing_factor {smoothing} is for classes, and this task asks for a number."
        )
    if method.reg_loss_wgt and data.is_regression:
        raise UserError(
            f"--reg_loss_wgt {method.reg_loss_wgt} compares two distributions over classes, and "
            "this task asks for a number."
        )
    if smoothing and method.reg_loss_wgt:
        raise UserError(
            f"--label_smoothing_factor {smoothing} and --reg_loss_wgt {method.reg_loss_wgt} each "
            "bring a loss of their own; choose one."
        )


def check_schedule(arguments: RunArguments, data: TaskData) -> None:
    """Refuse a schedule that does not fit the run, before a model is loaded.

    Raises:
        UserError: as ``AdaLoraSettings.schedule``.
    """
    method = arguments.method
    # One matrix stands for all: the budget scales with their number, which is known when the model
    # is there; where the target is a total, all is checked then.
    if not method.allocates or method.target_total_rank is not None:
        return
    init_rank = int(method.lora_r or 0)
    if method.target_rank > init_rank:
        raise UserError(
            f"--target_rank {method.target_rank} is above --lora_r {init_rank}, the largest "
            "rank that a matrix can have; swap or change them."
        )
    steps = training_steps(arguments, examples=len(data.splits["train"]))
    method.settings.schedule(init_rank, 1, steps)
