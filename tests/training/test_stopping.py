"""Ctrl-C and signals end a run at the end of a step, on all ranks alike; checkpoints are always whole."""

from __future__ import annotations

import os
import pickle
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.forked import needs_fork
from lightning import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn

from v1lit.training import checkpoints
from v1lit.training.checkpoints import FOLDER, LAST, LastCheckpoint, WholeFileIO, checkpoint_to_resume
from v1lit.training.stopping import RunStopped, StopRequests

pytestmark = pytest.mark.dependencies


def send(number: int, process: int | None = None) -> None:
    os.kill(process or os.getpid(), number)


# ------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_while_steps_are_made_the_first_signal_is_noted_only(number: int, capfd: Any) -> None:
    with StopRequests() as requests:
        requests.patient = True
        send(number)
        send(signal.SIGTERM)  # a cluster may insist; the step is finished all the same
        assert requests.received == number
    assert "stopping after this step" in capfd.readouterr().err


def test_a_second_ctrl_c_stops_at_once() -> None:
    with StopRequests() as requests:
        requests.patient = True
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_where_no_steps_are_made_the_first_signal_stops_at_once(number: int) -> None:
    with pytest.raises(KeyboardInterrupt), StopRequests() as requests:
        send(number)
    assert requests.received == number


def test_afterwards_signals_are_received_as_before() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with StopRequests() as requests:
        assert [signal.getsignal(number) for number in numbers] != before
    requests.listen()
    assert [signal.getsignal(number) for number in numbers] == before


@needs_fork
@pytest.mark.parametrize("patient", [True, False])
def test_a_process_that_was_forked_takes_signals_as_ever(patient: bool) -> None:
    """Not by a handler of Python, which a process that waits for a lock may never call: a pool would hang."""
    with StopRequests() as requests:
        requests.patient = patient
        child = os.fork()
        if not child:
            as_ever = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            as_ever &= signal.getsignal(signal.SIGINT) is signal.default_int_handler
            os._exit(0 if as_ever else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert signal.getsignal(signal.SIGTERM) == requests._handle


def test_the_exit_code_says_who_stopped_the_run() -> None:
    codes = {
        number: RunStopped(number, "").exit_code for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    }
    assert codes == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
    assert str(RunStopped(signal.SIGINT, "after step 3")) == "stopped by Ctrl-C after step 3"


# ------------------------------------------------------------------ a run


class SignalAt(Callback):
    """Sends signals to this process in a hook, on one rank or on all."""

    def __init__(self, hook: str, numbers: list[int], call: int = 3, rank: int | None = None) -> None:
        self.calls = 0

        def act(trainer: Trainer, *args: Any, **options: Any) -> None:
            self.calls += 1
            if self.calls == call and rank in (None, trainer.global_rank):
                for number in numbers:
                    send(number)

        setattr(self, hook, act)


class TimesOfSteps(Callback):
    """The optimizer steps after which something was saved."""

    def __init__(self, last: LastCheckpoint) -> None:
        self.saved: list[int] = []
        save = last.save

        def note(trainer: Trainer) -> None:
            assert (
                trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches
                == 0
            )
            self.saved.append(trainer.global_step)
            save(trainer)

        last.save = note  # type: ignore[method-assign]


def stop_run(
    tmp_path: Path, make_trainer: Any, module: Any, data: Any, *callbacks: Callback, **options: Any
) -> str:
    """Train until a signal stops it; gives what is said."""
    with StopRequests() as requests:
        last = LastCheckpoint(tmp_path, requests=requests)
        trainer = make_trainer(enable_checkpointing=True, callbacks=[*callbacks, last], **options)
        with pytest.raises(RunStopped) as stopped:
            trainer.fit(module, datamodule=data)
    return str(stopped.value)


def saved_step(tmp_path: Path) -> int:
    return int(torch.load(tmp_path / LAST, weights_only=True)["global_step"])


def test_ctrl_c_amid_an_accumulated_step_finishes_it_and_saves(
    tmp_path: Path, make_trainer: Any, make_module: Any, make_data: Any
) -> None:
    at = SignalAt("on_train_batch_start", [signal.SIGINT])  # of the second step's first batch
    options = {"max_epochs": 1, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    assert "after step 2" in stop_run(tmp_path, make_trainer, make_module(), make_data(), at, **options)
    assert saved_step(tmp_path) == 2


def test_a_signal_breaks_a_validation_off(
    tmp_path: Path, make_trainer: Any, make_module: Any, make_data: Any
) -> None:
    at = SignalAt("on_validation_batch_start", [signal.SIGTERM], call=2)
    options = {"max_epochs": 1, "val_check_interval": 2}
    data = make_data(val_batch_size=1)
    said = stop_run(tmp_path, make_trainer, make_module(), data, at, **options)
    assert said == "stopped by SIGTERM in a validation after step 2"
    assert at.calls == 2
    assert saved_step(tmp_path) == 2


def test_ctrl_c_in_the_last_step_leaves_a_finished_run(
    tmp_path: Path, make_trainer: Any, make_module: Any, make_data: Any
) -> None:
    at = SignalAt("on_train_batch_start", [signal.SIGINT])
    said = stop_run(tmp_path, make_trainer, make_module(), make_data(), at, max_steps=3, limit_val_batches=0)
    assert "after step 3" in said
    assert saved_step(tmp_path) == 3


def test_checkpoints_come_by_the_clock_and_less_often_where_saving_is_slow(
    tmp_path: Path, make_trainer: Any, make_module: Any, make_data: Any, monkeypatch: Any
) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])

    class Clock(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            now[0] += 400

    last = LastCheckpoint(tmp_path)
    times = TimesOfSteps(last)
    write = WholeFileIO.save_checkpoint

    def slowly(*args: Any, **options: Any) -> None:
        now[0] += 50
        write(*args, **options)

    monkeypatch.setattr(WholeFileIO, "save_checkpoint", slowly)
    options = {"max_steps": 9, "max_epochs": -1, "limit_val_batches": 0}
    trainer = make_trainer(enable_checkpointing=True, callbacks=[Clock(), last, times], **options)
    trainer.fit(make_module(), datamodule=make_data())
    # After 800 s for the first time; then 20 times the 50 s that it took; and at the end.
    assert times.saved == [2, 5, 8, 9]


# ------------------------------------------------------------------ several ranks


@pytest.mark.slow
@needs_fork
@pytest.mark.timeout(120)
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_validation_batch_start"])
def test_all_ranks_stop_after_the_same_step_when_one_is_told_to(
    tmp_path: Path, make_trainer: Any, make_module: Any, make_data: Any, hook: str
) -> None:
    class Note(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            (tmp_path / f"rank-{trainer.global_rank}").write_text(str(trainer.global_step))

    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=60))
    with StopRequests() as requests, pytest.raises(Exception, match="stopped by SIGTERM after step 2"):
        make_trainer(
            devices=2,
            strategy=strategy,
            max_epochs=1,
            accumulate_grad_batches=2,
            val_check_interval=4,
            enable_checkpointing=True,
            callbacks=[
                SignalAt(hook, [signal.SIGTERM], call=3 if "train" in hook else 1, rank=1),
                LastCheckpoint(tmp_path, requests=requests),
                Note(),
            ],
        ).fit(make_module(), datamodule=make_data(batch_size=1, val_batch_size=1))
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in range(2)] == ["2", "2"]
    assert saved_step(tmp_path) == 2


# ------------------------------------------------------------------ files


@needs_fork
def test_a_process_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / LAST

    def half(checkpoint: Any, file: Path) -> None:
        file.write_bytes(b"half")
        time.sleep(600)

    for round in range(3):
        WholeFileIO().save_checkpoint({"round": round, "weights": torch.full((10,), round)}, path)
        child = os.fork()
        if not child:
            checkpoints.torch.save = half
            try:
                WholeFileIO().save_checkpoint({"round": -1}, path)
            finally:
                os._exit(1)  # it must not come back into pytest
        while not any(left.stat().st_size for left in tmp_path.glob(f".{LAST}.*.tmp")):
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
        send(signal.SIGKILL, child)
        os.waitpid(child, 0)
        state = torch.load(path, weights_only=True)
        assert state["round"] == round
        assert state["weights"].tolist() == [round] * 10
        assert [left.read_bytes() for left in tmp_path.glob(f".{LAST}.*")] == [b"half"]  # of this round only


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_half_written(tmp_path: Path) -> None:
    WholeFileIO().save_checkpoint({"step": 1}, tmp_path / LAST)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        WholeFileIO().save_checkpoint({"step": lambda: 2}, tmp_path / LAST)
    assert [path.name for path in tmp_path.iterdir()] == [LAST]
    assert torch.load(tmp_path / LAST, weights_only=True) == {"step": 1}


def test_the_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    with pytest.raises(ValueError, match=str(folder)):
        checkpoint_to_resume("last", tmp_path)
    assert checkpoint_to_resume("auto", tmp_path) is None
    assert checkpoint_to_resume("some.ckpt", tmp_path) == "some.ckpt"
    for age, name in ((3, "best.ckpt"), (2, "mine.ckpt"), (1, "broken.ckpt")):
        torch.save({}, folder / name)
        os.utime(folder / name, (time.time() - age, time.time() - age))
    (folder / "broken.ckpt").write_bytes((folder / "mine.ckpt").read_bytes()[:-30])
    (folder / f".{LAST}.0123abcd.tmp").write_bytes(b"begun")
    assert checkpoint_to_resume("last", tmp_path) == str(folder / "mine.ckpt")
    torch.save({}, folder / LAST)
    os.utime(folder / LAST, (0, 0))  # a copied folder: the name counts
    assert (
        checkpoint_to_resume("last", tmp_path) == checkpoint_to_resume("auto", tmp_path) == str(folder / LAST)
    )


def test_validating_alone_saves_nothing(
    tmp_path: Path, make_trainer: Any, make_module: Any, make_data: Any
) -> None:
    trainer = make_trainer(enable_checkpointing=True, callbacks=[LastCheckpoint(tmp_path)])
    trainer.validate(make_module(), datamodule=make_data(), verbose=False)
    assert trainer.state.fn == TrainerFn.VALIDATING
    assert not (tmp_path / LAST).exists()


def test_lightning_does_not_queue_a_job_of_slurm_again_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would save inside of its handler of SIGUSR1, while other ranks are amid a step."""
    in_slurm = {"NTASKS": "1", "NTASKS_PER_NODE": "1", "JOB_NAME": "job", "JOB_ID": "7", "PROCID": "0"}
    for name, value in {**in_slurm, "LOCALID": "0", "NODEID": "0", "NODELIST": "n1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with StopRequests() as requests:
        last = LastCheckpoint(tmp_path, 1, requests)
        trainer = Trainer(
            accelerator="cpu", max_steps=1, logger=False, enable_progress_bar=False, callbacks=[last],
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        environment = trainer._accelerator_connector.cluster_environment
        assert isinstance(environment, SLURMEnvironment)
        assert environment.auto_requeue
        trainer.fit(BoringModel())
    assert not environment.auto_requeue
