"""`v1lit doctor --self-test`: a line per family and check, a summary, and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from v1lit.cli.main import main
from v1lit.training import self_test as module
from v1lit.training.self_test import Check

SOUND = Check("llava", "cache", "logits with and without cache", 2.3e-7)
BROKEN = Check("llava", "beams", "TypeError: no such argument", None, TypeError("no such argument"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Checks as they shall come out, in place of real ones."""

    def made(*checks: Check, noise: str = "") -> None:
        def self_test(device: Any, captured: Any, families: Any) -> Iterator[Check]:
            for check in checks:
                with captured.capture():
                    os.write(2, noise.encode())
                    captured.warnings.update([noise] if noise else [])
                yield check

        monkeypatch.setattr(module, "self_test", self_test)

    return made


def test_all_passed(made: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    made(SOUND, SOUND)
    assert main(["doctor", "--self-test", "--device=cpu"]) == 0
    shown, err = capfd.readouterr()
    assert "llava           cache    ok     logits with and without cache: 2.3e-07" in shown
    assert "versions: " in shown
    assert shown.splitlines()[-1].startswith("2 of 2 checks passed in ")
    assert "warning" not in shown
    assert err == ""


def test_a_failed_check_is_one_line_and_exit_code_1(
    made: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    made(BROKEN, SOUND)
    assert main(["doctor", "--self-test", "--device", "cpu"]) == 1
    shown, err = capfd.readouterr()
    assert "llava           beams    FAILED TypeError: no such argument\nllava           cache    ok" in shown
    assert "1 of 2 checks passed" in shown
    assert "Traceback" not in shown + err


def test_a_library_that_cannot_be_imported_is_one_line_with_the_versions(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            raise ImportError(f"cannot import name {name!r}\nand more about it")

    monkeypatch.setitem(sys.modules, "v1lit.training.self_test", Gone("gone"))
    remarks = {"transformers": ("9.9", "newer than tested (5.24.0)")}
    monkeypatch.setattr("v1lit.cli.self_test.remarks", lambda: remarks)
    assert main(["doctor", "--self-test"]) == 1
    shown, err = capfd.readouterr()
    failed, versions = shown.splitlines()[1:]
    assert failed == "import FAILED ImportError: cannot import name 'self_test'"
    assert versions == "versions: transformers 9.9 is newer than tested (5.24.0)"
    assert err == ""


def test_what_libraries_say_is_counted_and_shown_with_debug(
    made: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    made(BROKEN, SOUND, noise="FutureWarning: old name\n")
    assert main(["doctor", "--self-test", "--device=cpu"]) == 1
    shown, err = capfd.readouterr()
    assert "old name" not in shown + err
    assert shown.endswith("; 1 warning; --debug shows them\n")
    assert main(["doctor", "--self-test", "--device=cpu", "--debug"]) == 1
    shown, err = capfd.readouterr()
    assert "2 x FutureWarning: old name" in shown
    assert "TypeError: no such argument" in err


def test_a_newer_version_is_named(
    made: Callable[..., None], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(SOUND)
    remarks = {"torch": ("9.9", "newer than tested (2.15.0)"), "numpy": ("2.4", "")}
    monkeypatch.setattr("v1lit.cli.self_test.remarks", lambda: remarks)
    assert main(["doctor", "--self-test", "--device=cpu"]) == 0
    assert "versions: torch 9.9 is newer than tested (2.15.0)\n" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--self-test", "--device=tpu"], "invalid choice: 'tpu'"),
        (["--self-test", "--trainer.max_steps=3"], "trainer.max_steps changes a recipe"),
        (["--self-test", "--packing=tiny_qwen"], "not allowed with"),
        (["--device=cpu"], "--device says where --self-test runs"),
    ],
)
def test_mistakes_are_told(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert len(err.splitlines()) <= 2
