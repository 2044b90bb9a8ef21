"""The flags of a run: four dataclasses that check themselves, with the original's names.

The flags are those of the original ``run_glue.py`` (facts: QingruZhang/AdaLoRA,
NLU/examples/text-classification/run_glue.py and NLU/src/transformers/training_args.py) on top of
the installed ``transformers.TrainingArguments``. ``adalora.training.arguments.parser`` turns a
command line into them. Every mistake is a ``UserError`` that shows the value and what was expected.
"""

from __future__ import annotations

from adalora.training.arguments.inputs import DataArguments, ModelArguments
from adalora.training.arguments.method import MethodArguments
from adalora.training.arguments.training import AdaLoraTrainingArguments

__all__ = ["AdaLoraTrainingArguments", "DataArguments", "MethodArguments", "ModelArguments"]
