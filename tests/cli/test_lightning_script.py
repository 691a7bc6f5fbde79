"""The `lightning` script keeps `run` and hands everything else on, arguments and exit code untouched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.dependencies


@pytest.fixture
def sdk(tmp_path) -> Path:
    """A folder with a stand-in for the distribution `lightning-sdk` and its console script."""
    info = tmp_path / "lightning_sdk-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning-sdk\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[console_scripts]\nlightning = fake_sdk:main\n")
    (tmp_path / "fake_sdk.py").write_text(
        "import sys\ndef main():\n    print('sdk got', sys.argv[1:])\n    sys.exit(7)\n"
    )
    return tmp_path


def lightning(*arguments: str, path: Path | None = None, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "v1lit.cli.lightning", *arguments]
    checkout = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(path or ""), checkout]))}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=cwd, check=False, timeout=120
    )


@pytest.mark.parametrize("arguments", [["studio", "list", "--name=x"], ["--help"], []])
def test_what_is_not_run_goes_to_lightning_sdk(sdk, tmp_path, arguments):
    done = lightning(*arguments, path=sdk, cwd=tmp_path)
    assert done.stdout.strip() == f"sdk got {arguments}"
    assert done.returncode == 7


def test_run_stays_here_though_lightning_sdk_is_installed(sdk, tmp_path):
    done = lightning("run", "nowhere", path=sdk, cwd=tmp_path)
    assert done.returncode == 2
    assert "no recipe 'nowhere'" in done.stderr
    assert "sdk got" not in done.stdout


@pytest.mark.slow
def test_without_lightning_sdk_the_rest_goes_to_fabric(tmp_path):
    pytest.importorskip("click", reason="click is not installed")
    done = lightning("nonsense", cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage: " in done.stderr
    assert "nonsense" in done.stderr
