"""The answers of a trained model to the test sets of its GLUE task, as the server wants them."""

from __future__ import annotations

from pathlib import Path

from adalora.errors import UserError
from adalora.glue import DataSource, load_data
from adalora.glue.submission import ENTRIES, Answers, server_words
from adalora.glue.tasks import TASKS
from adalora.inference.classifier import Prediction, known_task, load

__all__ = ["predict_answers"]


def predict_answers(
    run: Path, data_dir: str, *, batch_size: int = 32, device: str | None = None
) -> dict[str, Answers]:
    """Entry name -> answers, for the test sets in ``data_dir`` that the model's task has.

    A model of MNLI answers the diagnostic set (AX) as well, where its file is there.

    Raises:
        UserError: if the model is of no GLUE task, or its test data are missing.
    """
    classifier = load(run, batch_size=batch_size, device=device)
    task = known_task(classifier.description)
    if task is None:
        raise UserError(
            f"{run} was trained on {classifier.description.task or 'your own data'}, which is no "
            f"task of GLUE; those are {', '.join(TASKS)}."
        )
    data = load_data(DataSource(task_name=task.name, data_dir=data_dir, need=("test",)))
    found = {}
    for split in data.test_splits:
        rows = data.splits[split]
        texts = list(rows[data.sentence1_key])
        if data.sentence2_key is not None:
            texts = list(zip(texts, rows[data.sentence2_key], strict=True))
        answers = [
            answer.label if isinstance(answer, Prediction) else str(answer)
            for answer in classifier(texts)
        ]
        for entry in ENTRIES:
            if (entry.answered_by, entry.split) == (task.name, split):
                origin = f"predicted now by {run}"
                words = server_words(TASKS[entry.task], answers, origin)
                found[entry.name] = Answers(words, origin)
    return found
