"""A run that was stopped anywhere and goes on, against one that never stopped: bit for bit."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from adalora.errors import UserError
from adalora.storage.nested import load_state, save_state
from adalora.storage.snapshots import publish, read_manifest, snapshots, staging_folder
from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.trainer import AdaLoraTrainer

Make = Callable[..., Any]
PROJECT_ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
SETTINGS = AdaLoraSettings(target_rank=1, init_warmup=2, final_warmup=4, mask_interval=2)


@pytest.fixture
def build(make_model: Make, make_arguments: Make, examples: list[Any], tmp_path: Path) -> Make:
    """Makes a trainer over a fresh model in the folder ``tmp_path / name``."""

    def make(name: str, **changes: Any) -> AdaLoraTrainer:
        settings = changes.pop("method", SETTINGS)
        model = make_model(dropout=0.1, init_rank=changes.pop("init_rank", 2))
        values = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 5} | changes
        return AdaLoraTrainer(
            model=model,
            args=make_arguments(root_output_dir=str(tmp_path / name), **values),
            adaptation=AdaLora(model, settings),
            train_dataset=examples,
            eval_dataset=examples[:16],
        )

    return make


class DrawAtTheStart(TrainerCallback):  # type: ignore[misc]
    """As a logger may, which draws itself a name."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.rand(3)


def folder_of(trainer: AdaLoraTrainer) -> Path:
    return Path(str(trainer.args.output_dir))


def continue_from(trainer: AdaLoraTrainer, checkpoint: Path) -> AdaLoraTrainer:
    """Copy a checkpoint into the run's folder and train on from it, with generators astray."""
    mine = folder_of(trainer) / checkpoint.name
    shutil.copytree(checkpoint, mine)
    torch.manual_seed(int.from_bytes(checkpoint.name.encode()) % 2**31)
    trainer.add_callback(DrawAtTheStart())
    trainer.train(resume_from_checkpoint=str(mine))
    return trainer


def assert_same_end(one: AdaLoraTrainer, two: AdaLoraTrainer) -> None:
    """Parameters, and every tensor that the last checkpoint holds, bit for bit."""
    for (name, mine), theirs in zip(
        one.model.named_parameters(), two.model.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    manifests = [read_manifest(snapshots(folder_of(trainer))[-1]) for trainer in (one, two)]
    assert manifests[0].step == manifests[1].step == one.state.max_steps
    digests = [
        {name: digest for name, (_, digest) in manifest.files.items() if name.endswith("tensors")}
        for manifest in manifests
    ]
    assert set(digests[0]) == {f"{name}.safetensors" for name in FILES}
    assert digests[0] == digests[1]
    assert one.adaptation is not None
    assert two.adaptation is not None
    assert one.adaptation.rank_pattern() == two.adaptation.rank_pattern()


def history(trainer: AdaLoraTrainer) -> list[dict[str, Any]]:
    """The log without the times of day."""
    timed = ("runtime", "per_second", "flos")
    return [
        {key: value for key, value in entry.items() if not key.endswith(timed)}
        for entry in trainer.state.log_history
    ]


FILES = ("trainable", "optimizer", "allocator", "process-0")
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    # Five steps an epoch, so that the run ends within one.
    "bf16": {"bf16": True, "per_device_train_batch_size": 10},
    "accumulation": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
    "order drawn from the running generator": {"train_sampling_strategy": "group_by_length"},
    "evaluated and logged at the end of an epoch": {
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
    },
    "evaluated at steps, another optimizer": {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "logging_steps": None,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_after_any_step_a_run_ends_as_if_it_had_not_been(build: Make, variant: str) -> None:
    """Warm-up is steps 1-2, pruning follows every second step, 9-12 are the final phase.

    An epoch has six steps (five in bf16, four with accumulation); its last step is among them.
    """
    whole = build("whole", **VARIANTS[variant])
    whole.train()
    for step in range(1, STEPS + 1) if variant == "float32" else (1, 5, 6, 8, 10, 12):
        resumed = build(f"from-{step}", **VARIANTS[variant], save_steps=STEPS)
        continue_from(resumed, folder_of(whole) / f"checkpoint-{step}")
        assert_same_end(whole, resumed)
        assert history(resumed) == history(whole)


def test_stopped_again_and_again(build: Make) -> None:
    whole = build("whole", train_sampling_strategy="group_by_length")
    whole.train()
    source = folder_of(whole)
    for step in (2, 3, 6, 7, 11):
        chain = build(f"chain-{step}", train_sampling_strategy="group_by_length")
        continue_from(chain, source / f"checkpoint-{step}")
        assert_same_end(whole, chain)
        source = folder_of(chain)


def test_evaluating_does_not_change_training(build: Make) -> None:
    plain = build("plain")
    plain.train()
    evaluated = build("evaluated", eval_strategy="steps", eval_steps=1)
    evaluated.train()
    assert_same_end(plain, evaluated)


def test_true_resumes_from_the_last_sound_checkpoint(
    build: Make, caplog: pytest.LogCaptureFixture
) -> None:
    whole = build("whole")
    whole.train()
    (folder_of(whole) / "checkpoint-12" / "optimizer.safetensors").write_bytes(b"")
    again = build("whole")
    again.train(resume_from_checkpoint=True)
    assert "checkpoint-12 is damaged: optimizer.safetensors has 0 bytes" in caplog.text
    assert_same_end(whole, again)
    with pytest.raises(UserError, match="holds no checkpoint to resume from"):
        build("empty").train(resume_from_checkpoint=True)


def test_a_checkpoint_holds_no_pickle_and_no_base(build: Make) -> None:
    trainer = build("run", save_steps=STEPS)
    trainer.train()
    checkpoint = folder_of(trainer) / f"checkpoint-{STEPS}"
    names = {path.name for path in checkpoint.iterdir()}
    assert names == {"manifest.json", "trainer_state.json", *(f"{x}.safetensors" for x in FILES)}
    documented = (PROJECT_ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", documented, re.DOTALL)
    space: dict[str, Any] = {}
    exec(program.replace("model/checkpoint-12", str(checkpoint)), space)
    assert space["numbers"]["scheduler"]["last_epoch"] == STEPS
    assert space["tensors"]["state/classifier.bias/exp_avg"]["shape"] == [2]
    moments = load_state(checkpoint / "optimizer.safetensors")["state"]
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert set(moments) == set(trained)
    assert all(moments[name]["exp_avg"].shape == p.shape for name, p in trained.items())


# --- flags that were changed ----------------------------------------------------------------------

CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"learning_rate": 1e-3}, "learning_rate: there 0.005, here 0.001"),
    ({"max_steps": 14}, "total_steps: there 12, here 14"),
    ({"max_steps": -1, "num_train_epochs": 3}, "total_steps: there 12, here 18"),
    ({"per_device_train_batch_size": 4}, "per_device_train_batch_size: there 8, here 4"),
    ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps: there 1, here 2"),
    ({"seed": 7}, "seed: there 42, here 7"),
    ({"weight_decay": 0.1}, "weight_decay: there 0.0, here 0.1"),
    ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type: there linear, here cosine"),
    ({"warmup_steps": 2}, "warmup_steps: there 0, here 2"),
    ({"bf16": True}, "bf16: there False, here True"),
    ({"train_sampling_strategy": "sequential"}, "there random, here sequential"),
]
METHODS: list[tuple[dict[str, Any], str]] = [
    ({"init_warmup": 3}, "init_warmup: there 2, here 3"),
    ({"final_warmup": 0.5}, "final_warmup: there 4, here 6"),
    ({"mask_interval": 1}, "mask_interval: there 2, here 1"),
    ({"beta1": 0.5}, "beta1: there 0.85, here 0.5"),
    ({"target_rank": 0}, "target_rank: there 1, here 0"),
    ({"orth_reg_weight": 0.5}, "reg_orth_coef: there 0.1, here 0.5"),
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that outlives a test, for what many start from."""
    folder: Path = tmp_path_factory.mktemp("kept")
    return folder


@pytest.fixture
def at_step_6(build: Make, kept: Path, tmp_path: Path) -> Path:
    """A checkpoint in the middle of a run, the test's own copy."""
    if not (kept / "checkpoint-6").is_dir():
        trainer = build("first", save_steps=6)
        trainer.train()
        shutil.copytree(folder_of(trainer) / "checkpoint-6", kept / "checkpoint-6")
    return Path(shutil.copytree(kept / "checkpoint-6", tmp_path / "checkpoint-6"))


def changed(values: dict[str, Any]) -> AdaLoraSettings:
    own = {name: getattr(SETTINGS, name) for name in SETTINGS.__dataclass_fields__}
    return AdaLoraSettings(**{**own, **values})


def test_every_changed_flag_is_refused_with_both_values(build: Make, at_step_6: Path) -> None:
    trials = [(values, says) for values, says in CHANGES]
    trials += [({"method": changed(values)}, says) for values, says in METHODS]
    trials += [({"init_rank": 3}, "total_rank: there 24, here 36")]
    for values, says in trials:
        trainer = build("second", **values)
        before = [parameter.clone() for parameter in trainer.model.parameters()]
        with pytest.raises(UserError) as caught:
            trainer.train(resume_from_checkpoint=str(at_step_6))
        assert says in str(caught.value), values
        assert "--force_resume" in str(caught.value)
        for one, two in zip(before, trainer.model.parameters(), strict=True):
            assert torch.equal(one, two)


def test_flags_that_change_nothing_in_training_may_change(build: Make, at_step_6: Path) -> None:
    whole = build("whole", save_steps=STEPS)
    whole.train()
    resumed = build("second", save_steps=4, logging_steps=1, eval_strategy="steps", eval_steps=3)
    continue_from(resumed, at_step_6)
    assert [path.name for path in snapshots(folder_of(resumed))] == [
        f"checkpoint-{step}" for step in (6, 8, 12)
    ]
    for (name, one), two in zip(
        whole.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(one, two), name


def test_forced_a_run_goes_on_by_the_new_flags(
    build: Make, at_step_6: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build("second", learning_rate=1e-3, max_steps=20, force_resume=True, logging_steps=1)
    rates: dict[int, float] = {}
    trainer.train(resume_from_checkpoint=str(at_step_6))
    for entry in trainer.state.log_history:
        if "learning_rate" in entry:
            rates[entry["step"]] = entry["learning_rate"]
    assert "learning_rate: there 0.005, here 0.001" in caplog.text
    assert trainer.state.global_step == 20
    # Linear from 1e-3 to 0 at step 20; the record of step n shows the rate that made it.
    assert rates[7] == pytest.approx(1e-3 * (20 - 6) / 20)
    assert trainer.adaptation is not None
    assert sum(trainer.adaptation.rank_pattern().values()) == 12
    assert trainer.adaptation.allocator is not None
    assert trainer.adaptation.allocator.steps_seen == 20


def test_forced_without_a_change_a_run_ends_the_same(build: Make) -> None:
    whole = build("whole")
    whole.train()
    forced = build("forced", force_resume=True)
    assert_same_end(whole, continue_from(forced, folder_of(whole) / "checkpoint-7"))


@pytest.mark.parametrize(
    ("values", "says"),
    [({"init_rank": 3}, "another shape.*lora_A"), ({"optim": "sgd"}, "state of another optimizer")],
)
def test_what_cannot_fit_is_refused_even_by_force(
    build: Make, at_step_6: Path, values: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        build("second", force_resume=True, **values).train(resume_from_checkpoint=str(at_step_6))


def test_callers_settings_are_compared_too(
    make_model: Make, make_arguments: Make, examples: list[Any]
) -> None:
    def trainer(task: str) -> AdaLoraTrainer:
        return AdaLoraTrainer(
            model=make_model(),
            args=make_arguments(max_steps=2, save_strategy="steps", save_steps=2),
            settings={"task_name": task},
            train_dataset=examples,
        )

    trainer("rte").train()
    with pytest.raises(UserError, match="task_name: there rte, here cola"):
        trainer("cola").train(resume_from_checkpoint=True)


# --- which checkpoints there are, and which is the best -------------------------------------------


def test_the_limit_keeps_the_last_and_the_best(build: Make) -> None:
    trainer = build(
        "run",
        save_steps=2,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        learning_rate=0.0,
    )
    trainer.train()
    best = trainer.state.best_global_step
    assert best is not None
    assert best < STEPS
    kept = [path.name for path in snapshots(folder_of(trainer))]
    assert kept == [f"checkpoint-{best}", f"checkpoint-{STEPS}"]
    assert trainer.state.best_model_checkpoint == str(folder_of(trainer) / f"checkpoint-{best}")


@pytest.mark.parametrize("strategy", ["steps", "epoch", "best"])
def test_the_best_checkpoint_comes_back_also_into_a_resumed_run(
    build: Make, strategy: str, tmp_path: Path
) -> None:
    flags: dict[str, Any] = {
        "save_strategy": strategy,
        "save_steps": 2,
        "eval_strategy": "epoch" if strategy == "epoch" else "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "learning_rate": 0.5,
    }
    whole = build("whole", **flags)
    whole.train()
    best = whole.state.best_global_step
    assert whole.evaluate()["eval_loss"] == pytest.approx(whole.state.best_metric, abs=1e-6)
    stored = load_file(folder_of(whole) / f"checkpoint-{best}" / "trainable.safetensors")
    for name, parameter in whole.model.named_parameters():
        assert name not in stored or torch.equal(parameter, stored[name]), name

    # The whole folder moves, as it does between machines, and loses what came after.
    shutil.copytree(tmp_path / "whole", tmp_path / "moved")
    checkpoints = snapshots(tmp_path / "moved" / "model")
    for later in checkpoints[1:]:
        shutil.rmtree(later)
    shutil.rmtree(tmp_path / "whole")
    resumed = build("moved", **flags)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.best_global_step == best
    assert resumed.state.best_model_checkpoint == str(folder_of(resumed) / f"checkpoint-{best}")
    for (name, one), two in zip(
        whole.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(one, two), name


def test_the_best_models_ranks_come_back_with_it(build: Make) -> None:
    """Of equal losses the first counts of those at the final budget, whose last 4 steps count."""
    trainer = build(
        "run",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        learning_rate=0.0,
    )
    trainer.train()
    assert trainer.state.best_global_step == 10
    assert trainer.adaptation is not None
    assert sum(trainer.adaptation.rank_pattern().values()) == 12


def test_a_run_that_saved_the_model_only_cannot_be_resumed(build: Make) -> None:
    trainer = build("run", save_only_model=True, save_steps=6)
    trainer.train()
    with pytest.raises(UserError, match=r"written with --save_only_model.*no optimizer"):
        build("run", save_only_model=True).train(resume_from_checkpoint=True)


# --- checkpoints that hold what they should not ---------------------------------------------------


def rewrite(checkpoint: Path, file: str, change: Callable[[Path], None]) -> None:
    """Change a file and seal the checkpoint anew, so that only its content is wrong."""
    manifest = read_manifest(checkpoint)
    change(checkpoint / file)
    checkpoint.rename(staging_folder(checkpoint))
    (staging_folder(checkpoint) / "manifest.json").unlink()
    publish(checkpoint, step=manifest.step, settings=manifest.settings)


def edit_tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)

    return change


def edit_state(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        state = load_state(path)
        edit(state)
        save_state(state, path)

    return change


def spoil_moments(state: dict[str, Any]) -> None:
    state["state"]["classifier.bias"]["exp_avg"].fill_(float("inf"))


def cut_moments(state: dict[str, Any]) -> None:
    entry = state["state"]["classifier.weight"]
    entry["exp_avg_sq"] = entry["exp_avg_sq"][:1]


def spoil_importance(state: dict[str, Any]) -> None:
    next(iter(state["importance"]["sensitivity"].values())).fill_(float("nan"))


def pickle(path: Path) -> None:
    torch.save({"classifier.bias": torch.zeros(2)}, path)


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("trainable", edit_tensors(lambda t: t.pop("classifier.bias")), "lacks classifier.bias"),
        ("trainable", edit_tensors(lambda t: t.update(x=torch.ones(1))), "holds x, which"),
        (
            "trainable",
            edit_tensors(lambda t: t.update({"classifier.bias": torch.ones(3)})),
            r"another shape: classifier\.bias \(\[3\], expected \[2\]\)",
        ),
        (
            "trainable",
            edit_tensors(lambda t: t["classifier.bias"].fill_(float("nan"))),
            r"NaN or infinity in classifier\.bias",
        ),
        ("trainable", pickle, "is a pickle file of torch.save"),
        ("optimizer", pickle, "is damaged"),
        ("optimizer", edit_state(spoil_moments), r"NaN or infinity in state/classifier\.bias"),
        ("optimizer", edit_state(cut_moments), r"another shape: classifier\.weight exp_avg_sq"),
        ("optimizer", edit_state(lambda s: s["state"].update(x={})), "state for x, which"),
        ("optimizer", edit_state(lambda s: s["groups"]["0"]["params"].pop()), "on one side only"),
        ("optimizer", edit_state(lambda s: s.pop("scheduler")), "does not hold what it should"),
        ("allocator", edit_state(spoil_importance), "NaN or infinity in importance/"),
        ("allocator", edit_state(lambda s: s["survivors"].popitem()), "does not fit this run"),
        ("allocator", edit_state(lambda s: s.pop("schedule")), "does not fit this run"),
        ("process-0", pickle, "is damaged"),
        ("process-0", edit_state(lambda s: s.pop("random")), "does not hold what it should"),
    ],
)
def test_content_that_does_not_belong_is_refused_in_one_sentence(
    build: Make, at_step_6: Path, file: str, change: Callable[[Path], None], says: str
) -> None:
    rewrite(at_step_6, f"{file}.safetensors", change)
    with pytest.raises(UserError, match=says):
        build("second").train(resume_from_checkpoint=str(at_step_6))


def test_a_state_of_the_trainer_that_is_none_is_refused(build: Make, at_step_6: Path) -> None:
    rewrite(at_step_6, "trainer_state.json", lambda path: path.write_text('{"steps": 1}') and None)
    with pytest.raises(UserError, match=r"trainer_state\.json is no trainer's state"):
        build("second").train(resume_from_checkpoint=str(at_step_6))


# --- disks that refuse ----------------------------------------------------------------------------


class BeforeStep(TrainerCallback):  # type: ignore[misc]
    """Does something before a step."""

    def __init__(self, step: int, action: Callable[[], Any]) -> None:
        self.step, self.action = step, action

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            self.action()


@contextmanager
def files_no_larger_than() -> Iterator[Callable[[int], None]]:
    """The kernel refuses to write files beyond a size, until the end of the block."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_went_on_after_the_failure(build: Make, trainer: AdaLoraTrainer, last: int) -> None:
    """Only whole checkpoints are left, and the run goes on from the last as if nothing was."""
    left = snapshots(folder_of(trainer))
    assert left[-1].name == f"checkpoint-{last}"
    assert not list(folder_of(trainer).glob(".checkpoint-*"))
    resumed = build("resumed")
    continue_from(resumed, left[-1])
    whole = build("whole")
    whole.train()
    assert_same_end(whole, resumed)


@pytest.mark.parametrize("size", [200, 8_000, 30_000])
def test_a_write_that_the_system_refuses_ends_the_run_and_spares_what_is_there(
    build: Make, size: int
) -> None:
    trainer = build("run")
    with files_no_larger_than() as limit:
        trainer.add_callback(BeforeStep(5, lambda: limit(size)))
        with pytest.raises(UserError, match=r"checkpoint-5 could not be written \(.*too large"):
            trainer.train()
    assert_went_on_after_the_failure(build, trainer, 4)


def test_a_full_disk_ends_the_run_and_spares_what_is_there(build: Make, small_disk: Path) -> None:
    trainer = build("run")
    trainer.args.output_dir = str(small_disk / "model")
    with pytest.raises(UserError, match=r"could not be written \(.*No space left on device"):
        trainer.train()
    assert trainer.state.global_step > 1
    assert_went_on_after_the_failure(build, trainer, trainer.state.global_step - 1)


def test_a_file_in_a_checkpoints_place_is_not_lost(build: Make) -> None:
    trainer = build("run", save_steps=6)
    obstacle = folder_of(trainer) / "checkpoint-6"
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.write_text("mine")
    with pytest.raises(UserError, match="checkpoint-6 could not be written"):
        trainer.train()
    assert obstacle.read_text() == "mine"


def test_parameters_that_are_not_finite_are_never_saved(build: Make) -> None:
    trainer = build("run")
    spoil = lambda: trainer.model.classifier.bias.data.fill_(float("nan"))  # noqa: E731
    trainer.add_callback(BeforeStep(5, spoil))
    with pytest.raises(UserError, match="training has diverged"):
        trainer.train()
    state = json.loads((folder_of(trainer) / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    assert len(snapshots(folder_of(trainer))) == 4
