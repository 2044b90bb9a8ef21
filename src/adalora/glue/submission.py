"""A submission to the GLUE server: one zip of eleven files, each ``index<TAB>prediction``.

The server wants CoLA, SST-2, MRPC, QQP and WNLI as 0 and 1, the inference tasks in words, STS-B as
a number from 0 to 5, and the diagnostic set (AX) answered by the MNLI model. Facts: the files and
the sample submission that gluebenchmark.com offers.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adalora.errors import UserError
from adalora.glue.predictions import result_name
from adalora.glue.tasks import TASKS, Task, resolve_task
from adalora.storage.atomic import atomic_write


@dataclass(frozen=True)
class Entry:
    """One file of the zip.

    Attributes:
        name: without ``.tsv``.
        task: whose labels it has.
        split: as ``adalora.glue.load_data`` names it among those of the task that answers it.
        rows: examples of the test set.
        majority: the server's word for the most frequent class of the training set (MNLI's and
            QNLI's are even but for a few); the mean for STS-B; for AX, MNLI's.
    """

    name: str
    task: str
    split: str
    rows: int
    majority: str

    @property
    def answered_by(self) -> str:
        """The task whose model answers it."""
        return "mnli" if self.task == "ax" else self.task


ENTRIES = (
    Entry("CoLA", "cola", "test", 1063, "1"),
    Entry("SST-2", "sst2", "test", 1821, "1"),
    Entry("MRPC", "mrpc", "test", 1725, "1"),
    Entry("STS-B", "stsb", "test", 1379, "2.701"),
    Entry("QQP", "qqp", "test", 390965, "0"),
    Entry("MNLI-m", "mnli", "test_matched", 9796, "contradiction"),
    Entry("MNLI-mm", "mnli", "test_mismatched", 9847, "contradiction"),
    Entry("QNLI", "qnli", "test", 5463, "not_entailment"),
    Entry("RTE", "rte", "test", 3000, "entailment"),
    Entry("WNLI", "wnli", "test", 146, "0"),
    Entry("AX", "ax", "ax", 1104, "contradiction"),
)


@dataclass(frozen=True)
class Answers:
    """The server's words [n] for one entry, and where they came from."""

    words: Sequence[str]
    origin: str


def server_words(task: Task, answers: Sequence[str], where: str) -> list[str]:
    """Class names (or numbers, for STS-B) as the server wants them.

    Raises:
        UserError: if one is not a class of the task or no finite number.
    """
    words = []
    for number, answer in enumerate(answers):
        if task.labels is None:
            try:
                value = float(answer)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise UserError(f"{where}: answer {number} is {answer!r}, where a number is due.")
            words.append(f"{min(max(value, 0.0), 5.0):.3f}")
        elif answer not in task.labels:
            raise UserError(
                f"{where}: answer {number} is {answer!r}, which is not one of "
                f"{', '.join(task.labels)}."
            )
        else:
            words.append(str(task.labels.index(answer)) if task.numeric_labels else answer)
    return words


def find_answers(run: Path) -> dict[str, Answers]:
    """Entry name -> answers, from the ``test_results_*.txt`` that ``--do_predict`` left in a run.

    Raises:
        UserError: if one of them is not what a run writes. Files of other data are passed over.
    """
    by_result = {result_name(one.answered_by, one.split): one for one in ENTRIES}
    found = {}
    for path in sorted(run.glob("test_results_*.txt")):
        entry = by_result.get(_canonical(path.stem.removeprefix("test_results_")))
        if entry is not None:
            words = server_words(TASKS[entry.task], _read(path), str(path))
            found[entry.name] = Answers(words, str(path))
    return found


def _canonical(result: str) -> str:
    """``SST-2`` and ``sst-2`` were accepted as ``--task_name`` and stand in the file's name."""
    name = result.removesuffix("-mm")
    try:
        task, is_mini = resolve_task(name)
    except UserError:
        return result
    return result if is_mini else task.name + result.removeprefix(name)


def _read(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    answers = []
    for number, line in enumerate(lines[1:]):
        index, _, answer = line.partition("\t")
        if index != str(number) or not answer:
            raise UserError(f"{path}, line {number + 2}: {line!r}; expected '{number}<TAB>answer'.")
        answers.append(answer)
    if lines[0] != "index\tprediction":
        raise UserError(f"{path} begins with {lines[0]!r}; expected 'index<TAB>prediction'.")
    return answers


def filled(
    answers: Mapping[str, Answers], *, fill: bool, entries: Sequence[Entry] = ENTRIES
) -> dict[str, Answers]:
    """Every entry, those without answers with the most frequent class if ``fill``.

    Raises:
        UserError: if answers are missing and not to be filled, or are not as many as the test set
            has examples.
    """
    missing = [entry for entry in entries if entry.name not in answers]
    if missing and not fill:
        tasks = ", ".join(dict.fromkeys(entry.answered_by for entry in missing))
        raise UserError(
            f"There are no answers for {', '.join(entry.name for entry in missing)}, and the "
            f"server takes all eleven files or none: add runs of {tasks} that were made with "
            "--do_predict, or fill them with the most frequent class by --fill majority."
        )
    for entry in entries:
        found = answers.get(entry.name)
        if found is not None and len(found.words) != entry.rows:
            raise UserError(
                f"{found.origin} has {len(found.words):,} answers for {entry.name}, whose test set "
                f"has {entry.rows:,} examples; predict the whole of it (no --max_test_samples, "
                "and GLUE's own test.tsv)."
            )
    constant = {
        entry.name: Answers([entry.majority] * entry.rows, f"always {entry.majority}")
        for entry in missing
    }
    return {entry.name: answers.get(entry.name) or constant[entry.name] for entry in entries}


def write_submission(path: Path, answers: Mapping[str, Answers]) -> None:
    """Write the zip whole or not at all.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        with atomic_write(path) as new, zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, found in answers.items():
                lines = [f"{index}\t{word}\n" for index, word in enumerate(found.words)]
                archive.writestr(f"{name}.tsv", "index\tprediction\n" + "".join(lines))
    except OSError as error:
        raise UserError(f"{path} could not be written ({error.strerror or error}).") from error
