"""``adalora submit``, judged by the checker that was written from GLUE's published format."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from tests.conftest import Glue
from tests.program import SMALL, run_program

from adalora.cli import main
from adalora.commands.submit import predict_answers
from adalora.errors import UserError
from adalora.glue.submission import (
    ENTRIES,
    Answers,
    filled,
    find_answers,
    server_words,
    write_submission,
)
from adalora.glue.tasks import TASKS


@pytest.fixture(scope="session")
def checker(project_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "check_submission", project_root / "scripts" / "check_submission.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def constant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A submission of the most frequent classes alone."""
    path: Path = tmp_path_factory.mktemp("submission") / "constant.zip"
    write_submission(path, filled({}, fill=True))
    return path


def model_of(make: Callable[..., Path], name: str) -> Path:
    """An artefact of a GLUE task whose trained parameters are random."""
    task = TASKS[name]
    keys = tuple(key for key in (task.sentence1_key, task.sentence2_key) if key is not None)
    return make("frd", labels=task.labels, columns=keys, task=name)


def write_results(folder: Path, name: str, answers: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [f"{index}\t{answer}\n" for index, answer in enumerate(answers)]
    (folder / f"test_results_{name}.txt").write_text("index\tprediction\n" + "".join(lines))


# ---- the format ----


def test_the_checker_takes_a_submission_that_is_filled_and_all_eleven_are_in_it(
    constant: Path, checker: ModuleType
) -> None:
    assert checker.problems_of(str(constant)) == []
    assert zipfile.ZipFile(constant).namelist() == list(checker.FORMAT)


@pytest.mark.parametrize(
    ("name", "spoil", "problem"),
    [
        ("RTE.tsv", lambda text: None, "RTE.tsv is missing"),
        ("RTE.tsv", lambda text: text.replace("index\tprediction", "id\tlabel"), "begins with"),
        ("RTE.tsv", lambda text: text.removesuffix("2999\tentailment\n"), "2999 predictions"),
        ("RTE.tsv", lambda text: text.replace("\n7\t", "\n8\t"), "example 7"),
        ("RTE.tsv", lambda text: text.replace("5\tentailment", "5\tneutral"), "'neutral'"),
        ("CoLA.tsv", lambda text: text.replace("9\t1", "9\tacceptable"), "'acceptable'"),
        ("STS-B.tsv", lambda text: text.replace("12\t2.701", "12\t5.001"), "'5.001'"),
        ("STS-B.tsv", lambda text: text.replace("12\t2.701", "12\tnan"), "'nan'"),
    ],
)
def test_the_checker_finds_what_is_wrong(
    constant: Path,
    checker: ModuleType,
    tmp_path: Path,
    name: str,
    spoil: Callable[[str], str | None],
    problem: str,
) -> None:
    spoiled = tmp_path / "spoiled.zip"
    with zipfile.ZipFile(constant) as source, zipfile.ZipFile(spoiled, "w") as target:
        for member in source.namelist():
            text: str | None = source.read(member).decode()
            if member == name:
                assert text is not None
                text = spoil(text)
            if text is not None:
                target.writestr(member, text)
    found = checker.problems_of(str(spoiled))
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize(
    ("task", "answers", "words"),
    [
        ("cola", ["acceptable", "unacceptable"], ["1", "0"]),
        ("mrpc", ["not_equivalent", "equivalent"], ["0", "1"]),
        ("qqp", ["duplicate"], ["1"]),
        ("wnli", ["entailment", "not_entailment"], ["1", "0"]),
        ("rte", ["entailment", "not_entailment"], ["entailment", "not_entailment"]),
        ("mnli", ["neutral"], ["neutral"]),
        ("stsb", ["-0.25", "2.34567", "7"], ["0.000", "2.346", "5.000"]),
    ],
)
def test_class_names_become_the_servers_words(
    task: str, answers: list[str], words: list[str]
) -> None:
    assert server_words(TASKS[task], answers, "here") == words


@pytest.mark.parametrize(("task", "answer"), [("rte", "neutral"), ("stsb", "nan"), ("stsb", "x")])
def test_an_answer_that_the_task_does_not_have_is_refused(task: str, answer: str) -> None:
    with pytest.raises(UserError, match=f"here: answer 0 is '{answer}'"):
        server_words(TASKS[task], [answer], "here")


# ---- from runs ----


def test_results_of_runs_keep_their_order_and_fill_is_asked_for(
    tmp_path: Path, checker: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["entailment", "not_entailment", "not_entailment"] * 1000
    write_results(tmp_path / "rte", "rte", words)
    zip_path = tmp_path / "submission.zip"
    command = ["submit", str(tmp_path / "rte"), "-o", str(zip_path)]
    assert main(command) == 2
    assert "no answers for CoLA, SST-2" in capsys.readouterr().err
    assert not zip_path.exists()

    assert main([*command, "--fill", "majority"]) == 0
    assert "WNLI.tsv" in capsys.readouterr().out
    assert checker.problems_of(str(zip_path)) == []
    text = zipfile.ZipFile(zip_path).read("RTE.tsv").decode()
    assert [line.split("\t")[1] for line in text.splitlines()[1:]] == words

    before = zip_path.read_bytes()
    assert main([*command, "--fill", "majority"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert zip_path.read_bytes() == before


def test_the_mnli_run_gives_both_its_sets_and_the_diagnostic_one(tmp_path: Path) -> None:
    for name, answer in (("mnli", "neutral"), ("mnli-mm", "entailment"), ("ax", "contradiction")):
        write_results(tmp_path, name, [answer])
    found = find_answers(tmp_path)
    assert {name: list(one.words) for name, one in found.items()} == {
        "MNLI-m": ["neutral"],
        "MNLI-mm": ["entailment"],
        "AX": ["contradiction"],
    }


@pytest.mark.parametrize("spelling", ["sst2", "SST-2", "sst-2"])
def test_a_task_is_known_by_every_spelling_of_its_name(tmp_path: Path, spelling: str) -> None:
    write_results(tmp_path, spelling, ["positive"])
    assert list(find_answers(tmp_path)) == ["SST-2"]


@pytest.mark.parametrize(
    ("files", "flags", "message"),
    [
        ({"rte": ["entailment"] * 40}, (), "40 answers for RTE, whose test set has 3,000"),
        ({"mini-rte": ["entailment"] * 3000}, (), "which are of no task of GLUE"),
        ({"rte": ["yes"] * 3000}, (), "answer 0 is 'yes'"),
        ({}, (), "again with --do_predict, or give --data_dir"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, list[str]],
    flags: tuple[str, ...],
    message: str,
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name, answers in files.items():
        write_results(run, name, answers)
    output = str(tmp_path / "s.zip")
    assert main(["submit", str(run), "-o", output, "--fill", "majority", *flags]) == 2
    assert message in capsys.readouterr().err


def test_two_runs_of_one_task_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        write_results(tmp_path / name, "rte", ["entailment"] * 3000)
    runs = [str(tmp_path / name) for name in ("first", "second")]
    assert main(["submit", *runs, "-o", str(tmp_path / "s.zip"), "--fill", "majority"]) == 2
    assert "Two runs answer RTE" in capsys.readouterr().err


# ---- from models ----


def test_a_model_of_mnli_answers_its_two_test_sets_and_the_diagnostic_one(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    glue = tmp_path / "glue"
    for name, rows in (("MNLI/test_matched", 3), ("MNLI/test_mismatched", 4)):
        lines = ["\t".join(f"c{column}" for column in range(10))]
        lines += ["\t".join([str(row), *"1234567", f"a {row}", "b"]) for row in range(rows)]
        (glue / name).parent.mkdir(parents=True, exist_ok=True)
        (glue / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    (glue / "diagnostic").mkdir()
    lines = ["index\tsentence1\tsentence2", *(f"{row}\ta cat\ta dog" for row in range(5))]
    (glue / "diagnostic" / "diagnostic.tsv").write_text("\n".join(lines))
    found = predict_answers(model_of(make, "mnli"), str(glue), device="cpu")
    assert {name: len(one.words) for name, one in found.items()} == {
        "MNLI-m": 3,
        "MNLI-mm": 4,
        "AX": 5,
    }
    words = {word for one in found.values() for word in one.words}
    assert words <= {"entailment", "neutral", "contradiction"}
    # The test's own counts, for its own data: what is there passes, what is not is filled.
    small = [
        entry
        if entry.name not in found
        else type(entry)(**{**vars(entry), "rows": len(found[entry.name].words)})
        for entry in ENTRIES
    ]
    complete = filled(found, fill=True, entries=small)
    assert list(complete) == [entry.name for entry in ENTRIES]
    assert complete["MNLI-mm"] is found["MNLI-mm"]


@pytest.mark.slow
def test_nano_runs_on_the_official_test_sets_pass_the_checker(
    tmp_path: Path,
    glue: Glue,
    make: Callable[..., Path],
    checker: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One run that was trained and made to predict, two models that predict now."""
    data = ("--data_dir", str(glue.folder))
    cola = tmp_path / "cola"
    run_program(
        *(*SMALL, *data, "--task_name", "cola", "--max_train_samples", "96", "--do_train"),
        *("--do_predict", "--max_seq_length", "24", "--per_device_eval_batch_size", "64"),
        *("--report_to", "none", "--root_output_dir", cola),
    )
    models = [str(model_of(make, name)) for name in ("stsb", "wnli")]
    output = tmp_path / "submission.zip"
    flags = ["-o", str(output), *data, "--device", "cpu", "--batch_size", "64"]
    assert main(["submit", str(cola), *models, *flags, "--fill", "majority"]) == 0
    assert checker.problems_of(str(output)) == []
    printed = capsys.readouterr().out
    assert printed.count("predicted now by") == 2
    assert printed.count("filled: no run answers it") == 8
    # The order of the answers is that of the file, also where the model sorted by length.
    stsb = zipfile.ZipFile(output).read("STS-B.tsv").decode().splitlines()[1:]
    with (glue.folder / "STS-B" / "test.tsv").open(encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in list(lines)[1:6]]
    from adalora.inference.classifier import load

    now = load(models[0], device="cpu")([(row[7], row[8]) for row in rows])
    for line, value in zip(stsb, now, strict=False):
        assert isinstance(value, float)
        assert float(line.split("\t")[1]) == pytest.approx(min(max(value, 0), 5), abs=2e-3)


def test_a_file_that_is_cut_off_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "test_results_rte.txt").write_text("index\tprediction\n0\tentailment\n1")
    with pytest.raises(UserError, match="line 3: '1'"):
        find_answers(tmp_path)


def test_answers_of_another_length_are_refused_before_anything_is_written() -> None:
    with pytest.raises(UserError, match="3 answers for WNLI, whose test set has 146"):
        filled({"WNLI": Answers(["0"] * 3, "here")}, fill=True)
