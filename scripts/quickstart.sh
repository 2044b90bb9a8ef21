#!/usr/bin/env bash
# From a fresh clone to a fine-tuned model: sets the environment up, then fine-tunes the built-in
# nano DeBERTaV3 on the built-in miniature of SST-2 with AdaLoRA. A few minutes on two cores, no
# model hub, no data set to fetch. Flags given here are appended, and the last one counts:
#   bash scripts/quickstart.sh --task_name mini-rte --num_train_epochs 8
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_environment.sh"

exec "$environment_python" "$project_root/examples/text-classification/run_glue.py" \
  --model_name_or_path nano \
  --task_name mini-sst2 \
  --apply_lora --apply_adalora --lora_type svd \
  --lora_r 4 --target_rank 2 --lora_alpha 16 \
  --lora_module query,key,value,intermediate,layer.output,attention.output \
  --reg_orth_coef 0.1 \
  --init_warmup 0.1 --final_warmup 0.3 --mask_interval 10 \
  --do_train --do_eval --max_seq_length 64 \
  --per_device_train_batch_size 32 --learning_rate 2e-3 \
  --num_train_epochs 10 --warmup_ratio 0.1 \
  --eval_strategy epoch \
  --seed 6 \
  --root_output_dir "$project_root/output/quickstart" \
  --overwrite_output_dir \
  "$@"
