"""Many processes train one model: the one that a single process trains on the same batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.batches import GroupedByLength, first_rows, share_of
from adalora.training.build import count_steps
from adalora.training.losses import StepExamples
from adalora.training.trainer import AdaLoraTrainer

PROGRAM = Path(__file__).with_name("parallel_program.py")
#: Number of processes -> the ways of training in so many. The fourth of four has no examples in the
#: last step of an epoch of 45, and neither has the second of two with 42.
WAYS = {
    1: ("plain", "double", "accumulated", "empty"),
    2: (
        # Processes on GPUs find one another.
        *(() if torch.cuda.is_available() else ("lone",)),
        *("plain", "double", "accumulated", "empty", "bf16"),
        *("sharded", "sharded-and-checkpointing", "sharded-bf16"),
    ),
    4: ("double",),
}

End = tuple[dict[str, Any], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def folder_of(
    tmp_path_factory: pytest.TempPathFactory, launch: Callable[..., None]
) -> Callable[[int], Path]:
    """Where so many processes have left how each way of training ended; all are made at once."""
    folder: Path = tmp_path_factory.mktemp("jobs")
    launch(PROGRAM, str(folder), *(f"{count}:{','.join(ways)}" for count, ways in WAYS.items()))
    return lambda processes: folder / str(processes)


@pytest.fixture
def ends(folder_of: Callable[[int], Path]) -> Callable[[int, str], End]:
    """How a way of training ended in so many processes."""

    def end(processes: int, way: str) -> End:
        folder = folder_of(processes)
        result = json.loads((folder / f"{way}.json").read_text(encoding="utf-8"))
        return result, load_file(folder / f"{way}.safetensors")

    return end


def distance(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The largest difference of a parameter, relative to its norm or a thousandth."""
    assert one.keys() == two.keys()
    return max(
        float((value - two[name]).norm() / value.norm().clamp(min=1e-3))
        for name, value in one.items()
    )


# --- the same model -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "way", "bound"),
    # Sums in another order: a few hundred units of the type's last place after twelve steps.
    [
        *((2, "double", 1e-12), (4, "double", 1e-12)),
        *((2, "plain", 1e-4), (2, "accumulated", 1e-4), (2, "empty", 1e-4)),
    ],
)
def test_many_processes_end_as_one(
    ends: Callable[[int, str], End], processes: int, way: str, bound: float
) -> None:
    """Each epoch ends with 9 examples of a step's 12, or with 6: then one process has none."""
    (one, parameters), (many, theirs) = ends(1, way), ends(processes, way)
    assert many["ranks"] == one["ranks"]
    assert many["budgets"] == one["budgets"]
    assert sum(one["ranks"].values()) == 12
    assert distance(parameters, theirs) < bound
    # The Trainer logs each step's loss in float32.
    assert many["losses"] == pytest.approx(one["losses"], abs=1e-6)
    assert len(one["losses"]) == 12


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_a_validation_set_that_does_not_divide_is_scored_on_each_example_once(
    ends: Callable[[int, str], End], processes: int
) -> None:
    (one, _), (many, _) = ends(1, "double"), ends(processes, "double")
    assert many["scores"]["count"] == one["scores"]["count"] == 31
    assert many["scores"]["accuracy"] == one["scores"]["accuracy"]
    assert many["scores"]["loss"] == pytest.approx(one["scores"]["loss"], abs=1e-7)


# --- processes that are no job --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="processes on GPUs find one another")
def test_two_real_processes_are_one_job_or_all_end_with_the_reason(
    folder_of: Callable[[int], Path],
) -> None:
    """``lone_processes.py`` says what is refused; both have come to its end."""
    assert {path.name for path in folder_of(2).glob("refused-*")} == {"refused-0", "refused-1"}


# --- a divided base -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whole", "divided"),
    [
        ("plain", "sharded"),
        ("plain", "sharded-and-checkpointing"),
        ("bf16", "sharded-bf16"),
    ],
)
def test_a_divided_base_changes_no_bit_of_what_is_trained(
    ends: Callable[[int, str], End], whole: str, divided: str
) -> None:
    (plain, parameters), (sharded, theirs) = ends(2, whole), ends(2, divided)
    assert sharded.pop("type").startswith("FSDP")
    assert not plain.pop("type").startswith("FSDP")
    assert sharded == plain
    for name, value in parameters.items():
        assert torch.equal(value, theirs[name]), name


# --- shares ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("total", range(1, 13))
def test_the_weighted_mean_over_processes_is_the_mean_over_examples(
    processes: int, total: int
) -> None:
    size = 12 // processes
    losses = torch.arange(1.0, total + 1, dtype=torch.float64)
    means = []
    for process in range(processes):
        share = share_of(size, total=total, process=process, processes=processes)
        own = losses[process * size : process * size + size]
        assert share.rows == len(own)
        weight = StepExamples((share.rows,), share.total).weight(last=True, processes=processes)
        means.append(weight * own.mean().item() if len(own) else weight)
    assert sum(means) / processes == pytest.approx(losses.mean().item(), rel=1e-14)


def test_a_process_without_examples_of_its_own_still_computes_one() -> None:
    batch = {"input_ids": torch.ones(4, 7), "labels": torch.ones(4), "note": "kept"}
    cut = first_rows(batch, 0)
    assert cut["input_ids"].shape == (1, 7)
    assert cut["labels"].shape == (1,)
    assert cut["note"] == "kept"


# --- order and length -----------------------------------------------------------------------------


def test_the_order_by_length_is_of_seed_and_epoch_alone() -> None:
    lengths = [3 + (7 * index) % 20 for index in range(60)]
    orders = []
    for draws in (0, 5):
        torch.rand(draws)  # what dropout does to the generator, differently in each process
        sampler = GroupedByLength(8, seed=1, lengths=lengths)
        epochs = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            epochs.append(list(sampler))
        orders.append(epochs)
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]
    assert sorted(orders[0][0]) == list(range(60))


def test_the_trainer_groups_by_length_over_all_processes(
    make_model: Callable[..., Any],
    make_arguments: Callable[..., Any],
    examples: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = make_arguments(train_sampling_strategy="group_by_length", data_seed=9)
    model = make_model()
    trainer = AdaLoraTrainer(
        model=model,
        args=arguments,
        adaptation=AdaLora(model, AdaLoraSettings(target_rank=1)),
        train_dataset=examples,
    )
    monkeypatch.setattr(type(arguments), "world_size", 3)
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, GroupedByLength)
    assert (sampler.batch_size, sampler.seed) == (8 * 3, 9)


@pytest.mark.parametrize(
    ("examples_", "drop_last", "steps"),
    [(45, False, 4), (45, True, 3), (24, True, 2), (48, False, 4)],
)
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_the_steps_of_an_epoch_do_not_depend_on_the_number_of_processes(
    make_arguments: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    examples_: int,
    drop_last: bool,
    steps: int,
    processes: int,
) -> None:
    arguments = make_arguments(
        per_device_train_batch_size=12 // processes,
        dataloader_drop_last=drop_last,
        max_steps=-1,
        num_train_epochs=1,
    )
    monkeypatch.setattr(type(arguments), "world_size", processes)
    assert count_steps(examples_, arguments) == steps
