"""``adalora submit RUN... -o submission.zip``: the zip that the GLUE server takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adalora.commands.flags import CommandParser, add_output_flags, check_output, positive
from adalora.errors import UserError

if TYPE_CHECKING:
    from adalora.glue.submission import Answers

EXAMPLES = """  adalora submit output/glue/* -o submission.zip
  adalora submit output/rte output/mnli -o submission.zip --fill majority
  adalora submit output/rte --data_dir glue_data -o submission.zip --fill majority"""


def main(flags: Sequence[str]) -> int:
    """Collect the answers, or predict them, and write the zip."""
    parser = CommandParser(
        "submit",
        "Write the eleven files that the GLUE server takes, from runs on its tasks.",
        EXAMPLES,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, one a task")
    add_output_flags(parser, "ZIP", "file to write", required=True)
    parser.add_argument(
        "--fill",
        choices=("majority",),
        help="answer a task that no run answers with its most frequent class; refused otherwise",
    )
    parser.add_argument(
        "--data_dir",
        help="folder of the official GLUE files: a run that has no test results (--do_predict) is "
        "made to predict now",
    )
    parser.add_argument("--batch_size", type=positive, default=32, help="texts in one pass")
    parser.add_argument("--device", help="cpu, cuda, ...; default: the GPU if there is one")
    arguments = parser.parse_args(flags)

    from adalora.glue.submission import ENTRIES, filled, write_submission

    check_output(arguments.output, overwrite=arguments.overwrite)
    answers: dict[str, Answers] = {}
    for run in arguments.runs:
        for name, found in _of_run(run, arguments).items():
            if name in answers:
                raise UserError(
                    f"Two runs answer {name}: {answers[name].origin} and {found.origin}; give one "
                    "run a task."
                )
            answers[name] = found
    complete = filled(answers, fill=arguments.fill == "majority")
    write_submission(arguments.output, complete)
    for entry in ENTRIES:
        mark = "" if entry.name in answers else "  (filled: no run answers it)"
        print(f"{entry.name + '.tsv':<12} {entry.rows:>7}  {complete[entry.name].origin}{mark}")
    print(f"Wrote {arguments.output}; upload it at https://gluebenchmark.com/submit.")
    return 0


def _of_run(run: str, arguments: argparse.Namespace) -> dict[str, Answers]:
    """The answers that a run left, or gives now."""
    from adalora.glue.submission import find_answers

    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name a run's folder (its --root_output_dir).")
    found = find_answers(folder)
    if found:
        return found
    if arguments.data_dir is None:
        others = [path.name for path in folder.glob("test_results_*.txt")]
        what = f"only {', '.join(others)}, which are of no task of GLUE" if others else "none"
        raise UserError(
            f"{folder} has no test results of a GLUE task ({what}): run it again with "
            "--do_predict, or give --data_dir to let its model predict now."
        )

    return predict_answers(
        folder, arguments.data_dir, batch_size=arguments.batch_size, device=arguments.device
    )


def predict_answers(
    run: Path, data_dir: str, *, batch_size: int = 32, device: str | None = None
) -> dict[str, Answers]:
    """Entry name -> answers, for the test sets in ``data_dir`` that the model's task has.

    A model of MNLI answers the diagnostic set (AX) as well, where its file is there.

    Raises:
        UserError: if the model is of no GLUE task, or its test data are missing.
    """
    from adalora.glue.load import DataSource, load_data
    from adalora.glue.submission import ENTRIES, Answers, server_words
    from adalora.glue.tasks import TASKS
    from adalora.inference.classifier import Prediction, known_task, load

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
