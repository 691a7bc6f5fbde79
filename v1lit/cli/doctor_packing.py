"""`v1lit doctor --packing RECIPE`: whether packed examples are as good as alone, on a model and its data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from rich.table import Table

from v1lit.backbones.attention import choose_attention
from v1lit.cli.recipe import compose
from v1lit.cli.recipe_cli import RecipeCLI
from v1lit.console import Console, screen
from v1lit.data.encode.encoding import encode
from v1lit.training.packing_check import PackingCheck, check_packing

EXAMPLES = 6
HALF = {"bf16": torch.bfloat16, "16": torch.float16}
"""What Lightning's precisions begin with, where they compute in less than float32."""


def check_recipe(name: str, changes: Sequence[str]) -> int:
    """Run the check on a recipe's model and the first training examples; returns the exit code."""
    cli = RecipeCLI(compose(name, changes))
    module, data = cli.model_and_data()
    precision = str(cli.config["trainer"]["precision"] or "32-true")
    data.prepare_data()
    drawn = islice(data.examples("train"), EXAMPLES)
    examples = [encode(example, data.processor, data.encoding) for example in drawn]
    module.configure_model()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, how = precision.partition("-")
    dtype = HALF.get(kind, module.model.dtype)
    module.to(dtype if how == "true" and kind in HALF else module.model.dtype)
    module.to(device)
    choice = choose_attention(module.backbone_config.attention, device, dtype, module.model.is_causal)
    module.model.use_attention(choice.name)
    print(f"{choice.line}\nprecision: {precision}")
    with torch.autocast(device.type, dtype, enabled=how == "mixed"):
        check = check_packing(module.model, examples, data.processor.pad_token_id, dtype)
    print_check(check, screen())
    return 0 if check.passed else 1


def print_check(check: PackingCheck, console: Console) -> None:
    """One line per example, then the gradients and the verdict."""
    table = Table(title=f"{len(check.examples)} examples in one row, and each alone")
    for column in ("tokens", "images", "loss alone", "packed", "differ", "leak"):
        table.add_column(column, justify="right")
    table.add_column("example", no_wrap=True)
    for example in check.examples:
        table.add_row(
            str(example.tokens),
            str(example.images),
            f"{example.alone:.6g}",
            f"{example.packed:.6g}",
            f"{example.difference:.1e}",
            f"{example.leak:.1e}",
            example.id,
        )
    console.print(table)
    print(f"differ: relative difference of the losses; rounding explains up to {check.tolerance:.0e}")
    print("leak: change of an example's losses when the text of all others is replaced; must be exactly 0")
    print(f"gradients differ by at most {check.gradient:.1e} of a parameter's largest, in {check.parameter}")
    if check.passed:
        print("packed equals alone: nothing leaks from one example into another")
    else:
        print(
            "packed does NOT equal alone: this backbone must not be trained on flat batches; please report it"
        )
