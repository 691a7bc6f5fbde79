"""What a run was made with: versions, git revision, seed, command. Written above every saved recipe."""

from __future__ import annotations

import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "v1lit",
    "torch",
    "transformers",
    "lightning",
    "jsonargparse",
    "omegaconf",
    "torchmetrics",
)


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed version by package, `not installed` where there is none."""
    installed = {"python": platform.python_version()}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def git_revision(folder: Path | None = None) -> str:
    """Revision of the checkout that v1lit runs from, else of the current directory, else `none`."""
    for place in (folder,) if folder else (Path(__file__).resolve().parent, Path.cwd()):
        revision = _git(place, "rev-parse", "HEAD")
        if revision:
            return f"{revision}{' with uncommitted changes' if _git(place, 'status', '--porcelain') else ''}"
    return "none"


def describe_environment(argv: Sequence[str], seed: object) -> str:
    """Comment lines for the top of a saved recipe."""
    lines = [
        f"command: v1lit run {shlex.join(argv)}",
        f"seed: {seed}",
        f"git: {git_revision()}",
        f"platform: {platform.platform()}",
        *(f"{name}: {number}" for name, number in versions().items()),
    ]
    return "".join(f"# {line}\n" for line in lines)


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
