"""A run that fails: what is said, what is left, and how it ends."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from v1lit.cli.main import main
from v1lit.training.checkpoints import LastCheckpoint

SMALL = [
    "tiny_qwen",
    "--data.source.options.examples=24",
    "--data.source.options.val_examples=4",
    "--data.batch_size=2",
    "--data.num_workers=0",
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
    "--trainer.enable_progress_bar=false",
    "--model.backbone.attention=sdpa",
    "--run.peak_tflops=1",
    "--run.report_examples=0",
    "--run.export=false",
    "--run.name=failed",
]
pytestmark = pytest.mark.usefixtures("in_fresh_folder")
LAST = Path("runs/failed/checkpoints/last.ckpt")


def error_of(capfd: Any) -> list[str]:
    err = capfd.readouterr().err
    assert "Traceback" not in err
    return err[err.index("error: ") :].strip().splitlines()


def test_a_full_disk_names_the_newest_checkpoint(monkeypatch: Any, capfd: Any) -> None:
    plain, calls = LastCheckpoint.save, 0

    def save(self: LastCheckpoint, trainer: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
        plain(self, trainer)

    monkeypatch.setattr(LastCheckpoint, "save", save)
    assert main(["run", *SMALL]) == 1
    what, remedy = error_of(capfd)
    assert "the disk is full" in what
    assert "last.ckpt: No space left on device" in what
    assert f"the newest checkpoint is {LAST}" in remedy
    assert "--run.name=failed --run.resume=last" in remedy
    assert LAST.is_file()


def test_an_exception_of_an_own_callback_is_told_with_its_place(tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "callback_that_fails.py").write_text(
        "from lightning import Callback\n\n\nclass Mine(Callback):\n"
        "    def on_train_batch_end(self, trainer, *rest):\n"
        "        if trainer.global_step == 3:\n"
        "            raise KeyError('no such thing')\n"
    )
    assert main(["run", *SMALL, "--trainer.callbacks=[{class_path: callback_that_fails.Mine}]"]) == 1
    what, remedy = error_of(capfd)
    assert f"{tmp_path}/callback_that_fails.py, line 7, in on_train_batch_end: KeyError" in what
    assert "--debug" in remedy
    assert str(LAST) in remedy


def test_one_that_cannot_be_made_is_told_so_too(tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "callback_that_is_not_made.py").write_text(
        "from lightning import Callback\n\n\nclass Mine(Callback):\n"
        "    def __init__(self):\n        raise RuntimeError('I need a GPU')\n"
    )
    assert main(["run", *SMALL, "--trainer.callbacks=[{class_path: callback_that_is_not_made.Mine}]"]) == 2
    place = f"{tmp_path}/callback_that_is_not_made.py, line 6, in __init__"
    assert f"{place}: RuntimeError: I need a GPU" in error_of(capfd)[0]


def test_a_mistake_that_comes_to_light_before_the_first_step_leaves_the_name_free(capfd: Any) -> None:
    endless = ["--trainer.max_steps=-1", "--trainer.max_epochs=-1"]
    assert main(["run", *SMALL, *endless]) == 2
    assert "needs to know its end" in error_of(capfd)[0]
    assert not Path("runs").exists()
