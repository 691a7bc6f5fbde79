"""What all tests share: their folders, and what becomes of tests that this machine cannot run."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Tests run side by side, and their tensors are tiny; in their subprocesses too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test depends on how busy the machine is.
settings.register_profile("v1lit", deadline=None)
settings.load_profile("v1lit")
sys.path.insert(0, str(Path(__file__).parent))
SHARED = Path(__file__).resolve().parents[2] / "shared"
MAY_BE_SKIPPED = (
    "accelerate is not installed",
    "bitsandbytes is not installed",
    "click is not installed",
    "deepspeed is not installed",
    "gradio is not installed",
    "matplotlib is not installed",
    "moto is not installed",
    "no browser",
    "no such kernel here",
    "no /dev/full",
    "no /proc",
    "no C++ compiler",
    "processes cannot be forked",
    "no tar program",
    "only Linux",
    "pandas is not installed",
    "playwright is not installed",
    "ray is not installed",
    "s3fs is not installed",
    "openai is not installed",
    "starlette is not installed",
    "uvicorn is not installed",
    "there is a GPU",
    "this environment was not made by make from this lock",
    "this tar does not sort",
    "this torch has one backend",
    "timm is not installed",
    "torch without CUDA",
    "triton is not installed",
    "v1lit is not installed",
    "xformers is not installed",
)
"""All reasons for which a test may be skipped; any other skip is a failure. What needs a GPU (marker `gpu`)
or the reference data (fixture `shared`) is left out without them, and counted."""
SOAK = "V1LIT_SOAK"
"""In the environment of `make soak`, which runs what takes minutes (marker `soak`)."""
LEFT_OUT = pytest.StashKey[Counter[str]]()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Goldens and sample data beside the checkout; where they are absent, the test is left out."""
    return SHARED


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What a test, or a library in it, puts into the environment does not reach the next one."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that tests fetch or measure is kept, and nothing kept earlier is found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def autograd_without_threads() -> None:
    """Start autograd before anything is compiled: it would start threads then, and forked ranks not train."""
    if torch := sys.modules.get("torch"):
        torch.ones(1, requires_grad=True).backward()


# ---------------------------------------------------------------------- tests that cannot run here


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = Counter()


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector of garbage need not look at it after every test."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU or reference data that are not here, after `-m` and `-k` have chosen."""
    reasons = {item: reason for item in items if (reason := _why_not(item)) is not None}
    items[:] = [item for item in items if item not in reasons]
    config.stash[LEFT_OUT] = Counter(reasons.values())
    config.hook.pytest_deselected(items=list(reasons))


def _why_not(item: pytest.Item) -> str | None:
    if item.get_closest_marker("gpu") is not None and not _has_gpu():
        return "GPU tests not run: no GPU"
    if item.get_closest_marker("soak") is not None and not os.environ.get(SOAK):
        return "tests left to `make soak`"
    if "shared" in getattr(item, "fixturenames", ()) and not SHARED.is_dir():
        return f"tests on reference data not run: no {SHARED}"
    parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
    of_timm = "timm" in item.path.stem or any("timm" in str(value) for value in parameters)
    if of_timm and find_spec("timm") is None:
        return "tests of timm_lm not run: timm is not installed"
    return None


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    return _refuse_unknown_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Any:
    return _refuse_unknown_skip((yield))


def _refuse_unknown_skip(report: Any) -> Any:
    """The report of a test or a module, failed if it was skipped for no known reason."""
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(MAY_BE_SKIPPED):
            report.outcome, report.longrepr = (
                "failed",
                f"{reason}\n(not in MAY_BE_SKIPPED of tests/conftest.py)",
            )
    return report


# ---------------------------------------------------------------------- what is said of them


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist tells the main process, which collects nothing itself."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = dict(session.config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT_OUT] = Counter(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for reason, count in config.stash[LEFT_OUT].items():
        terminalreporter.write_line(f"{count} {reason}")
