"""Writes `small_goldens.json`: what the published mechanism gives for drawn weights.

Run it from the root of the repository after a change of `drawn.py`: python tests/parity/make_small_goldens.py
The numbers come from `mechanism.py`, which is compared with the published implementation's own tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from drawn import FIRST_POINTER, VARIANTS, config_of, inputs_of, prompt_length, weights_of, whole_numbers
from mechanism import Mechanism, Row, rows_of
from published_regions import resized, tokens_of_box
from torch import Tensor

FILE = Path(__file__).with_name("small_goldens.json")
POSITIONS, NEW_TOKENS, SIDE, LIMITS = 5, 16, 28, (56 * 56, 448 * 448)


def computed(variant: str) -> dict[str, Any]:
    """Logits at a few places, the parts of the loss, gradients, and greedy continuations of one variant."""
    model = Mechanism(config_of(variant)).load(weights_of(variant))
    rows = rows_of(inputs_of(variant))
    losses = model.losses(rows)
    losses["loss"].backward()
    with torch.no_grad():
        logits = [looked_at(model.logits(row)) for row in rows]
    continued, margins = [], []
    for row in rows:
        ids = row.ids[: prompt_length(row.ids.tolist())]
        tokens, closest = model.continued(Row(ids, ids, row.pixels, row.grid), NEW_TOKENS)
        continued.append(tokens)
        margins.append(closest)
    assert min(margins) > 1e-3, (
        f"{variant}: a decision is too close to call ({min(margins)}); draw other weights"
    )
    return {
        "losses": {name: float(value.detach()) for name, value in losses.items()},
        "logits": logits,
        "gradients": {
            name: looked_at_gradient(value.grad) for name, value in model.published_parameters().items()
        },
        "continued": continued,
    }


def looked_at(logits: Tensor) -> list[dict[str, Any]]:
    """Of `[tokens, classes]` without padding: some rows, each with logsumexp, best class and a few logits."""
    places = torch.linspace(0, len(logits) - 1, POSITIONS).long().tolist()
    step = (logits.shape[1] - FIRST_POINTER) // 4
    return [
        {
            "at": place,
            "logsumexp": float(logits[place].logsumexp(dim=0)),
            "best": int(logits[place].argmax()),
            "text": logits[place, 3:FIRST_POINTER:24].tolist(),
            "pointers": logits[place, FIRST_POINTER::step].tolist(),
        }
        for place in places
    ]


def looked_at_gradient(gradient: Tensor) -> list[float]:
    """The norm, and three values."""
    flat = gradient.flatten()
    return [float(flat.norm()), *flat[[0, len(flat) // 2, len(flat) - 1]].tolist()]


def regions() -> list[dict[str, Any]]:
    """Boxes of whole pixels in images of many sizes, and their tokens."""
    cases = []
    for number in range(24):
        width, height = whole_numbers(f"region {number} size", 2, range(40, 700))
        x1, x2 = sorted(whole_numbers(f"region {number} x", 2, range(width + 1)))
        y1, y2 = sorted(whole_numbers(f"region {number} y", 2, range(height + 1)))
        box = (x1, y1, max(x2, x1 + 1), max(y2, y1 + 1))
        new = resized((width, height), SIDE, *LIMITS)
        columns = new[0] // SIDE
        tokens = tokens_of_box(box, (width, height), new, SIDE)
        first, last = tokens[0], tokens[-1]
        assert len(tokens) == (last // columns - first // columns + 1) * (
            last % columns - first % columns + 1
        )
        cases.append({"size": [width, height], "box": box, "resized": new, "first": first, "last": last})
    return cases


def text(goldens: dict[str, Any]) -> str:
    """JSON with seven digits, one line for each thing that one looks at."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.7g}")
        if isinstance(value, dict):
            return {key: rounded(inner) for key, inner in value.items()}
        return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value

    def lines(value: Any, depth: int) -> str:
        if depth == 0 or not isinstance(value, dict | list):
            return json.dumps(value, separators=(",", ":"))
        if isinstance(value, dict):
            inner = [f"{json.dumps(key)}: {lines(item, depth - 1)}" for key, item in value.items()]
            return "{\n" + ",\n".join(inner) + "\n}"
        return "[\n" + ",\n".join(lines(item, depth - 1) for item in value) + "\n]"

    return lines(rounded(goldens), 4) + "\n"


def all_goldens() -> dict[str, Any]:
    return {"variants": {name: computed(name) for name in VARIANTS}, "regions": regions()}


if __name__ == "__main__":
    FILE.write_text(text(all_goldens()), encoding="utf-8")
    print(f"{FILE}: {FILE.stat().st_size / 1024:.0f} KB")
