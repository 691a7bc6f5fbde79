"""Everything that a rank prints is kept in its own file, below a dated line, also over restarts."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from v1lit.cluster.rank_logs import log_of, rank_log


def test_of_another_rank_everything_goes_into_its_log_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with rank_log(tmp_path, 3, "one of 4 ranks"):
        os.write(1, b"out\n")
        os.write(2, b"err\n")
        subprocess.run(["echo", "from a child"], check=True)
    print("afterwards")
    text = log_of(tmp_path, 3).read_text()
    assert text.splitlines()[1:] == ["out", "err", "from a child"]
    assert re.match(r"---- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d .*rank 3 on .*: one of 4 ranks\n", text)
    assert capfd.readouterr() == ("afterwards\n", "")


def test_of_rank_0_the_screen_shows_it_as_well_and_redrawn_lines_stay_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger, before = logging.getLogger("v1lit.test"), sys.stderr
    handler = logging.StreamHandler()  # which keeps the stream of now
    logger.addHandler(handler)
    with rank_log(tmp_path, 0, "x"):
        print("plain")
        print("\x1b[31mred\x1b[0m")
        sys.stdout.write("\r\x1b[2Ktrain 40 %")
        logger.warning("from a handler")
        assert sys.stderr is before
    print("afterwards")
    logger.removeHandler(handler)
    assert log_of(tmp_path, 0).read_text().splitlines()[1:] == ["plain", "red", "from a handler"]
    out, err = capsys.readouterr()
    assert "plain" in out
    assert "train 40 %" in out
    assert "afterwards" in out
    assert "from a handler" in err


def test_an_error_is_kept_and_a_restart_is_added_below(tmp_path: Path) -> None:
    for turn in range(2):
        with pytest.raises(RuntimeError), rank_log(tmp_path, 1, f"turn {turn}"):
            raise RuntimeError(f"failed in turn {turn}")
    text = log_of(tmp_path, 1).read_text()
    assert text.count("---- ") == 2
    assert text.index("failed in turn 0") < text.index(": turn 1\n") < text.index("failed in turn 1")
