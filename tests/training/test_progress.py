"""One line on the screen that fits into 80 columns; remarks that help nobody are left out, others are not."""

from __future__ import annotations

import io
import logging
import math
import warnings
from typing import Any

import pytest
from rich.console import Console

from v1lit.training.progress import RunProgress, in_short
from v1lit.training.quiet import LOGGERS, no_weights_bar, quiet

pytestmark = pytest.mark.dependencies

METRICS = {"val pointing": 0.791, "loss": 1.2041, "examples/s": 147.8, "pointing": 0.808}


def test_measurements_are_short_and_in_order() -> None:
    assert in_short(METRICS) == "loss 1.204 pointing 81% 148/s val 79%"
    assert in_short({"mine": 0.123456, "loss": 2.0}) == "loss 2.000 mine 0.123"
    assert in_short({"pointing": math.nan}) == "pointing nan%"


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Everything that is printed on a terminal of 80 columns."""
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, color_system=None, legacy_windows=False)
    monkeypatch.setattr("v1lit.training.progress.screen", lambda: console)
    return file


def test_a_run_is_one_line_of_steps(
    screen: io.StringIO, make_data: Any, make_module: Any, make_trainer: Any
) -> None:
    bar = RunProgress()
    trainer = make_trainer(
        max_steps=8, val_check_interval=4, log_every_n_steps=2, callbacks=[bar], enable_progress_bar=True
    )
    trainer.fit(make_module(), datamodule=make_data())
    said, line = screen.getvalue().splitlines()[0], last_line(screen)
    assert said.startswith("training all ")
    assert said.endswith(" parameters on 1 x cpu")
    assert line.startswith("train ━")
    for words in (" 8/8 ", "loss ", "pointing ", "val "):
        assert words in line
    assert len(line) <= 80
    assert "valid" in screen.getvalue()
    assert "v_num" not in screen.getvalue()
    assert bar.progress is None


def last_line(screen: io.StringIO) -> str:
    text = screen.getvalue()
    return text[text.rindex("train ━") :].splitlines()[0].rstrip("\x1b[?25h ")


def test_without_a_terminal_lines_are_printed_now_and_then(
    monkeypatch: pytest.MonkeyPatch, make_data: Any, make_module: Any, make_trainer: Any
) -> None:
    file = io.StringIO()
    monkeypatch.setattr("v1lit.training.progress.screen", lambda: Console(file=file, width=80))
    monkeypatch.setattr("v1lit.training.progress.SECONDS_BETWEEN_READS", 0.0)
    monkeypatch.setattr("v1lit.training.progress.SECONDS_BETWEEN_LINES", 0.0)
    trainer = make_trainer(
        max_steps=3, log_every_n_steps=1, callbacks=[RunProgress()], enable_progress_bar=True
    )
    trainer.fit(make_module(), datamodule=make_data())
    lines = [line for line in file.getvalue().splitlines() if line.startswith("step ")]
    assert [line.split(" loss ")[0] for line in lines][:3] == ["step 1", "step 2", "step 3"]


def test_a_bar_that_is_switched_off_shows_nothing(
    screen: io.StringIO, make_data: Any, make_module: Any, make_trainer: Any
) -> None:
    bar = RunProgress()
    bar.disable()
    make_trainer(max_steps=1, callbacks=[bar], enable_progress_bar=True).fit(
        make_module(), datamodule=make_data()
    )
    assert screen.getvalue() == ""


def test_quiet_leaves_out_what_it_lists_and_nothing_else() -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(LOGGERS[1])
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with quiet():
                logger.info("`Trainer.fit` stopped: `max_steps=3` reached.")
                logger.info("Monitored metric did not improve")
                warnings.warn("Checkpoint directory /a/b exists and is not empty.", stacklevel=1)
                warnings.warn("Checkpoint directory /a/b cannot be written", stacklevel=1)
            logger.info("`Trainer.fit` stopped: afterwards")
            warnings.warn("Checkpoint directory /a/b exists and is not empty.", stacklevel=1)
    finally:
        logger.removeHandler(handler)
    assert said == ["Monitored metric did not improve", "`Trainer.fit` stopped: afterwards"]
    assert [str(one.message) for one in caught] == [
        "Checkpoint directory /a/b cannot be written",
        "Checkpoint directory /a/b exists and is not empty.",
    ]


def test_the_bar_over_saved_files_comes_back_afterwards() -> None:
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.is_progress_bar_enabled()
    with no_weights_bar():
        assert not transformers_logging.is_progress_bar_enabled()
    assert transformers_logging.is_progress_bar_enabled() == before
