#!/usr/bin/env python
"""Check a GLUE submission: ``python scripts/check_submission.py submission.zip``.

Written from the format that GLUE publishes (gluebenchmark.com, its FAQ and sample submission) and
from nothing of this project, so that it can find the project's mistakes. Standard library alone.
"""

from __future__ import annotations

import re
import sys
import zipfile

NLI = {"entailment", "neutral", "contradiction"}
TWO_WAY = {"entailment", "not_entailment"}
BINARY = {"0", "1"}

#: File -> (test examples, permitted answers; None: a number from 0 to 5).
FORMAT: dict[str, tuple[int, set[str] | None]] = {
    "CoLA.tsv": (1_063, BINARY),
    "SST-2.tsv": (1_821, BINARY),
    "MRPC.tsv": (1_725, BINARY),
    "STS-B.tsv": (1_379, None),
    "QQP.tsv": (390_965, BINARY),
    "MNLI-m.tsv": (9_796, NLI),
    "MNLI-mm.tsv": (9_847, NLI),
    "QNLI.tsv": (5_463, TWO_WAY),
    "RTE.tsv": (3_000, TWO_WAY),
    "WNLI.tsv": (146, BINARY),
    "AX.tsv": (1_104, NLI),
}


def problems_of(path: str) -> list[str]:
    """What the server would refuse, or misread; empty if nothing."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        return [f"{path} is no zip file: {error}"]
    with archive:
        names = archive.namelist()
        problems = [f"{name} is missing" for name in FORMAT if name not in names]
        problems += [f"{name} does not belong there" for name in names if name not in FORMAT]
        problems += [f"{name} is there twice" for name in set(names) if names.count(name) > 1]
        for name in FORMAT:
            if name in names:
                problems += _problems_of_file(name, archive.read(name))
    return problems


def _problems_of_file(name: str, content: bytes) -> list[str]:
    rows, permitted = FORMAT[name]
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError:
        return [f"{name} is not plain text"]
    lines = text.removesuffix("\n").split("\n")
    if lines[0] != "index\tprediction":
        return [f"{name} begins with {lines[0]!r} instead of 'index<TAB>prediction'"]
    if len(lines) - 1 != rows:
        return [f"{name} has {len(lines) - 1} predictions instead of {rows}"]
    for index, line in enumerate(lines[1:]):
        cells = line.split("\t")
        if len(cells) != 2 or cells[0] != str(index):
            return [f"{name}: {line!r} stands where the answer to example {index} should"]
        if not _is_permitted(cells[1], permitted):
            return [f"{name}: the answer to example {index} is {cells[1]!r}"]
    return []


def _is_permitted(answer: str, permitted: set[str] | None) -> bool:
    if permitted is not None:
        return answer in permitted
    return re.fullmatch(r"\d+(\.\d+)?", answer) is not None and 0 <= float(answer) <= 5


def main() -> int:
    """Print the problems; 1 if there are any, 2 without a file."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    problems = problems_of(sys.argv[1])
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{sys.argv[1]}: all {len(FORMAT)} files are as the GLUE server takes them.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
