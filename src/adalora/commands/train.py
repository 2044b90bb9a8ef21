"""``adalora train FLAGS...``: the program of run_glue.py, where there is no checkout; its help."""

from __future__ import annotations

from collections.abc import Sequence

#: What ``--help`` shows, without the seconds that the parser's imports take.
HELP = """\
usage: {program} FLAGS...
       {program} FILE.yaml         the same flags as a file, also JSON

Fine-tune a pretrained encoder on GLUE or on your own data.

model
  --model_name_or_path NAME  hub id, folder, or nano, a built-in miniature
  --preset TASK/METHOD       a row of the paper's table 1; see 'adalora presets'
data
  --task_name TASK           rte, mnli, ...; mini-rte, ... are built in
  --data_dir FOLDER          the official GLUE files, instead of the hub
  --train_file FILE          your own CSV, TSV, JSON, JSON lines or Parquet
  --validation_file FILE     likewise; there is --test_file too
  --text_column NAME         of your files; also --pair_column, --label_column
  --max_seq_length N         tokens in a text (default: 128)
method (without one: full fine-tuning)
  --apply_adalora            AdaLoRA; what follows then has other defaults
  --apply_lora               LoRA; needs --lora_r
  --lora_type TYPE           frd, svd or dora (default: frd; AdaLoRA: svd)
  --lora_r N                 rank of each matrix at the start (AdaLoRA: 4)
  --target_rank N            mean rank at the end (AdaLoRA: 2)
  --lora_module NAMES        which matrices (default: query,value; AdaLoRA: all)
  --apply_adapter            bottleneck adapters; or --apply_bitfit
length of the run
  --num_train_epochs N       passes over the training data (default: 3.0)
  --learning_rate X          at its peak (default: 5e-05; AdaLoRA: 0.001)
  --per_device_train_batch_size N  texts in a step (default: 8)
  --bf16                     compute in half precision
  --seed N                   of everything random (default: 42)
output
  --do_train --do_eval --do_predict  what to do
  --root_output_dir FOLDER   where results go; output/run if not given
  --eval_strategy WHEN       while it trains: no, steps or epoch (default: no)
  --overwrite_output_dir     replace what an earlier run left there

example: {program} --model_name_or_path nano --task_name mini-sst2 \\
           --apply_adalora --do_train --do_eval
'--help all' shows every flag.
"""


def main(flags: Sequence[str]) -> int:
    """Train, evaluate and predict as the flags say."""
    if show_help(flags, program="adalora train"):
        return 0
    from adalora.commands.flags import require_our_loralib

    require_our_loralib()
    from adalora.training import program

    program.run(flags, program="adalora train")
    return 0


def show_help(flags: Sequence[str], *, program: str = "run_glue.py") -> bool:
    """Print the help that ``flags`` ask for, the short one or every flag; say whether they do."""
    asked = next((flag for flag in ("--help-all", "-h", "--help") if flag in flags), None)
    if asked is None:
        return False
    following = flags[flags.index(asked) + 1 :][:1]
    if asked != "--help-all" and list(following) != ["all"]:
        print(HELP.format(program=program), end="")
        return True
    from adalora.commands.flags import require_our_loralib

    require_our_loralib()
    from adalora.training.arguments.parser import build_parser

    build_parser(program).print_help()
    return True
