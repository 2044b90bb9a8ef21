"""The metrics of a trained classifier, on the validation sets of its task or on the user's file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from adalora.adapters.head import class_order
from adalora.artefact.description import Description
from adalora.data.column_choice import NOTHING_ASKED, Asked, Columns
from adalora.data.label_rule import LabelRule
from adalora.data.own_files import read_files
from adalora.data.table_reader import USUAL, Reading
from adalora.data.understood import Understood
from adalora.errors import UserError
from adalora.glue.load import DataSource, load_data
from adalora.glue.metrics import compute_glue_metrics
from adalora.inference.classifier import Classifier, known_task, text_columns


@dataclass(frozen=True)
class EvaluationSet:
    """Texts [n] (or pairs) and what is right: class indices [n], or numbers for regression.

    ``understood`` is what there is to say of their source.
    """

    texts: list[Any]
    references: list[Any]
    understood: Understood = field(default_factory=Understood)

    def first(self, most: int | None) -> EvaluationSet:
        """The first ``most`` examples; all if None."""
        return replace(self, texts=self.texts[:most], references=self.references[:most])


def evaluation_sets(
    described: Description,
    *,
    task_name: str | None = None,
    data_dir: str | None = None,
    validation_file: str | None = None,
    columns: Asked = NOTHING_ASKED,
    reading: Reading = USUAL,
) -> dict[str, EvaluationSet]:
    """The sets to evaluate on, by name.

    Args:
        described: of the classifier; its labels count, in its order.
        task_name: of the data; None for the task that it was trained on.
        data_dir: folder of the official GLUE files.
        validation_file: the user's own, with labels; instead of the task's.
        columns: of its texts and label; where they are not named, those of training.
        reading: its quotation marks and encoding.

    Raises:
        UserError: if there are none, a file is wrong, or its labels are not the classifier's.
    """
    if validation_file is not None:
        path = Path(validation_file).expanduser()
        return {"validation": _of_file(described, path, columns, reading)}
    name = task_name or described.task
    if name is None:
        raise UserError(
            "This model was trained on your own data; name a file to evaluate it on with "
            "--validation_file, or a task with --task_name."
        )
    data = load_data(DataSource(task_name=name, data_dir=data_dir, need=()))
    if not data.validation_splits:
        raise UserError(f"{data.origin} has no validation data; it has {', '.join(data.splits)}.")
    order = _order(data.labels, described, name)
    said, sets = data.understood, {}
    read = {one.role: one for one in said.files}
    for split in data.validation_splits:
        rows = data.splits[split]
        references = list(rows["label"])
        if order is not None:
            references = [order[index] for index in references]
        texts = list(rows[data.sentence1_key])
        if data.sentence2_key is not None:
            texts = list(zip(texts, rows[data.sentence2_key], strict=True))
        sets[split] = EvaluationSet(texts, references, replace(said, files=(read[split],)))
    return sets


def _order(
    labels: tuple[str, ...] | None, described: Description, name: str
) -> dict[int, int] | None:
    """Class index in the data -> in the classifier; None for regression."""
    if (labels is None) != described.is_regression:
        kinds = "classes" if described.is_regression is False else "numbers"
        raise UserError(f"This model answers with {kinds}, and {name} has the other kind.")
    if labels is None:
        return None
    own = described.labels
    if own is None:
        raise UserError(
            f"Nobody noted which output of this model is which of {name}'s labels "
            f"({', '.join(labels)}); import or train it again with its labels."
        )
    places = class_order(own, labels)
    known = {index: place for index, place in enumerate(places) if place is not None}
    if not len(known) == len(own) == len(labels):
        raise UserError(
            f"The labels of {name} ({', '.join(labels)}) are not this model's ({', '.join(own)})."
        )
    return known


def _of_file(described: Description, path: Path, asked: Asked, reading: Reading) -> EvaluationSet:
    known = text_columns(described) or ()
    wanted = None
    if known and not asked.texts:
        wanted = Columns(known, asked.label or described.label_column, ())
    labels = None
    if not described.is_regression:
        labels = described.labels or tuple(map(str, range(described.num_labels)))
    # Places stand for names in GLUE's own files alone.
    task = known_task(described)
    indices = task is not None and task.labels == labels
    own = read_files(
        {"validation": path},
        asked,
        reading=reading,
        rule=LabelRule.known(labels, "the model's labels", indices=indices),
        wanted=wanted,
    )
    rows = own.splits["validation"]
    texts = [list(rows[name]) for name in own.columns.texts]
    pairs = texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
    return EvaluationSet(pairs, list(rows["label"]), own.understood)


def evaluate(classifier: Classifier, examples: EvaluationSet) -> dict[str, float]:
    """Task loss and metrics (``compute_glue_metrics``), and the number of examples.

    Raises:
        UserError: if there are no examples.
    """
    described = classifier.description
    logits = classifier.logits(examples.texts)
    references = torch.tensor(examples.references)
    if described.is_regression:
        guesses, loss = logits[:, 0], F.mse_loss(logits[:, 0], references.float())
    else:
        guesses, loss = logits.argmax(dim=-1), F.cross_entropy(logits, references)
    task = known_task(described)
    metrics = compute_glue_metrics(
        None if task is None else task.name,
        guesses.numpy(),
        references.numpy(),
        is_regression=described.is_regression,
        labels=described.labels,
    )
    return {"loss": float(loss), **metrics, "samples": len(examples.texts)}
