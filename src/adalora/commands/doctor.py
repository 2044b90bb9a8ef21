"""``adalora doctor``: what this machine is, which ways are taken on it, and whether they are right.

Its text is what belongs into a report of a fault.
"""

from __future__ import annotations

import platform
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from adalora.commands.flags import CommandParser

if TYPE_CHECKING:
    import torch
    from rich.console import Console

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "triton", "numpy")
#: Tokens of each text in the step that is timed: a batch of 32, as short as MNLI's pairs.
LENGTHS = (
    *(77, 41, 49, 57, 23, 31, 29, 34, 17, 25, 49, 22, 51, 24, 27, 73),
    *(42, 72, 29, 64, 47, 51, 25, 42, 22, 72, 86, 29, 30, 30, 26, 23),
)
#: Layers of the base-sized encoder in that step. A CPU has no more patience than for some.
LAYERS = {"cpu": 2}
STEPS = 10


@dataclass(frozen=True)
class Speed:
    """One timed step: tokens per second of the median step, and what a step asks of the device."""

    device: str
    precision: str
    layers: int
    tokens_per_second: float
    launches: int
    reads: int


def main(flags: Sequence[str]) -> int:
    """Print what was found; 1 if a fast way disagrees with the installed one."""
    parser = CommandParser(
        "doctor",
        "Look at this machine: versions and devices, the way that is taken on each and why, each\n"
        "fast way against the installed one, and the speed of ten steps. It takes under a minute.",
        "  adalora doctor",
    )
    parser.parse_args(flags)
    from rich.console import Console

    console = Console(highlight=False)
    from adalora.terminal.summaries import facts_table

    console.print(facts_table(machine()))
    devices = list(devices_here())
    console.print(facts_table([(str(device), way(device)) for device in devices]))
    agrees = _check(console, devices)
    speeds = [speed for device in devices for speed in _speeds(device)]
    _show_speeds(console, speeds)
    for line in advice(devices, speeds):
        console.print(f"- {line}", soft_wrap=True)
    if not agrees:
        console.print("A fast way disagrees with the installed one: please report this text.")
    return 0 if agrees else 1


def machine() -> list[tuple[str, str]]:
    """What the machine is, and the versions on it."""
    import torch

    from adalora import __version__
    from adalora.runtime.machine import available_memory, processor_name, usable_cores

    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} absent")
    return [
        ("adalora", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"),
        ("packages", ", ".join(found)),
        ("processor", f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"),
        ("cores, threads", f"{usable_cores()}, {torch.get_num_threads()}"),
        ("memory", f"{available_memory() / 2**30:.1f} GiB available"),
    ]


def devices_here() -> Iterator[torch.device]:
    """The CPU, and each accelerator that torch sees."""
    import torch

    yield torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        for index in range(torch.accelerator.device_count()):
            yield torch.device(accelerator.type, index)


def way(device: torch.device) -> str:
    """Which attention DeBERTaV3 gets on ``device``, and why."""
    import torch

    if device.type == "cpu":
        return "unpadded; attention by groups of similar length, which suit a processor's cache"
    name = torch.cuda.get_device_name(device) + ": " if device.type == "cuda" else ""
    if device.type == "cuda" and find_spec("triton") is not None:
        return f"{name}unpadded; Triton kernels attend to all sequences at once"
    return f"{name}unpadded; padded for the attention alone, as Triton is not here"


def precisions(device: torch.device) -> list[torch.dtype | None]:
    """Dtypes of autocast to look at on ``device``; None is float32."""
    import torch

    if device.type == "cuda":
        bf16 = [torch.bfloat16] if torch.cuda.is_bf16_supported(including_emulation=False) else []
        return [None, *bf16, torch.float16]
    return [None, torch.bfloat16]


def _check(console: Console, devices: Sequence[torch.device]) -> bool:
    """Compare every way in every precision; whether all agree."""
    from rich.table import Table

    from adalora.pretrained.selfcheck import ENCODERS, compare_ways

    table = Table("encoder", "device", "precision", "our error", "installed", "", box=None)
    found = []
    for device in devices:
        for encoder in ENCODERS:
            for low in precisions(device):
                one = compare_ways(encoder, device, low)
                found.append(one.holds)
                table.add_row(
                    one.encoder,
                    one.device,
                    one.precision,
                    f"{one.ours:.1e}",
                    f"{one.installed:.1e}",
                    "agrees" if one.holds else "DISAGREES",
                )
    console.print(table)
    return all(found)


def _speeds(device: torch.device) -> Iterator[Speed]:
    import torch

    from adalora.runtime.device_costs import DeviceCosts

    layers = LAYERS.get(device.type, 12)
    for low in precisions(device):
        if low == torch.float16 and torch.bfloat16 in precisions(device):
            continue
        step = _step(device, layers, low)
        step()
        with DeviceCosts() as costs:
            step()
        seconds = []
        for _ in range(STEPS):
            started = time.perf_counter()
            step()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            seconds.append(time.perf_counter() - started)
        yield Speed(
            str(device),
            str(low or torch.float32).removeprefix("torch."),
            layers,
            sum(LENGTHS) / statistics.median(seconds),
            costs.launches.total(),
            costs.reads.total(),
        )


def _step(device: torch.device, layers: int, low: torch.dtype | None) -> Any:
    """A whole training step of ``--apply_adalora`` on a base-sized DeBERTaV3 of random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from adalora.pretrained.deberta.packing import PackedMask
    from adalora.pretrained.deberta.patch import patch
    from adalora.pretrained.loading import describe_task
    from adalora.pretrained.selfcheck import DEBERTA_V3
    from adalora.training.adaptation import AdaLora
    from adalora.training.arguments.parser import parse_arguments
    from adalora.training.build import adapt

    words = ["--apply_adalora", "--model_name_or_path", "nano", "--task_name", "mini-sst2"]
    method = parse_arguments(words).method
    sizes = {"vocab_size": 1000, "num_hidden_layers": layers, "num_labels": 2}
    config = AutoConfig.for_model("deberta-v2", **sizes, **DEBERTA_V3)
    describe_task(config, labels=None, is_regression=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = adapt(patch(AutoModelForSequenceClassification.from_config(config)), method).model
        ids = torch.randint(5, 1000, (len(LENGTHS), max(LENGTHS)))
    model.to(device).train()
    adaptation = AdaLora(model, method.settings)
    adaptation.begin(100_000)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    half = low is not None and device.type == "cpu"
    inputs: dict[str, Any] = {
        "input_ids": (ids * mask).to(device),
        "attention_mask": PackedMask.of(mask, recurring=half).to(device),
        "labels": (torch.arange(len(LENGTHS)) % 2).to(device),
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    taken = 0

    def step() -> None:
        nonlocal taken
        with torch.autocast(device.type, dtype=low or torch.bfloat16, enabled=low is not None):
            loss = model(**inputs).loss
        (loss + adaptation.penalty()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        adaptation.step(taken)
        optimizer.zero_grad()
        taken += 1

    return step


def _show_speeds(console: Console, speeds: Sequence[Speed]) -> None:
    from rich.table import Table

    table = Table("device", "precision", "layers", "tokens/s", "launches", "waits", box=None)
    for speed in speeds:
        table.add_row(
            speed.device,
            speed.precision,
            str(speed.layers),
            f"{speed.tokens_per_second:,.0f}",
            f"{speed.launches:,}",
            str(speed.reads),
        )
    console.print(table)


def advice(devices: Sequence[torch.device], speeds: Sequence[Speed]) -> Iterator[str]:
    """What to change on this machine, a sentence each."""
    import torch

    from adalora.runtime.machine import usable_cores

    only_cpu = all(device.type == "cpu" for device in devices)
    if only_cpu and shutil.which("nvidia-smi"):
        built = torch.version.cuda
        why = f"sees none (CUDA {built})" if built else "is a build without CUDA"
        yield f"There is an NVIDIA driver, and this PyTorch {why}: install a build for CUDA."
    if any(device.type == "cuda" for device in devices) and find_spec("triton") is None:
        yield "Triton is missing, and with it the fast attention: pip install triton."
    if torch.get_num_threads() > (cores := usable_cores()):
        yield (
            f"PyTorch takes {torch.get_num_threads()} threads on {cores} cores: "
            f"set OMP_NUM_THREADS={cores}."
        )
    for device in devices:
        by = {s.precision: s.tokens_per_second for s in speeds if s.device == str(device)}
        if "bfloat16" in by and "float32" in by:
            ratio = by["bfloat16"] / by["float32"]
            verdict = "use it" if ratio > 1.1 else "leave it out"
            yield f"On {device} a step under --bf16 is {ratio:.2f} times as fast: {verdict}."
