"""Folders of sweeps as `v1lit sweep` and `lightning run` leave them, with numbers of a test's choice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = "# command: v1lit run tiny\n# seed: {seed}\n# git: abc\n# torch: {torch}\nseed_everything: {seed}\n"


def write_sweep(folder: Path, trials: Sequence[Mapping[str, Any]], **more: Any) -> Path:
    """Write `sweep.json`; a trial has at least `name`, `settings` and `seed`."""
    axes: dict[str, list[str]] = {}
    for trial in trials:
        for axis, label in trial["settings"].items():
            labels = axes.setdefault(axis, [])
            labels += [label] if label not in labels else []
    content = {
        "name": "made_up",
        "recipe": "tiny_qwen",
        "axes": axes,
        "seeds": sorted({trial["seed"] for trial in trials}),
        "metrics": ["val/loss"],
        "baseline": None,
        "budget": {"steps": 20},
        "trials": [{"changes": {}, **trial} for trial in trials],
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def note(folder: Path, trial: str, state: str, attempt: int = 1, **more: Any) -> None:
    """Append an event to the ledger."""
    time = "2026-01-01T12:00:00.000+00:00"
    line = json.dumps({"time": time, "trial": trial, "state": state, "attempt": attempt, **more})
    with (folder / "ledger.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def write_csv(folder: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write `metrics.csv` as Lightning does: `step` from 0, empty where nothing was logged."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def rates(step: int, seconds: float = 0.5, tokens: float = 200.0, flops: float = 1e9) -> dict[str, float]:
    """A row of training rates after the step with this number, counted from 1."""
    return {
        "step": step - 1,
        "train/seconds_per_step": seconds,
        "train/real_tokens_per_second": tokens,
        "train/flops_per_step": flops,
    }


def write_trial(
    folder: Path,
    name: str,
    seed: int,
    metrics: Mapping[str, float | None],
    rows: Sequence[Mapping[str, float]] = (),
) -> None:
    """Write the folder of a finished trial, and note in the ledger that it ran for ten seconds."""
    run = folder / "trials" / name
    run.mkdir(parents=True)
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (run / "recipe.yaml").write_text(HEAD.format(seed=seed, torch="2.14.1"), encoding="utf-8")
    if rows:
        write_csv(run / "csv", rows)
    note(folder, name, "started")
    note(folder, name, "done", seconds=10.0)


def compared(folder: Path, by_label: Mapping[str, Sequence[float]], **more: Any) -> Path:
    """A finished sweep along one axis `way`: by label the last `val/loss` of the seeds 0, 1, ..."""
    trials = [
        {"name": f"{label}-{seed}", "settings": {"way": label}, "seed": seed}
        for label, values in by_label.items()
        for seed in range(len(values))
    ]
    write_sweep(folder, trials, **more)
    for label, values in by_label.items():
        for seed, value in enumerate(values):
            write_trial(folder, f"{label}-{seed}", seed, {"val/loss": value})
    return folder
