"""One step on an accelerator: ours against transformers with PEFT, at equal and at real lengths.

Written for whoever has the machine: it looks first whether ours is right there, then measures, in
under ten minutes on one GPU, and gives each figure as it comes. Without an accelerator it runs on
the CPU, which is how it is tested; such figures say nothing of a GPU.

``glue_lengths.json`` holds the tokens of real texts in batches of 32 as they come, by DeBERTaV3's
tokenizer: of seven GLUE tasks' examples, ``mnli`` from its diagnostic set.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from adalora.pretrained.deberta.packing import PackedMask
from adalora.pretrained.selfcheck import ENCODERS, compare_ways
from adalora.runtime.device_costs import DeviceCosts
from benchmarks.contenders import CONTENDERS, Step, batch_of, cast_base

LENGTHS = (64, 128, 256, 512)
BATCH = 32
#: Task -> --max_seq_length of its script, to which the original pads.
PADDED = {"mnli": 256, "cola": 64, "sst2": 128, "mrpc": 320, "rte": 320, "stsb": 128, "qnli": 512}
#: Training pairs of MNLI.
MNLI_PAIRS = 392_702
#: Seconds after which nothing new is begun.
PATIENCE = 540.0


def measure(
    *, layers: int, rounds: int, lengths: Sequence[int] = LENGTHS, tasks: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Correctness, then milliseconds per step, launches, waits and memory of every contender.

    Args:
        layers: of the base-shaped encoder.
        rounds: measurements of each contender, in turn; medians are given.
        lengths: of batches of 32 texts of one length.
        tasks: of ``PADDED``, for batches of real lengths; () for all.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    began = time.monotonic()
    result: dict[str, Any] = {"device": _name(device), "layers": layers, "autocast": "bfloat16"}
    for encoder in ENCODERS:
        for low in (None, torch.bfloat16):
            found = compare_ways(encoder, device, low)
            verdict = "agrees" if found.holds else "DISAGREES"
            result[f"{encoder} {found.precision}"] = f"{verdict}, error {found.ours:.1e}"
    yield result

    steps = {name: make(layers) for name, make in CONTENDERS.items()}
    for name, step in steps.items():
        step.bf16 = True
        step.model.to(device)
        if name.startswith("ours"):
            cast_base(step)
    known = json.loads(Path(__file__).with_name("glue_lengths.json").read_text(encoding="utf-8"))
    for length in lengths:
        if time.monotonic() - began < PATIENCE:
            result[f"{BATCH} x {length}"] = _at_one_length(steps, length, device, rounds)
            yield result
    for task in tasks or PADDED:
        if time.monotonic() - began < PATIENCE:
            batches = [known[task][i : i + BATCH] for i in range(0, len(known[task]), BATCH)]
            result[task] = _at_real_lengths(steps, batches, PADDED[task], device, rounds)
            if task == "mnli":
                seconds = result[task]["ms"]["ours"] / 1000 * MNLI_PAIRS / BATCH
                result["MNLI epoch, projected, minutes"] = seconds / 60
            yield result
    # On a CPU compiling takes minutes, and shows nothing of a GPU.
    for name, options in _COMPILED.items() if device.type != "cpu" else ():
        if time.monotonic() - began < PATIENCE:
            result[f"ours, {name}, {BATCH} x 128"] = _compiled(
                steps["ours"], options, device, rounds
            )
            yield result


#: Ways of torch.compile, which takes the padded way through the encoder.
_COMPILED: dict[str, dict[str, Any]] = {
    "compiled": {},
    "compiled with CUDA graphs": {"mode": "reduce-overhead"},
}


def _at_one_length(
    steps: Mapping[str, Step], length: int, device: torch.device, rounds: int
) -> dict[str, Any]:
    texts = [length] * BATCH
    calls = {
        name: partial(step, _there(texts, device, packed=name.startswith("ours")))
        for name, step in steps.items()
    }
    ms = _alternate(calls, device, rounds)
    return {
        "ms": ms,
        "speedup over PEFT AdaLoRA": ms["PEFT AdaLoRA"] / ms["ours"],
        "speedup over PEFT LoRA": ms["PEFT LoRA"] / ms["ours"],
        "AdaLoRA over our LoRA": ms["ours"] / ms["ours, LoRA"],
        "AdaLoRA over frozen": ms["ours"] / ms["ours, frozen"],
        "peak MiB": {name: _peak(call, device) for name, call in calls.items()},
    }


def _at_real_lengths(
    steps: Mapping[str, Step],
    batches: Sequence[Sequence[int]],
    padded_to: int,
    device: torch.device,
    rounds: int,
) -> dict[str, Any]:
    """Ours on real tokens; PEFT's padded to each batch's longest text, and as the original pads."""
    calls: dict[str, Callable[[], object]] = {}
    for name in ("ours", "ours, LoRA", "PEFT AdaLoRA", "PEFT LoRA"):
        ready = [_there(b, device, packed=name.startswith("ours")) for b in batches]
        calls[name] = _next_of(steps[name], ready)
    full = [_there(b, device, packed=False, padded_to=padded_to) for b in batches]
    original = "PEFT AdaLoRA, padded as the original"
    calls[original] = _next_of(steps["PEFT AdaLoRA"], full)
    ms = _alternate(calls, device, max(rounds, len(batches)))
    costs = {}
    for name in ("ours", "PEFT AdaLoRA"):
        with DeviceCosts() as counted:
            calls[name]()
        costs[name] = {"launches": counted.launches.total(), "waits": counted.reads.total()}
    return {
        "ms": ms,
        "speedup over PEFT AdaLoRA": ms["PEFT AdaLoRA"] / ms["ours"],
        "speedup over PEFT LoRA": ms["PEFT LoRA"] / ms["ours"],
        "speedup over the original's padding": ms[original] / ms["ours"],
        "a step": costs,
    }


def _compiled(
    step: Step, options: Mapping[str, Any], device: torch.device, rounds: int
) -> dict[str, Any]:
    """Seconds to compile, and milliseconds of a step after; what torch says if it cannot."""
    model = step.model
    batch = _there([128] * BATCH, device, packed=False)
    try:
        step.model = cast(nn.Module, torch.compile(model, **options))
        began = time.perf_counter()
        step(batch)
        step(batch)
        seconds = time.perf_counter() - began
        ms = _alternate({"ours": partial(step, batch)}, device, rounds)["ours"]
    except Exception as error:  # compilers raise whatever they meet; the other figures stand
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    finally:
        step.model = model
        torch.compiler.reset()
    return {"seconds to compile": seconds, "ms": ms}


def _there(
    lengths: Sequence[int], device: torch.device, *, packed: bool, padded_to: int | None = None
) -> dict[str, Tensor]:
    """A batch on the device; with its packing, as the collator makes it, for ours."""
    batch = batch_of(lengths, padded_to)
    if packed:
        mask = batch["attention_mask"]
        batch["attention_mask"] = PackedMask.of(mask, recurring=device.type == "cpu")
    return {name: value.to(device) for name, value in batch.items()}


def _next_of(step: Step, batches: Sequence[dict[str, Tensor]]) -> Callable[[], None]:
    turn = cycle(batches)
    return lambda: step(next(turn))


def _alternate(
    calls: Mapping[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, float]:
    """Median milliseconds of each call, in turn, with the device's work done."""
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            _wait(device)
            began = time.perf_counter()
            call()
            _wait(device)
            taken[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in taken.items()}


def _peak(call: Callable[[], object], device: torch.device) -> float | None:
    """Most memory that torch held during a step, in MiB; None where it does not count."""
    if device.type == "cpu":
        return None
    gc.collect()
    torch.accelerator.memory.reset_peak_memory_stats()
    call()
    return torch.accelerator.memory.max_memory_allocated() / 2**20


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return "no accelerator: the CPU" if device.type == "cpu" else device.type
