"""The protocol's rule for learning rates, as ``scripts/convergence.py`` applies it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LEDGER = ROOT / "docs" / "results" / "variants" / "results.jsonl"


@pytest.fixture(scope="module")
def steps() -> ModuleType:
    found = importlib.util.spec_from_file_location("convergence", ROOT / "scripts/convergence.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def searched(scores: dict[float, tuple[float, ...]], unfit: float | None = None) -> list[Any]:
    """Runs of one method: rate -> accuracy on SST-2 and QNLI; one rate answered one class."""
    return [
        SimpleNamespace(
            cell={"method": "lora", "learning_rate": rate, "task": task},
            record=SimpleNamespace(
                scores={"validation": {"main": "accuracy", "last": {"accuracy": accuracy}}},
                warnings=[{"kind": "one_class"}] if rate == unfit and task == "qnli" else [],
            ),
        )
        for rate, both in scores.items()
        for task, accuracy in zip(("sst2", "qnli"), both, strict=False)
    ]


@pytest.mark.parametrize(
    ("scores", "unfit", "expected"),
    [
        # The smallest within a point of the best mean, whatever one task alone would say.
        (
            {1e-3: (0.80, 0.70), 2e-3: (0.84, 0.72), 4e-3: (0.86, 0.72), 8e-3: (0.5, 0.5)},
            None,
            2e-3,
        ),
        (
            {1e-3: (0.80, 0.70), 2e-3: (0.82, 0.71), 4e-3: (0.86, 0.72), 8e-3: (0.5, 0.5)},
            None,
            4e-3,
        ),
        # A rate at which a run collapsed is neither chosen nor the best that others are near to.
        ({1e-3: (0.80, 0.70), 2e-3: (0.84, 0.72), 4e-3: (0.9, 0.9), 8e-3: (0.5, 0.5)}, 4e-3, 2e-3),
        ({1e-3: (0.8, 0.7), 2e-3: (0.8, 0.7), 4e-3: (0.7, 0.7), 8e-3: (0.7, 0.7)}, 1e-3, 2e-3),
        # Nothing is chosen before all is there.
        ({1e-3: (0.8, 0.7), 2e-3: (0.8, 0.7), 4e-3: (0.8, 0.7)}, None, None),
        ({1e-3: (0.8, 0.7), 2e-3: (0.8, 0.7), 4e-3: (0.8, 0.7), 8e-3: (0.8,)}, None, None),
        ({1e-3: (0.8,), 2e-3: (0.8,), 4e-3: (0.8,), 8e-3: (0.8,)}, None, None),
    ],
)
def test_the_rule_of_the_protocol(
    steps: ModuleType,
    scores: dict[float, tuple[float, ...]],
    unfit: float | None,
    expected: float | None,
) -> None:
    rate, means, left_out = steps.choose(searched(scores, unfit))["lora"]
    assert rate == expected
    assert list(means) == sorted(scores)
    assert left_out == ([] if unfit is None else [unfit])


def test_the_ledger_is_copied_line_by_line_with_other_paths(
    steps: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "results.jsonl").write_text(LEDGER.read_text(encoding="utf-8"), encoding="utf-8")
    target = tmp_path / "docs" / "results.jsonl"
    steps.write_ledger(tmp_path, target, ["GLUE_FOLDER=GLUE", "output/sweeps=sweeps"])
    before, after = ([json.loads(x) for x in f.open()] for f in (LEDGER, target))
    assert [one["id"] for one in after] == [one["id"] for one in before]
    assert {one["record"]["flags"]["data_dir"] for one in after} == {"GLUE"}
    assert "output/sweeps" not in target.read_text(encoding="utf-8")
    scores = [[one["record"]["scores"] for one in ledger] for ledger in (before, after)]
    assert scores[0] == scores[1]
