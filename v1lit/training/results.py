"""What a run leaves behind when training has ended: model, report, pictures, numbers; each by itself."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from rich.table import Table

from v1lit.backbones.adapters.folder import base_config
from v1lit.console import Console, screen
from v1lit.data.datamodule import V1DataModule
from v1lit.files import aside, write_atomically
from v1lit.inference.generating import settle
from v1lit.inference.predictor import Predictor
from v1lit.training.card import Origin, write_card
from v1lit.training.comparing import available_memory, compare_export
from v1lit.training.config import RunConfig
from v1lit.training.exporting import export_checkpoint
from v1lit.training.lightning_internals import weights_of
from v1lit.training.logged import LOSS, VAL, VAL_POINTING
from v1lit.training.module import V1Module
from v1lit.training.quiet import no_weights_bar
from v1lit.training.report import HeldOutAnswer, ask_held_out, draw_pictures, score
from v1lit.training.resuming import VALIDATED, refuse_other_model
from v1lit.training.saved_state import like, load_parts, read_checkpoint


class ResultsIncompleteError(RuntimeError):
    """Training is done, but a part of what follows failed; the message says which, and how to make it."""


@dataclass(frozen=True)
class ChosenWeights:
    """Which weights are exported and reported on."""

    load: Path | None
    """The checkpoint that has them; None for those that the module holds."""
    kept: Path | None
    """The checkpoint that keeps them, or at least the last ones, whatever happens."""
    val_loss: float | None = None
    """Theirs, where validation chose them."""


class ResultParts:
    """Does one part after another; what one raises does not keep the others from being made."""

    def __init__(self) -> None:
        self.failed: list[tuple[str, Exception]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Note and tell what is raised inside, but for a KeyboardInterrupt and its like."""
        try:
            yield
        except Exception as error:
            self.failed.append((name, error))
            said = str(error).strip().partition("\n")[0]
            sys.stderr.write(f"{name} failed: {type(error).__name__}{': ' * bool(said)}{said}\n")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # for the parts that follow

    def check(self, folder: Path, kept: Path | None) -> None:
        """Raise ResultsIncompleteError if a part failed."""
        if not self.failed:
            return
        names, errors = zip(*self.failed, strict=True)
        for earlier, later in pairwise(errors):  # a traceback then shows them all
            later.__context__ = later.__context__ or earlier
        where = "there is no checkpoint of it" if kept is None else f"its checkpoint is {kept}"
        raise ResultsIncompleteError(
            f"the training is done, and {where}; but this failed: {', '.join(names)}\n"
            f"make the rest, without training, with: v1lit report {folder}"
        ) from errors[-1]


def make_results(
    module: V1Module,
    data: V1DataModule,
    run: RunConfig,
    folder: Path,
    metrics: dict[str, float],
    weights: ChosenWeights,
    device: torch.device,
) -> dict[str, float]:
    """Export the model, report on held-out examples, draw pictures, write `metrics.json`.

    Args:
        module: that was trained; it has the chosen weights afterwards.
        data: whose validation examples are held out.
        run: what is to be made.
        folder: of the run.
        metrics: what training has measured.
        weights: which ones.
        device: to generate on.

    Returns what `metrics.json` holds. Raises ResultsIncompleteError, after all other parts, if one failed.
    """
    parts, predictor, answers, check = ResultParts(), None, list[HeldOutAnswer](), ""
    if weights.val_loss is not None:
        if weights.load is not None:
            with parts.part("measures of validation"):
                metrics = metrics | read_checkpoint(weights.load).get(VALIDATED, {})
        metrics = {**metrics, "val/loss": weights.val_loss}
    by_parts = weights.load is not None and weights.load.is_dir()
    if weights.load is not None and by_parts and run.export:
        with parts.part("export"):
            check = export_by_parts(weights.load, folder / "model")
    if (run.export and not by_parts) or run.report_examples:
        with parts.part("opening the model"):
            if weights.load is not None:
                load_weights(module, weights.load)
            predictor = Predictor(module.to(device).model, data.processor)
    if predictor is not None and run.export and not by_parts:
        with parts.part("export"):
            check = export(predictor, folder / "model")
    if predictor is not None and run.report_examples:
        with parts.part("report"):
            if data.has_val:
                answers = ask_held_out(predictor, data, run)
                # Without what an earlier report has measured.
                trained = (name for name in metrics if name.startswith(("train/", VAL + LOSS, VAL_POINTING)))
                metrics = {**{name: metrics[name] for name in trained}, **score(answers)}
        with parts.part("pictures"):
            if answers:
                draw_pictures(answers[: run.pictures], folder / "pictures")
    with parts.part("metrics.json"):
        write_json(folder / "metrics.json", metrics)
    if check:
        print(f"model/: {check}")
        with parts.part("model card"):
            base = base_config(module.backbone_config).weights
            write_card(folder / "model", Origin.of(base, folder), check)
    print_report(metrics, folder, screen())
    parts.check(folder, weights.kept)
    return metrics


def load_weights(module: V1Module, checkpoint: Path) -> None:
    """Put a checkpoint's weights into a module, in their type.

    Raises ValueError if they do not fit the module, or a folder's the memory.
    """
    content = read_checkpoint(checkpoint)
    refuse_other_model(content, module.options, str(checkpoint))
    weights = weights_of(content)
    alike = [like(weights, name) for name in weights]
    needed, free = sum(tensor.numel() * tensor.element_size() for tensor in alike), available_memory()
    if checkpoint.is_dir() and free is not None and free < needed:
        raise ValueError(
            f"the model has {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB of memory are free\n"
            "report where there is more memory, or set run.report_examples=0"
        )
    module.make_model()
    if not module.model.adapter:  # beside which the backbone has a type of its own
        module.to({tensor.dtype for tensor in alike if tensor.is_floating_point()}.pop())
    load_parts(checkpoint, module, [])


def export(predictor: Predictor, folder: Path) -> str:
    """Write model and processor into one folder, whole or not at all, that `v1lit.load` opens.

    It is opened and compared with the model; returns what was compared, in words. Raises ExportMismatchError.
    """
    settle(predictor.model, predictor.processor)
    with aside(folder) as unfinished:
        with no_weights_bar():
            predictor.model.save_pretrained(unfinished)
        predictor.processor.save_pretrained(unfinished)
        check = compare_export(predictor, unfinished)
        if folder.exists():
            shutil.rmtree(folder)
    return check


def export_by_parts(checkpoint: Path, folder: Path) -> str:
    """Write the model of a checkpoint as `export` does, without opening it."""
    with aside(folder) as unfinished:
        check = export_checkpoint(checkpoint, unfinished).check
        if folder.exists():
            shutil.rmtree(folder)
    return check


def write_json(path: Path, content: dict[str, float]) -> None:
    """Write sorted keys, null for what is not finite; the file appears whole or not at all."""
    # JSON has no NaN, which stands for "nothing was counted".
    finite = {name: value if math.isfinite(value) else None for name, value in sorted(content.items())}
    write_atomically(path, json.dumps(finite, indent=2, allow_nan=False) + "\n")


def print_report(metrics: dict[str, float], folder: Path, console: Console) -> None:
    """The table at the end of a run: what was measured, chance beside it, and where everything is."""
    table = Table(
        title=f"held out: {int(metrics.get('val/examples', 0))} examples, generated by the model alone"
    )
    for column in ("", "model", "chance"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {
        "first pointer in the true region": "pointer_first_in_region",
        "overlap with the true region (IoU of patches)": "region_iou",
        "right answers": "answer_accuracy",
    }
    for title, name in rows.items():
        if f"val/{name}" in metrics:
            chance = metrics.get(f"chance/{name}")
            table.add_row(title, f"{metrics[f'val/{name}']:.1%}", "" if chance is None else f"{chance:.1%}")
    if table.row_count:
        console.print(table)
    took = f" in {metrics['train/seconds']:.0f} s" if "train/seconds" in metrics else ""
    console.print(f"trained {int(metrics['train/steps'])} steps{took}; all results in")
    console.print(str(folder), soft_wrap=True)
