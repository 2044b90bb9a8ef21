"""From where to where the numbers of a run are believed; ``None`` is no number and passes.

Generous on purpose: what lies outside is a slip of the pen, NaN, or meant to keep a machine busy.
"""

from __future__ import annotations

from adalora.sizes import BELOW_ONE

__all__ = ["DATA_RANGES", "METHOD_RANGES", "TRAINING_RANGES"]

#: Of DataArguments.
DATA_RANGES = {"max_seq_length": (4, 10_000_000)}
#: Of MethodArguments.
METHOD_RANGES = {
    "lora_r": (1, 100_000),
    "lora_alpha": (-1e9, 1e9),
    "adapter_size": (1, 100_000),
    "target_total_rank": (0, 1e9),
    "init_warmup": (0, 1e9),
    "final_warmup": (0, 1e9),
    "mask_interval": (1, 1e9),
    "beta1": (1e-9, BELOW_ONE),
    "beta2": (1e-9, BELOW_ONE),
    "reg_orth_coef": (0, 1e9),
    "reg_loss_wgt": (0, 1e9),
}
#: Of AdaLoraTrainingArguments.
TRAINING_RANGES = {
    "learning_rate": (0, 1e6),
    "weight_decay": (0, 1e6),
    "num_train_epochs": (0, 1e6),
    "max_steps": (-1, 1e9),
    "seed": (0, 2**32 - 1),
    "data_seed": (0, 2**32 - 1),
    "per_device_train_batch_size": (1, 1e6),
    "per_device_eval_batch_size": (1, 1e6),
    "gradient_accumulation_steps": (1, 1e6),
    "max_grad_norm": (0, 1e9),
    "adam_beta1": (0, BELOW_ONE),
    "adam_beta2": (0, BELOW_ONE),
    "adam_epsilon": (0, 1),
    "label_smoothing_factor": (0, BELOW_ONE),
    "neftune_noise_alpha": (0, 1e9),
    "save_steps": (0, 1e9),
    "eval_steps": (0, 1e9),
    "dataloader_num_workers": (0, 1_000),
    "ddp_timeout": (1, 1e9),
}
