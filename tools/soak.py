"""Kill training at random moments, go on, and compare with a run that nobody disturbed: `--kills 1000`.

With `--ranks 4 --strategy ddp,fsdp2` it is ranks of a launched run that are killed, one at a time: see
soak_ranks.py. Without, it is a process by itself:

A round trains a tiny model on drawn scenes twice with the same seed. The second run is killed (SIGKILL, its
whole process group) at random moments, also while it starts and while it writes a checkpoint, and goes on
from its last.ckpt, until it is finished. Then both must agree: the weights bit for bit, the best ones by
validation as well, and the examples of every optimizer step. Rounds differ in rows (counted, filled), readers
(0, 2 processes), what ends the run (epochs, steps), how often it validates and saves. Runs are forked from
this process, which has imported everything: starting one takes a fraction of a second instead of ten.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any

import soak_ranks
import torch
from lightning import Callback, Trainer, seed_everything

from v1lit.backbones.config import BackboneConfig
from v1lit.data.config import EncodingConfig, PackingConfig, SourceConfig, StreamConfig
from v1lit.data.datamodule import V1DataModule
from v1lit.data.synthetic import synthesize
from v1lit.files import aside, remove_leftovers
from v1lit.training.checkpoints import FOLDER, checkpoint_to_resume
from v1lit.training.config import OptimizerConfig
from v1lit.training.module import V1Module
from v1lit.training.progress import RunProgress
from v1lit.training.quiet import quiet
from v1lit.training.run import trainer_defaults
from v1lit.training.throughput import Throughput

EXAMPLES = 22
"""Per epoch: no whole number of steps."""
LENGTH = 330
"""Tokens of a filled row: three or four scenes."""
STEPS, MODULES = "steps.jsonl", "modules.json"
AT_CHECKPOINT = 0.25
"""Share of the kills that wait for a checkpoint to be written."""


EVERY_4: dict[str, Any] = {"max_epochs": -1, "val_check_interval": 8, "check_val_every_n_epoch": None}
"""Validate every four steps of two batches, whatever the epoch."""


@dataclass(frozen=True)
class Variant:
    """What a round trains."""

    name: str
    data: dict[str, Any]
    trainer: dict[str, Any]


VARIANTS = (
    Variant("counted, epochs", {"batch_size": 2}, {"max_epochs": 3}),
    Variant("filled, steps", {"packing": PackingConfig(LENGTH)}, {"max_steps": 12, **EVERY_4}),
    Variant("counted, steps, readers", {"batch_size": 2, "num_workers": 2}, {"max_steps": 15, **EVERY_4}),
    Variant(
        "filled, epochs, readers", {"packing": PackingConfig(LENGTH), "num_workers": 2}, {"max_epochs": 3}
    ),
)


class Steps(Callback):
    """Writes the examples of every optimizer step to a file, a line per step."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / STEPS
        self.ids: list[str] = []

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.ids += batch.ids
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            line = json.dumps([trainer.global_step, self.ids])
            with self.path.open("a") as file:
                file.write(line + "\n")
            self.ids = []


def train(scenes: Path, folder: Path, variant: Variant, seed: int) -> None:
    """One run in `folder`, from its last.ckpt if there is one; writes final.pt when it is finished."""
    torch.set_num_threads(1)
    seed_everything(seed, verbose=False)
    backbone = BackboneConfig("qwen2_5_vl")
    with quiet():
        module = V1Module(backbone, optimizer=OptimizerConfig(lr=1e-3, schedule="cosine"), init_seed=seed)
        data = V1DataModule(
            backbone,
            source=SourceConfig("shards", str(scenes)),
            encoding=EncodingConfig(max_tokens=LENGTH, coordinates=False),
            stream=StreamConfig(cache=str(folder.parent / "cache"), shuffle_window=8),
            seed=seed,
            **variant.data,
        )
        trainer = Trainer(
            accelerator="cpu",
            accumulate_grad_batches=2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
            callbacks=callbacks(folder, every=1 + seed % 3),
            **variant.trainer,
        )
        found = checkpoint_to_resume("auto", folder)
        trainer.fit(module, datamodule=data, ckpt_path=found, weights_only=True if found else None)
    with aside(folder / "final.pt") as unfinished:
        torch.save(module.state_dict(), unfinished)


def callbacks(folder: Path, every: int) -> list[Callback]:
    """Those of every run, but for the one that talks to a person and the one that measures the machine."""
    own = trainer_defaults(folder, checkpoint_every=every)["callbacks"]
    return [*(one for one in own if not isinstance(one, (RunProgress, Throughput))), Steps(folder)]


def start(scenes: Path, folder: Path, variant: Variant, seed: int) -> int:
    """Begin `train` in a process group of its own; gives the process's id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    code = 1
    try:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        train(scenes, folder, variant, seed)
        (folder / MODULES).write_text(json.dumps(sorted(sys.modules)))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def import_ahead(scenes: Path, folder: Path) -> None:
    """Import here what a first run has imported, so that others need not. Forking allows no thread."""
    folder.mkdir()
    if wait(start(scenes, folder, VARIANTS[1], 0), None) != 0:
        raise RuntimeError(f"a first run failed; see {folder / 'log.txt'}")
    for name in json.loads((folder / MODULES).read_text()):
        with suppress(ImportError):
            import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("an import has started a thread; runs cannot be forked from here")


def wait(child: int, seconds: float | None, folder: Path | None = None) -> int | None:
    """Exit code of a run; None where it was killed after `seconds`, or while it then writes to `folder`.

    Raises RuntimeError if a process of its group lives on.
    """
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        late = end is not None and time.monotonic() >= end
        if not done and late and (folder is None or any(folder.glob("*.tmp"))):
            kill_group(child)
            os.waitpid(child, 0)
        elif not done:
            time.sleep(0.0005 if late else 0.005)
            continue
        if left := survivors(child):
            raise RuntimeError(f"processes {left} live on after their run {child}")
        return os.waitstatus_to_exitcode(status) if done else None


def kill_group(child: int) -> None:
    """Kill a run and its readers."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # it is not a group yet
        os.kill(child, signal.SIGKILL)


def survivors(group: int, seconds: float = 10.0) -> list[int]:
    """Processes of a group that are alive after so many seconds; returns as soon as there are none."""
    end = time.monotonic() + seconds
    while True:
        alive = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if in_group(pid, group)]
        if not alive or time.monotonic() >= end:
            return alive
        time.sleep(0.01)


def in_group(pid: int, group: int) -> bool:
    """Whether a process is alive, and of that group."""
    try:
        state, _, its_group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return False
    return int(its_group) == group and state not in "ZX"


def steps_of(folder: Path) -> dict[int, list[str]]:
    """Examples of every optimizer step. Raises ValueError where a step that was repeated has others."""
    steps: dict[int, list[str]] = {}
    for line in (folder / STEPS).read_text().splitlines():
        if not line.endswith("]]"):
            continue  # killed while it was written
        number, ids = json.loads(line)
        if steps.setdefault(number, ids) != ids:
            raise ValueError(f"step {number} was {steps[number]}, and when it was repeated {ids}")
    return steps


def compare(whole: Path, killed: Path) -> str | None:
    """What differs between two finished runs; None if nothing does."""
    try:
        expected, found = steps_of(whole), steps_of(killed)
    except ValueError as error:
        return str(error)
    if expected != found:
        wrong = [number for number in {*expected, *found} if expected.get(number) != found.get(number)]
        return f"other examples in the steps {sorted(wrong)}"
    for name in ("final.pt", f"{FOLDER}/best.ckpt"):
        first, second = (weights(folder / name) for folder in (whole, killed))
        different = [key for key in first if not torch.equal(first[key], second[key])]
        if different:
            return f"other weights in {name}: {', '.join(different[:3])} ({len(different)} in all)"
    return None


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a file and, of a checkpoint, the step that it was saved at."""
    state = torch.load(path, weights_only=True)
    return {**state["state_dict"], "step": torch.tensor(state["global_step"])} if "loops" in state else state


def play(scenes: Path, folder: Path, variant: Variant, seed: int, rng: random.Random) -> int:
    """One round; gives the number of kills. Raises RuntimeError where the two runs differ."""
    whole, killed = folder / "whole", folder / "killed"
    for run in (whole, killed):
        run.mkdir(parents=True)
    begun = time.monotonic()
    if wait(start(scenes, whole, variant, seed), None) != 0:
        raise RuntimeError(f"the undisturbed run failed; see {whole / 'log.txt'}")
    seconds = time.monotonic() - begun
    kills = 0
    # Now and then a run may come far, most are killed early: starting, reading, saving.
    while True:
        limit = seconds * rng.choice((0.15, 0.3, 0.6, 1.2))
        remove_leftovers(killed / FOLDER)
        sign = killed / FOLDER if rng.random() < AT_CHECKPOINT else None
        code = wait(start(scenes, killed, variant, seed), rng.uniform(0, limit), sign)
        if code == 0:
            break
        if code is not None:
            raise RuntimeError(f"a run that went on failed with exit code {code}; see {killed / 'log.txt'}")
        kills += 1
    if problem := compare(whole, killed):
        raise RuntimeError(f"{variant.name}, seed {seed}, after {kills} kills: {problem}; see {folder}")
    return kills


def main(argv: Sequence[str] | None = None) -> int:
    """Play rounds until so many kills; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000, help="kills after which to stop")
    parser.add_argument("--minutes", type=float, help="begin no round after so many minutes")
    parser.add_argument("--seed", type=int, default=0, help="of moments and models")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder when not given")
    parser.add_argument("--ranks", help="launch on N ranks, or on 4,2,1 one after the other")
    parser.add_argument("--strategy", default="ddp", help="of launched ranks, several with commas between")
    parser.add_argument("--limit", type=float, default=300, help="seconds in which launched ranks must move")
    given = parser.parse_args(argv)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="v1lit-soak-"))
    if given.ranks is not None:
        return soak_ranks.soak(given, folder)
    scenes = folder / "scenes"
    torch.set_num_threads(1)
    draw = partial(synthesize, image_size=(112, 112), workers=1, shard_examples=5, progress=False)
    draw(scenes / "train", examples=EXAMPLES)
    draw(scenes / "val", examples=4, seed=1)
    import_ahead(scenes, folder / "first")
    rng = random.Random(given.seed)
    begun = time.monotonic()
    kills = rounds = 0
    for variant in cycle(VARIANTS):
        over = given.minutes is not None and time.monotonic() - begun > 60 * given.minutes
        if kills >= given.kills or over:
            break
        place = folder / f"round-{rounds:04d}"
        try:
            kills += play(scenes, place, variant, given.seed + rounds, rng)
        except RuntimeError as error:
            print(f"FAILED: {error}")
            return 1
        rounds += 1
        shutil.rmtree(place)
        print(
            f"{kills} kills in {rounds} rounds, {time.monotonic() - begun:.0f} s: no difference", flush=True
        )
    if given.folder is None:
        shutil.rmtree(folder)
    print(
        f"{kills} kills in {rounds} rounds: the weights of all runs are bit-equal to those of undisturbed "
        "runs, and so are the examples of every step"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
