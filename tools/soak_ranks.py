"""The soak test over several ranks: those of `v1lit launch local` are killed, against a run left alone."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import mean

import torch
from rich.console import Console
from rich.table import Table
from soak_notes import VALIDATING

from v1lit.processes import LAUNCHER
from v1lit.training.attempts import attempts
from v1lit.training.checkpoints import FOLDER, newest_checkpoint
from v1lit.training.saved_state import read_checkpoint

HERE = Path(__file__).resolve().parent
PYTHONPATH = os.pathsep.join(map(str, (HERE.parent, HERE)))
EXAMPLES, EPOCHS, STEP = 44, 3, 8
"""Examples per epoch and per step: the last step of an epoch is not a whole one."""
RECIPE = """
base: tiny_qwen
trainer:
  max_epochs: {epochs}
  max_steps: -1
  val_check_interval: null
  check_val_every_n_epoch: 1
  enable_progress_bar: false
  strategy: {strategy}
  callbacks: [{{class_path: soak_notes.Notes}}]
seed_everything: {seed}
model:
  backbone: {{attention: sdpa}}
  optimizer: {{name: {optimizer}, lr: 1.0e-3}}
data:
  batch_size: 1
  num_workers: 0
  source: {{folder: {data}, options: {{examples: {examples}, val_examples: 8}}}}
run: {{name: it, checkpoint_every: 2, peak_tflops: 1, report_examples: 0, pictures: 0, export: false}}
"""
MOMENTS = ("start", "training", "checkpoint", "validation")
"""When a rank is killed; for a checkpoint and a validation, while one is under way."""


class Differs(Exception):  # noqa: N818 - it names a state
    """A run hung, failed, or ended otherwise than the one that nobody disturbed."""


@dataclass
class Outcome:
    """One row of the table."""

    strategy: str
    ranks: str
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MOMENTS, 0))
    """By moment."""
    starts: int = 0
    seconds: float = 0.0
    problem: str = ""
    """What differs; empty where nothing does."""


class Run:
    """A run in a folder of its own, and the launcher that is at it.

    Args:
        folder: where it works.
        strategy: `trainer.strategy`.
        optimizer: `model.optimizer.name`.
        data: where its scenes are drawn, once for all runs.
        seed: of the model and the order.
        limit: seconds without a step or a new start after which it hangs.
    """

    def __init__(
        self, folder: Path, strategy: str, optimizer: str, data: Path, seed: int, limit: float
    ) -> None:
        folder.mkdir(parents=True)
        self.folder, self.strategy, self.limit = folder, strategy, limit
        self.launcher: subprocess.Popen[bytes] | None = None
        self._moved, self._state = time.monotonic(), ""
        self._left: set[tuple[str, int]] = set()
        recipe = RECIPE.format(
            strategy=strategy, optimizer=optimizer, seed=seed, data=data, examples=EXAMPLES, epochs=EPOCHS
        )
        (folder / "recipe.yaml").write_text(recipe)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder / "runs" / "it"

    def launch(self, ranks: int) -> None:
        """Start it on that many ranks, on two nodes where they can be divided."""
        nodes, readers = layout(self.strategy, ranks)
        words = [
            "launch", "local", "recipe.yaml", f"--nodes={nodes}", f"--procs={ranks // nodes}",
            "--max-failures=1000", "--max-restarts=1000",
            f"--trainer.accumulate_grad_batches={STEP // readers}",
        ]  # fmt: skip
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "V1LIT_"))}
        environment = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH, LAUNCHER: str(os.getpid())}
        with (self.folder / "log.txt").open("ab") as log:
            self.launcher = subprocess.Popen(
                [sys.executable, "-m", "v1lit.cli.main", *words],
                cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._moved = time.monotonic()

    def over(self) -> bool:
        """Whether the launcher has ended. Raises Differs if it failed, or nothing has moved for too long."""
        assert self.launcher is not None
        code = self.launcher.poll()
        if code is not None:
            if code not in (0, 143):
                raise Differs(f"the launcher ended with exit code {code}; see {self.folder / 'log.txt'}")
            return True
        state = f"{self.ranks()} {self.micro_batches()} {self.validating} {self.saving}"
        now = time.monotonic()
        if state != self._state:
            self._state, self._moved = state, now
        if now - self._moved > self.limit:
            self.end()
            raise Differs(f"nothing has moved for {self.limit:g} s; see {self.folder / 'log.txt'}")
        return False

    def end(self) -> None:
        """Kill what is left of it."""
        if self.launcher is None or self.launcher.poll() is not None:
            return
        for pid in [*self.ranks(), *self.nodes(), self.launcher.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.launcher.wait()

    def nodes(self) -> list[int]:
        assert self.launcher is not None
        return children(self.launcher.pid)

    def ranks(self) -> list[int]:
        return [pid for node in self.nodes() for pid in children(node)]

    def micro_batches(self) -> int:
        """Of the first rank, over all starts."""
        with suppress(FileNotFoundError):
            return (self.folder / "read-0.jsonl").read_bytes().count(b"\n")
        return 0

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is being written, other than one whose writing a kill has ended."""
        return bool(self._unfinished() - self._left)

    @property
    def validating(self) -> bool:
        return (self.folder / VALIDATING).exists()

    def _unfinished(self) -> set[tuple[str, int]]:
        found = set()
        for path in (self.path / FOLDER).glob(".*.tmp"):
            with suppress(FileNotFoundError):
                found.add((path.name, path.stat().st_ino))
        return found

    def kill(self, rank: int) -> None:
        """SIGKILL, for one of its ranks."""
        with suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)
        self._left |= self._unfinished()
        (self.folder / VALIDATING).unlink(missing_ok=True)

    def batches(self) -> Iterator[tuple[int, int, float, tuple[str, ...]]]:
        """Epoch, step, loss, examples of every micro-batch, with those that were repeated after a kill."""
        for path in sorted(self.folder.glob("read-*.jsonl")):
            for line in path.read_text().splitlines():
                if line.endswith("]]"):  # else it was killed while it wrote
                    epoch, step, loss, ids = json.loads(line)
                    yield epoch, step, loss, tuple(ids)

    def weights(self) -> dict[str, torch.Tensor]:
        """Those of the last checkpoint and of the best."""
        found: dict[str, torch.Tensor] = {}
        for path in (newest_checkpoint(self.path), self.path / FOLDER / "best.ckpt"):
            if path is None:
                raise Differs(f"there is no checkpoint in {self.path}")
            state = read_checkpoint(path)
            found |= {f"{path.stem}: {name}": tensor for name, tensor in state["state_dict"].items()}
            found[f"{path.stem}: step"] = torch.tensor(state["global_step"])
        return found


def layout(strategy: str, ranks: int) -> tuple[int, int]:
    """Nodes of that many ranks, and how many of the ranks read examples of their own."""
    nodes = 2 if ranks % 2 == 0 else 1
    return nodes, nodes if strategy == "fsdp2_tp" else ranks


def children(pid: int) -> list[int]:
    """Processes that a process has started and that are alive."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def kill_at(run: Run, moment: str, rng: random.Random) -> bool:
    """Kill a random rank at such a moment; False if the run has ended before it came."""
    wait = rng.uniform(0, 15) if moment == "start" else rng.uniform(0, 1)
    after = run.micro_batches() + (0 if moment == "start" else rng.randrange(12))
    seen: float | None = None
    while not run.over():
        now = time.monotonic()
        ranks = run.ranks()
        here = bool(ranks) and run.micro_batches() >= after + (moment == "training")
        if moment == "checkpoint":
            here = here and run.saving
        if moment == "validation":
            here = here and run.validating
        if here and seen is None:
            seen = now
        if seen is not None and ranks and (moment in MOMENTS[2:] or now - seen >= wait):
            run.kill(rng.choice(ranks))
            while set(ranks) & set(run.ranks()) and not run.over():
                time.sleep(0.02)  # the launcher ends the others
            return True
        time.sleep(0.002)
    return False


def disturb(run: Run, ranks: Sequence[int], kills: int, rng: random.Random, row: Outcome) -> None:
    """Train to the end, on these numbers of ranks one after the other, with `kills` in all."""
    for part, number in enumerate(ranks):
        run.launch(number)
        for _ in range(kills // len(ranks) + (part < kills % len(ranks))):
            moment = rng.choice(MOMENTS)
            if not kill_at(run, moment, rng):
                return
            row.kills[moment] += 1
        if part < len(ranks) - 1 and not stop_when_further(run):
            return
    while not run.over():
        time.sleep(0.02)


def stop_when_further(run: Run) -> bool:
    """Ask the run to stop once it has come further; False if it has ended by itself."""
    before = run.micro_batches()
    while run.micro_batches() < before + 2:
        if run.over():
            return False
        time.sleep(0.02)
    assert run.launcher is not None
    run.launcher.send_signal(signal.SIGTERM)
    while not run.over():
        time.sleep(0.02)
    return True


def compare(whole: Run, killed: Run, copies: int, exactly: bool) -> str:
    """What differs between two finished runs; empty if nothing does. `copies` ranks each read the same."""
    for epoch in range(EPOCHS):
        read = Counter(one for of, _, _, ids in whole.batches() for one in ids if of == epoch)
        if len(read) != EXAMPLES or set(read.values()) != {copies}:
            return f"undisturbed, epoch {epoch} has read {read.total()} examples, {len(read)} different ones"
    expected, found = steps_of(whole), steps_of(killed)
    same = {step: expected.get(step, {}).keys() == found.get(step, {}).keys() for step in expected | found}
    if not exactly:  # other ranks divide a step otherwise
        same = {
            step: set(chain(*expected.get(step, ()))) == set(chain(*found.get(step, ()))) for step in same
        }
    if wrong := [step for step, alike in same.items() if not alike]:
        return f"other examples in these of (epoch, step): {wrong}"
    losses = [mean(expected[step].values()) / mean(found[step].values()) - 1 for step in expected]
    if (off := max(map(abs, losses))) > (0 if exactly else 1e-5):
        return f"other losses, by up to {off:.1e} of them"
    first, second = whole.weights(), killed.weights()
    if first.keys() != second.keys():
        return f"other names of weights: {sorted(first.keys() ^ second.keys())[:3]}"
    distances = {name: (first[name].double() - second[name].double()).abs().max().item() for name in first}
    if others := [name for name, distance in distances.items() if distance > (0 if exactly else 1e-4)]:
        largest = max(distances.values())
        return f"{len(others)} of {len(distances)} weights differ, by up to {largest:.1e}: {others[0]}, ..."
    return ""


def steps_of(run: Run) -> dict[tuple[int, int], dict[tuple[str, ...], float]]:
    """The loss of all micro-batches that ranks have read for a step, by their examples.

    There are more than the step has, where it was repeated with others.
    """
    steps: dict[tuple[int, int], dict[tuple[str, ...], float]] = {}
    for epoch, step, loss, ids in run.batches():
        steps.setdefault((epoch, step), {})[ids] = loss
    return steps


def soak(given: argparse.Namespace, folder: Path) -> int:
    """Rounds of every strategy until there were enough kills, or the time is over; returns the exit code."""
    end = time.monotonic() + 60 * (given.minutes or 1e9)
    rows: list[Outcome] = []
    for strategy in given.strategy.split(","):
        done, number = 0, 0
        while done < given.kills and (number == 0 or time.monotonic() < end):
            place = folder / f"{strategy}-{number:03d}"
            row = play(place, strategy, given, given.kills - done, given.seed + number)
            rows.append(row)
            print(f"{strategy}, round {number}: {row.problem or 'no difference'}", flush=True)
            done, number = done + sum(row.kills.values()), number + 1
            if row.problem:
                break
            shutil.rmtree(place)
    show(rows)
    return int(any(row.problem for row in rows))


def play(place: Path, strategy: str, given: argparse.Namespace, kills: int, seed: int) -> Outcome:
    """Train twice with one seed, disturbed the second time, and compare."""
    ranks = [int(number) for number in given.ranks.split(",")]
    row, begun = Outcome(strategy, given.ranks), time.monotonic()
    # DDP orders its buckets anew after the first step of every start, and so sums of three and more ranks.
    exactly = len(set(ranks)) == 1 and (strategy != "ddp" or ranks[0] <= 2)
    optimizer = "muon" if exactly else "adamw"  # Muon's bfloat16 makes much of the smallest differences
    copies = ranks[0] // layout(strategy, ranks[0])[1]
    whole, killed = (
        Run(place / name, strategy, optimizer, place.parent / "scenes", seed, given.limit)
        for name in ("whole", "killed")
    )
    try:
        disturb(whole, ranks[:1], 0, random.Random(seed), row)
        disturb(killed, ranks, kills, random.Random(f"{strategy} {seed}"), row)
        row.problem = compare(whole, killed, copies, exactly)
    except Differs as error:
        row.problem = str(error)
    finally:
        whole.end()
        killed.end()
    row.starts, row.seconds = len(attempts(killed.path)), time.monotonic() - begun
    return row


def show(rows: Sequence[Outcome]) -> None:
    """The table of all rounds."""
    table = Table("strategy", "ranks", *(f"killed at {moment}" for moment in MOMENTS), "starts", "s", "found")
    for row in rows:
        kills = (str(row.kills[moment]) for moment in MOMENTS)
        found = row.problem or "no difference"
        table.add_row(row.strategy, row.ranks, *kills, str(row.starts), f"{row.seconds:.0f}", found)
    Console(width=130).print(table)
